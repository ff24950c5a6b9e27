"""What publishers put into their wheels, in the formats that load fast and strictly."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..words import one_line
from .files import FetchError, partial_name, say


def convert_gguf(gguf: str | Path, folder: str | Path) -> None:
    """A GGUF language model as an ordinary Hugging Face folder: bfloat16 safetensors, config and tokenizer.

    transformers can load GGUF itself, but unpacks every tensor each time, for 10 s and more.
    Raises FetchError for what is no GGUF file, is damaged, or holds an architecture transformers does not know.
    """
    gguf, folder = Path(gguf), Path(folder)
    check_gguf(gguf)
    say(f"converting {gguf.name} into {folder}, once")
    with partial_name(folder) as partial, _quiet_transformers():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        try:
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model = AutoModelForCausalLM.from_pretrained(
                **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
            )
        except Exception as error:  # a damaged file fails in ways no list of types covers
            raise FetchError(
                f"{gguf} cannot be read as a language model ({one_line(error)}); "
                "download it again, or give a LLaMA-family model"
            ) from error
        vars(model.config).pop("_model_name_or_path", None)  # what the publisher's converter called it
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)


def convert_efficientnet(weights: str | Path, file: str | Path, network: str = "efficientnet_lite2") -> None:
    """A published EfficientNet-Lite .pth under timm's names, as safetensors: same tensors, same order.

    `network` is what timm calls it.
    Raises FetchError if the tensors are not those of timm's model, in number or in any shape.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    weights, file = Path(weights), Path(file)
    say(f"converting {weights.name} into {file}, once")
    try:
        published = list(torch.load(weights, weights_only=True, map_location="cpu").items())
    except Exception as error:
        raise FetchError(f"{weights} cannot be read as weights ({one_line(error)}); delete it and run again") from error
    with torch.device("meta"):
        expected = timm.create_model(network).state_dict()
    if len(published) != len(expected):
        raise FetchError(f"{weights.name} holds {len(published)} tensors where timm has {len(expected)}; update timm")
    renamed = {}
    for (name, wanted), (foreign, tensor) in zip(expected.items(), published, strict=True):
        if tensor.shape != wanted.shape:
            raise FetchError(
                f"{weights.name}: {foreign} has shape {tuple(tensor.shape)} where timm's {name} "
                f"has {tuple(wanted.shape)}; update timm"
            )
        renamed[name] = tensor.contiguous()
    with partial_name(file) as partial:
        save_file(renamed, partial)


def check_gguf(gguf: Path) -> None:
    try:
        with gguf.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise FetchError(f"{gguf} cannot be read ({error.strerror}); check the path") from error
    if magic != b"GGUF":
        raise FetchError(f"{gguf} is not a GGUF file; give a language model in that format, or a folder")


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        # one of its progress bars knows no switch
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.set_verbosity(level)
