"""There and back: what is converted becomes the published file again, byte for byte, in every layout."""

import json

import originals
import pytest
import torch
from originals import IMAGEBIND_LLM, V2

from adapter_llm.convert import convert_back
from adapter_llm.convert.keys import AdapterLayout
from adapter_llm.convert.relations import check_complete, convert_specs
from adapter_llm.tensorfiles import TensorSpec

both = pytest.mark.parametrize("family", [V2, IMAGEBIND_LLM], indirect=True)


def contents(path):
    loaded = torch.load(path, weights_only=True)
    tensors = loaded["model"] if isinstance(loaded.get("model"), dict) else loaded
    return {key: value for key, value in loaded.items() if key != "model"} if tensors is not loaded else {}, {
        key: (tuple(t.shape), t.dtype, t.numpy().tobytes()) for key, t in tensors.items()
    }


@both
def test_adapters_come_back_byte_for_byte(family, tmp_path):
    done = 0
    assert family.first  # or the test is skipped
    for name in family.published or {described["checkpoint"] for described in family.cases.values()}:
        if family.weights(name) is not None:
            target = tmp_path / f"{name}.pth"
            convert_back(family.weights(name), target)
            assert contents(target) == contents(family.adapter_file(name)), name
            done += 1
    assert done


@both
def test_encoders_come_back_byte_for_byte(family, tmp_path):
    convert_back(family.encoder, tmp_path / "encoder.pth")
    source = family.clip_file if family.name == V2 else family.imagebind_file
    assert contents(tmp_path / "encoder.pth") == contents(source)


@both
def test_the_base_comes_back_byte_for_byte(family, tmp_path):
    convert_back(family.base, tmp_path / "7B")
    source = family.folder / "llama" / "7B"
    for path in sorted(source.glob("*.pth")):
        assert contents(tmp_path / "7B" / path.name) == contents(path)
    assert json.loads((tmp_path / "7B" / "params.json").read_text()) == json.loads((source / "params.json").read_text())


def layouts(golden):
    patterns = ("layouts/adapter_v2_*7B*.json", "layouts/imagebind_llm_7B*.json")
    return sorted(path for pattern in patterns for path in golden.glob(pattern))


def test_the_table_covers_every_published_layout_both_ways(golden):
    paths = layouts(golden)
    if not paths:
        pytest.skip(f"no adapter layouts in {golden}")
    for path in paths:
        keys = json.loads(path.read_text())["keys"]
        specs = {name: TensorSpec(tuple(shape), getattr(torch, dtype)) for name, (shape, dtype) in keys.items()}
        layout = AdapterLayout.of(path, specs)
        relations, kept = layout.relations(), set(layout.kept())
        check_complete(path, relations, set(specs) - kept)
        ours = convert_specs(relations, specs)
        assert convert_specs(relations, ours, back=True) == {n: s for n, s in specs.items() if n not in kept}
        assert kept <= set(specs)


@both
def test_types_may_differ_within_a_file(family, tmp_path):
    """Gates of some layers in float16 and of others in float32: stacked here, they come back as they were."""
    content = torch.load(family.adapter_file(family.first), weights_only=True)
    gates = [key for key in content["model"] if key.endswith("attention.gate")]
    content["model"][gates[-1]] = content["model"][gates[-1]].float() + 1e-5
    torch.save(content, tmp_path / "mixed.pth")
    from adapter_llm.convert.adapters import convert_adapter

    heads = {"connector_heads": family.sizes["v_num_heads"]} if family.name == V2 else {}
    convert_adapter(tmp_path / "mixed.pth", tmp_path / "out", encoder=family.encoder, llm=family.base, **heads)
    convert_back(tmp_path / "out", tmp_path / "back.pth")
    assert contents(tmp_path / "back.pth") == contents(tmp_path / "mixed.pth")


def test_originals_helper_reads_the_described_removal():
    match = originals.REMOVED.fullmatch("A-7B.pth with every key ending in new_gate removed")
    assert match.groups() == ("A-7B.pth", "new_gate")
