"""What every command line of the project shares: media arguments, exit codes, a quiet stdout.

Importing this loads nothing heavy, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

if TYPE_CHECKING:
    from PIL import Image

    from .pipeline import Pipeline

WEIGHTS = str(Path(__file__).resolve().parent.parent / "weights" / "default")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
OK, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130

_WEIGHT = re.compile(r"[+-]?(\d+\.?\d*(e[+-]?\d+)?|\.\d+(e[+-]?\d+)?|nan|inf|infinity)", re.IGNORECASE)
_URL = re.compile(r"https?:/+", re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """argparse, but wrong use is one line on stderr."""

    def error(self, message: str) -> None:
        self.exit(WRONG_USE, f"{self.prog}: {' '.join(message.split())}; see --help\n")


def parse_media(argument: str) -> tuple[str, float]:
    """PATH[:WEIGHT], URL or data: URI to (source, weight); the weight is 1 unless given.

    An existing file of exactly that name wins over a weight, and so do the port of a URL without a path and
    a Windows drive. Raises ValueError for a weight that is negative or not finite.
    """
    source, colon, tail = argument.rpartition(":")
    if not colon or not source or not _WEIGHT.fullmatch(tail) or os.path.exists(argument):
        return argument, 1.0
    if url := _URL.match(source):
        takes_weight = "/" in source[url.end() :]
    elif source[:5].lower() == "data:":
        takes_weight = "," in source
    else:
        takes_weight = not (len(source) == 1 and source.isalpha()) or os.path.exists(source)
    if not takes_weight:
        return argument, 1.0
    weight = float(tail)
    if not math.isfinite(weight) or weight < 0:
        raise ValueError(f"the weight of {source!r} is {tail}; it must be a number from 0 up")
    return source, weight


def media_argument(argument: str) -> tuple[str, float]:
    """`parse_media` as an argparse type."""
    try:
        return parse_media(argument)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def words_argument(argument: str) -> tuple[str | Path, float]:
    """Words to be encoded, or the name of a text file that is there, with a weight: an argparse type.

    Words may well end in ":30", so a weight behind words has a decimal point.
    """
    source, weight = media_argument(argument)
    if os.path.isfile(source):
        return Path(source), weight
    if re.fullmatch(r"\S+\.(txt|md)", source, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"there is no file {source!r}; check the path, or write words")
    return (source, weight) if re.search(r":[+-]?\d*\.\d*$", argument) else (argument, 1.0)


def setting_argument(argument: str) -> tuple[str, object]:
    """KIND.NAME=VALUE as an argparse type: a number, true, false and null as JSON has them, or else a text."""
    name, equals, value = argument.partition("=")
    if not equals or "." not in name:
        raise argparse.ArgumentTypeError(f"{argument!r} is no setting; write KIND.NAME=VALUE, such as imu.rate=50")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def number(low: float, high: float = math.inf, *, whole: bool = False, open_low: bool = False) -> Callable:
    """An argparse type: a finite number from `low` (excluded if `open_low`) to `high`."""

    def convert(text: str) -> float:
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)) or (open_low and value == low):
            kind = "whole number" if whole else "number"
            below = f" to {high:g}" if math.isfinite(high) else ""
            start = f"above {low:g}{below and f', up{below}'}" if open_low else f"from {low:g}{below or ' up'}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a {kind} {start}")
        return value

    return convert


def device_argument(text: str) -> str:
    """An argparse type: the name of a device, without a look at whether it is there."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of auto, cpu, cuda, cuda:1, mps")
    return text


def check_files(sources: Iterable[tuple[object, float]]) -> None:
    """Raise MediaError for a file that is not there, so that it is known before a model is loaded."""
    from imagebind_encoder.media.source import MediaError, describe

    for source, _ in sources:
        elsewhere = not isinstance(source, str) or source[:5].lower() == "data:" or _URL.match(source)
        if not elsewhere and not os.path.exists(source):
            raise MediaError(f"there is no file {describe(source)}; check the path")


def open_images(images: Sequence[tuple[str, float]]) -> list[tuple[Image.Image, float]]:
    """Each source as a picture, decoded now, so that a broken file is known before a model is loaded.

    The EXIF tag stays on the picture: whether it counts is for the model's config to say. Raises MediaError.
    """
    from imagebind_encoder.media import open_image

    return [(open_image(source, orient=False), weight) for source, weight in images]


def quiet() -> None:
    """Keep other libraries' chatter off the terminal; call before they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    # torch imports its kernel compiler if it is there: 70 MB of memory that nothing here ever uses
    sys.modules.setdefault("triton", None)


def hide_bars() -> None:
    """Keep transformers' own progress bars off stderr, if it is imported: loading takes a second."""
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.disable_progress_bar()


def keep_memory() -> None:
    """Have the C library keep what is freed, where it can be told to: for commands that encode batch after batch.

    Layers allocate and free blocks of many megabytes. By itself the library returns each to the system at once, and to
    get it back costs more than to compute what is put there: a batch of 16 photos took three times as long to encode.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # a C library other than glibc
            library = ctypes.CDLL(None)
            library.mallopt(M_MMAP_THRESHOLD, 2**30)
            library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def use_threads(count: int | None) -> None:
    """Of the processor, for what torch computes; None leaves it to torch."""
    if count:
        import torch

        torch.set_num_threads(count)


def load_pipeline(args: argparse.Namespace, media: list[str] | None = None) -> Pipeline:
    """What --weights, --llm, --device, ... ask for, with the trunks for these media, or all."""
    from .pipeline import Pipeline

    hide_bars()
    use_threads(args.threads)
    return Pipeline.from_pretrained(
        weights=args.weights,
        llm=args.llm,
        media=media,
        settings=dict(args.set),
        device=args.device,
        dtype=args.dtype,
        index=args.index,
        faithful=args.faithful,
        allow_base_mismatch=args.allow_base_mismatch,
        device_map=args.device_map,
        offload_folder=args.offload_folder,
    )


def give_back_memory() -> None:
    """Return what was freed to the system: C libraries keep it, and each thread keeps its own."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)


def leave(code: int) -> NoReturn:
    """End the process now. Taking torch and its CUDA libraries down in order costs a second and 100 MB."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def run(program: str, work: Callable[[TextIO], int], debug: bool = False) -> int:
    """The exit code of `work(out)`, which writes its answer to `out`; all other prints end up on stderr.

    Every error becomes one line on stderr, or the traceback with `debug`.
    """
    out = sys.stdout
    if hasattr(out, "reconfigure"):
        out.reconfigure(errors="replace")  # terminals that cannot show a character still show the rest
    try:
        with contextlib.redirect_stdout(sys.stderr):
            code = work(out)
        out.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read the answer has had enough; Python would complain once more when it closes stdout
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return OK
    except Exception as error:
        if debug:
            raise
        print(f"{program}: {sentence(error)}", file=sys.stderr, flush=True)
        return FAILED


def sentence(error: Exception) -> str:
    """An error as one line: ours speak for themselves, a stranger's comes with its type."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ImportError):
        return f"{text}: install what the project needs with make demo, or pip install -r requirements.txt"
    ours = type(error).__module__.partition(".")[0] in ("adapter_llm", "imagebind_encoder")
    if text and (ours or isinstance(error, (OSError, ValueError))):
        return text
    return f"unexpected {type(error).__name__}: {text or 'no message'}; run again with --debug for the traceback"
