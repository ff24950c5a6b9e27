"""The engine of every conversion: nothing half-written under the output's name, and nothing done twice."""

import errno
import io
import os
import sys

import pytest
import torch
from small_conversion import TOTAL, TWO, check, convert, fill, names, specs

from adapter_llm.convert import folder as engine
from adapter_llm.convert import partial
from adapter_llm.convert.errors import ConversionError
from adapter_llm.convert.folder import job_of, output_file, output_folder, refuse_inside


def test_a_folder_appears_when_it_is_whole(tmp_path):
    with output_folder(tmp_path / "new" / "out", "job", TOTAL) as folder:
        fill(folder)
        assert folder.path == tmp_path / "new" / "out.partial"
        assert folder.names() == ["config.json", "one.safetensors", "two.pth", "bytes"]
        assert not (tmp_path / "new" / "out").exists()
    check(tmp_path / "new" / "out")
    assert names(tmp_path / "new") == ["out"]


def test_an_empty_folder_may_be_there(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    convert("out")
    check(tmp_path / "out")


def test_files_of_others_are_kept(tmp_path):
    """What other libraries write into the folder is part of it."""
    with output_folder(tmp_path / "out", "job", 0) as folder:
        (folder.path / "tokenizer.json").write_text("{}")
    assert names(tmp_path / "out") == ["tokenizer.json"]


@pytest.mark.parametrize("stop, again", [("a", "abcd"), ("b", "abcd"), ("c", "cd"), ("d", "cd")])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(errno.EIO, "I/O error", "disk")])
def test_the_same_command_goes_on(tmp_path, capsys, stop, again, error):
    """Finished files are not read again."""
    with pytest.raises(ConversionError if isinstance(error, OSError) else error):
        convert(tmp_path / "out", stop=stop, error=error)
    assert names(tmp_path) == ["out.partial"]
    assert "going on" not in capsys.readouterr().err
    seen = []
    convert(tmp_path / "out", seen=seen)
    check(tmp_path / "out")
    assert "".join(sorted(seen)) == again
    assert f"going on with {tmp_path / 'out'} where it was stopped" in capsys.readouterr().err
    assert names(tmp_path) == ["out"]


def test_names_of_files_of_an_earlier_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "out", stop="d")
    with output_folder(tmp_path / "out", "job", TOTAL) as folder:
        assert folder.names() == []
        fill(folder)
        assert folder.names() == ["config.json", "one.safetensors", "two.pth", "bytes"]


def test_another_job_begins_again(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "out", stop="d")
    (tmp_path / "out.partial" / "stray").write_text("of the other job")
    seen = []
    convert(tmp_path / "out", job="other", seen=seen)
    assert sorted(seen) == ["a", "b", "c", "d"]
    check(tmp_path / "out")
    assert "out.partial belongs to another conversion, or its source has changed since: beginning again" in (
        capsys.readouterr().err
    )


def test_wrong_input_leaves_nothing(tmp_path):
    """It would end the same way again."""
    with pytest.raises(ValueError, match="a was to be"):
        convert(tmp_path / "out", stop="b", error=ValueError("a was to be"))
    assert names(tmp_path) == []


def test_other_libraries_errors_pass(tmp_path):
    """They raise OSErrors of their own making, which are about no file."""
    with pytest.raises(OSError, match="Can't load tokenizer"):
        convert(tmp_path / "out", stop="b", error=OSError("Can't load tokenizer"))


def test_a_single_file(tmp_path):
    with output_file(tmp_path / "new" / "7B.pth", "job", TOTAL) as file:
        file.pth(specs(TWO), TWO.get, "model", {"config": {"x": 1}})
        assert file.path.name == "7B.pth" and file.path.is_relative_to(tmp_path / "new" / "7B.pth.partial")
        assert not (tmp_path / "new" / "7B.pth").exists()
    found = torch.load(tmp_path / "new" / "7B.pth", weights_only=True)
    assert found["config"] == {"x": 1} and list(found["model"]) == ["c", "d"]
    assert names(tmp_path / "new") == ["7B.pth"]


def test_a_single_file_goes_on(tmp_path):
    def read(name):
        if name == "d" and seen is None:
            raise KeyboardInterrupt
        if seen is not None:
            seen.append(name)
        return TWO[name]

    seen = None
    with pytest.raises(KeyboardInterrupt), output_file(tmp_path / "x.pth", "job", TOTAL) as file:
        file.pth(specs(TWO), read)
    seen = []
    with output_file(tmp_path / "x.pth", "job", TOTAL) as file:
        file.pth(specs(TWO), read)
    assert list(torch.load(tmp_path / "x.pth", weights_only=True)) == ["c", "d"]
    assert names(tmp_path) == ["x.pth"]


def test_links(tmp_path, monkeypatch):
    source = tmp_path / "encoder.safetensors"
    source.write_bytes(b"weights")
    (tmp_path / "link").symlink_to(source)
    with output_folder(tmp_path / "one", "job", 0) as folder:
        folder.link("encoder.safetensors", tmp_path / "link")
        assert folder.names() == ["encoder.safetensors"]

    def refuse(*args):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(engine.os, "link", refuse)
    with output_folder(tmp_path / "two", "job", 0) as folder:
        folder.link("encoder.safetensors", source)
    made = [tmp_path / name / "encoder.safetensors" for name in ("one", "two")]
    assert [path.read_bytes() for path in made] == [b"weights"] * 2
    assert [path.samefile(source) for path in made] == [True, False]
    assert not made[0].is_symlink()


def test_links_of_an_earlier_run(tmp_path, monkeypatch):
    """A copy is not made twice; a link that was made and not yet named is no obstacle."""
    source = tmp_path / "encoder.safetensors"
    source.write_bytes(b"weights")

    def stopped():
        with output_folder(tmp_path / "out", "job", 0) as folder:
            folder.link("one", source)
            os.link(source, folder.path / "two.part")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    with output_folder(tmp_path / "out", "job", 0) as folder:
        with monkeypatch.context() as patch:
            patch.setattr(engine.os, "link", None)
            folder.link("one", source)
        folder.link("two", source)
        assert folder.names() == ["one", "two"]
    assert [(tmp_path / "out" / name).read_bytes() for name in ("one", "two")] == [b"weights"] * 2


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, sync = [], engine.sync

    def noted(*paths):
        synced.append({path.name for path in paths})
        sync(*paths)

    monkeypatch.setattr(engine, "sync", noted)
    convert(tmp_path / "out")
    inside = {"bytes", "config.json", "one.safetensors", "two.pth", ".conversion", "out.partial"}
    assert synced == [inside, {"out", tmp_path.name}]


def test_a_folder_that_is_being_removed_is_known_until_the_last(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "out", stop="d")
    unlink, iterdir = type(tmp_path).unlink, type(tmp_path).iterdir

    def stopping(self, **options):
        if self.name == "config.json":
            raise KeyboardInterrupt
        unlink(self, **options)

    monkeypatch.setattr(type(tmp_path), "unlink", stopping)
    monkeypatch.setattr(type(tmp_path), "iterdir", lambda self: iter(sorted(iterdir(self))))
    with pytest.raises(KeyboardInterrupt):
        partial.discard(tmp_path / "out.partial")
    monkeypatch.undo()
    assert (tmp_path / "out.partial" / ".conversion").is_file()
    convert(tmp_path / "out", job="other")
    check(tmp_path / "out")


def test_the_bar_shows_bytes_on_terminals_only(tmp_path, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    convert(tmp_path / "quiet")
    assert capsys.readouterr().err == ""
    for name, progress in (("off", False), ("on", True)):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with output_folder(tmp_path / name, "job", TOTAL, progress) as folder:
            fill(folder)
            assert folder.bar.n == (TOTAL if progress else 0)
        assert ("B/s" in terminal.getvalue() and "on:" in terminal.getvalue()) == progress


def test_a_resumed_bar_counts_what_is_there(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "out", stop="c")
    told = []
    with output_folder(tmp_path / "out", "job", TOTAL) as folder:
        object.__setattr__(folder, "bar", type("Bar", (), {"update": staticmethod(told.append)}))
        fill(folder)
    assert sum(told) == TOTAL


def test_jobs(tmp_path):
    """A job is its sources, as they are now, and its settings."""
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for path in (folder / "a", folder / "deep" / "b", tmp_path / "file"):
        path.write_text("x")
    first = job_of(folder, tmp_path / "file", heads=16)
    assert job_of(folder, tmp_path / "file", heads=16) == first
    assert job_of(tmp_path / "folder" / ".." / "folder", tmp_path / "file", heads=16) == first
    assert len({first, job_of(folder, tmp_path / "file", heads=8), job_of(folder, heads=16), job_of(folder)}) == 4
    (folder / "out.partial").mkdir()
    (folder / "out.partial" / "half").write_text("x")
    (folder / "out.partial.lock").write_text("")
    assert job_of(folder, tmp_path / "file", heads=16) == first
    os.utime(folder / "deep" / "b", ns=(1, 1))
    second = job_of(folder, tmp_path / "file", heads=16)
    (folder / "deep" / "c").write_text("x")
    assert len({first, second, job_of(folder, tmp_path / "file", heads=16)}) == 3
    with pytest.raises(FileNotFoundError):
        job_of(tmp_path / "none")


def test_output_within_a_source(tmp_path):
    refuse_inside(tmp_path / "out", tmp_path / "source", tmp_path / "out2")
    for output in (tmp_path / "source" / "x" / ".." / "out", tmp_path / "source"):
        with pytest.raises(ConversionError, match="is inside of .*source, which is read; give an --output elsewhere"):
            refuse_inside(output, tmp_path / "other", tmp_path / "source")
