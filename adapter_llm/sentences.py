"""Sentence embeddings: the space the default encoder speaks. Needed for training only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F


class SentenceEncoder:
    """A sentence-transformers model that pools by the mean, such as all-MiniLM-L6-v2, from its folder."""

    def __init__(self, folder: str | Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], batch_size: int = 128) -> Tensor:
        """Texts to unit vectors (len(texts), E)."""
        found = []
        for start in range(0, len(texts), batch_size):
            batch = self.tokenizer(
                list(texts[start : start + batch_size]), padding=True, truncation=True, return_tensors="pt"
            )
            hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            found.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(found)
