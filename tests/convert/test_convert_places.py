"""Places that cannot be written to, are taken, or get full: a sentence, and nobody's files are touched."""

import errno
import os
import shutil

import pytest
import torch
from filelock import FileLock
from small_conversion import TWO, check, convert, names, specs

from adapter_llm.convert import partial
from adapter_llm.convert.errors import ConversionError
from adapter_llm.convert.folder import output_file, output_folder


@pytest.mark.parametrize("kind", [output_folder, output_file])
def test_what_is_there_is_never_touched(tmp_path, kind):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for name, message in (
        ("file", "file is there already; remove it, or give another --output"),
        ("full", "full is (not empty; empty it|a folder; give --output the name of a file)"),
        ("x", "x.partial is in the way and is no unfinished conversion; move it"),
    ):
        with pytest.raises(ConversionError, match=message), kind(tmp_path / name, "job", 1):
            raise AssertionError("no work is begun")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_cannot_become_a_folder(tmp_path):
    with pytest.raises(ConversionError, match="is a folder; give --output the name of a file"):
        output_file(tmp_path, "job", 1).__enter__()


@pytest.mark.parametrize("kind", [output_folder, output_file])
def test_room_is_looked_for_first(tmp_path, kind):
    free = shutil.disk_usage(tmp_path).free
    with (
        pytest.raises(ConversionError, match=r"out needs [\d.]+ GB more and the disk has [\d.]+ [GM]B free; make room"),
        kind(tmp_path / "out", "job", 2 * free + 10**10),
    ):
        raise AssertionError("no work is begun")
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["tensors", "pth"])
def test_room_for_what_is_left_is_enough(tmp_path, monkeypatch, kind):
    """What an earlier run wrote needs none, nor do links; it stays where there is too little for the rest."""
    big = {"a": torch.zeros(50_000), "b": torch.zeros(50_000)}
    encoder = tmp_path / "encoder"
    encoder.write_bytes(bytes(300_000))
    total = sum(spec.nbytes for spec in specs(big).values())

    def read(name):
        if name == "b" and stop:
            raise KeyboardInterrupt
        return big[name]

    def work():
        with output_folder(tmp_path / "out", "job", total) as folder:
            folder.link("encoder", encoder)
            getattr(folder, kind)("x", specs(big), read)

    stop = True
    with pytest.raises(KeyboardInterrupt):
        work()
    usage = shutil.disk_usage(tmp_path)
    stop = False
    monkeypatch.setattr(partial.shutil, "disk_usage", lambda path: usage._replace(free=total // 3))
    with pytest.raises(ConversionError, match=r"needs 0.2 MB more and the disk has 0.1 MB free"):
        work()
    assert names(tmp_path) == ["encoder", "out.partial"]
    monkeypatch.setattr(partial.shutil, "disk_usage", lambda path: usage._replace(free=total * 2 // 3))
    work()
    assert names(tmp_path) == ["encoder", "out"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("name", ["one.safetensors", "two.pth"])
def test_a_disk_that_gets_full(tmp_path, monkeypatch, code, name):
    from adapter_llm.tensorfiles import writing

    sync = writing._sync

    def full(file):
        if str(file.name).endswith(f"{name}.part"):
            raise OSError(code, os.strerror(code))
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_sync", full)
        with pytest.raises(ConversionError, match=r"the disk is full; make room for \d.\d MB more for .*out, then run "
                           r"the same command again: it goes on where it stopped, in .*out.partial"):  # fmt: skip
            convert(tmp_path / "out")
    assert names(tmp_path) == ["out.partial"]
    convert(tmp_path / "out")
    check(tmp_path / "out")


def test_torchs_own_words_for_a_full_disk_are_not_used(tmp_path, monkeypatch):
    """torch.save ends in a RuntimeError about positions."""
    from adapter_llm.tensorfiles import writing

    def save(content, file):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    def write_bytes(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing.torch, "save", save)
    with pytest.raises(RuntimeError, match="unexpected pos"), output_file(tmp_path / "x.pth", "job", 1) as file:
        file.pth(specs(TWO), TWO.get)
    monkeypatch.setattr(type(tmp_path), "write_bytes", write_bytes)
    with pytest.raises(ConversionError, match="the disk is full"), output_file(tmp_path / "x.pth", "job", 1) as file:
        file.pth(specs(TWO), TWO.get)


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConversionError, match=r"out cannot be written \(.*\); give another --output"):
        convert(tmp_path / "file" / "out")
    with pytest.raises(ConversionError, match=r"File name too long\); give another --output"):
        convert(tmp_path / ("x" * 300))

    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(type(tmp_path), "mkdir", refuse)
    with pytest.raises(ConversionError, match=r"out cannot be written \(.*: Permission denied\); give another"):
        convert(tmp_path / "out")
    assert names(tmp_path) == ["file"]


def test_one_process_at_a_time(tmp_path):
    with (
        FileLock(tmp_path / "out.partial.lock"),
        pytest.raises(ConversionError, match="another process is writing .*out; wait for it, or give another --output"),
    ):
        convert(tmp_path / "out")
    convert(tmp_path / "out")
    check(tmp_path / "out")


def test_another_process_may_have_finished_meanwhile(tmp_path, monkeypatch):
    acquire = FileLock.acquire

    def late(self, *args, **options):
        convert_other()
        return acquire(self, *args, **options)

    def convert_other():
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("")

    monkeypatch.setattr(FileLock, "acquire", late)
    with pytest.raises(ConversionError, match="out is not empty"):
        convert(tmp_path / "out")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["theirs"]


def test_a_disk_itself_cannot_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(type(tmp_path), "is_mount", lambda self: True)
    with pytest.raises(ConversionError, match="disk is the root of a disk; give an --output in it"):
        convert(tmp_path / "disk")
