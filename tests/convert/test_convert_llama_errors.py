"""LLaMA in Meta's layout, wrong: one sentence before any long work, and nothing is written."""

import json
import shutil

import meta_models
import pytest
import torch

from adapter_llm.convert.errors import ConversionError
from adapter_llm.convert.llama import from_gguf, from_meta, to_meta
from adapter_llm.fetch import FetchError
from adapter_llm.tensorfiles import TensorFileError


def names(folder):
    return {path.name for path in folder.iterdir()}


def spoil(folder, index=0, **changes):
    """Change tensors of a shard; None removes one."""
    path = folder / f"consolidated.{index:02d}.pth"
    tensors = torch.load(path, weights_only=True) | {name.replace("__", "."): new for name, new in changes.items()}
    torch.save({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def set_params(folder, **changes):
    values = {**json.loads((folder / "params.json").read_text()), **changes}
    values = {name: value for name, value in values.items() if value is not None}
    (folder / "params.json").write_text(json.dumps(values))


def refused(folder, output, message, error=ConversionError):
    """One sentence, and nothing is written."""
    before = names(output.parent)
    with pytest.raises(error, match=message) as caught:
        from_meta(folder, output)
    assert "\n" not in str(caught.value)
    assert names(output.parent) == before


@pytest.mark.parametrize("present", [[0], [0, 1, 2]])
def test_a_wrong_number_of_shards(tmp_path, base, present):
    folder, _ = base(shards=2)
    for index in (0, 1, 2):
        path = folder / f"consolidated.{index:02d}.pth"
        if index in present and not path.exists():
            shutil.copy(folder / "consolidated.00.pth", path)
        elif index not in present:
            path.unlink(missing_ok=True)
    message = rf"base has {len(present)} files? of a model that was cut into 2; put consolidated.00.pth to "
    refused(folder, tmp_path / "hf", message + "consolidated.01.pth there and no others")


def test_a_shard_is_missing(tmp_path, base):
    folder, _ = base(shards=2)
    (folder / "consolidated.00.pth").rename(folder / "consolidated.03.pth")
    refused(folder, tmp_path / "hf", r"lacks consolidated.00.pth, consolidated.02.pth; download all files of the model")
    for path in folder.glob("*.pth"):
        path.unlink()
    refused(folder, tmp_path / "hf", r"holds no consolidated.\*.pth; give the folder with the weights themselves")
    refused(tmp_path / "none", tmp_path / "hf", "there is no folder .*none; give the one that holds consolidated.00")


@pytest.mark.parametrize("name, change", [
    ("norm.weight", lambda tensor: tensor * 1.5),
    ("layers.1.ffn_norm.weight", lambda tensor: tensor + torch.eye(len(tensor))[3].half() / 64),
    ("layers.2.feed_forward.w2.weight", lambda tensor: tensor[:, :-1].clone()),
    ("layers.2.feed_forward.w2.weight", lambda tensor: tensor.float()),
])  # fmt: skip
def test_mixed_shards(tmp_path, base, name, change):
    folder, _ = base(shards=2)
    tensor = torch.load(folder / "consolidated.01.pth", weights_only=True)[name]
    spoil(folder, 1, **{name: change(tensor)})
    message = rf"consolidated.00.pth and consolidated.01.pth are shards of two models: {name} differs; download all"
    refused(folder, tmp_path / "hf", message)


@pytest.mark.parametrize("changes, message", [
    ({"n_layers": 4}, r"00.pth lacks layers.3.attention.wk.weight, .* and 1 more; it is no shard of a LLaMA of 4"),
    ({"n_layers": 2}, r"consolidated.00.pth has the unknown layers.2.attention.wk.weight, "),
    ({"dim": 32}, r"params.json and consolidated.00.pth are of two models: tok_embeddings.weight \(\d+, 24\) inst"),
    ({"n_kv_heads": None}, r"two models: layers.0.attention.wk.weight \(12, 24\) instead of \(24, 24\)"),
    ({"vocab_size": 32000}, r"params.json says 32000 tokens, and the embeddings have \d+: it belongs to another model"),
    ({"dim": None}, "params.json does not say 'dim'; get the one that came with the weights"),
    ({"dim": "24"}, "is not the params.json of a LLaMA"),
    ({"dim": 24.0}, "is not the params.json of a LLaMA"),
    ({"n_heads": 5}, r"is not the params.json of a LLaMA \(sizes that do not fit together\)"),
    ({"n_kv_heads": 3}, "is not the params.json of a LLaMA"),
    ({"norm_eps": 0}, "is not the params.json of a LLaMA"),
    ({"n_layers": -1}, "is not the params.json of a LLaMA"),
    ({"rope_magic": 3}, r"a rotation that is not known here \(rope_magic\); give that language model as a "),
])  # fmt: skip
def test_params_of_another_model(tmp_path, base, changes, message):
    folder, _ = base()
    set_params(folder, **changes)
    refused(folder, tmp_path / "hf", message)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b"<html>"])
def test_params_that_are_none(tmp_path, base, content):
    folder, _ = base()
    (folder / "params.json").write_bytes(content)
    refused(folder, tmp_path / "hf", "params.json")
    (folder / "params.json").unlink()
    refused(folder, tmp_path / "hf", "base has no readable params.json; put the one that came with the weights there")


def test_unknown_and_missing_names(tmp_path, base):
    folder, _ = base()
    spoil(folder, **{"layers.1.attention.wq.bias": torch.ones(24), "layers.0.ffn_norm.weight": None})
    message = "lacks layers.0.ffn_norm.weight and has the unknown layers.1.attention.wq.bias; it is no shard"
    refused(folder, tmp_path / "hf", message)


@pytest.mark.parametrize("wrong, message", [
    (torch.zeros(24, 24, dtype=torch.int8), r"layers.2.attention.wq.weight of torch.int8"),
    (torch.zeros(24, 24, 1).half(), r"layers.2.attention.wq.weight \(24, 24, 1\) instead of \(24, 24\)"),
])  # fmt: skip
def test_tensors_that_are_no_weights(tmp_path, base, wrong, message):
    folder, _ = base()
    spoil(folder, **{"layers.2.attention.wq.weight": wrong})
    refused(folder, tmp_path / "hf", message)


def test_no_tokenizer(tmp_path, base):
    folder, _ = base()
    (folder / "tokenizer.model").unlink()
    message = r"base has no tokenizer.model: there is no .*base/tokenizer.model and no .*/tokenizer.model; give the one"
    refused(folder, tmp_path / "hf", message)


def test_shards_that_part_a_head(tmp_path, base):
    """More shards than heads of keys: the rotated halves of one head are in two files."""
    folder, _ = base(shards=2, params={**meta_models.PARAMS, "n_kv_heads": 1})
    refused(folder, tmp_path / "hf", r"of two models: layers.0.attention.wk.weight with parts of a head, ")


def test_a_tokenizer_of_another_model(tmp_path, base):
    folder, _ = base()
    _, pieces = meta_models.train_tokenizer(folder / "tokenizer.model", 310)
    message = rf"tokenizer.model has {pieces} pieces, and the embeddings in .*base have \d+ rows: it belongs to another"
    refused(folder, tmp_path / "hf", message)
    (folder / "tokenizer.model").write_bytes(b"<html>")
    refused(folder, tmp_path / "hf", "tokenizer.model is not a complete sentencepiece model")


@pytest.mark.parametrize("content, message", [
    (b"<html>sign in</html>", "a web page"), (b"", "empty"), (None, "damaged or cut off"),
])  # fmt: skip
def test_downloads_that_failed(tmp_path, base, content, message):
    folder, _ = base(shards=2)
    path = folder / "consolidated.01.pth"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    refused(folder, tmp_path / "hf", rf"consolidated.01.pth is {message}", TensorFileError)


def test_files_of_training_runs(tmp_path, base):
    folder, tensors = base()
    torch.save({"model": tensors, "epoch": 3}, folder / "consolidated.00.pth")
    refused(folder, tmp_path / "hf", "is a file of a training run, not a shard as Meta published them")


def test_places_that_are_taken(tmp_path, base):
    folder, _ = base()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").write_text("")
    refused(folder, tmp_path / "hf", "hf is not empty; empty it, or give another --output")
    refused(folder, folder / "hf", "is inside of .*base, which is read")


def test_folders_that_were_not_made_here(tmp_path, base):
    folder, _ = base()
    from_meta(folder, tmp_path / "hf")
    with pytest.raises(ConversionError, match="is inside of"):
        to_meta(tmp_path / "hf", tmp_path / "hf" / "back")
    origin = (tmp_path / "hf" / "meta.json").read_text()
    for content, message in (
        (None, "hf was not made of a LLaMA in Meta's layout"),
        ("{}", r"meta.json cannot be read"),
        ("<", r"meta.json cannot be read"),
        (origin.replace('"shards": 1', '"shards": 5'), "cannot be cut into 5 shards"),
        (origin.replace('n_layers\\": 3', 'n_layers\\": 2'), "does not hold the tensors its meta.json speaks of"),
    ):
        (tmp_path / "hf" / "meta.json").unlink(missing_ok=True)
        if content:
            assert content != origin
            (tmp_path / "hf" / "meta.json").write_text(content)
        with pytest.raises(ConversionError, match=message):
            to_meta(tmp_path / "hf", tmp_path / "back")
    (tmp_path / "hf" / "meta.json").write_text(origin)
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(ConversionError, match="has neither model.safetensors nor a readable model.safetensors.index"):
        to_meta(tmp_path / "hf", tmp_path / "back")
    assert "back" not in names(tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html>", b"GGUF\x03\0\0\0", None])
def test_gguf_files_that_are_none(tmp_path, content):
    source = meta_models.gguf_file(tmp_path / "x.gguf")
    source.write_bytes(source.read_bytes()[:900] if content is None else content)
    with pytest.raises(FetchError, match="x.gguf is no GGUF file, or is damaged or cut off"):
        from_gguf(source, tmp_path / "hf")
    assert names(tmp_path) == {"x.gguf"}
