"""Processor time and memory of recordings of one minute and of one hour: memory must not grow with the length.

    python benchmarks/long_media.py [--minutes 60] [--only mp3]

Every case runs in a process of its own, which first loads a second of the same kind: what is counted is
how far its largest resident set then grows. Exit status 1 if that of the long recording is more than
GROWTH above that of the short one.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

GROWTH = 32e6  # bytes
RATE, CHANNELS = 44100, 2
WINDOW = 10.0  # seconds


def chirp() -> "numpy.ndarray":
    """A second of sound, int16 (samples, channels)."""
    import numpy

    moment = numpy.arange(RATE) / RATE
    sides = [numpy.sin(2 * numpy.pi * pitch * moment * (1 + moment)) for pitch in (300, 500)]
    return (numpy.stack(sides, axis=1) * 9000).astype("<i2")


def write_wav(path: Path, seconds: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(CHANNELS)
        file.setsampwidth(2)
        file.setframerate(RATE)
        second = chirp().tobytes()
        for _ in range(seconds):
            file.writeframes(second)


def write_mp3(path: Path, seconds: int) -> None:
    """Ten seconds, encoded once, again and again: the frames of an MP3 stand for themselves."""
    import av
    import numpy

    file = io.BytesIO()
    with av.open(file, "w", format="mp3", options={"write_xing": "0", "id3v2_version": "0"}) as container:
        stream = container.add_stream("libmp3lame", rate=RATE, layout="stereo")
        samples = numpy.tile(chirp().T, 10)[:, : 382 * 1152]  # whole frames
        frame = av.AudioFrame.from_ndarray(numpy.ascontiguousarray(samples), format="s16p", layout="stereo")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with path.open("wb") as target:
        for _ in range(max(1, seconds // 10)):
            target.write(file.getvalue())


def whole(path: Path) -> int:
    from imagebind_encoder.media.audio import load_audio

    return len(load_audio(path))


def windows(path: Path) -> int:
    from imagebind_encoder.media.audio import audio_windows
    from imagebind_encoder.media.windows import Windows

    return sum(len(window) for window in audio_windows(path, Windows(WINDOW)))


# name: (ending of the file, how it is written, what is done with it, which returns the number of clips)
CASES = {
    "wav, 3 clips": ("wav", write_wav, whole),
    "wav, 10 s windows": ("wav", write_wav, windows),
    "mp3, 3 clips": ("mp3", write_mp3, whole),
    "mp3, 10 s windows": ("mp3", write_mp3, windows),
}


def peak() -> int:
    """The largest resident set of this process so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(case: str, short: Path, path: Path) -> None:
    """Prints one measurement as JSON; runs in a process of its own."""
    import torch

    torch.set_num_threads(1)
    use = CASES[case][2]
    use(short)
    before, start = peak(), time.process_time()
    clips = use(path)
    print(json.dumps({"clips": clips, "seconds": time.process_time() - start, "bytes": peak() - before}))


def measured(case: str, short: Path, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", case, str(short), str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run(cases: Iterable[str], minutes: int, folder: Path) -> bool:
    """Prints a table; whether all cases stayed below GROWTH."""
    print(f"{'':24}{'1 min':>18}{f'{minutes} min':>20}{'grows by':>14}")
    good = True
    for case in cases:
        ending, write, _ = CASES[case]
        paths = {length: folder / f"{length}.{ending}" for length in (1, 60, 60 * minutes)}
        for length, path in paths.items():
            if not path.exists():
                write(path, length)
        found = [measured(case, paths[1], paths[length]) for length in (60, 60 * minutes)]
        cells = "".join(f"{result['seconds']:9.2f} s {result['bytes'] / 1e6:5.1f} MB" for result in found)
        grown = found[1]["bytes"] - found[0]["bytes"]
        good &= grown <= GROWTH
        print(f"{case:24}{cells}{grown / 1e6:11.1f} MB  {found[1]['clips']} clips", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=60, help="length of the long recording")
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--measure", nargs=3, metavar=("CASE", "SHORT", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure[0], *map(Path, args.measure[1:]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        return not run([case for case in CASES if case.startswith(args.only)], args.minutes, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
