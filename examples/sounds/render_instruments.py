"""Phrases of instruments and drums, played by General MIDI soundfonts: what the default audio trunk learned them from.

    python render_instruments.py FluidR3_GM.sf2 sounds/ --group fluid          # needs fluidsynth
    python render_instruments.py freepats.cfg sounds/ --group freepats         # needs timidity

Writes sounds/clips/<class>/<group>_<number>.wav and appends to sounds/clips.csv (class, path, group). Fonts that are
copies of each other must have one group: of the Debian packages, csound-soundfont is timgm6mb-soundfont again.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import struct
import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np

from imagebind_encoder.media.recording import Recording

RATE, SLOT, LONGEST = 16000, 6.0, 4.2  # samples a second; seconds from phrase to phrase, and of a phrase
TONES = {  # class: programs, lowest and highest key, style (m melody, c with chords, l long notes, o one note, f few)
    "piano": ((0, 1), 36, 96, "c"), "harpsichord": ((6,), 40, 84, "c"), "glockenspiel": ((9, 8, 10), 72, 100, "m"),
    "xylophone": ((13, 12, 11), 55, 90, "m"), "bell": ((14,), 60, 79, "f"), "organ": ((16, 19), 36, 84, "c"),
    "accordion": ((21, 23, 22), 48, 84, "c"), "acoustic guitar": ((24, 25), 40, 76, "c"),
    "electric guitar": ((27, 29, 30), 40, 76, "c"), "bass guitar": ((33, 34), 28, 52, "m"),
    "violin": ((40,), 55, 93, "m"), "cello": ((42,), 36, 66, "m"), "harp": ((46,), 40, 92, "c"),
    "timpani": ((47,), 38, 55, "m"), "choir": ((52, 53), 48, 76, "cl"), "trumpet": ((56,), 54, 84, "m"),
    "trombone": ((57,), 40, 67, "m"), "tuba": ((58,), 28, 52, "m"), "french horn": ((60,), 40, 72, "m"),
    "saxophone": ((65, 66, 64, 67), 46, 80, "m"), "oboe": ((68,), 58, 86, "m"), "bassoon": ((70,), 34, 65, "m"),
    "clarinet": ((71,), 50, 86, "m"), "flute": ((73, 74, 75), 60, 93, "m"), "sitar": ((104,), 48, 76, "m"),
    "banjo": ((105,), 50, 80, "m"), "bagpipes": ((109,), 55, 79, "m"), "steel drum": ((114,), 55, 84, "m"),
    "sea waves": ((122,), 55, 67, "o"), "bird": ((123,), 55, 79, "o"), "telephone": ((124,), 58, 76, "o"),
    "helicopter": ((125,), 52, 67, "o"), "applause": ((126,), 52, 67, "o"), "gunshot": ((127,), 50, 72, "f"),
}  # fmt: skip
DRUMS = {  # class: keys of the drum channel
    "bass drum": (35, 36), "snare drum": (38, 40), "tom drum": (41, 43, 45, 47, 48, 50),
    "cymbal": (49, 57, 51, 59, 55, 52), "hi-hat": (42, 44, 46), "tambourine": (54,), "cowbell": (56,),
    "hand clap": (39,), "maracas": (70, 69), "bongo drum": (60, 61, 62, 63, 64), "triangle": (80, 81),
    "wood block": (76, 77, 75), "whistle": (71, 72), "drums": (),
}  # fmt: skip
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9))
Note = tuple[float, float, int, int]  # start, end, key, velocity


def melody(rng: random.Random, low: int, high: int, style: str) -> list[Note]:
    """A walk on a scale within the instrument's range, or, if so styled, a single note or a few."""
    total, velocity, time, notes = rng.choice([0.6, 1.2, 2, 3, 4]), rng.randint(55, 120), 0.02, []
    if style in "of":
        key, count = rng.randint(low, high), 1 if style == "o" else rng.choice([1, 1, 2, 3])
        for _ in range(count):
            length = max(total, 1.0) if count == 1 else rng.uniform(0.3, 1.2)
            notes.append((time, time + length, key, velocity))
            time += length
        return notes
    centre, degree, scale = rng.randint(low, high), rng.randint(0, 6), rng.choice(SCALES)
    slow = "l" in style or rng.random() < 0.35
    while time < total:
        length = rng.choice([0.6, 0.9, 1.5, 2.5] if slow else [0.12, 0.2, 0.25, 0.3, 0.4, 0.5, 0.8])
        length = min(length, LONGEST - time)
        if length < 0.08:
            break
        degree += rng.choice([-3, -2, -1, -1, 0, 1, 1, 2, 3, 4])
        key = centre + 12 * (degree // len(scale)) + scale[degree % len(scale)]
        key = low + (key - low) % (12 * max(1, (high - low) // 12))
        chord = [key, key + 4 - rng.randint(0, 1), key + 7] if "c" in style and rng.random() < 0.45 else [key]
        end = time + length * rng.uniform(0.7, 1.05)
        notes += [(time, end, k, max(30, min(127, velocity + rng.randint(-15, 10)))) for k in chord if k <= high]
        time += length
    return notes


def hits(rng: random.Random, keys: tuple[int, ...]) -> list[Note]:
    """One to eight strokes on a drum."""
    gap, key, velocity = rng.choice([0.12, 0.2, 0.25, 0.35, 0.5, 0.8]), rng.choice(keys), rng.randint(60, 125)
    time, notes = 0.02, []
    for _ in range(rng.choice([1, 1, 1, 2, 3, 4, 8])):
        key = rng.choice(keys) if rng.random() < 0.4 else key
        notes.append((time, time + 0.3, key, max(30, min(127, velocity + rng.randint(-20, 5)))))
        time += gap * rng.choice([1, 1, 1, 2])
    return [note for note in notes if note[0] < 3.5]


def beat(rng: random.Random) -> list[Note]:
    """A bar or two of a drum kit: hi-hat or ride, bass drum, snare drum, sometimes a crash."""
    step, hat = rng.uniform(0.11, 0.2), rng.choice([42, 42, 51, 46])
    bass = [rng.random() < 0.25 or number % 8 == 0 for number in range(16)]
    snare = [number % 8 == 4 or rng.random() < 0.06 for number in range(16)]
    notes = [(0.02, 0.5, 49, 100)] if rng.random() < 0.4 else []
    for number in range(int(rng.choice([2, 3, 4]) / step)):
        time = 0.02 + number * step
        if number % 2 == 0 or rng.random() < 0.2:
            notes.append((time, time + 0.1, hat, rng.randint(50, 100)))
        notes += [(time, time + 0.1, 36, rng.randint(85, 120))] * bass[number % 16]
        notes += [(time, time + 0.1, 38, rng.randint(80, 120))] * snare[number % 16]
    return notes


def midi_file(phrases: list[tuple[int, list[Note]]], channel: int) -> bytes:
    """Phrases of (program, notes), one every SLOT seconds, as a standard MIDI file of 1000 ticks a second."""
    events: list[tuple[float, bytes]] = [(len(phrases) * SLOT, bytes([0xB0 | channel, 7, 100]))]
    for number, (program, notes) in enumerate(phrases):
        events.append((number * SLOT, bytes([0xC0 | channel, program])))
        for start, end, key, velocity in notes:
            events.append((number * SLOT + start, bytes([0x90 | channel, key, velocity])))
            events.append((number * SLOT + end, bytes([0x80 | channel, key, 0])))
    track, last = b"\0\xff\x51\x03" + (1_000_000).to_bytes(3, "big"), 0  # a quarter note is a second
    for time, message in sorted(events, key=lambda event: (event[0], event[1][0] & 0xF0 != 0x80)):
        tick = round(time * 1000)
        track += _variable_length(tick - last) + message
        last = tick
    track += b"\0\xff\x2f\0"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 1000) + b"MTrk" + struct.pack(">I", len(track)) + track


def _variable_length(number: int) -> bytes:
    digits = [number & 127]
    while number := number >> 7:
        digits.append(128 | number & 127)
    return bytes(reversed(digits))


def play(font: Path, midi: bytes) -> np.ndarray:
    """Samples (n,) at 16 kHz. A .cfg file is a set of patches for timidity, anything else a soundfont."""
    with tempfile.TemporaryDirectory() as folder:
        score, sound = Path(folder, "score.mid"), Path(folder, "sound.wav")
        score.write_bytes(midi)
        if font.suffix == ".cfg":
            command = ["timidity", "-c", font, f"-s{RATE}", "-OwM", "--reverb=0", "-EFchorus=0", "-o", sound, score]
        else:
            command = ["fluidsynth", "-ni", "-q", "-r", str(RATE), "-g", "0.6", "-R", "0", "-C", "0", "-F", sound,
                       font, score]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return np.concatenate([block.mean(0).numpy() for block in Recording(sound).blocks()])


def programs_of(font: Path) -> set[int]:
    """Those that a set of patches has: timidity plays another one for what is missing."""
    if font.suffix != ".cfg":
        return set(range(128))
    return {int(number) for number in re.findall(r"^\s*(\d+)\s", font.read_text().split("bank 0")[1], re.MULTILINE)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("font", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--group", required=True, help="the same for all fonts that share their recordings")
    parser.add_argument("--count", type=int, default=24, help="phrases a class (24)")
    arguments = parser.parse_args()
    had = programs_of(arguments.font)
    rows = []
    for name in (*TONES, *DRUMS):
        rng = random.Random(f"{arguments.group} {name}")
        if name in TONES:
            programs, *style = TONES[name]
            known = [program for program in programs if program in had]
            phrases = [(rng.choice(known), melody(rng, *style)) for _ in range(arguments.count if known else 0)]
        else:
            phrases = [(0, hits(rng, DRUMS[name]) if DRUMS[name] else beat(rng)) for _ in range(arguments.count)]
        sound = play(arguments.font, midi_file(phrases, 0 if name in TONES else 9)) if phrases else np.zeros(0)
        rows += write_clips(sound, len(phrases), name, arguments.group, arguments.folder)
    table = arguments.folder / "clips.csv"
    started = table.exists()
    with table.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows if started else [("class", "path", "group"), *rows])


def write_clips(sound: np.ndarray, count: int, name: str, group: str, folder: Path) -> list[tuple[str, str, str]]:
    """Cut the phrases apart, without the silence around them; rows of clips.csv. What is not heard is left out."""
    rows = []
    for number in range(count):
        phrase = sound[int(number * SLOT * RATE) : int((number + 1) * SLOT * RATE)]
        loud = np.flatnonzero(np.abs(phrase) > max(0.002, 0.004 * np.abs(phrase).max(initial=0)))
        if len(loud) < RATE // 40:
            continue
        path = Path("clips", name.replace(" ", "_"), f"{group}_{number:02d}.wav")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        samples = np.clip(phrase[max(0, loud[0] - 400) : loud[-1] + 800], -1, 1)
        with wave.open(str(folder / path), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((samples * 32767).astype("<i2").tobytes())
        rows.append((name, str(path), group))
    return rows


if __name__ == "__main__":
    main()
