"""python -m adapter_llm embed, index, search: what they print, what they write, and how they end."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import tiny_space as tiny

from adapter_llm import cli, commands_space
from adapter_llm.__main__ import main
from adapter_llm.processing import KEYWORDS
from adapter_llm.space import LOGIT_SCALE, classify
from adapter_llm.space.index import SpaceIndex

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch, weights, capsys):
    """Exit code, stdout and stderr of a command."""
    monkeypatch.setattr(cli, "quiet", lambda: None)  # it changes the process for good

    def call(*arguments, weights=weights):
        try:
            code = main([*map(str, arguments), "--weights", str(weights), "--device", "cpu"])
        except SystemExit as end:
            code = end.code
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


def test_embed(run, media, tmp_path):
    code, out, err = run("embed", media, "--output", tmp_path / "x.npz")
    assert (code, out) == (0, f"{tmp_path / 'x.npz'}\n")
    assert err == "files left out: 1 of unknown kind\n11 inputs: 11 encoded\n"
    with numpy.load(tmp_path / "x.npz") as arrays:
        assert arrays["embedding"].shape == (11, tiny.WIDTH)
        numpy.testing.assert_allclose(numpy.linalg.norm(arrays["embedding"], axis=1), 1, rtol=1e-5)
    code, _, err = run("embed", media, "--output", tmp_path / "x.npz")
    assert code == 0 and err.endswith("11 inputs: 0 encoded, 11 were there already\n")
    code, _, err = run("embed", media, "--output", tmp_path / "x.npz", "--no-resume")
    assert code == 0 and err.endswith("11 inputs: 11 encoded\n")


def test_embed_settings(run, media, tmp_path, embedder):
    output = tmp_path / "x.jsonl"
    code, *_ = run("embed", media / "a.wav", "--output", output, "--raw", "--tokens", "--window", 0.5, "--pool", "none",
                   "--batch-size", 1, "--hop", 0.3)  # fmt: skip
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert code == 0 and [(line["start"], line["end"]) for line in lines] == [(0, 0.5), (0.3, 0.8), (0.5, 1.0)]
    assert numpy.array(lines[0]["embedding"]).shape == (tiny.FEATURES, tiny.WIDTH)
    assert numpy.linalg.norm(lines[0]["embedding"], axis=1) == pytest.approx([20] * tiny.FEATURES, rel=1e-4)
    run("embed", media / "a.wav", "--output", output, "--raw")
    numbers = json.loads(output.read_text())["embedding"]
    assert numbers == pytest.approx(embedder.embed(normalized=False, audio=media / "a.wav").tolist(), abs=1e-4)
    run("embed", media / "a.wav", "--output", output, "--normalized")
    numbers = json.loads(output.read_text())["embedding"]
    assert numbers == pytest.approx(embedder.embed(audio=media / "a.wav").tolist(), abs=1e-5)


def test_errors_are_named_and_the_exit_code_tells(run, media, tmp_path):
    (media / "0.png").write_bytes(b"no picture")
    code, out, err = run("embed", media, tmp_path / "nowhere.png", "--output", tmp_path / "x.npz")
    assert (code, out) == (1, f"{tmp_path / 'x.npz'}\n")
    lines = err.splitlines()
    assert "nowhere.png" in lines[1] and "0.png" in lines[2]
    assert lines[3:] == ["12 inputs: 10 encoded, 2 could not be read"]
    code, out, err = run("embed", media, "--output", tmp_path / "y.npz", "--on-error", "fail")
    assert (code, out) == (1, "") and "with on-error fail nothing more is done" in err
    assert not (tmp_path / "y.npz").exists()


def test_paths_from_stdin(run, media, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{media / '0.png'}\n\n{media / 'deep'}\n"))
    code, _, err = run("embed", "-", media / "a.txt", "--output", tmp_path / "x.npz")
    assert code == 0 and "4 inputs: 4 encoded" in err
    with numpy.load(tmp_path / "x.npz") as arrays:
        assert [Path(path).name for path in arrays["path"]] == ["0.png", "b.jpg", "b.wav", "a.txt"]


def test_one_kind_for_all(run, tmp_path):
    tiny.points(tmp_path / "cloud.npy", 3)
    code, _, err = run("embed", tmp_path / "cloud.npy", "--output", tmp_path / "x.npz")
    assert code == 1 and "say it with --as image|video|audio" in err
    code, *_ = run("embed", tmp_path / "cloud.npy", "--output", tmp_path / "x.npz", "--as", "point")
    with numpy.load(tmp_path / "x.npz") as arrays:
        assert code == 0 and arrays["modality"].tolist() == ["point"]


@pytest.mark.parametrize("arguments, message", [
    (["embed", "{media}"], "the following arguments are required: --output"),
    (["embed", "{media}", "--output", "x.npz", "--as", "smell"], "invalid choice: 'smell'"),
    (["embed", "{media}", "--output", "x.npz", "--window", "0"], "'0' is not a number above 0"),
    (["embed", "{media}", "--output", "x.npz", "--raw", "--normalized"], "not allowed with argument"),
    (["search", "--image", "{media}/0.png"], "one of the arguments --index --labels is required"),
    (["search", "--index", "x", "--labels", "a", "b"], "not allowed with argument"),
    (["search", "--index", "x", "--image", "{media}/0.png:nan"], "it must be a number from 0 up"),
])  # fmt: skip
def test_wrong_use_is_one_line(run, media, arguments, message):
    code, out, err = run(*(argument.format(media=media) for argument in arguments))
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


@pytest.mark.parametrize("arguments, message", [
    (["embed", "{media}", "--output", "{media}/x.csv"], "x.csv ends in none of .jsonl, .npz, .parquet"),
    (["embed", "{media}", "--output", "{media}/notes.npz"], "notes.npz is there and was not written by this command"),
    (["index", "{media}", "--output", "{media}/0.png"], "0.png is there and was not written by this command"),
    (["embed", "{media}/notes.md", "--output", "{media}/y.npz"], "none of the 1 inputs can be read"),
    (["search", "--index", "{media}/none", "--image", "{media}/0.png"], "none cannot be read (No such file or dir"),
    (["search", "--index", "{media}/0.png", "--image", "{media}/0.png"], "0.png is cut off or no feature index"),
    (["search", "--labels", "a", "b", "--image", "missing.png"], "there is no file 'missing.png'; check the path"),
    (["search", "--labels", "a", "b"], "there is nothing to search with; give --image or --video"),
    (["search", "--labels", "a", "--image", "{media}/0.png"], "1 labels leave nothing to choose; give two or more"),
    (["search", "--labels", "a", "b", "a", "--image", "{media}/0.png"], "the label 'a' is there twice"),
    (["search", "--labels", "a", "b", "--thermal", "{media}/0.png"], "these weights take image, video, audio, text"),
    (["search", "--labels", "a", "b", "--image", "{media}/0.png:0"], "the inputs cancel each other out"),
])  # fmt: skip
def test_every_error_is_one_sentence(run, media, arguments, message):
    (media / "notes.npz").write_text("somebody's")
    code, out, err = run(*(argument.format(media=media) for argument in arguments))
    assert code == 1 and out == "" and message in err.splitlines()[-1]


@pytest.fixture
def index(run, media, tmp_path):
    code, out, _ = run("index", media, "--output", tmp_path / "all.index")
    assert (code, out) == (0, f"{tmp_path / 'all.index'}\n")
    return tmp_path / "all.index"


def test_search_prints_rank_score_and_path(run, index, media, embedder):
    code, out, _ = run("search", "--index", index, "--image", media / "0.png", "--top", 3)
    hits = SpaceIndex.open(index).search(embedder.embed(image=media / "0.png"), 3)
    assert code == 0 and out == "".join(f"{hit.rank}\t{hit.score:.3f}\t{hit.path}\n" for hit in hits)
    assert out.startswith(f"1\t1.000\t{media / '0.png'}\n")
    assert run("search", "--index", index, "--image", media / "0.png")[1].count("\n") == 5
    code, out, _ = run("search", "--index", index, "--audio", media / "a.wav", "--json", "--top", 11)
    found = json.loads(out)
    assert len(found) == 11 and set(found[0]) == {"rank", "score", "path", "modality", "start", "end"}
    assert (found[0]["path"], found[0]["modality"], found[0]["start"]) == (str(media / "a.wav"), "audio", None)


def test_search_with_words(run, index, media, embedder):
    found = SpaceIndex.open(index).search(embedder.embed(text="a dog on the grass"), 2)
    for words in ("a dog on the grass", media / "a.txt"):  # a file that is there is read
        code, out, _ = run("search", "--index", index, "--text", words, "--top", 2)
        assert code == 0 and out.splitlines() == [str(hit) for hit in found]
    assert out.startswith(f"1\t1.000\t{media / 'a.txt'}\n")


def test_search_with_a_sum(run, index, media, embedder):
    mixed = embedder.embed(image=[(media / "0.png", 2.0), (media / "1.png", 0.5)], text=("snow", -1.0))
    given = ["--image", f"{media / '0.png'}:2", "--image", f"{media / '1.png'}:0.5", "--text", "snow:-1"]
    code, out, _ = run("search", "--index", index, *given, "--json")
    expected = [hit.to_dict() for hit in SpaceIndex.open(index).search(mixed, 5)]
    assert code == 0 and json.loads(out) == expected


def test_search_for_one_kind(run, index, media):
    code, out, _ = run("search", "--index", index, "--image", media / "0.png", "--only", "audio")
    assert code == 0 and sorted(line.rpartition("/")[2] for line in out.splitlines()) == ["a.wav", "b.wav"]
    assert run("search", "--index", index, "--image", media / "0.png", "--only", "thermal")[:2] == (
        0, "nothing of that kind is in the index\n"
    )  # fmt: skip


def test_search_with_other_weights(run, index, media, tmp_path):
    other = tiny.save_encoder(tmp_path / "other", seed=8)
    code, _, err = run("search", "--index", index, "--image", media / "0.png", weights=other)
    assert code == 1 and "the index was made with another encoder than that of these weights" in err


def test_labels(run, media, embedder, tmp_path):
    labels = ["a dog", "a cat", "a car"]
    vectors = embedder.embed_texts(labels)
    assert embedder.logit_scale == pytest.approx(LOGIT_SCALE)
    expected = classify(embedder.embed(image=media / "0.png"), vectors, embedder.logit_scale).tolist()
    code, out, _ = run("search", "--image", media / "0.png", "--labels", *labels)
    wanted = sorted(zip(expected, labels, strict=True), reverse=True)
    assert code == 0 and out == "".join(f"{chance:.3f}\t{label}\n" for chance, label in wanted)
    (tmp_path / "labels.txt").write_text("a dog\n\n  a cat\na car\n", encoding="utf-8")
    assert run("search", "--image", media / "0.png", "--labels", tmp_path / "labels.txt")[1] == out
    code, out, _ = run("search", "--image", media / "0.png", "--labels", *labels, "--json", "--top", 2, "--scale", 3)
    found = json.loads(out)
    sharp = dict(zip(labels, classify(embedder.embed(image=media / "0.png"), vectors, 3.0).tolist(), strict=True))
    assert [entry["label"] for entry in found] == [label for _, label in wanted][:2]
    assert found[0]["probability"] == pytest.approx(sharp[found[0]["label"]])
    code, _, err = run("search", "--image", media / "0.png", "--labels", media / "1.png")
    assert code == 1 and "1.png is no text in UTF-8; write one label a line" in err


def test_labels_need_a_text_trunk(run, media, tmp_path):
    config = tiny.encoder_config()
    trunks = {name: trunk for name, trunk in config.trunks.items() if name != "text"}
    blind = tiny.save_encoder(tmp_path / "blind", config=tiny.encoder_config(trunks=trunks))
    code, _, err = run("search", "--image", media / "0.png", "--labels", "a", "b", weights=blind)
    assert code == 1 and "these weights take image, video, audio, depth, imu, point, not text" in err


@pytest.mark.parametrize("argument, expected", [
    ("a.png", ("a.png", 1.0)), ("a.png:2", ("a.png", 2.0)), ("a.png:-0.5", ("a.png", -0.5)),
    ("a.png:-", ("a.png:-", 1.0)), ("http://host/a.png:-2", ("http://host/a.png", -2.0)),
    ("snow:-1e-1", ("snow", -0.1)), ("16:-9", ("16", -9.0)), ("C:-3", ("C:-3", 1.0)),
])  # fmt: skip
def test_weights_may_be_negative(argument, expected):
    assert commands_space.signed_media(argument) == expected


def test_the_keywords_are_those_of_the_pipeline():
    assert commands_space.KEYWORDS is KEYWORDS


def test_help_loads_nothing_heavy_and_work_loads_no_language_model(weights, tmp_path):
    tiny.image(tmp_path / "a.png", 1)
    arguments = ["embed", str(tmp_path / "a.png"), "--output", str(tmp_path / "x.npz"), "--weights", str(weights)]
    script = f"""
import sys
from adapter_llm.__main__ import main
try:
    main(["search", "--help"])
except SystemExit as end:
    assert end.code == 0
assert not {{"torch", "numpy", "PIL"}} & set(sys.modules)
assert main({arguments}) == 0
assert not {{"transformers", "accelerate", "timm", "pyarrow"}} & set(sys.modules), "more than an encoder"
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_killed_for_good_and_run_again(weights, tmp_path):
    """A real process, really killed, several times; every input is there once, and none was encoded twice."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(300):
        tiny.image(photos / f"{number:03}.png", number, (400, 300))
    output = tmp_path / "x.npz"
    command = [sys.executable, "-m", "adapter_llm", "embed", str(photos), "--output", str(output), "--weights",
               str(weights), "--device", "cpu", "--batch-size", "2"]  # fmt: skip
    journal, lines = tmp_path / "x.npz.journal", 0
    for more in (20, 90):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            if journal.exists() and journal.read_bytes().count(b"\n") > more:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        assert process.wait(60) == -signal.SIGKILL and not output.exists()
        assert journal.read_bytes().count(b"\n") > max(more, lines)
        lines = journal.read_bytes().count(b"\n")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stderr == f"300 inputs: {301 - lines} encoded, {lines - 1} were there already\n"
    with numpy.load(output) as arrays:
        assert [Path(path).name for path in arrays["path"]] == [f"{number:03}.png" for number in range(300)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "x.npz"]
