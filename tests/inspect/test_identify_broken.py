"""Files with a header of their own, pieces, mixtures, and what is no weights at all."""

import struct
import zipfile
from pathlib import Path

import gguf
import made_files as made
import pytest
import torch
from made_files import told
from safetensors.torch import save_file

from adapter_llm.identify import IdentifyError, identify
from adapter_llm.tensorfiles import TensorFileError


@pytest.fixture
def gguf_file(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("small one")
    writer.add_block_count(4)
    writer.add_embedding_length(24)
    writer.add_feed_forward_length(40)
    writer.add_head_count(6)
    writer.add_head_count_kv(3)
    writer.add_token_list([f"word {number}" for number in range(50)])
    writer.add_token_scores([0.5] * 50)
    writer.add_array("made.of.lists", [True, False])
    for index, kind in enumerate((torch.float32, torch.float16, torch.float32)):
        writer.add_tensor(f"blk.{index}.weight", torch.ones(7, 32, dtype=kind).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf(gguf_file):
    found = identify(gguf_file)
    assert told(found) == ("gguf", "llama")
    assert found.sizes == {
        "layers": 4, "hidden_size": 24, "heads": 6, "kv_heads": 3, "intermediate_size": 40, "vocab_size": 50,
    }  # fmt: skip
    assert found.dtypes == {"F32": 2, "F16": 1} and found.tensors == 3
    assert found.notes == ("it calls itself small one",)


def test_gguf_that_is_cut_off_anywhere_or_damaged(gguf_file):
    whole = gguf_file.read_bytes()
    for length in (*range(4, len(whole) - 1000, 97), len(whole) - 1):
        gguf_file.write_bytes(whole[:length])
        with pytest.raises(IdentifyError, match="is GGUF, but damaged or cut off"):
            identify(gguf_file)
    version, counts = whole[:4] + b"\1" + whole[5:], whole[:8] + b"\xff" * 16 + whole[24:]
    for damage in (version, counts, whole.replace(b"\x09\0\0\0", b"\x77\0\0\0")):
        gguf_file.write_bytes(damage)
        with pytest.raises(IdentifyError, match="is GGUF, but damaged or cut off"):
            identify(gguf_file)


def faiss_bytes(kind=b"IxFI", width=3, rows=2, metric=0, unused=2**20):
    head = struct.pack("<4siqqq?iQ", kind, width, rows, unused, unused, True, metric, width * rows)
    return head + bytes(4 * width * rows)


def test_faiss_index(tmp_path):
    path = tmp_path / "knn.index"
    path.write_bytes(faiss_bytes())
    found = identify(path)
    assert told(found) == ("faiss-index", "flat, inner product")
    assert found.sizes == {"embedding_dim": 3, "vectors": 2}
    path.write_bytes(faiss_bytes()[:-1])
    assert "damaged or cut off: 68 bytes, where 2 vectors of 3 numbers take 69" in identify(path).problems[0]
    path.write_bytes(faiss_bytes()[:20])
    with pytest.raises(IdentifyError, match="ends within its header"):
        identify(path)
    path.write_bytes(faiss_bytes(b"IxF2", metric=1))
    assert told(identify(path)) == ("faiss-index", "flat, L2")
    path.write_bytes(faiss_bytes(b"IwFl"))
    assert identify(path).variant == "IwFl, inner product" and "approximately" in identify(path).notes[0]
    path.write_bytes(b"INFO: this is a log file and no index of anything, whatever it is called")
    with pytest.raises(TensorFileError, match="no file of weights"):
        identify(path)


@pytest.mark.parametrize("tensors, words", [
    (made.llama_shard(), "one file of a LLaMA in the Meta layout; give its folder"),
    (made.llama_hf(), "one file of a language model in the Hugging Face layout; give its folder"),
    ({"connector.queries": torch.zeros(1)}, "one file of a weights folder of this project"),
    ({"trunks.vision.pre_norm.bias": torch.zeros(1)}, "one file of an encoder or weights folder"),
    ({"adapter_query.weight": torch.zeros(1)}, "for text only"),
    ({"b.weight": torch.zeros(1), "a.bias": torch.zeros(1)}, r"2 tensors of no known family \(a\.bias, b\.weight\)"),
], ids=["shard", "model", "connector", "trunk", "v1", "other"])  # fmt: skip
def test_pieces_are_told_from_wholes(tmp_path, tensors, words):
    save_file(tensors, tmp_path / "some.safetensors")
    with pytest.raises(IdentifyError, match=words):
        identify(tmp_path / "some.safetensors")


def test_folders_of_other_things(tmp_path):
    with pytest.raises(IdentifyError, match="it has no files"):
        identify(tmp_path)
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(IdentifyError, match=r"holds no weights \(notes\.txt\); known are imagebind_huge"):
        identify(tmp_path)
    (tmp_path / "7B.pth").write_bytes(b"any")
    with pytest.raises(IdentifyError, match=r"but holds 7B\.pth; give one of these files"):
        identify(tmp_path)
    made.llama_meta(tmp_path / "7B")
    with pytest.raises(IdentifyError, match="7B in it may be; give that folder"):
        identify(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(IdentifyError, match="holds no JSON object"):
        identify(tmp_path)


class Code:
    def __reduce__(self):
        return Path.touch, (Path(__file__).parent / "touched",)


def test_code_in_a_file_is_refused_and_never_run(tmp_path):
    for number, old in enumerate((True, False)):
        path = tmp_path / f"{number}.pth"
        torch.save({"model": Code()}, path, _use_new_zipfile_serialization=old)
        with pytest.raises(TensorFileError, match="Python code"):
            identify(path)
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", b"any")
    with pytest.raises(TensorFileError, match="TorchScript"):
        identify(tmp_path / "script.pt")
    assert not (Path(__file__).parent / "touched").exists()


@pytest.mark.parametrize("content, words", [
    (b"", "is empty"), (b"<!DOCTYPE html><html>", "web page"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"), (b"plain text", "no file of weights"),
    (b"PK\x03\x04" + bytes(90), "damaged or cut off"), (b"\x80\x02" + bytes(90), "damaged or cut off|Python code"),
    (b"\x40" + bytes(7) + b"{ no header", "damaged or cut off"),
], ids=["empty", "page", "pointer", "text", "zip", "pickle", "safetensors"])  # fmt: skip
def test_files_of_other_things(tmp_path, content, words):
    path = tmp_path / "7B.pth"
    path.write_bytes(content)
    with pytest.raises(TensorFileError, match=words):
        identify(path)


def test_a_download_that_broke_off(tmp_path):
    whole = tmp_path / "7B.pth"
    torch.save({"model": made.imagebind_llm()}, whole)
    data = whole.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        whole.write_bytes(data[: int(share * len(data))])
        with pytest.raises(TensorFileError, match=r"7B\.pth is damaged or cut off"):
            identify(whole)


def test_nothing_there(tmp_path):
    with pytest.raises(IdentifyError, match="there is no file or folder .*absent"):
        identify(tmp_path / "absent")
