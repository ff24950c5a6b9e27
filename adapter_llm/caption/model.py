"""The model that captions, found and not loaded: what it is, what it would need, and how it is loaded when it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..device import choose_device, choose_dtype
from ..processing import keywords_of
from ..settings import with_settings
from ..shards import fingerprint
from ..sources import ADAPTER, find_decoder, record_of
from ..space.embedder import EncoderFolder, digest
from ..words import sha256_of

if TYPE_CHECKING:
    from ..pipeline import Pipeline

# what a tokenizer folder says words are, how a chat is written and where an answer ends
WORDS = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class ModelIdentity:
    """What captions say of the model that wrote them."""

    name: str  # what people call it
    fingerprint: str  # of all files and settings that an answer depends on
    dtype: str


@dataclass(frozen=True)
class ModelFolders:
    """Weights, their decoder and an index, if there is one, with how they are to be used."""

    weights: str
    llm: str | None
    encoder: EncoderFolder
    decoder: Path
    device: str = "auto"
    dtype: str = "auto"
    index: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    faithful: bool = False  # to the originals of published weights
    allow_base_mismatch: bool = False
    device_map: str | None = None
    offload_folder: str | None = None

    @classmethod
    def find(cls, weights: str | Path, llm: str | None = None, **options: Any) -> ModelFolders:
        """Raises CheckpointError, ConfigError or FetchError for what is not there; it may be fetched."""
        encoder = EncoderFolder.find(weights)
        found = cls(str(weights), llm, encoder, find_decoder(llm, encoder.manifest, encoder.path), **options)
        found.identity  # noqa: B018, what is wrong with files and settings is known now
        return found

    @property
    def keywords(self) -> list[str]:
        """Media that the weights take."""
        return keywords_of(self.encoder.config)

    @cached_property
    def identity(self) -> ModelIdentity:
        """A folder is called by its own name, and the beginning of its fingerprint. Raises CheckpointError."""
        manifest, folder = self.encoder.manifest, self.encoder.path
        adapter = manifest.files.get(ADAPTER) or record_of(folder / ADAPTER)
        words = {name: sha256_of(self.decoder / name) for name in WORDS if (self.decoder / name).is_file()}
        index = self.index and sha256_of(Path(self.index).expanduser())
        config = with_settings(self.encoder.whole_config, self.settings)
        parts = [self.encoder.fingerprint, adapter.sha256, config, fingerprint(self.decoder), words, index]
        found = digest(*parts, *["faithful"][: self.faithful])
        path = Path(self.weights).expanduser()
        name = path.resolve().name if path.is_dir() else self.weights
        # "auto" depends on the machine, and answers on the dtype
        dtype = str(choose_dtype(self.dtype, choose_device(self.device))).removeprefix("torch.")
        return ModelIdentity(f"{name}@{found[:8]}", found, dtype)

    def load(self, keywords: Iterable[str] | None = None) -> Pipeline:
        """The pipeline, with the trunks of these media alone; None loads all."""
        from ..pipeline import Pipeline

        return Pipeline.from_pretrained(
            self.weights,
            self.llm,
            device=self.device,
            dtype=self.identity.dtype,
            media=keywords,
            index=self.index,
            settings=self.settings,
            faithful=self.faithful,
            allow_base_mismatch=self.allow_base_mismatch,
            device_map=self.device_map,
            offload_folder=self.offload_folder,
        )
