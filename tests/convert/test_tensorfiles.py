"""Files of tensors: every format, one tensor at a time, and nothing but tensors."""

import argparse
import contextlib
import hashlib
import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tensor_samples import OLD, TENSORS, check

from adapter_llm.identify import IdentifyError, identify
from adapter_llm.tensorfiles import (
    TensorFileError,
    TensorSpec,
    open_tensors,
    specs,
    torchscript,
)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("block", [16, specs.BLOCK])
def test_what_torch_saves(tmp_path, monkeypatch, wrapper, zipped, block):
    monkeypatch.setattr(specs, "BLOCK", block)
    beside = {"config": {"w_lora": True, "rank": 16}, "args": argparse.Namespace(lr=0.1)}
    tensors = TENSORS if zipped else OLD
    content = tensors if wrapper is None else {wrapper: tensors, **beside}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    file = open_tensors(tmp_path / "x.pth")
    check(file, tensors)
    assert (file.wrapper, file.extra) == (wrapper, beside if wrapper else {})


def test_parameters_and_ordered_state_dicts(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    torch.save(model.state_dict(), tmp_path / "a.pth")
    torch.save(dict(model.named_parameters()), tmp_path / "b.pth")
    check(open_tensors(tmp_path / "a.pth"), model.state_dict())
    check(open_tensors(str(tmp_path / "b.pth")), {name: p.detach() for name, p in model.named_parameters()})
    torch.save(dict(model.named_parameters()), tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    assert not open_tensors(tmp_path / "c.pth").read("0.weight").requires_grad


def test_what_safetensors_saves(tmp_path):
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in TENSORS.items()}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"by": "us"})
    file = open_tensors(tmp_path / "x.safetensors")
    check(file, tensors)
    assert (file.wrapper, file.extra) == (None, {"by": "us"})


@pytest.mark.parametrize("beginning", [b"<", b" <", b"\n<", b"PK", b"\x80", b"GG", b"Ix"], ids=repr)
def test_the_length_of_a_header_may_begin_like_anything_else(tmp_path, beginning):
    """The first bytes of safetensors are a number; as text they are a web page, an archive or a pickle."""
    path, length = tmp_path / "x.safetensors", int.from_bytes(beginning.ljust(8, b"\0"), "little")
    header = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}'
    if length < len(header):
        length += 256  # its second byte
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + bytes(range(12)))
    assert path.read_bytes()[0] == beginning[0]
    check(open_tensors(path), {"a": torch.frombuffer(bytearray(range(12)), dtype=torch.float32)})
    with pytest.raises(IdentifyError, match="holds 1 tensors of no known family"):
        identify(path)


def test_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    """Blocks of a large tensor, and a tensor among others, cost no more memory than they are large."""
    tensors = {"a": torch.randn(64, 100), "b": torch.randn(2, 5)}
    torch.save(tensors, tmp_path / "x.pth")
    save_file(tensors, tmp_path / "x.safetensors")
    made, read_at = [], specs.read_at

    def noted(path, offset, spec):
        made.append(spec.nbytes)
        return read_at(path, offset, spec)

    monkeypatch.setattr(specs, "read_at", noted)
    monkeypatch.setattr(specs, "BLOCK", 10 * 400)
    for path in (tmp_path / "x.pth", tmp_path / "x.safetensors"):
        made.clear()
        file = open_tensors(path)
        assert [block.shape[0] for block in file.blocks("a")] == [10] * 6 + [4]
        file.read("b")
        assert made == [4000] * 6 + [1600, 40]


def test_steps_are_multiples():
    spec = TensorSpec((50, 2**20), torch.float32)  # 4 MB a row
    assert list(spec.steps(3))[:2] == [(0, 3), (3, 6)]
    assert list(spec.steps())[:1] == [(0, 4)]
    assert list(TensorSpec((), torch.float32).steps()) == [(0, 1)]


class Evil:
    """Says so if it is ever unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {self.__dict__.get('mark', 'executed')}",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("how", ["zip", "old", "pickle", "within"])
def test_code_is_refused_and_never_run(tmp_path, monkeypatch, how, protocol):
    monkeypatch.chdir(tmp_path)
    content = {"a": torch.randn(2), "b": Evil()} if how != "within" else {"model": {"a": torch.randn(2)}, "x": [Evil()]}
    if how == "pickle":
        Path("x.pth").write_bytes(pickle.dumps(Evil(), protocol))
    else:
        torch.save(content, "x.pth", _use_new_zipfile_serialization=how != "old", pickle_protocol=protocol)
    with pytest.raises(TensorFileError, match="holds Python code beside its tensors.*never run"):
        open_tensors("x.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_the_code_is_named(tmp_path):
    torch.save({"a": Evil()}, tmp_path / "x.pth")
    with pytest.raises(TensorFileError, match=r"\(posix.system\), which is never run; get the file from its owner"):
        open_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("content, message", [
    (b"", "is empty; download it again"),
    (b"<!DOCTYPE html><html>", "is a web page"),
    (b"\xef\xbb\xbf\n <html>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "only a pointer.*git lfs pull"),
    (b"GGUF\x03\x00", "no file of weights; give a .pth or .safetensors file"),
    (b'{"error": "gated"}', "no file of weights"),
    (b"PK\x03\x04" + bytes(100), "damaged or cut off"),
    (b"\x80\x02" + bytes(100), r"damaged or cut off, or holds no weights \(Unsupported operand 0\); download it"),
    (b"\x80\x02(iposix\nsystem\n.", "holds Python code"),
    (b"\x80\x02" + b"I5\n.", "damaged or cut off"),
    (b"\x80\x02" + b"(lp0\n" + bytes(100), "damaged or cut off"),
    (b"\x10\0\0\0\0\0\0\0{" + bytes(20), "damaged or cut off"),
])  # fmt: skip
def test_what_is_no_file_of_weights(tmp_path, content, message):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(TensorFileError, match=f"^{tmp_path}/x.pth .*({message})"):
        open_tensors(tmp_path / "x.pth")


def test_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(TensorFileError, match=r"none.pth cannot be read \(No such file or directory\); check the path"):
        open_tensors(tmp_path / "none.pth")
    with pytest.raises(TensorFileError, match="Is a directory"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("content", [3, [torch.ones(2)], {}, {"a": 1, "b": torch.ones(1)}, {"model": {}}])
def test_what_holds_no_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(TensorFileError, match="it must be a state dict, or one under the key 'model'"):
        open_tensors(tmp_path / "x.pth")


def test_tensors_of_special_kinds(tmp_path):
    for tensor in (torch.eye(3).to_sparse(), torch.randn(2, dtype=torch.complex64).conj(), torch.ones(2).to("meta")):
        torch.save({"odd": tensor}, tmp_path / "x.pth")
        with pytest.raises(TensorFileError, match="odd|Cannot copy out of meta tensor"):
            open_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("names", ["a", "ab"])
@pytest.mark.parametrize("short", [False, True])
def test_archives_packed_by_others(tmp_path, method, names, short):
    """torch works out places by its own rules, which are not those of other zip programs; the first it looks up."""
    torch.save({name: torch.arange(100.0) for name in names}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as old, zipfile.ZipFile(tmp_path / "y.pth", "w", method) as new:
        for part in old.namelist():
            new.writestr(part, old.read(part)[: 396 if short and part.endswith("data/0") else None])
    if (method, names, short) == (zipfile.ZIP_STORED, "a", False):
        assert torch.equal(open_tensors(tmp_path / "y.pth").read("a"), torch.arange(100.0))
    else:
        with pytest.raises(TensorFileError, match=r"no bytes of its own for (a|b); save it again with torch.save"):
            open_tensors(tmp_path / "y.pth")


def every_format(folder):
    torch.save({"model": TENSORS, "config": {}}, folder / "zip.pth")
    torch.save(OLD, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file({name: tensor.contiguous().clone() for name, tensor in TENSORS.items()}, folder / "x.safetensors")
    return [folder / name for name in ("zip.pth", "old.pth", "x.safetensors")]


def test_every_download_that_broke_off_is_noticed(tmp_path):
    for path in every_format(tmp_path):
        data = path.read_bytes()
        for length in {*range(0, 600, 7), *range(600, len(data), 211), len(data) - 1}:
            path.write_bytes(data[:length])
            with pytest.raises(TensorFileError):
                open_tensors(path)


def test_damaged_bytes_end_in_a_sentence(tmp_path):
    chance = random.Random(5)
    for path in every_format(tmp_path):
        data = path.read_bytes()
        for _ in range(150):
            broken = bytearray(data)
            for _ in range(chance.choice((1, 3, 30))):
                broken[chance.randrange(len(broken))] = chance.randrange(256)
            path.write_bytes(broken)
            with contextlib.suppress(TensorFileError):  # and no other
                file = open_tensors(path)
                for name in file.specs:
                    file.read(name)


def test_a_file_that_gets_shorter_while_it_is_read(tmp_path):
    save_file({"a": torch.randn(50)}, tmp_path / "x.safetensors")
    file = open_tensors(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-1])
    with pytest.raises(TensorFileError, match="is cut off; download it again"):
        file.read("a")


class Scripted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
        self.proj = torch.nn.Parameter(torch.randn(2, 5).half())
        self.register_buffer("resolution", torch.tensor(224))
        self.mask = torch.ones(7)  # no part of the state
        self.names, self.sizes = ["a", "b"], {"x": 1}

    def forward(self, x):
        return self.blocks(x).sum() + self.mask.sum() + self.proj.sum()


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
def test_torchscript_archives_are_read_if_known(tmp_path, monkeypatch):
    model = torch.jit.script(Scripted())
    model.save(tmp_path / "clip.pt")
    with pytest.raises(TensorFileError, match=r"TorchScript archive, which holds code.*OpenAI's CLIP ViT-L/14"):
        open_tensors(tmp_path / "clip.pt")
    digest = hashlib.sha256((tmp_path / "clip.pt").read_bytes()).hexdigest()
    monkeypatch.setitem(torchscript.TRUSTED_ARCHIVES, digest, "ours")
    monkeypatch.setattr(torch.jit, "load", None)  # not even then is it run
    check(open_tensors(tmp_path / "clip.pt"), model.state_dict())
