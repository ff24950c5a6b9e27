"""The commands embed, index and search: the shared space from the command line. Nothing heavy is imported by --help."""

from __future__ import annotations

import argparse
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from . import cli
from .config import KEYWORDS

if TYPE_CHECKING:
    from .space.embedder import Embedder, EncoderFolder
    from .space.formats import Format

INPUT = "files, folders and all below them, globs; - reads paths from stdin, one a line"


def add_commands(commands: Any) -> None:
    """Add the three to the parser of `python -m adapter_llm`."""
    embed = commands.add_parser("embed", help="write the vectors of pictures, sounds, texts, ... to a file")
    _add_job(embed, "FILE", ".parquet, .npz or .jsonl; its suffix says which")
    length = embed.add_mutually_exclusive_group()
    length.add_argument("--normalized", action="store_true", help="vectors of unit length; the default")
    length.add_argument(
        "--raw", dest="normalized", action="store_false", help="at the encoder's own length: times its logit scales"
    )
    embed.add_argument("--tokens", action="store_true", help="a vector for each class token, not their mean")
    embed.set_defaults(run=run_embed, normalized=True)

    index = commands.add_parser("index", help="make an index of pictures, sounds, texts, ... to search")
    _add_job(index, "FILE", "the index")
    index.set_defaults(run=run_index)

    search = commands.add_parser("search", help="what in an index is nearest to an input, or which label fits it best")
    for keyword in KEYWORDS:
        words = " or words" if keyword == "text" else ""
        search.add_argument(
            f"--{keyword}", action="append", default=[], metavar="INPUT[:WEIGHT]",
            type=signed_words if keyword == "text" else signed_media,
            help=f"{keyword}: file{words}; repeat and mix freely, a negative weight takes away",
        )  # fmt: skip
    where = search.add_mutually_exclusive_group(required=True)
    where.add_argument("--index", type=Path, metavar="FILE", help="search in this index")
    where.add_argument("--labels", nargs="+", metavar="LABEL", help="choose among these, or among the lines of a file")
    search.add_argument("--top", type=cli.number(1, whole=True), metavar="N", help="default: 5, or all labels")
    search.add_argument("--only", choices=KEYWORDS, help="of the index, this kind of input alone")
    search.add_argument(
        "--scale", type=cli.number(0, open_low=True), metavar="S",
        help="probabilities of labels are softmax(S x cosine); default: what the text trunk was trained with",
    )  # fmt: skip
    search.add_argument("--json", action="store_true", help="print a list of objects")
    _add_model(search)
    search.set_defaults(run=run_search)


def _add_job(parser: argparse.ArgumentParser, metavar: str, output: str) -> None:
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=INPUT)
    parser.add_argument("--output", type=Path, required=True, metavar=metavar, help=output)
    parser.add_argument(
        "--as", dest="forced", choices=KEYWORDS, metavar="KIND",
        help=f"take every input for one of {', '.join(KEYWORDS)}; else suffixes say what they are",
    )  # fmt: skip
    _add_model(parser)
    parser.add_argument("--pool", choices=("mean", "max", "none"), help="of windows; none keeps a vector for each")
    parser.add_argument("--batch-size", type=cli.number(1, whole=True), default=16, metavar="N", help="default: 16")
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True, help="go on where a run stopped; the default"
    )
    parser.add_argument(
        "--on-error", choices=("skip", "fail"), default="skip", help="leave what cannot be read out, or stop at it"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", default=cli.WEIGHTS, metavar="DIR_OR_HUB_ID", help="default: weights/default")
    parser.add_argument("--device", default="auto", type=cli.device_argument, help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="default: float32")
    parser.add_argument("--threads", type=cli.number(1, whole=True), metavar="N", help="processor threads")
    seconds = cli.number(0, open_low=True)
    parser.add_argument("--window", type=seconds, metavar="S", help="read recordings in windows of so many seconds")
    parser.add_argument("--hop", type=seconds, metavar="S", help="from one window to the next; default: its length")


def signed_media(argument: str) -> tuple[str, float]:
    """An argparse type: `cli.media_argument`, but weights may be negative."""
    source, colon, weight = argument.rpartition(":")
    if colon and weight.startswith("-") and not os.path.exists(argument):
        positive = cli.media_argument(f"{source}:{weight[1:]}")
        if positive[0] == source:
            return source, -positive[1]
    return cli.media_argument(argument)


def signed_words(argument: str) -> tuple[str | Path, float]:
    """An argparse type: words, or the name of a text file that is there, with any weight."""
    source, weight = signed_media(argument)
    if weight < 0:
        return (Path(source) if os.path.isfile(source) else source), weight
    return cli.words_argument(argument)


def run_embed(args: Namespace, out: TextIO) -> int:
    from .space.formats import format_of

    return _run_job(args, out, lambda folder: format_of(args.output), args.normalized, args.tokens)


def run_index(args: Namespace, out: TextIO) -> int:
    from .space.index import IndexFile

    return _run_job(args, out, lambda folder: IndexFile(folder.fingerprint), tokens=True)


def _run_job(args: Namespace, out: TextIO, form: Any, normalized: bool = True, tokens: bool = False) -> int:
    """Exit code 1 also if an input could not be read."""
    from .processing import InputOptions, keywords_of
    from .space.embedder import EncoderFolder
    from .space.files import find_media
    from .space.job import EmbedOptions, run_job

    names = ("batch_size", "device", "dtype", "resume", "on_error")
    reading = InputOptions(args.window, args.hop, args.pool)
    options = EmbedOptions(normalized, tokens, reading, **{name: getattr(args, name) for name in names})
    folder = EncoderFolder.find(args.weights)
    written: Format = form(folder)
    _prepare(args)
    found = find_media(_named(args.inputs), keywords_of(folder.config), args.forced)
    if found.left_out:
        print(found.left_out, file=sys.stderr)
    try:
        outcome = run_job(folder, found, args.output, written, options)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        raise
    print(outcome, file=sys.stderr)
    print(args.output, file=out)
    return cli.FAILED if outcome.failed else cli.OK


def run_search(args: Namespace, out: TextIO) -> int:
    media = {name: getattr(args, name) for name in KEYWORDS if getattr(args, name)}
    if not media:
        raise ValueError(f"there is nothing to search with; give {' or '.join(f'--{name}' for name in KEYWORDS)}")
    for name, given in media.items():
        if name != "text":  # what is no file there are words
            cli.check_files(given)
    labels = read_labels(args.labels) if args.labels else []
    from .space.embedder import EncoderFolder

    folder = EncoderFolder.find(args.weights)
    _prepare(args)
    if labels:
        found, lines = _labelled(args, folder, media, labels)
    else:
        found, lines = _nearest(args, folder, media)
    print(json.dumps(found) if args.json else "\n".join(lines), file=out)
    return cli.OK


def _nearest(args: Namespace, folder: EncoderFolder, media: dict[str, Any]) -> tuple[list[dict], list[str]]:
    """What an index holds nearest to the media, as objects and as lines."""
    from .space.index import SpaceIndex

    index = SpaceIndex.open(args.index)  # what is wrong with it is known before the encoder is loaded
    index.check_encoder(folder.fingerprint)
    embedder = _load(args, folder, media)
    hits = index.search(embedder.embed(**media, window=args.window, hop=args.hop), args.top or 5, args.only)
    return [hit.to_dict() for hit in hits], [*map(str, hits)] or ["nothing of that kind is in the index"]


def _labelled(
    args: Namespace, folder: EncoderFolder, media: dict[str, Any], labels: list[str]
) -> tuple[list[dict], list[str]]:
    """Labels by how well they fit the media, as objects and as lines."""
    from .space import classify

    embedder = _load(args, folder, {**media, "text": labels})
    vector = embedder.embed(**media, window=args.window, hop=args.hop)
    chances = classify(vector, embedder.embed_texts(labels), args.scale or embedder.logit_scale).tolist()
    pairs = sorted(zip(labels, chances, strict=True), key=lambda pair: -pair[1])[: args.top]
    found = [{"label": label, "probability": chance} for label, chance in pairs]
    return found, [f"{chance:.3f}\t{label}" for label, chance in pairs]


def read_labels(given: list[str]) -> list[str]:
    """Labels as they are, or the lines of the one file. Raises ValueError for none, and for one twice."""
    labels = given
    if len(given) == 1 and os.path.isfile(given[0]):
        try:
            labels = Path(given[0]).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{given[0]} is no text in UTF-8; write one label a line") from error
    elif len(given) == 1 and given[0].lower().endswith((".txt", ".csv", ".md")):
        raise ValueError(f"there is no file {given[0]!r}; check the path, or give two or more labels")
    labels = [label.strip() for label in labels if label.strip()]
    if len(labels) < 2:
        raise ValueError(f"{len(labels)} labels leave nothing to choose; give two or more, or a file with one a line")
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"the label {twice[0]!r} is there twice; give each once")
    return labels


def _load(args: Namespace, folder: EncoderFolder, media: Iterable[str]) -> Embedder:
    """The trunks that these media need."""
    from .processing import modalities_of

    # said in a user's words, before the encoder says it in its own
    return folder.load(args.device, args.dtype, set(modalities_of(media, folder.config)))


def _named(inputs: Iterable[str]) -> Iterable[str]:
    for given in inputs:
        if given == "-":
            yield from (line for line in sys.stdin.read().splitlines() if line)
        else:
            yield given


def _prepare(args: Namespace) -> None:
    """Threads as asked for, and memory that stays with the process."""
    cli.keep_memory()
    cli.use_threads(args.threads)
