"""How often answers about sounds and movement are true, and whether words find the right photos.

Only what training left out counts: whole groups of recordings (see sounds.py), photos by the hash of their name.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from .evaluate import LabelledImage, Score, score_mentions
from .pipeline import Pipeline
from .sounds import Clip, Sound, read_sounds
from .vocabulary import with_article

QUESTIONS = {"audio": "What is this sound?", "imu": "What is this person doing?"}
MOST = 6  # recordings a class: most classes have few, and those with many would decide alone


def held_out_clips(clips: Sequence[Clip], most: int = MOST) -> list[Clip]:
    """Those that training left out, at most so many a class, the same ones every time."""
    by_class = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: hashlib.sha256(clip.path.name.encode()).digest()):
        if clip.held_out and len(by_class[clip.label]) < most:
            by_class[clip.label].append(clip)
    return [clip for label in sorted(by_class) for clip in by_class[label]]


def score_recordings(
    pipe: Pipeline, keyword: str, classes: Sequence[Sound], clips: Sequence[Clip], batch_size: int = 16
) -> Score:
    """Share of recordings whose class, by its name or a synonym, is in the answer to the keyword's question."""
    wanted = [(clip.path, classes[clip.label].name, classes[clip.label].names) for clip in clips]
    return score_mentions(pipe, wanted, QUESTIONS[keyword], keyword=keyword, batch_size=batch_size, max_new_tokens=24)


def score_retrieval(pipe: Pipeline, photos: Sequence[LabelledImage], ranks: Sequence[int] = (1, 5)) -> list[Score]:
    """For each rank, the share of labels with a photo of theirs that near to "a photo of a goldfish"."""
    found = torch.stack([pipe.embed(image=photo.path) for photo in photos])
    missed: dict[int, list[tuple[str, str, str]]] = {rank: [] for rank in ranks}
    labels = sorted({photo.label for photo in photos})
    for label in labels:
        order = (found @ pipe.embed(text=f"a photo of {with_article(label)}")).argsort(descending=True).tolist()
        named = [photos[number].label for number in order]
        for rank in ranks:
            if label not in named[:rank]:
                missed[rank].append((label, label, named[0]))
    return [Score.of(missed[rank], len(labels)) for rank in ranks]


def measure_senses(
    pipe: Pipeline, photos: Sequence[LabelledImage], recordings: Mapping[str, Path | None]
) -> dict[str, Score]:
    """Every score there are data for; `recordings`: folders of labelled ones by keyword (docs/training_sounds.md)."""
    scores = {}
    for keyword, folder in recordings.items():
        if folder is not None:
            classes, clips = read_sounds(folder)
            chosen = held_out_clips(clips)
            count = len({clip.label for clip in chosen})
            scores[f"{keyword}: named when asked, {count} classes"] = score_recordings(pipe, keyword, classes, chosen)
    if {"image", "text"} <= set(pipe.keywords):
        first, fifth = score_retrieval(pipe, photos)
        scores |= {"photos found by their label, at 1": first, "photos found by their label, at 5": fifth}
    return scores
