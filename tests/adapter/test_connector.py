"""Connectors: shapes, exact keys, every epsilon, and the recorded numbers of the originals."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn

from adapter_llm.config import ConnectorConfig
from adapter_llm.connector import CONNECTORS, Bridge, VisualQueryTransformer, build_connector
from adapter_llm.model import mix
from imagebind_encoder import load_official

VISUAL = ConnectorConfig(width=24, depth=2, heads=3, mlp_ratio=1.5)
BLOCK = {
    "norm1": (24,), "attn.qkv": (72, 24), "attn.proj": (24, 24),
    "norm2": (24,), "mlp.fc1": (36, 24), "mlp.fc2": (24, 36),
}  # fmt: skip


def shapes(module):
    return {name: tuple(parameter.shape) for name, parameter in module.state_dict().items()}


def with_bias(weights):
    return {f"{name}.{leaf}": shape[: 1 if leaf == "bias" else None]
            for name, shape in weights.items() for leaf in ("weight", "bias")}  # fmt: skip


@pytest.mark.parametrize("count", [1, tiny.FEATURES])
def test_visual_query_gives_query_len_tokens_whatever_comes_in(count):
    connector = build_connector(VISUAL, tiny.FEATURES_DIM, tiny.QUERY_LEN, tiny.HIDDEN)
    assert isinstance(connector, VisualQueryTransformer)
    assert connector(tiny.features(9, count)).shape == (9, tiny.QUERY_LEN, tiny.HIDDEN)


def test_visual_query_keys_and_shapes():
    connector = build_connector(VISUAL, tiny.FEATURES_DIM, tiny.QUERY_LEN, tiny.HIDDEN)
    expected = {"queries": (4, 24)} | with_bias({"input_proj": (24, 20), "input_norm": (24,)})
    for block in range(2):
        expected |= with_bias({f"blocks.{block}.{name}": shape for name, shape in BLOCK.items()})
    expected |= with_bias({"output_proj": (48, 24), "output_norm": (48,)})
    assert shapes(connector) == expected


@pytest.mark.parametrize("eps", [1e-5, 3e-4])
def test_every_norm_has_the_configured_epsilon(eps):
    """timm's block came to default to 1e-6, and V2's published weights were trained with 1e-5."""
    config = ConnectorConfig(width=24, depth=2, heads=3, norm_eps=eps)
    norms = [m for m in build_connector(config, 20, 4, 48).modules() if isinstance(m, nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [eps] * 6
    assert ConnectorConfig().norm_eps == 1e-5


def test_visual_query_feed_forward_is_exact_gelu():
    block = build_connector(VISUAL, 20, 4, 48).blocks[0]
    assert isinstance(block.mlp.act, nn.GELU) and block.mlp.act.approximate == "none"


@torch.no_grad()
def test_every_feature_is_read_and_their_order_is_not():
    torch.manual_seed(6)
    connector = tiny.shake(build_connector(VISUAL, 20, 4, 48), 0.1).eval()
    features = tiny.features(1)
    expected = connector(features)
    tiny.assert_close(connector(features.flip(1)), expected)
    for index in range(tiny.FEATURES):
        changed = features.clone()
        changed[:, index] = 0
        assert (connector(changed) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("bias, norm, eps", [(False, nn.RMSNorm, 1e-6), (True, nn.LayerNorm, 1e-5)])
def test_bridge_of_both_published_layouts(bias, norm, eps):
    config = ConnectorConfig(kind="bridge", depth=2, mlp_ratio=2.5, bias=bias)
    bridge = build_connector(config, tiny.FEATURES_DIM, 3, tiny.HIDDEN)
    assert isinstance(bridge, Bridge)
    expected = with_bias({"input_proj": (48, 20)})
    for block in range(2):
        names = {"norm": (48,), "gate": (120, 48), "up": (120, 48), "down": (48, 120)}
        names = {f"blocks.{block}.{name}": shape for name, shape in names.items()}
        expected |= with_bias(names) if bias else {f"{name}.weight": shape for name, shape in names.items()}
    assert shapes(bridge) == expected
    assert {(type(block.norm), block.norm.eps) for block in bridge.blocks} == {(norm, eps)}
    assert bridge(tiny.features(9, 3)).shape == (9, 3, 48)


@torch.no_grad()
def test_bridge_reads_each_feature_alone():
    torch.manual_seed(6)
    bridge = build_connector(ConnectorConfig(kind="bridge", depth=2), 20, 3, 48)
    features = tiny.features(2, 3)
    tiny.assert_close(bridge(features.flip(1)), bridge(features).flip(1))
    block = bridge.blocks[0]
    x = torch.randn(2, 3, 48)
    normed = x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6) * block.norm.weight
    gate, up, down = (getattr(block, name).weight for name in ("gate", "up", "down"))
    hidden = normed @ gate.T
    tiny.assert_close(block(x), x + (hidden * torch.sigmoid(hidden) * (normed @ up.T)) @ down.T)


def test_bridge_refuses_another_number_of_features():
    bridge = build_connector(ConnectorConfig(kind="bridge", depth=1), 20, 3, 48)
    message = "built for 3 features an input and got 7; set query_len to the encoder's num_cls_tokens"
    with pytest.raises(ValueError, match=message):
        bridge(tiny.features(2, 7))


def test_every_kind_the_config_allows_can_be_built():
    for kind in CONNECTORS:
        build_connector(ConnectorConfig(kind=kind, width=24, depth=1, heads=3), 20, 4, 48)


V2_KEYS = {
    "visual_query.weight": "queries",
    "clip_proj.": "input_proj.",
    "clip_proj_norm.": "input_norm.",
    "visual_blocks.": "blocks.",
    "visual_proj.": "output_proj.",
    "visual_proj_norm.": "output_norm.",
}
BRIDGE_NAMES = {"norm": "norm", "f1": "gate", "f2": "down", "f3": "up"}


def folder_of(golden, name):
    if not (golden / name / "io.safetensors").exists():
        pytest.skip(f"no {name} data in {golden}")
    return golden / name


def recorded_cases(folder, wanted):
    """The cases with a recorded visual query that are `wanted`, by name; a folder may hold any of them."""
    cases = json.loads((folder / "cases.json").read_text())["cases"]
    recorded = load_file(folder / "io.safetensors")
    found = {name: case for name, case in cases.items() if f"out.{name}.visual_query" in recorded and wanted(case)}
    if not found:
        pytest.skip(f"no such case in {folder}")
    return found, recorded


@torch.no_grad()
def test_visual_query_equals_llama_adapter_v2(golden):
    """Of the one picture whose CLIP tokens are recorded, the first."""
    folder = folder_of(golden, "adapter_v2")
    described = json.loads((folder / "cases.json").read_text())
    sizes, files = described["sizes"], {name: text.split()[0] for name, text in described["checkpoints"].items()}
    cases, recorded = recorded_cases(
        folder, lambda case: case["image_rows"] == [0] and (folder / files[case["variant"]]).exists()
    )
    clip_tokens = recorded["out.clip_tokens"][:1].float()
    config = ConnectorConfig(width=sizes["v_embed_dim"], depth=sizes["v_depth"], heads=sizes["v_num_heads"])
    connector = build_connector(config, clip_tokens.shape[-1], sizes["query_len"], sizes["llama"]["dim"]).eval()
    for name, case in cases.items():
        weights = torch.load(folder / files[case["variant"]], weights_only=True)["model"]
        connector.load_state_dict({
            ours + key.removeprefix(theirs): value
            for key, value in weights.items() for theirs, ours in V2_KEYS.items() if key.startswith(theirs)
        })  # fmt: skip
        tiny.assert_close(connector(clip_tokens), recorded[f"out.{name}.visual_query"], 2e-5)


def published_bridge(folder, checkpoint):
    sizes = json.loads((folder / "cases.json").read_text())["sizes"]
    weights = torch.load(folder / checkpoint, weights_only=True)["model"]
    hidden = sizes["llama"]["dim"]
    bias = "image_bind_norm_1.bias" in weights
    config = ConnectorConfig(kind="bridge", depth=3, mlp_ratio=sizes["bridge_hidden"] / hidden, bias=bias)
    bridge = build_connector(config, sizes["imagebind_out"], sizes["query_len"], hidden)
    ours = {}
    for key, value in weights.items():
        if key.startswith("image_bind_proj."):
            ours[key.replace("image_bind_proj", "input_proj")] = value
        elif key.startswith("image_bind_"):
            name, leaf = key.removeprefix("image_bind_").split(".")
            name, number = name.split("_")
            ours[f"blocks.{int(number) - 1}.{BRIDGE_NAMES[name]}.{leaf}"] = value
    bridge.load_state_dict(ours)
    return bridge


@torch.no_grad()
def test_bridge_equals_imagebind_llm(golden):
    folder = folder_of(golden, "imagebind_llm")
    cases, recorded = recorded_cases(folder, lambda case: (folder / case["checkpoint"]).exists())
    compared = [name for name in cases if f"out.{name}.features" in recorded]
    for name in compared:
        features, expected = recorded[f"out.{name}.features"].float(), recorded[f"out.{name}.visual_query"]
        tiny.assert_close(published_bridge(folder, cases[name]["checkpoint"])(features), expected, 5e-5)
    if not compared:
        pytest.skip(f"no features of the files in {folder} are recorded")


@torch.no_grad()
def test_picture_to_query_token_equals_imagebind_llm(golden):
    folder, encoder_folder = folder_of(golden, "imagebind_llm"), folder_of(golden, "imagebind")
    cases, recorded = recorded_cases(
        folder,
        lambda case: list(case["inputs"]) == ["Image"] and "rows" not in case["inputs"]["Image"]
        and not case["knn"] and (folder / case["checkpoint"]).exists(),
    )  # fmt: skip
    sizes = json.loads((encoder_folder / "config.json").read_text())["model_kwargs"]
    heads = {key.removesuffix("_num_heads"): value for key, value in sizes.items() if key.endswith("_num_heads")}
    encoder = load_official(encoder_folder / "imagebind_small.pth", modalities=["vision"], heads=heads)
    for name, case in cases.items():
        picture = case["inputs"]["Image"]
        place, key, row = picture["where"]
        image = load_file(golden / place / "io.safetensors")[key][row : row + 1].float()
        features = mix(encoder({"vision": image})["vision"], torch.tensor([0]), torch.tensor([picture["weight"]]), 1)
        expected = recorded[f"out.{name}.visual_query"]
        tiny.assert_close(published_bridge(folder, case["checkpoint"])(features), expected, 5e-5)
