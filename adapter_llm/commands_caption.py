"""The command caption: files, folders and datasets in, a row with a caption out. --help loads nothing heavy."""

from __future__ import annotations

import argparse
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from . import cli
from .config import KEYWORDS

if TYPE_CHECKING:
    from .caption.job import Job, Outcome, Writer
    from .caption.workers import Group

INPUT = "files, folders, globs, .jsonl/.csv/.parquet tables, .tar shards, URLs; - reads a list from stdin"
OUTPUT = ".jsonl or .parquet, or a folder with --format"
FORMATS = ("jsonl", "parquet", "txt", "webdataset")
PLACING = ("faithful", "allow_base_mismatch", "device_map", "offload_folder")
GENERATION = ("max_new_tokens", "temperature", "top_p", "seed")


def add_command(commands: Any) -> None:
    """Add it to the parser of `python -m adapter_llm`."""
    parser = commands.add_parser("caption", help="describe, or ask about, every file of folders and datasets")
    add = parser.add_argument
    whole = cli.number(1, whole=True)
    add("inputs", nargs="+", metavar="INPUT", help=INPUT)
    add("--output", type=Path, required=True, metavar="PATH", help=OUTPUT)
    add("--format", choices=FORMATS, help="of the output; default: what its suffix says")
    add("--prompt", metavar="TEXT", help="what to ask about each; default: a description")
    add("--prompt-column", metavar="NAME", help="of tables: what to ask about the row's input, if it is not empty")
    add("--prompt-suffix", metavar="SUFFIX", help="beside x.jpg, x with this suffix holds what to ask about it")
    add("--path-column", metavar="NAME", help="of tables: paths or URLs; default: the one with a usual name")
    add("--id-column", metavar="NAME", help="of tables: what the row is called in the output; default: its path")
    add("--as", dest="forced", choices=KEYWORDS, metavar="KIND",
        help=f"take every input for one of {', '.join(KEYWORDS)}; else suffixes say what they are")  # fmt: skip
    add("--weights", default=cli.WEIGHTS, metavar="DIR_OR_HUB_ID", help="default: weights/default")
    add("--llm", metavar="DIR_OR_HUB_ID_OR_GGUF", help="language model; default: the one the weights name")
    add("--allow-base-mismatch", action="store_true", help="use a language model other than the weights were made for")
    add("--faithful", action="store_true", help="with published weights: the originals' limits, too")
    add("--device", default="auto", type=cli.device_argument, help="auto, cpu, cuda, cuda:1 or mps; default: auto")
    add("--device-map", choices=("auto", "balanced", "sequential"), help="share a large model out: GPUs, memory, disk")
    add("--offload-folder", metavar="DIR", help="where --device-map may keep what memory has no room for")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="default: auto")
    add("--threads", type=whole, metavar="N", help="processor threads of the model; default: torch's choice")
    add("--readers", type=whole, metavar="N", help="threads that read and decode; default: up to 4")
    add("--batch-size", type=whole, default=16, metavar="N", help="captions that are written together; default: 16")
    add("--max-new-tokens", type=whole, metavar="N", help="longest caption, in tokens; default: 128")
    add("--temperature", type=cli.number(0), metavar="T", help="0, the default, always takes the likeliest word")
    add("--top-p", type=cli.number(0, 1, open_low=True), metavar="P", help="sample among the likeliest words only")
    add("--seed", type=cli.number(0, 2**63 - 1, whole=True), metavar="N", help="makes sampled captions repeatable")
    add("--set", action="append", default=[], type=cli.setting_argument, metavar="KIND.NAME=VALUE",
        help="how files are read: imu.rate=50, depth.unit=millimetres, ...; docs/media.md")  # fmt: skip
    seconds = cli.number(0, open_low=True)
    add("--window", type=seconds, metavar="SECONDS", help="cut recordings into such windows")
    add("--hop", type=seconds, metavar="SECONDS", help="between windows; default: their length")
    add("--pool", choices=("mean", "max", "none"), help="of the windows' features; none keeps all; default: mean")
    add("--index", metavar="FILE", help="feature index whose nearest entries are blended into what is seen")
    add("--blend", type=cli.number(0, 1), metavar="W", help="weight of those entries; default: 0.5")
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help="go on where a run stopped; the default")
    add("--overwrite", action="store_true", help="replace .txt files beside inputs that are of somebody else")
    add("--on-error", choices=("skip", "fail"), default="skip",
        help="an input that cannot be read is a row with an error, or the end")  # fmt: skip
    add("--shard", type=share_argument, metavar="I/N", help="do only this share of the inputs, counted from 1")
    add("--engine", choices=("local", "ray"), default="local",
        help="this process, or workers on a Ray cluster; default: local")  # fmt: skip
    add("--workers", type=whole, metavar="N", help="of Ray; default: one a GPU, or else for each --threads processors")
    add("--ray-address", metavar="HOST:PORT", help="head of a running cluster, or auto; default: start Ray here")
    add("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    parser.set_defaults(run=run_caption, wrong_use=parser.error)


def share_argument(text: str) -> Any:
    """An argparse type: I/N."""
    from .caption.workers import Share

    try:
        return Share.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run_caption(args: Namespace, out: TextIO) -> int:
    """Exit code 1 also if an input could not be read."""
    from .caption.interrupts import stopped_by_term
    from .caption.workers import Group

    group = Group.of_environment()
    if problem := problem_of(args, group):
        args.wrong_use(problem)
    with group, stopped_by_term():
        try:
            outcome = _work(args, group)
        except KeyboardInterrupt:
            print("stopped; what is finished is kept, and the same command goes on from there", file=sys.stderr)
            raise
        finally:
            if args.offload_folder:
                cli.give_back_memory()  # files of weights there go with the model that they belong to
        if not group.first:
            return cli.OK  # a launcher ends all processes when one of them fails: the first speaks for all
    print(outcome, file=sys.stderr)
    print(*written(args, group), sep="\n", file=out)
    return cli.FAILED if outcome.failed else cli.OK


def written(args: Namespace, group: Group) -> list[Path]:
    """The output, or what the processes of a share of it wrote."""
    from .caption.outputs import written_place

    if args.shard is None or args.shard.number is None:
        return [args.output]
    index, count = args.shard.number, args.shard.count
    print(
        f"share {index} of {count}; when all are done, the same command without --shard brings them together",
        file=sys.stderr,
    )
    numbers = (args.shard.split(rank, group.size).number for rank in range(group.size))
    return list(dict.fromkeys(written_place(args.output, args.format, number) for number in numbers))


def problem_of(args: Namespace, group: Group) -> str | None:
    """What is wrong with options that do not go together."""
    if args.prompt is not None and not args.prompt.strip():
        return "the prompt is empty; ask something, or leave --prompt out for a description"
    if args.blend is not None and args.index is None:
        return "--blend says how much of an index to take in; give one with --index"
    if args.shard is not None and not args.resume:
        return "--no-resume would throw away what the other shards wrote; remove the output by hand"
    if group.size > 1 and "-" in args.inputs:
        return "stdin can be read by one process alone; write the list to a file, .csv or .jsonl"
    if args.engine == "local" and (args.workers or args.ray_address):
        return "--workers and --ray-address are for --engine ray"
    if args.device_map and (args.engine == "ray" or group.size > 1):
        return "--device-map shares one model out over all GPUs; start one process, without Ray, accelerate or torchrun"
    if args.engine == "ray" and group.size > 1:
        return "--engine ray starts its workers itself; start it without accelerate or torchrun"
    if args.engine == "ray" and args.device.startswith("cuda:"):
        return f"Ray gives each worker its GPU; write --device cuda, not {args.device}"
    from .caption.outputs import OutputError, format_of

    try:
        format_of(args.output, args.format)
    except OutputError as error:
        return str(error)
    return None


def _work(args: Namespace, group: Group) -> Outcome:
    """This process's share, or, in the first one, the outcome of all."""
    from .caption.inputs import read_inputs
    from .caption.job import Outcome, run_job, write_here
    from .caption.outputs import OutputOptions, discard, merge, open_output

    job, path, form = make_job(args, group), args.output, args.format
    if missing := read_inputs(job.given, job.sources).missing_column():
        args.wrong_use(missing)
    options = OutputOptions(overwrite=args.overwrite)
    together = args.shard is None  # all shards of the output are of this run: they may be brought together
    if group.first and together:  # what an earlier run left, of several processes that were stopped
        if args.resume:
            merge(path, form, options)
        else:
            discard(path, form)
    group.meet()
    output = open_output(path, form, shard=job.share.number, options=options)
    try:
        group.meet()  # nobody writes while another still looks at what there is
        writer = quietly(write_here) if args.engine == "local" else ray_writer(args)
        outcome = run_job(job, output, show=group.first, writer=writer)
    finally:
        output.close()
    group.meet()
    if group.first and together:
        merge(path, form, options)
    numbers = group.total([outcome.captioned, outcome.kept, outcome.failed, outcome.tokens])
    return Outcome(*map(int, numbers), seconds=outcome.seconds)


def quietly(writer: Writer) -> Writer:
    """The same without transformers' own progress bars. It is imported when there is something to write."""

    def write(*args: Any) -> Any:
        from . import pipeline  # noqa: F401, imports transformers

        cli.hide_bars()
        return writer(*args)

    return write


def ray_writer(args: Namespace) -> Writer:
    """Raises EngineError."""
    from .caption.ray_engine import RayEngine

    return RayEngine(args.workers, args.threads or 1, args.ray_address).captions


def make_job(args: Namespace, group: Group) -> Job:
    """What is to be done, without any of it done. Raises what is wrong with the weights and the options."""
    from .caption.captioner import CaptionOptions
    from .caption.inputs import SourceOptions
    from .caption.job import Job
    from .caption.model import ModelFolders
    from .caption.outputs import format_of
    from .caption.workers import WHOLE
    from .processing import InputOptions, check_modality
    from .results import GenerationOptions
    from .retrieval import RetrievalOptions

    cli.keep_memory()
    cli.use_threads(args.threads)
    options = CaptionOptions(
        prompt=args.prompt,
        generation=GenerationOptions(**given(args, GENERATION)),
        reading=InputOptions(args.window, args.hop, args.pool),
        retrieval=None if args.blend is None else RetrievalOptions(weight=args.blend),
        batch_size=args.batch_size,
        readers=args.readers or min(4, os.cpu_count() or 1),
    )
    model = ModelFolders.find(
        args.weights,
        args.llm,
        device=group.device(args.device),
        dtype=args.dtype,
        index=args.index,
        settings=dict(args.set),
        **{name: getattr(args, name) for name in PLACING},
    )
    if args.forced:
        check_modality(args.forced, model.encoder.config)
    sources = SourceOptions(
        model.keywords,
        args.forced,
        path_column=args.path_column,
        id_column=args.id_column,
        prompt_column=args.prompt_column,
        prompt_suffix=args.prompt_suffix,
        one_each=format_of(args.output, args.format) == "txt",
    )
    share = (args.shard or WHOLE).split(group.rank, group.size)
    return Job(model, args.inputs, sources, options, share, args.on_error)


def given(args: Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options that were given, of those of these names."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}
