"""Where weights and their decoder are, and whether they are what they should be, before anything slow is loaded."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .fetch import decoder_folder, gguf_folder
from .manifest import DecoderRecord, FileRecord, Manifest
from .words import one_line, sha256_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG, MANIFEST, ENCODER, ADAPTER = "config.json", "manifest.json", "encoder.safetensors", "adapter.safetensors"
DECODER_PREFIX = "decoder."  # of tensors in ADAPTER that change the language model itself
KEPT = "kept.safetensors"  # what a published file holds and no computation uses, for the way back
WEIGHTS_FILES = (CONFIG, MANIFEST, ENCODER, ADAPTER)
# of a decoder on the hub; LLaMA repositories also hold every weight a second time, in Meta's own format
DECODER_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
HASH_LIMIT = 256 * 1024**2  # larger files are checked by their size alone, to start in seconds


class CheckpointError(RuntimeError):
    """Weights that are missing, damaged or of another model."""


def find_folder(source: str | Path, what: str, needed: tuple[str, ...], wanted: tuple[str, ...] = ()) -> Path:
    """A local folder, or the snapshot of a hub id, that has all `needed` files.

    `wanted` are the patterns of what is downloaded, if that is more. Raises CheckpointError.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if folder.exists():
            raise CheckpointError(
                f"{what}: {folder} is a file; give a folder, or make one of a published file: "
                f"python -m adapter_llm convert {folder} --output FOLDER"
            )
        if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(source)):
            raise CheckpointError(f"there is no {what} folder {folder}; give a folder, or a hub id such as owner/name")
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(str(source), allow_patterns=list(wanted or needed)))
        except Exception as error:  # every kind of network and hub failure ends here, for the same advice
            raise CheckpointError(
                f"{what}: {source} is no folder here and could not be had from the hub ({one_line(error)}); "
                "check the name and the network"
            ) from error
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"the {what} folder {folder} lacks {', '.join(missing)}; give a complete folder")
    return folder


def find_decoder(llm: str | Path | None, manifest: Manifest, weights: Path) -> Path:
    """The decoder's Hugging Face folder, fetched and converted if need be; `weights` is where the manifest is."""
    if manifest.decoder is None:
        raise CheckpointError(f"{weights} holds an encoder alone; give the folder of an adapter converted with it")
    if llm is None and manifest.decoder.part is not None:
        return decoder_folder(manifest.decoder.part)
    source = llm or manifest.decoder.source
    if source is None:
        raise CheckpointError(f"these weights need {manifest.decoder.name} and cannot fetch it; give it with --llm")
    beside = weights / source  # a folder given when the weights were converted
    if llm is None and beside.is_dir():
        source = beside
    elif llm is None and str(source).startswith(".."):
        raise CheckpointError(
            f"the weights {weights} need {manifest.decoder.name}, which is no longer at {beside}; give it with --llm"
        )
    return find_language_model(source)


def find_language_model(source: str | Path) -> Path:
    """The Hugging Face folder of a local folder, a hub id or a GGUF file. Raises CheckpointError or FetchError."""
    if str(source).endswith(".gguf"):
        return gguf_folder(source)
    if (Path(source).expanduser() / "params.json").is_file() and not (Path(source).expanduser() / CONFIG).is_file():
        raise CheckpointError(
            f"{source} is a LLaMA in Meta's layout; convert it first: "
            f"python -m adapter_llm convert {source} --output FOLDER"
        )
    return find_folder(source, "language model", (CONFIG,), DECODER_FILES)


def decoder_config(folder: Path) -> PretrainedConfig:
    """The config of a language model. Raises CheckpointError if transformers knows no such model."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
        DecoderRecord.of(config, str(folder))  # has all the sizes
    except Exception as error:  # a config of any content ends here
        raise CheckpointError(
            f"{folder} is not a language model that transformers can read ({one_line(error)}); give one with --llm"
        ) from None
    return config


def check_decoder(
    folder: Path, llm: str | Path | None, manifest: Manifest, weights: str | Path
) -> PretrainedConfig:
    """The decoder's config. Raises CheckpointError if its sizes are not those the adapter was trained for."""
    config = decoder_config(folder)
    found = DecoderRecord.of(config, str(llm or manifest.decoder.name))
    differences = manifest.decoder.differences(found)
    if differences:
        raise CheckpointError(
            f"the weights {weights} were trained for {manifest.decoder.name}, and {found.name} is another model "
            f"({', '.join(differences)}); give the right one with --llm, or weights trained for this one"
        )
    return config


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise CheckpointError for a file that is missing, cut short or changed."""
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; its folder's manifest lists it")
        size = path.stat().st_size
        if size != record.bytes:
            raise CheckpointError(f"{path} has {size} bytes instead of {record.bytes}; get it again")
        if size <= HASH_LIMIT and record_of(path) != record:
            raise CheckpointError(f"{path} is not the file its manifest describes (SHA-256 differs); get it again")


def record_of(path: Path) -> FileRecord:
    """Size and hash of a file."""
    return FileRecord(path.stat().st_size, sha256_of(path))


def as_json(values: dict[str, Any]) -> str:
    """The text of a config or manifest file."""
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"


def moved(decoder: DecoderRecord, old: Path, new: Path) -> DecoderRecord:
    """The record in a weights folder made of another: a language model's place is counted from the folder."""
    place = old.expanduser() / (decoder.source or "")
    if decoder.source is None or not place.is_dir():
        return decoder
    return replace(decoder, source=os.path.relpath(place.resolve(), new.expanduser().resolve()))
