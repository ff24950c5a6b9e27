"""A complete weights folder and a complete decoder folder, so small that a pipeline of them answers in milliseconds."""

import json
from contextlib import contextmanager
from dataclasses import replace

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapter_llm.checkpoint import build_parts, save_pretrained
from adapter_llm.config import AdapterConfig, AdapterLLMConfig, ConnectorConfig, PromptConfig
from adapter_llm.manifest import DecoderRecord, Manifest
from adapter_llm.model import AdapterLLM
from adapter_llm.sources import record_of
from imagebind_encoder import (
    AudioConfig,
    EncoderConfig,
    ImageConfig,
    ImuConfig,
    PatchStemConfig,
    TrunkConfig,
    VideoConfig,
)

SYSTEM = "You see a picture."
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRAINED_ON = ["What is in this picture? A dog and a cat on the grass.", "Describe this picture in the rain."]


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, a few merges, and what a chat needs. Any text survives it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|im_start|>", "<|im_end|>", "<pad>"], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(TRAINED_ON, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<pad>",
        chat_template=TEMPLATE,
    )  # fmt: skip


def shaken(module: nn.Module, amount: float) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * amount)
    return module


def save_decoder(folder, **changes):
    words = tokenizer()
    sizes = dict(
        hidden_size=48, num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=5, intermediate_size=56,
        vocab_size=len(words), max_position_embeddings=512, initializer_range=0.2, tie_word_embeddings=True,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        llama = shaken(LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})), 0.02)
    llama.save_pretrained(folder)
    words.save_pretrained(folder)


def config() -> AdapterLLMConfig:
    vision = PatchStemConfig(channels=3, size=(2, 42, 42), kernel=(2, 14, 14), stride=(2, 14, 14), norm=False)
    imu = PatchStemConfig(channels=6, size=(80,), kernel=(8,), stride=(8,))
    trunks = {
        "vision": TrunkConfig(12, 1, 3, num_cls_tokens=7, stem=vision),
        "imu": TrunkConfig(22, 1, 2, num_cls_tokens=7, stem=imu),
    }
    return AdapterLLMConfig(
        EncoderConfig(20, trunks, ImageConfig(size=42)),
        ConnectorConfig(width=24, depth=2, heads=3, mlp_ratio=1.5),
        AdapterConfig(query_len=4, query_layer=3, layer_scale=True),
        PromptConfig(system=SYSTEM),
    )


def every_sense() -> AdapterLLMConfig:
    """Small weights that take every kind of input but point clouds."""
    plane = PatchStemConfig(channels=1, size=(32, 32), kernel=(16, 16), stride=(16, 16))
    stems = {
        "audio": PatchStemConfig(channels=1, size=(16, 30), kernel=(8, 8), stride=(4, 4)),
        "text": None,
        "depth": plane,
        "thermal": plane,
    }
    plain, trunks = config(), dict(config().encoder.trunks)
    trunks |= {name: TrunkConfig(10, 1, 2, num_cls_tokens=7, stem=stem) for name, stem in stems.items()}
    audio, video = AudioConfig(seconds=0.3, overlap="separate"), VideoConfig(clips=2, seconds=0.4, crops=1)
    encoder = EncoderConfig(20, trunks, ImageConfig(size=42), video=video, audio=audio, imu=ImuConfig(seconds=1.0))
    return replace(plain, encoder=encoder)


def build(decoder, sizes: AdapterLLMConfig | None = None) -> tuple[AdapterLLM, Manifest]:
    """A model with random weights, none of them a constant, and gates wide open."""
    llama = LlamaForCausalLM.from_pretrained(decoder)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        parts = build_parts(sizes or config(), llama.config, device="cpu")
        for part, amount in (("encoder", 0.3), ("connector", 0.2), ("adapter", 0.5)):
            shaken(parts[part], amount)
        gates = parts["adapter"].gates
        with torch.no_grad():
            gates.copy_(gates.sign() * (1 + gates.abs()))
    return AdapterLLM(llama=llama, **parts).eval(), Manifest(DecoderRecord.of(llama.config, "tiny-llama"))


def save_weights(folder, decoder, dtype=torch.float32, sizes: AdapterLLMConfig | None = None):
    model, manifest = build(decoder, sizes)
    save_pretrained(folder, model, sizes or config(), manifest, dtype)
    return model


def change_json(path, change):
    """Let `change` edit a JSON file's content in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def reseal(folder):
    """Make the manifest agree with what lies in the folder, so that only deeper checks can object."""
    found = {name: record_of(folder / name) for name in ("config.json", "encoder.safetensors", "adapter.safetensors")}
    records = {name: {"bytes": record.bytes, "sha256": record.sha256} for name, record in found.items()}
    change_json(folder / "manifest.json", lambda manifest: manifest.update(files=records))


def picture(seed: int, width: int = 50, height: int = 50) -> Image.Image:
    """Blocks of random colours."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.NEAREST)


@contextmanager
def says(pipe, text: str, end: bool = True):
    """Inside, the decoder writes this text, whatever it is asked, and yields its number of forward calls."""
    words = pipe.processor.tokenizer
    script = words(text).input_ids + ([words.eos_token_id] if end else [])
    calls = []

    def replace(head, inputs, logits):
        wanted = script[min(len(calls), len(script) - 1)]
        calls.append(wanted)
        return torch.zeros_like(logits).index_fill(-1, torch.tensor([wanted]), 100.0)

    with pipe.model.llama.lm_head.register_forward_hook(replace):
        yield calls
