"""Many files to one output: each exactly once, whatever happens on the way."""

import json
import os
import shutil
from pathlib import Path

import numpy
import pytest
import tiny_space as tiny
import torch

from adapter_llm.processing import InputOptions
from adapter_llm.sounds import read_sounds
from adapter_llm.space import encode_files as encoding
from adapter_llm.space import job
from adapter_llm.space.embedder import Embedder
from adapter_llm.space.files import find_media
from adapter_llm.space.formats import format_of
from adapter_llm.space.job import EmbedOptions, run_job
from adapter_llm.space.records import OutputError
from adapter_llm.space.spans import NotingOptions

CPU = dict(device="cpu", batch_size=2)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.npz"


@pytest.fixture
def read(monkeypatch):
    """Names of the files that the loaders were asked for, in the order of the answers."""
    names = []
    original = Embedder.load

    def load(self, keyword, source, options=InputOptions()):
        names.append(source.name)
        return original(self, keyword, source, options)

    monkeypatch.setattr(Embedder, "load", load)
    return names


def run(encoder, given, output, forced=None, **options):
    given = [str(entry) for entry in (given if isinstance(given, list) else [given])]
    found = find_media(given, tiny.KINDS, forced)
    return run_job(encoder, found, output, format_of(output), EmbedOptions(**{**CPU, **options}))


def rows(output):
    """Vectors by id."""
    with numpy.load(output) as arrays:
        return dict(zip(arrays["ids"].tolist(), torch.from_numpy(arrays["embedding"]), strict=True))


class Killed(BaseException):
    """What no code catches."""


def killed_after(monkeypatch, count):
    """A process that ends behind so many records."""
    original, added = job.Journal.add, []

    def add(self, record):
        original(self, record)
        added.append(record.file.path)
        if len(added) == count:
            raise Killed

    monkeypatch.setattr(job.Journal, "add", add)
    return added


def test_every_file_becomes_the_vector_that_embed_gives(folder, embedder, media, output):
    outcome = run(folder, media, output)
    assert (outcome.encoded, outcome.kept, outcome.failed) == (11, 0, 0)
    found = rows(output)
    files = find_media([str(media)], tiny.KINDS).files
    assert list(found) == [file.path for file in files]  # in their order, each once
    for file in files:
        expected = embedder.embed(**{file.keyword: media / file.path})
        torch.testing.assert_close(found[file.path], expected, rtol=1e-4, atol=1e-5)
    vectors = torch.stack(list(found.values()))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(11))
    assert (vectors @ vectors.T - torch.eye(11)).max() < 0.9999  # no two files are one
    assert sorted(path.name for path in output.parent.iterdir()) == ["media", "out.npz"]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_change_nothing(embedder, media, tmp_path, batch_size):
    run(embedder, media, tmp_path / "a.npz", batch_size=2)
    run(embedder, media, tmp_path / "b.npz", batch_size=batch_size)
    one, other = rows(tmp_path / "a.npz"), rows(tmp_path / "b.npz")
    assert list(one) == list(other)
    torch.testing.assert_close(torch.stack(list(one.values())), torch.stack(list(other.values())), rtol=1e-4, atol=1e-5)


def test_alike_files_are_encoded_together(embedder, tmp_path, output, monkeypatch):
    (tmp_path / "photos").mkdir()
    for number in range(7):
        tiny.image(tmp_path / "photos" / f"{number}.png", number)
    sizes, original = [], Embedder.encode
    monkeypatch.setattr(Embedder, "encode", lambda self, items: sizes.append(len(items)) or original(self, items))
    run(embedder, tmp_path / "photos", output, batch_size=3)
    assert sizes == [3, 3, 1]


def test_files_of_many_shapes_do_not_pile_up(embedder, tmp_path, output, monkeypatch, read):
    (tmp_path / "clouds").mkdir()
    for number in range(30):
        tiny.points(tmp_path / "clouds" / f"{number}.npy", number, 20 + number)
    encoded, waiting, original = [], [], Embedder.encode

    def encode(self, items):
        waiting.append(len(read) - len(encoded))
        encoded.extend(items)
        return original(self, items)

    monkeypatch.setattr(Embedder, "encode", encode)
    outcome = run(embedder, tmp_path / "clouds", output, "point", batch_size=2)
    assert outcome.encoded == len(read) == 30
    assert max(waiting) <= encoding.WAITING * 2 + 4  # those that wait, and those that are read ahead


@pytest.mark.parametrize("count", range(1, 12))
def test_a_killed_job_goes_on_where_it_was(embedder, media, output, count, monkeypatch, read):
    with monkeypatch.context() as patch:
        finished = killed_after(patch, count)
        with pytest.raises(Killed):
            run(embedder, media, output)
    assert not output.exists()
    read.clear()
    outcome = run(embedder, media, output)
    assert (outcome.encoded, outcome.kept) == (11 - count, count)
    done = {os.path.basename(path) for path in finished}
    assert len(read) == 11 - count and sorted({*read} | done) == sorted({p.name for p in media.rglob("*.*")} - {
        "notes.md", ".hidden.png"
    })  # fmt: skip
    assert list(rows(output)) == [file.path for file in find_media([str(media)], tiny.KINDS).files]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_while_the_output_is_written(embedder, media, output, moment, monkeypatch, read):
    original = os.replace

    def replace(source, target):
        if moment == "after" and str(target).endswith(".npz"):
            original(source, target)
        if str(target).endswith(".npz"):
            raise Killed
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            run(embedder, media, output)
    assert output.exists() == (moment == "after")
    read.clear()
    assert run(embedder, media, output).kept == 11
    assert not read and len(rows(output)) == 11
    assert sorted(path.name for path in output.parent.iterdir()) == ["media", "out.npz"]


def test_a_finished_output_is_left_as_it_is(folder, media, output, monkeypatch, read):
    run(folder, media, output)
    before, time = output.read_bytes(), output.stat().st_mtime_ns
    read.clear()
    monkeypatch.setattr(type(folder), "load", None)  # nor are weights loaded
    outcome = run(folder, media, output)
    assert (outcome.encoded, outcome.kept) == (0, 11) and not read
    assert (output.read_bytes(), output.stat().st_mtime_ns) == (before, time)
    assert str(outcome) == "11 inputs: 0 encoded, 11 were there already"


@pytest.mark.parametrize("suffix", ["npz", "jsonl", "parquet", "index"])
def test_new_changed_and_removed_files(embedder, media, tmp_path, suffix, read):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / f"out.{suffix}"
    form = job_form(output)
    run_with(embedder, media, output, form)
    first = {record.file.path: record for record in form.read(output)[1]}
    read.clear()
    tiny.image(media / "new.png", 77)
    tiny.image(media / "1.png", 78)
    (media / "2.png").unlink()
    outcome = run_with(embedder, media, output, form)
    assert sorted(read) == ["1.png", "new.png"] and (outcome.encoded, outcome.kept) == (2, 9)
    second = {record.file.path: record for record in form.read(output)[1]}
    assert list(second) == [file.path for file in find_media([str(media)], tiny.KINDS).files]
    for path, record in second.items():
        if path.endswith(("1.png", "new.png")):
            assert path not in first or not numpy.array_equal(record.vectors, first[path].vectors)
        else:
            numpy.testing.assert_array_equal(record.vectors, first[path].vectors)
    assert not list(tmp_path.glob("*journal*"))


def job_form(output):
    from adapter_llm.space.index import IndexFile

    return IndexFile("abc") if output.suffix == ".index" else format_of(output)


def run_with(encoder, media, output, form):
    found = find_media([str(media)], tiny.KINDS)
    return run_job(encoder, found, output, form, EmbedOptions(**CPU, tokens=output.suffix == ".index"))


def test_a_touched_file_is_done_again(embedder, media, output, read):
    run(embedder, media, output)
    read.clear()
    os.utime(media / "3.png", ns=(1, 1))
    assert run(embedder, media, output).encoded == 1 and read == ["3.png"]


@pytest.mark.parametrize("change", [
    dict(normalized=False), dict(tokens=True), dict(inputs=InputOptions(window=0.5)),
    dict(inputs=InputOptions(window=0.5, pool="max")), dict(resume=False),
])  # fmt: skip
def test_other_settings_are_another_job(embedder, media, output, change, read):
    run(embedder, media, output)
    read.clear()
    assert run(embedder, media, output, **change).kept == 0
    assert len(read) == 11


def test_other_weights_are_another_job(folder, media, output, tmp_path, read):
    run(folder, media, output)
    other = type(folder).find(tiny.save_encoder(tmp_path / "other", seed=4))
    assert other.fingerprint != folder.fingerprint
    read.clear()
    assert run(other, media, output).kept == 0 and len(read) == 11


def test_weights_that_nobody_can_tell_apart_are_not_gone_on_from(embedder, media, output):
    nameless = Embedder(embedder.encoder, embedder.config)
    run(nameless, media, output)
    assert run(nameless, media, output).kept == 0


def test_only_the_trunks_that_are_needed_are_loaded(folder, media, output, monkeypatch):
    asked = []
    original = type(folder).load

    def load(self, device, dtype, kinds):
        asked.append(kinds)
        return original(self, device, dtype, kinds)

    monkeypatch.setattr(type(folder), "load", load)
    run(folder, [media / "a.wav", media / "0.png"], output)
    assert asked == [{"audio", "vision"}]


def test_bad_files_are_named_and_the_others_go_on(embedder, media, output, capsys):
    (media / "0.png").write_bytes(b"no picture")
    (media / "a.wav").write_bytes(b"")
    (media / "a.txt").write_bytes(b"\xff\xfe\xfa")
    outcome = run(embedder, [media, media / "missing.png"], output)
    assert (outcome.encoded, outcome.failed) == (8, 4)
    assert str(outcome) == "12 inputs: 8 encoded, 4 could not be read"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith("left out: ") for line in lines)
    for name in ("0.png", "a.wav", "a.txt", "missing.png"):
        assert any(name in line for line in lines)
    assert len(rows(output)) == 8
    tiny.image(media / "0.png", 3)  # repaired: it is done, and the others are tried again
    outcome = run(embedder, media, output)
    assert (outcome.encoded, outcome.kept, outcome.failed) == (1, 8, 2)


def test_the_first_bad_file_can_end_it(embedder, media, output):
    (media / "2.png").write_bytes(b"no picture")
    with pytest.raises(OutputError, match="2.png.* is not a picture.*; with on-error fail nothing more is done"):
        run(embedder, media, output, on_error="fail", batch_size=1)
    assert not output.exists()
    tiny.image(media / "2.png", 2)
    assert run(embedder, media, output, on_error="fail").kept == 2  # what came before it
    with pytest.raises(OutputError, match="there is no file or folder .*; with on-error fail"):
        run(embedder, [media, "missing.png"], output, on_error="fail")


def test_a_file_that_spoils_a_batch_is_found(embedder, media, output, monkeypatch, capsys):
    original = encoding.Embedder.encode

    def encode(self, items):
        if any(item.modality == "vision" and item.tensor.ndim == 3 and item.tensor.mean() == marked for item in items):
            raise ValueError("its features are not finite numbers; look at its content")
        return original(self, items)

    marked = embedder.load("image", media / "3.png").tensor.mean()
    monkeypatch.setattr(Embedder, "encode", encode)
    outcome = run(embedder, media, output, batch_size=8)
    assert (outcome.encoded, outcome.failed) == (10, 1)
    assert capsys.readouterr().err == (
        f"left out: {str(media / '3.png')!r}: its features are not finite numbers; look at its content\n"
    )


def test_features_that_are_not_finite_are_an_error(embedder):
    item = embedder.load("image", tiny_image())
    item.tensor.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        embedder.encode([item])


def tiny_image():
    from PIL import Image

    return Image.new("RGB", (30, 30), "red")


def test_nothing_readable_writes_nothing(embedder, media, output):
    with pytest.raises(OutputError, match="none of the 1 inputs can be read, so .*out.npz is not written"):
        run(embedder, ["missing.png"], output)
    with pytest.raises(OutputError, match="there is nothing to encode; give files, or folders"):
        run(embedder, [str(media / "*.md")], output)
    assert [path.name for path in output.parent.iterdir()] == ["media"]


def test_a_strange_output_is_left_alone(folder, media, output, monkeypatch):
    monkeypatch.setattr(type(folder), "load", None)  # known before weights are loaded
    output.write_text("mine")
    for resume in (True, False):
        with pytest.raises(OutputError, match="is there and was not written by this command"):
            run(folder, media, output, resume=resume)
    assert output.read_text() == "mine"
    output.unlink()
    output.mkdir()
    with pytest.raises(OutputError, match="was not written by this command"):
        run(folder, media, output)


def test_a_damaged_output_is_one_sentence(embedder, media, tmp_path):
    output = tmp_path / "out.jsonl"
    run(embedder, media, output)
    text = output.read_text()
    output.write_text(text[: len(text) * 2 // 3])
    with pytest.raises(OutputError, match=r"out.jsonl is damaged; remove it, or give another --output"):
        run(embedder, media, output)
    assert run(embedder, media, output, resume=False).encoded == 11


def test_windows_that_are_kept_apart(embedder, media, output):
    options = InputOptions(window=0.5, hop=0.25, pool="none")
    run(embedder, [media / "a.wav", media / "0.png", media / "a.csv", media / "a.mp4"], output, inputs=options)
    found = rows(output)
    sound = [f"{media / 'a.wav'}#t={start:g},{start + 0.5:g}" for start in (0, 0.25, 0.5)]
    assert list(found)[:4] == [*sound, str(media / "0.png")]
    assert sum("a.csv" in name for name in found) == 19 and sum("a.mp4" in name for name in found) == 3
    with numpy.load(output) as arrays:
        assert arrays["start"][:3].tolist() == [0, 0.25, 0.5] and numpy.isnan(arrays["start"][3])
        assert arrays["end"][:3].tolist() == [0.5, 0.75, 1.0]
    plain = rows_of_windows(embedder, media / "a.wav", options)
    torch.testing.assert_close(torch.stack([found[name] for name in sound]), plain)
    assert (plain[0] - plain[1]).abs().max() > 1e-3


def test_windows_note_where_they_are():
    windows = NotingOptions.of(InputOptions(window=2.0, hop=1.5, pool="none")).windows(9.0)
    for _ in range(2):  # whoever asks twice
        assert list(windows.starts(4.0)) == [0.0, 1.5, 2.0]
        assert windows.noted == [(0.0, 2.0), (1.5, 3.5), (2.0, 4.0)]
    assert list(windows.starts(1.25)) == [0.0] and windows.noted == [(0.0, 1.25)]
    assert NotingOptions.of(InputOptions()).windows(9.0) is None


def rows_of_windows(embedder, path, options):
    from adapter_llm.space import vector_of

    return vector_of(embedder.encode([embedder.load("audio", path, options)])[0])


def test_pooled_windows_are_one_row(embedder, media, output):
    for pool in ("mean", "max"):
        options = InputOptions(window=0.5, pool=pool)
        run(embedder, [media / "deep" / "b.wav", media / "a.csv"], output, inputs=options)
        found = rows(output)
        assert len(found) == 2
        expected = embedder.embed(window=0.5, pool=pool, audio=media / "deep" / "b.wav")
        torch.testing.assert_close(found[str(media / "deep" / "b.wav")], expected, rtol=1e-4, atol=1e-5)


def test_raw_vectors_have_the_logit_scale(embedder, media, output):
    run(embedder, media, output, normalized=False)
    found = rows(output)
    for name, keyword in (("a.wav", "audio"), ("a.txt", "text"), ("0.png", "image")):
        expected = embedder.embed(normalized=False, **{keyword: media / name})
        torch.testing.assert_close(found[str(media / name)], expected, rtol=1e-4, atol=1e-4)
    assert found[str(media / "a.wav")].norm() > 5 and found[str(media / "0.png")].norm() <= 1


def test_all_class_tokens(embedder, media, output):
    run(embedder, media, output, tokens=True)
    found = rows(output)
    expected = embedder.encode([embedder.load("image", media / "0.png")])[0][0]
    torch.testing.assert_close(found[str(media / "0.png")], expected)
    assert found[str(media / "a.wav")].shape == (tiny.FEATURES, tiny.WIDTH)
    torch.testing.assert_close(found[str(media / "a.wav")].norm(dim=-1), torch.ones(tiny.FEATURES))


def test_kinds_with_other_numbers_of_tokens_do_not_go_into_one_array(folder, media, output, tmp_path, monkeypatch):
    from PIL import Image

    Image.fromarray(numpy.arange(900, dtype=numpy.uint16).reshape(30, 30) + 500).save(tmp_path / "depth.png")
    found = find_media([str(tmp_path / "depth.png")], tiny.KINDS, "depth")
    found.files += find_media([str(media / "0.png")], tiny.KINDS).files
    with pytest.raises(OutputError, match="these inputs have 3 and 4 class tokens"):
        run_job(folder, found, output, format_of(output), EmbedOptions(**CPU, tokens=True))
    lines = tmp_path / "out.jsonl"
    run_job(folder, found, lines, format_of(lines), EmbedOptions(**CPU, tokens=True))
    lengths = [len(json.loads(line)["embedding"]) for line in lines.read_text().splitlines()]
    assert lengths == [4, 3]


def test_bfloat16_is_near(folder, media, tmp_path):
    run(folder, media, tmp_path / "a.npz")
    assert run(folder, media, tmp_path / "a.npz", dtype="bfloat16").kept == 0
    run(folder, media, tmp_path / "b.npz")
    one, other = (torch.stack(list(rows(tmp_path / name).values())) for name in ("a.npz", "b.npz"))
    assert 1e-4 < (one - other).abs().max() < 0.1
    with pytest.raises(ValueError, match="the dtype is 'float16'; an encoder runs in float32 or bfloat16"):
        folder.load("cpu", "float16")


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        EmbedOptions(batch_size=0)
    with pytest.raises(ValueError, match="on_error must be skip or fail"):
        EmbedOptions(on_error="ignore")


def test_an_encoder_whose_files_are_not_those_of_its_manifest(media, output, weights, tmp_path):
    copy = shutil.copytree(weights, tmp_path / "weights")
    with (copy / "encoder.safetensors").open("ab") as file:
        file.write(b"x")
    from adapter_llm.sources import CheckpointError
    from adapter_llm.space.embedder import EncoderFolder

    with pytest.raises(CheckpointError, match=r"encoder.safetensors has \d+ bytes instead of"):
        run(EncoderFolder.find(copy), media, output)


def test_files_are_never_taken_for_addresses(embedder, media, tmp_path, monkeypatch, capsys):
    """Paths that begin as URLs and data: URIs do, once "./" is dropped, are still those of files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("imagebind_encoder.media.source.fetch_url", lambda url, limits: pytest.fail(f"fetched {url}"))
    place = tmp_path / "http:" / "127.0.0.1:9"
    place.mkdir(parents=True)
    shutil.copy(media / "0.png", place / "x.png")
    (place / "bad.png").write_bytes(b"no picture")
    shutil.copy(media / "a.txt", tmp_path / "data:,hello.txt")
    run(embedder, ["./http:", "http:/127.0.0.1:9/x.png", "data:,hello.txt"], Path("out.npz"))
    found = rows("out.npz")
    assert list(found) == ["./http:/127.0.0.1:9/x.png", "data:,hello.txt"]
    torch.testing.assert_close(found["data:,hello.txt"], embedder.embed(text=media / "a.txt"))
    torch.testing.assert_close(found["./http:/127.0.0.1:9/x.png"], embedder.embed(image=media / "0.png"))
    error = capsys.readouterr().err
    assert "left out: './http:/127.0.0.1:9/bad.png'" in error and str(tmp_path) not in error


def test_recordings_of_a_folder_are_never_taken_for_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes.csv").write_text("name,synonyms,caption\nbell,,it rings\n")
    (tmp_path / "clips.csv").write_text("class,path,group,split\nbell,http:/host/a.wav,x,train\n")
    _, [clip] = read_sounds(Path())
    assert clip.path == tmp_path / "http:" / "host" / "a.wav"
