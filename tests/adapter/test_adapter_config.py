"""AdapterLLMConfig: plain data in and out, and errors that name what is wrong."""

import dataclasses
import json

import pytest

from adapter_llm.config import AdapterConfig, AdapterLLMConfig, ClipConfig, ConnectorConfig, DecoderConfig, PromptConfig
from imagebind_encoder import ConfigError, EncoderConfig, ImageConfig, TrunkConfig

FULL = AdapterLLMConfig(
    EncoderConfig(20, {"vision": TrunkConfig(12, 1, 3, num_cls_tokens=2)}),
    ConnectorConfig("bridge", 24, 5, 3, 2.5, 1e-4, True),
    AdapterConfig(4, 7, True, True),
    PromptConfig("alpaca", "You see.", True),
    DecoderConfig(True, True, 3),
)
CLIP = ClipConfig(20, 24, 2, 3, 7, ImageConfig(42, channels="bgr"))


def test_the_example_has_no_default_left():
    """Or a round trip that loses a field would pass unseen."""
    for part in (FULL.connector, FULL.adapter, FULL.prompt, FULL.decoder):
        fresh = type(part)()
        for item in dataclasses.fields(part):
            assert getattr(part, item.name) != getattr(fresh, item.name), item.name


@pytest.mark.parametrize("config", [FULL, AdapterLLMConfig(EncoderConfig.preset("huge")), AdapterLLMConfig(CLIP)])
def test_round_trip_through_json(config, tmp_path):
    text = json.dumps(config.to_dict())
    assert AdapterLLMConfig.from_dict(json.loads(text)) == config
    (tmp_path / "config.json").write_text(text)
    assert AdapterLLMConfig.load(tmp_path / "config.json") == config
    assert AdapterLLMConfig.load(str(tmp_path / "config.json")) == config


def test_parts_left_out_are_the_defaults_and_the_encoder_is_not():
    encoder = FULL.encoder.to_dict()
    assert AdapterLLMConfig.from_dict({"encoder": encoder}) == AdapterLLMConfig(FULL.encoder)
    with pytest.raises(ConfigError, match="missing key 'encoder' in the config; the keys are encoder, connector,"):
        AdapterLLMConfig.from_dict({})


def test_published_sizes_are_the_defaults():
    connector, adapter = ConnectorConfig(), AdapterConfig()
    assert (connector.width, connector.depth, connector.heads, connector.norm_eps) == (768, 8, 16, 1e-5)
    assert (adapter.query_len, adapter.query_layer, adapter.layer_scale) == (10, 31, False)


def changed(path, value):
    data = FULL.to_dict()
    *parents, last = path.split(".")
    entry = data
    for name in parents:
        entry = entry[name]
    entry[last] = value
    return data


@pytest.mark.parametrize("path, value, message", [
    ("dim", 3, "unknown key 'dim' in the config; the keys are encoder, connector, adapter, prompt, decoder"),
    ("connector.dim", 3, "unknown key 'dim' in connector; the keys are kind, width, depth, heads, mlp_ratio, norm_eps"),
    ("adapter.dim", 3, "unknown key 'dim' in adapter; the keys are query_len, query_layer, layer_scale, gate_scale"),
    ("prompt.dim", 3, "unknown key 'dim' in prompt; the keys are template, system, empty_input"),
    ("encoder.dim", 3, "unknown key 'dim' in the encoder config; the keys are embedding_dim, trunks, image"),
    ("encoder.image.dim", 3, "unknown key 'dim' in image; the keys are size"),
    ("encoder.trunks.vision.dim", 3, r"unknown key 'dim' in trunks\.vision; the keys are width"),
    ("encoder.trunks.vision.stem.dim", 3, r"unknown key 'dim' in trunks\.vision\.stem; the keys are channels"),
    ("connector", 3, "connector must be a mapping"),
    ("encoder", None, "must be a mapping"),
    ("connector.kind", "linear", 'connector.kind is "linear"; it must be "visual_query" or "bridge"'),
    ("connector.width", 0, "width must be a positive integer, not 0"),
    ("connector.depth", "2", "depth must be a positive integer, not '2'"),
    ("connector.heads", True, "heads must be a positive integer, not True"),
    ("connector.mlp_ratio", 0, "mlp_ratio must be a positive number, not 0"),
    ("connector.norm_eps", "1e-5", "norm_eps must be a positive number, not '1e-5'"),
    ("connector.bias", 1, "bias must be true or false, not 1"),
    ("adapter.query_len", 0, "query_len must be a positive integer, not 0"),
    ("adapter.query_layer", 2.0, "query_layer must be a positive integer, not 2.0"),
    ("adapter.layer_scale", "no", "layer_scale must be true or false, not 'no'"),
    ("prompt.template", "llama", 'prompt.template is "llama"; it must be "chat" or "alpaca"'),
    ("prompt.system", 3, "system must be a text or null, not 3"),
    ("prompt.empty_input", "no", "empty_input must be true or false, not 'no'"),
    ("adapter.gate_scale", 1, "gate_scale must be true or false, not 1"),
    ("decoder.dim", 3, "unknown key 'dim' in decoder; the keys are biases, norms, lora_rank"),
    ("decoder.biases", 1, "biases must be true or false, not 1"),
    ("decoder.norms", None, "norms must be true or false, not None"),
    ("decoder.lora_rank", -1, "lora_rank must be an integer, at least 0, not -1"),
    ("encoder", {"kind": "dino"}, 'encoder.kind is "dino"; it must be "clip", or left out for ImageBind'),
    ("encoder", {"kind": "clip", "dim": 3}, "unknown key 'dim' in encoder"),
    ("encoder", {"kind": "clip", "heads": 7}, "encoder.width 1024 is not a multiple of encoder.heads 7"),
    ("encoder.image.channels", "gbr", "channels must be 'rgb' or 'bgr', not 'gbr'"),
])  # fmt: skip
def test_bad_values_are_named_and_so_is_the_file(path, value, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        AdapterLLMConfig.from_dict(changed(path, value))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(changed(path, value)))
    with pytest.raises(ConfigError, match=f"config.json: .*{message}"):
        AdapterLLMConfig.load(file)


def test_width_must_be_a_multiple_of_heads_where_there_are_heads():
    with pytest.raises(ConfigError, match="connector.width 25 is not a multiple of connector.heads 3"):
        ConnectorConfig(width=25, heads=3)
    ConnectorConfig("bridge", width=25, heads=3)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '{"encoder": NaN}', "\ud800"])
def test_files_that_hold_no_config(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match="config.json: "):
        AdapterLLMConfig.load(tmp_path / "config.json")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.json"):
        with pytest.raises(ConfigError, match=str(path)):
            AdapterLLMConfig.load(path)


def test_configs_cannot_be_changed():
    for part in (FULL, FULL.adapter, FULL.connector, FULL.prompt, FULL.decoder, CLIP):
        name = dataclasses.fields(part)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, name, None)
