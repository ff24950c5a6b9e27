"""Labelled recordings: reading them from a folder, and changing them at random so that few go a long way.

A recording belongs to a group: all that was cut from one tape, played by one instrument or said by one voice.
Only whole groups are held out, since a classifier knows again what it has heard, whatever it is labelled.
"""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from imagebind_encoder.media.recording import Recording
from imagebind_encoder.media.resample import resample

from .data import is_held_out

RATE = 16000  # samples a second
HELD_OUT = 0.3  # share of the groups, where clips.csv does not say which


@dataclass(frozen=True)
class Sound:
    """One class: what it is called, first by its own name, and a sentence of what is heard."""

    names: tuple[str, ...]
    caption: str

    @property
    def name(self) -> str:
        return self.names[0]

    def sentences(self) -> list[str]:
        """Texts whose mean embedding stands for the class."""
        return [f"the sound of {self.name}", ", ".join(self.names), f"{self.name}: {self.caption}"]


@dataclass(frozen=True)
class Clip:
    """One recording on disk."""

    path: Path
    label: int  # index of its class
    group: str
    held_out: bool


def read_sounds(folder: Path) -> tuple[list[Sound], list[Clip]]:
    """The classes of `classes.csv` (name, synonyms, caption) and the recordings of `clips.csv` (class, path, group).

    Synonyms are separated by "|"; paths are relative to the folder. A column `split` may say "train" or "held_out",
    otherwise a share of the groups is held out. Raises ValueError, naming the file, for what is missing.
    """
    classes = _rows(folder / "classes.csv", {"name", "synonyms", "caption"})
    sounds = [Sound((row["name"], *filter(None, row["synonyms"].split("|"))), row["caption"]) for row in classes]
    index = {sound.name: number for number, sound in enumerate(sounds)}
    clips = []
    for row in _rows(folder / "clips.csv", {"class", "path", "group"}):
        if row["class"] not in index:
            raise ValueError(f"{folder / 'clips.csv'} has the class {row['class']!r}, which classes.csv lacks; add it")
        held_out = row["split"] == "held_out" if row.get("split") else is_held_out(row["group"], HELD_OUT)
        # absolute: loaders take no such path for a URL or a data: URI
        clips.append(Clip(folder.absolute() / row["path"], index[row["class"]], row["group"], held_out))
    silent = sorted(set(range(len(sounds))) - {clip.label for clip in clips if not clip.held_out})
    if silent:
        raise ValueError(f"{folder} has no recording to train on of {sounds[silent[0]].name!r}; add one, or drop it")
    return sounds, clips


def _rows(path: Path, columns: set[str]) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a mark in front
        rows = csv.DictReader(file)
        if not columns <= set(rows.fieldnames or ()):
            raise ValueError(f"{path} needs the columns {', '.join(sorted(columns))}, it has {rows.fieldnames}")
        return list(rows)


def load_samples(path: Path) -> np.ndarray:
    """The first channel of a recording at 16 kHz, int16: thousands of them are kept in memory. Raises MediaError."""
    recording = Recording(path)
    samples = torch.cat(list(recording.blocks()), dim=1)[0]
    return (resample(samples, recording.rate, RATE).clamp(-1, 1) * 32767).short().numpy()


def varied(samples: np.ndarray, rng: random.Random, longest: int) -> np.ndarray:
    """At most `longest` samples of an int16 recording as floats in [-1, 1], as they might have been recorded elsewhere.

    Another stretch of it, faster or slower, repeated or with silence around it, in a room, louder or quieter, in noise.
    """
    sound = samples.astype(np.float32) / 32768
    speed = 2 ** rng.uniform(-0.3, 0.3) if rng.random() < 0.7 else 1.0
    sound = _faster(_stretch(sound, rng, int(longest * speed) + 2), speed)[:longest]
    if len(sound) < 0.6 * longest and rng.random() < 0.5:
        sound = _repeated(sound, rng, rng.randint(len(sound), longest))
    elif len(sound) < longest and rng.random() < 0.4:
        padded = np.zeros(rng.randint(len(sound), longest), np.float32)
        start = rng.randrange(len(padded) - len(sound) + 1)
        padded[start : start + len(sound)] = sound
        sound = padded
    if rng.random() < 0.2:
        sound = _in_a_room(sound, rng)[:longest]
    sound = sound * (10 ** (rng.uniform(-24, -1) / 20) / (np.abs(sound).max() + 1e-6))
    if rng.random() < 0.6:
        sound = sound + _noise(len(sound), rng) * (loudness(sound) * 10 ** (-rng.uniform(8, 50) / 20))
    return np.clip(sound, -1, 1)


def loudness(sound: np.ndarray) -> float:
    """Root mean square, never 0."""
    return float(np.sqrt(np.mean(sound * sound))) + 1e-6


def _stretch(sound: np.ndarray, rng: random.Random, wanted: int) -> np.ndarray:
    """A stretch of that length, of what is longer; of what is shorter sometimes a part."""
    if len(sound) > wanted:
        start = rng.randrange(len(sound) - wanted)
        if np.abs(sound[start : start + wanted]).max() < 0.05 * np.abs(sound).max():  # a pause
            start = min(max(0, int(np.abs(sound).argmax()) - wanted // 2), len(sound) - wanted)
        return sound[start : start + wanted]
    shortest = RATE // 2
    if len(sound) > 1.5 * shortest and rng.random() < 0.15:
        length = rng.randint(shortest, len(sound))
        start = rng.randrange(len(sound) - length + 1)
        return sound[start : start + length]
    return sound


def _faster(sound: np.ndarray, speed: float) -> np.ndarray:
    """Played at another speed, which moves the pitch, too."""
    if speed == 1.0:
        return sound
    return np.interp(np.arange(int(len(sound) / speed)) * speed, np.arange(len(sound)), sound).astype(np.float32)


def _repeated(sound: np.ndarray, rng: random.Random, length: int) -> np.ndarray:
    pause = int(rng.choice([0, 0.05, 0.1, 0.2, 0.4, 0.8]) * RATE)
    repeated = np.zeros(length, np.float32)
    for start in range(0, length, len(sound) + pause):
        end = min(start + len(sound), length)
        repeated[start:end] = sound[: end - start] * rng.uniform(0.5, 1)
    return repeated


def _in_a_room(sound: np.ndarray, rng: random.Random) -> np.ndarray:
    """Convolved with noise that dies away by 60 dB within a random time, the simplest model of an echo."""
    seconds = rng.uniform(0.1, 0.8)
    tail = int(0.6 * seconds * RATE)
    echo = _noise(tail, rng) * np.exp(-6.9 * np.arange(tail) / (seconds * RATE)).astype(np.float32)
    echo *= rng.uniform(0.1, 0.5) / (np.linalg.norm(echo) + 1e-9)
    echo[0] = 1
    size = 1 << (len(sound) + tail - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(echo, size), size)[: len(sound) + tail // 2]


def _noise(length: int, rng: random.Random) -> np.ndarray:
    """White, or darker, of loudness 1."""
    noise = np.random.default_rng(rng.randrange(2**30)).standard_normal(length).astype(np.float32)
    if rng.random() < 0.5:
        noise = np.cumsum(noise)
        window = min(400, length)  # samples: what is slower than 40 Hz goes
        noise -= np.convolve(noise, np.full(window, 1 / window, np.float32), "same")
    return noise / (noise.std() + 1e-9)
