"""Written files: what the libraries read, however the work was cut short."""

import json
import os
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensor_samples import TENSORS, check, same

from adapter_llm.tensorfiles import TensorSpec, open_tensors, specs, write_pth, write_safetensors, writing


def whole(path, **options):
    return torch.load(path, weights_only=True, **options)


def write(path, tensors, read=None, **options):
    writer = write_pth if path.suffix == ".pth" else write_safetensors
    writer(path, {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}, read or tensors.get, **options)


def test_written_pth_is_what_torch_saves(tmp_path):
    write(tmp_path / "x.pth", TENSORS)
    found = whole(tmp_path / "x.pth")
    assert list(found) == list(TENSORS)
    assert all(same(found[name], tensor) for name, tensor in TENSORS.items())
    check(open_tensors(tmp_path / "x.pth"), TENSORS)
    mapped = whole(tmp_path / "x.pth", mmap=True)
    assert all(same(mapped[name], tensor) for name, tensor in TENSORS.items())
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_written_pth_has_right_checksums(tmp_path):
    """In the directory at the end, and behind the bytes, where other programs look."""
    write(tmp_path / "x.pth", TENSORS)
    assert zipfile.ZipFile(tmp_path / "x.pth").testzip() is None
    content = (tmp_path / "x.pth").read_bytes()
    for tensor in filter(torch.numel, TENSORS.values()):
        data = bytes(tensor.contiguous().flatten().view(torch.uint8).numpy())
        assert data + b"PK\x07\x08" + zlib.crc32(data).to_bytes(4, "little") in content


def test_written_pth_keeps_what_stood_beside(tmp_path):
    write(tmp_path / "x.pth", TENSORS, wrapper="model", extra={"config": {"rank": 16}})
    assert whole(tmp_path / "x.pth")["config"] == {"rank": 16}
    assert open_tensors(tmp_path / "x.pth").wrapper == "model"
    with pytest.raises(ValueError, match="one of model, state_dict, not 'weights'"):
        write(tmp_path / "y.pth", TENSORS, wrapper="weights")
    with pytest.raises(ValueError, match="tensors beside its state dict"):
        write(tmp_path / "y.pth", TENSORS, wrapper="model", extra={"step": torch.ones(1)})


def test_written_safetensors_are_what_the_library_reads(tmp_path):
    write(tmp_path / "x.safetensors", TENSORS, metadata={"by": "us"})
    found = load_file(tmp_path / "x.safetensors")
    assert set(found) == set(TENSORS)
    assert all(same(found[name], tensor) for name, tensor in TENSORS.items())
    file = open_tensors(tmp_path / "x.safetensors")
    check(file, TENSORS)
    assert file.extra == {"format": "pt", "by": "us"}
    content = (tmp_path / "x.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8:start]).items():
        if name != "__metadata__":  # so that maps of the file are good to compute with
            assert (start + entry["data_offsets"][0]) % TENSORS[name].dtype.itemsize == 0


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_blocks_make_the_same_file(tmp_path, monkeypatch, name):
    (tmp_path / "whole").mkdir()
    write(tmp_path / "whole" / name, TENSORS)
    monkeypatch.setattr(specs, "BLOCK", 16)
    source = open_tensors(tmp_path / "whole" / name)
    told = []
    write(tmp_path / name, TENSORS, source.blocks, progress=told.append)
    assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sum(told) == sum(TensorSpec.of(tensor).nbytes for tensor in TENSORS.values())
    assert max(told) < 70


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("wrong", [
    torch.randn(3, 5), torch.randn(4, 4), torch.randn(12), torch.randn(3, 4).double(),
    [torch.randn(2, 4)], [torch.randn(2, 4), torch.randn(2, 4)], [torch.randn(3, 4, 1)], torch.tensor(1.0),
])  # fmt: skip
def test_a_tensor_that_is_not_as_announced(tmp_path, name, wrong):
    with pytest.raises(ValueError, match="float was to (be|have)"):
        write(tmp_path / name, {"float": TENSORS["float"]}, lambda name: wrong)


def test_types_that_safetensors_lack(tmp_path):
    with pytest.raises(ValueError, match=r"a is of torch.complex128, which safetensors files cannot hold"):
        write(tmp_path / "x.safetensors", {"a": torch.ones(1, dtype=torch.complex128)})


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize("stop", [0, 3, 11, 16])
def test_a_stopped_writer_goes_on(tmp_path, monkeypatch, name, stop):
    """And does again what it had not noted as done, or all of it for another job."""
    (tmp_path / "once").mkdir()
    write(tmp_path / "once" / name, TENSORS)
    monkeypatch.setattr(writing, "NOTE_EVERY", 40)

    def reader(limit):
        def read(key):
            seen.append(key)
            if len(seen) > limit:
                raise KeyboardInterrupt
            return TENSORS[key]

        seen = []
        return read, seen

    read, _ = reader(stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / name, TENSORS, read, job="one")
    for job, least in (("one", len(TENSORS) - stop), ("two", len(TENSORS))):
        read, seen = reader(100)
        told = []
        copy = tmp_path / job / name
        copy.parent.mkdir()
        for path in tmp_path.glob(f"{name}*"):
            (copy.parent / path.name).write_bytes(path.read_bytes())
        write(copy, TENSORS, read, job=job, progress=told.append)
        assert copy.read_bytes() == (tmp_path / "once" / name).read_bytes()
        assert [path.name for path in copy.parent.iterdir()] == [name]
        assert sum(told) == sum(TensorSpec.of(tensor).nbytes for tensor in TENSORS.values())
        assert least <= len(seen) <= (least + 4 if job == "one" else least)


def test_the_note_of_another_job_is_not_believed_later(tmp_path, monkeypatch):
    """A job is stopped, another takes its place and is stopped before its first note, the first comes back."""
    monkeypatch.setattr(writing, "NOTE_EVERY", 1)
    ones, twos = ({f"t{n}": torch.full((9,), float(k)) for n in range(4)} for k in (1, 2))
    path = tmp_path / "x.safetensors"

    def stopping(tensors, last):
        def read(name):
            if name == last:
                raise KeyboardInterrupt
            return tensors[name]

        return read

    for tensors, last, job in ((ones, "t2", "one"), (twos, "t0", "two")):
        with pytest.raises(KeyboardInterrupt):
            write(path, tensors, stopping(tensors, last), job=job)
    write(path, ones, job="one")
    assert all(same(tensor, ones[name]) for name, tensor in load_file(path).items())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that it forks")
def test_killed_conversions_go_on(tmp_path):
    """Killed within a tensor, in either format; the next run does not read again what was noted as done."""
    deaths = {"file": (1, 8), "folder": (2, 9, 16)}
    asked = [f"{kind}{death}" for kind, places in deaths.items() for death in places]
    script = Path(__file__).parent / "killing.py"
    answer = subprocess.run([sys.executable, script, tmp_path, *asked], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    counts = {name: int(count) for name, count in map(str.split, answer.stdout.splitlines())}
    assert list(counts) == asked
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(asked)
    for kind, places in deaths.items():
        made = [tmp_path / f"{kind}{death}" for death in places]
        contents = [{p.name: p.read_bytes() for p in ([q] if q.is_file() else q.iterdir())} for q in made]
        assert all(list(content.values()) == list(contents[0].values()) for content in contents)
        assert counts[asked[0]] == 8 and counts["file8"] <= 3 and counts["folder16"] <= 3 < counts["folder2"]
        pth = made[0] if kind == "file" else made[0] / "two.pth"
        assert zipfile.ZipFile(pth).testzip() is None
