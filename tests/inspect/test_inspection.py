"""The inspect command: everything that is known of weights, whether they are whole, as a table and as JSON."""

import hashlib
import json
import shutil
from pathlib import Path

import made_files as made
import pytest
import torch
from safetensors.torch import save_file

import adapter_llm.inspection as module
from adapter_llm.__main__ import main
from adapter_llm.identify.published import PUBLISHED
from adapter_llm.inspection import inspect_path, table
from adapter_llm.shards import fingerprint
from adapter_llm.tensorfiles.torchscript import TRUSTED_ARCHIVES

DEFAULT = Path(__file__).parent.parent.parent / "weights/default"


@pytest.fixture
def adapter(tmp_path):
    path = tmp_path / "LORA-BIAS-7B.pth"
    torch.save({"model": made.adapter_v2(), "config": {"w_lora": True}}, path)
    return path


@pytest.fixture
def weights(tmp_path):
    return Path(shutil.copytree(DEFAULT, tmp_path / "weights"))


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(made.hf_config()))
    (folder / "tokenizer.json").write_text("{}")
    save_file(made.llama_hf(), folder / "model.safetensors")
    return folder


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def change_manifest(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, values in changes.items():
        manifest[name] = {**(manifest.get(name) or {}), **values}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_report_of_a_file(adapter):
    report = inspect_path(adapter)
    assert report == json.loads(json.dumps(report))
    assert list(report) == [
        "path", "family", "title", "variant", "sizes", "parts", "tensors", "dtypes", "bytes", "problems", "missing",
        "unexpected", "needs", "notes", "files", "complete",
    ]  # fmt: skip
    assert (report["family"], report["variant"], report["complete"]) == ("adapter-v2", "LORA-BIAS", True)
    assert report["sizes"]["hidden_size"] == made.HIDDEN and report["parts"]["LoRA"] is True
    size = adapter.stat().st_size
    assert report["files"] == [
        {"name": adapter.name, "bytes": size, "sha256": sha256(adapter), "published": None, "problem": None}
    ]
    assert report["bytes"] == size


def test_hashes_can_be_spared(adapter, monkeypatch):
    monkeypatch.setattr(module, "sha256_of", lambda *_: pytest.fail("a file was read"))
    report = inspect_path(adapter, hashes=False)
    assert report["complete"] and report["files"][0]["sha256"] is None
    assert "SHA-256" not in table(report)


def test_published_files_are_named(adapter, monkeypatch):
    monkeypatch.setattr(module, "PUBLISHED", {sha256(adapter): "LLaMA-Adapter V2's own"})
    assert inspect_path(adapter)["files"][0]["published"] == "LLaMA-Adapter V2's own"
    assert table(inspect_path(adapter)).endswith("\n    this is LLaMA-Adapter V2's own")
    assert "this is" not in table(inspect_path(adapter, hashes=False))


def test_published_hashes():
    assert set(TRUSTED_ARCHIVES) <= set(PUBLISHED)
    assert all(len(digest) == 64 and int(digest, 16) for digest in PUBLISHED)
    assert len(set(PUBLISHED.values())) == len(PUBLISHED)


def test_a_hash_in_the_name_must_be_that_of_the_file(adapter):
    right = adapter.rename(adapter.with_name(f"{sha256(adapter)}_LORA-BIAS-7B.pth"))
    assert inspect_path(right)["complete"]
    wrong = right.rename(adapter.with_name(f"{'7' * 64}_LORA-BIAS-7B.pth"))
    report = inspect_path(wrong)
    assert not report["complete"] and "another SHA-256 than its name says" in report["problems"][0]
    assert inspect_path(wrong, hashes=False)["complete"]


def test_what_is_missing_makes_it_incomplete(adapter):
    tensors = made.adapter_v2()
    del tensors["visual_proj.bias"]
    torch.save(tensors, adapter)
    report = inspect_path(adapter)
    assert (report["missing"], report["complete"]) == (["visual_proj.bias"], False)
    torch.save(made.adapter_v2() | {"odd": torch.zeros(1)}, adapter)
    assert (inspect_path(adapter)["unexpected"], inspect_path(adapter)["complete"]) == (["odd"], False)
    shown = table(inspect_path(adapter))
    assert "complete    NO" in shown and "unexpected  1: odd" in shown


def test_weights_are_compared_with_their_manifest(weights):
    report = inspect_path(weights)
    assert report["complete"] and report["manifest"]["decoder"]["name"] in report["needs"][0]
    file = weights / "adapter.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert inspect_path(weights)["problems"] == ["adapter.safetensors has another SHA-256 than its manifest says"]
    assert inspect_path(weights, hashes=False)["problems"] == []
    change_manifest(weights, files={"adapter.safetensors": {"bytes": 7, "sha256": "0"}})
    assert inspect_path(weights, hashes=False)["problems"] == [
        f"adapter.safetensors has {len(content)} bytes instead of 7"
    ]
    change_manifest(weights, files={"adapter.safetensors": {"bytes": len(content), "sha256": sha256(file)}})
    assert inspect_path(weights)["complete"]
    (weights / "encoder.safetensors").unlink()
    report = inspect_path(weights)
    assert report["missing"] == ["encoder.safetensors"]
    assert report["problems"] == ["encoder.safetensors is missing"]


def test_converted_weights_tell_where_they_come_from(weights, base):
    digest = "5088aeb63a89746b90bcfd5cb819e1c7411b2771b267c6d131ce73e250a8abf0"
    origin = {"family": "adapter-v2", "name": "CAPTION-7B.pth", "file": {"bytes": 1234567, "sha256": digest}}
    change_manifest(weights, origin=origin)
    change_manifest(weights, decoder={"part": None, "source": "../base", "fingerprint": fingerprint(base)})
    report = inspect_path(weights)
    assert report["complete"]
    assert report["manifest"]["origin"]["published"] == "LLaMA-Adapter V2's CAPTION-7B.pth"
    assert report["manifest"]["decoder"]["fingerprint"] == inspect_path(base)["fingerprint"]
    shown = table(report)
    assert "made from   CAPTION-7B.pth, 1.2 MB: LLaMA-Adapter V2's CAPTION-7B.pth" in shown
    assert f"its base    fingerprint {fingerprint(base)}" in shown and "found at    ../base" in shown
    assert "tokenizer   " not in shown and report["manifest"]["decoder"]["tokenizer"] is None
    change_manifest(weights, decoder={"tokenizer": digest})
    report = inspect_path(weights)
    assert report["complete"] and report["manifest"]["decoder"]["tokenizer"] == digest
    assert f"tokenizer   fingerprint {digest}" in table(report)


def test_a_base_model_that_is_another_by_now_is_a_problem(weights, base):
    change_manifest(weights, decoder={"part": None, "source": "../base", "fingerprint": fingerprint(base)})
    save_file({name: tensor + 1 for name, tensor in made.llama_hf().items()}, base / "model.safetensors")
    report = inspect_path(weights)
    assert not report["complete"]
    assert "has the fingerprint" in report["problems"][0] and fingerprint(base)[:12] in report["problems"][0]
    shutil.rmtree(base)
    assert inspect_path(weights)["complete"]


def test_language_models_have_a_fingerprint(base, tmp_path):
    report = inspect_path(base)
    assert report["complete"] and report["fingerprint"] == fingerprint(base)
    assert f"fingerprint {report['fingerprint']}" in table(report)
    assert "fingerprint" not in inspect_path(made.llama_meta(tmp_path / "7B"))
    (base / "model.safetensors").unlink()
    assert "fingerprint" not in inspect_path(base)


def test_the_table_is_aligned_and_fits(weights, adapter, base, tmp_path):
    torch.save({name: t for name, t in made.adapter_v2().items() if "lora" not in name}, adapter)
    tensors = made.imagebind_llm()
    for key in list(tensors)[::2]:
        del tensors[key]
    torch.save(tensors, tmp_path / "halved.pth")
    for path in (weights, adapter, base, tmp_path / "halved.pth", made.llama_meta(tmp_path / "7B")):
        report = inspect_path(path)
        lines = table({**report, "path": "weights"}).splitlines()
        assert max(map(len, lines)) <= 100
        start = next(index for index, line in enumerate(lines) if line.startswith("on disk")) + 1
        for line in lines[:start]:
            assert line[11] == " " and line[12] != " " and line[0] in (" ", line.strip()[0])
        assert all(line.startswith("  ") for line in lines[start:])
        assert len(lines) - start >= 2 * len(report["files"])
    halved = table(inspect_path(tmp_path / "halved.pth"))
    count = len(inspect_path(tmp_path / "halved.pth")["missing"])
    assert f"missing     {count}: " in halved and f"and {count - 12} more" in " ".join(halved.split())


def run(capsys, *arguments):
    code = main(["inspect", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_command(adapter, capsys):
    code, out, err = run(capsys, adapter)
    assert (code, err) == (0, "")
    assert out == table(inspect_path(adapter)) + "\n"
    code, out, err = run(capsys, adapter, "--json", "--no-hash")
    assert (code, err) == (0, "") and json.loads(out) == inspect_path(adapter, hashes=False)


def test_command_fails_for_what_is_not_whole(adapter, capsys):
    tensors = made.adapter_v2()
    tensors.popitem()
    torch.save(tensors, adapter)
    code, out, _ = run(capsys, adapter, "--json")
    assert code == 1 and json.loads(out)["complete"] is False


@pytest.mark.parametrize("content", [b"<html>", b"", b"text"])
def test_command_says_in_one_sentence_what_it_cannot_read(adapter, capsys, content):
    adapter.write_bytes(content)
    code, out, err = run(capsys, adapter)
    assert (code, out) == (1, "")
    assert err.startswith("python -m adapter_llm: ") and err.count("\n") == 1 and str(adapter) in err
    code, out, err = run(capsys, adapter.parent / "absent")
    assert code == 1 and "there is no file or folder" in err
