#!/usr/bin/env python3
"""Ask about media:  python demo.py --image photo.jpg --prompt "What is in this picture?"

Without media and prompt the chat page opens. The answer goes to stdout, everything else to stderr. Exit codes:
0 answered, 2 wrong use, 1 anything else.
"""

from __future__ import annotations

import json
from argparse import ArgumentTypeError, Namespace
from typing import TYPE_CHECKING, Any, TextIO

from adapter_llm import cli

if TYPE_CHECKING:
    from adapter_llm.pipeline import Pipeline

MEDIA = {  # keyword: how its argument is read, and what --help says
    "image": (cli.media_argument, "a picture: file, URL or data: URI; repeat it to mix several, by weight"),
    "video": (cli.media_argument, "a film: MP4, WebM, MKV, MOV, AVI or GIF"),
    "audio": (cli.media_argument, "a recording: WAV, FLAC, OGG, MP3, M4A, Opus, or a film's sound"),
    "text": (cli.words_argument, "words, or the name of a text file; a weight behind words has a point, as in :0.5"),
    "depth": (cli.media_argument, "a depth map: 16-bit PNG in millimetres, float TIFF or .npy in metres"),
    "thermal": (cli.media_argument, "a thermal picture in grey"),
    "imu": (cli.media_argument, "accelerometer and gyroscope: CSV with named columns and time, or .npy"),
    "point": (cli.media_argument, "a point cloud: .npy, .pt, .ply or .pcd"),
}
LOOKING = ("window", "hop", "pool", "mix")  # how media are read and brought together
SAMPLING = ("max_new_tokens", "temperature", "top_p", "seed")
PAGE = ("host", "port", "auth", "max_file_size", "queue_size", "share")  # of the page that is opened without media


def build_parser() -> cli.Parser:
    parser = cli.Parser(prog="demo", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    for name, (kind, text) in MEDIA.items():
        add(f"--{name}", action="append", default=[], type=kind, metavar="PATH[:WEIGHT]", help=text)
    add(
        "--prompt", nargs="?", const="", metavar="TEXT",
        help="what to ask; without TEXT, or with media alone, a description is asked for",
    )  # fmt: skip
    add("--set", action="append", default=[], type=cli.setting_argument, metavar="KIND.NAME=VALUE",
        help="how files are read: imu.rate=50, depth.unit=millimetres, ...; docs/media.md")  # fmt: skip
    add("--window", type=cli.number(0, open_low=True), metavar="SECONDS", help="cut recordings into such windows")
    add("--hop", type=cli.number(0, open_low=True), metavar="SECONDS", help="between windows; default: their length")
    add("--pool", choices=("mean", "max", "none"), help="of the windows' features; none keeps all; default: mean")
    add("--mix", choices=("average", "concat"), help="several inputs as one mean, or side by side; default: average")
    add("--weights", default=cli.WEIGHTS, metavar="DIR_OR_HUB_ID", help="default: weights/default beside demo.py")
    add("--llm", metavar="DIR_OR_HUB_ID_OR_GGUF", help="language model; default: the one the weights name")
    add("--allow-base-mismatch", action="store_true", help="use a language model other than the weights were made for")
    add("--faithful", action="store_true", help="with published weights: the originals' limits, too")
    add("--index", metavar="FILE", help="feature index whose nearest entries are blended into what is seen")
    add("--blend", type=cli.number(0, 1), metavar="W", help="weight of those entries; default: 0.5")
    add("--device", default="auto", type=cli.device_argument, help="auto, cpu, cuda, cuda:1 or mps; default: auto")
    add("--device-map", choices=("auto", "balanced", "sequential"), help="share a large model out: GPUs, memory, disk")
    add("--offload-folder", metavar="DIR", help="where --device-map may keep what memory has no room for")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="default: auto")
    add("--max-new-tokens", type=cli.number(1, whole=True), metavar="N", help="longest answer, in tokens; default: 128")
    add("--temperature", type=cli.number(0), metavar="T", help="0, the default, always takes the likeliest word")
    add("--top-p", type=cli.number(0, 1, open_low=True), metavar="P", help="sample among the likeliest words only")
    add("--seed", type=cli.number(0, 2**63 - 1, whole=True), metavar="N", help="makes sampled answers repeatable")
    add("--threads", type=cli.number(1, whole=True), metavar="N", help="processor threads; default: torch's choice")
    add("--json", action="store_true", help="print the answer and its numbers as one JSON object")
    add("--explain", metavar="PNG", help="draw gates, attention and where was looked into this file; needs [plot]")
    add("--debug", action="store_true", help="show the traceback of an error")
    page = parser.add_argument_group("the chat page, opened without media and prompt").add_argument
    page("--host", metavar="NAME", help="address that it is reached at; default: 127.0.0.1, this machine alone")
    page("--port", type=cli.number(0, 65535, whole=True), metavar="N", help="default: the first free one from 7860 on")
    page("--auth", type=name_and_password, metavar="USER:PASS", help="let in who knows both")
    page("--max-file-size", type=cli.number(0, open_low=True), metavar="MB", help="of a file given; default: 200")
    page("--queue-size", type=cli.number(0, whole=True), metavar="N", help="questions that may wait; default: 32")
    page("--share", action="store_true", default=None, help="also through a public address of Gradio's makers")
    return parser


def name_and_password(text: str) -> tuple[str, str]:
    """An argparse type: USER:PASS, neither of them empty."""
    name, _, password = text.partition(":")
    if not name or not password:
        raise ArgumentTypeError("a name and a password are wanted, as in ann:secret")
    return name, password


def open_page(args: Namespace) -> int:
    """Serve the chat page until it is interrupted."""
    cli.quiet()
    from adapter_llm.page import command

    given = {name: getattr(args, name) for name in (*PAGE, *SAMPLING, "blend") if getattr(args, name) is not None}
    command.serve(lambda: cli.load_pipeline(args), args.weights, given)
    return cli.OK


def answer(args: Namespace, out: TextIO) -> int:
    media = {name: getattr(args, name) for name in MEDIA if getattr(args, name)}
    cli.check_files(found for name, given in media.items() if name != "text" for found in given)
    if args.image:
        media["image"] = cli.open_images(args.image)  # before anything heavy, so that mistakes cost no time
    cli.quiet()
    if args.explain:
        from adapter_llm import plots

        plots.check(args.explain)
    pipe = cli.load_pipeline(args, list(media) or None)
    options = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
    prompt = args.prompt or None
    if media:
        from adapter_llm.prompts import describe

        prompt = prompt or describe(list(media))
        media |= {name: getattr(args, name) for name in LOOKING if getattr(args, name) is not None}
        if args.blend is not None:
            from adapter_llm.retrieval import RetrievalOptions

            media["retrieval"] = RetrievalOptions(weight=args.blend)
        if args.explain:
            return explain(pipe, prompt, {**media, **options}, args, out)
        options["state"] = pipe.adapt(**media)
        pipe.release_encoder()
        cli.give_back_memory()
    if args.json:
        result = pipe.result(prompt, **options)
        print(json.dumps(result.to_dict(), ensure_ascii=False), file=out)
        return cli.OK
    for piece in pipe.stream(prompt, **options):
        print(piece, end="", file=out, flush=True)
    print(file=out, flush=True)
    return cli.OK


def explain(pipe: Pipeline, prompt: str | None, inputs: dict[str, Any], args: Namespace, out: TextIO) -> int:
    """The answer, and a picture of how the media had their say in it."""
    from adapter_llm.plots import save

    explanation = pipe.explain(prompt, **inputs)
    save(explanation, args.explain)
    print(explanation.answer, file=out, flush=True)
    return cli.OK


def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    media = [found for name in MEDIA for found in getattr(args, name)]
    if not media and args.prompt == "":
        parser.error("there is nothing to describe; give --image or a question")
    page = not media and args.prompt is None
    if page and args.json:
        parser.error("--json prints one answer; give --image or a question with --prompt")
    if not page and any(getattr(args, name) is not None for name in PAGE):
        names = ", ".join(f"--{name}".replace("_", "-") for name in PAGE)
        parser.error(f"{names} are about the chat page; leave media and --prompt out")
    if media and not any(weight for _, weight in media):
        parser.error("all weights are 0; give at least one input a weight above 0")
    if not media and (args.explain or any(getattr(args, name) is not None for name in LOOKING)):
        parser.error("--explain, --window, --hop, --pool and --mix are about media; give --image or another input")
    if args.explain and args.json:
        parser.error("--explain prints the answer alone; leave --json out")
    if args.blend is not None and args.index is None:
        parser.error("--blend says how much of an index to take in; give one with --index")
    code = cli.run(parser.prog, lambda out: open_page(args) if page else answer(args, out), args.debug)
    if args.offload_folder:
        cli.give_back_memory()  # files of weights there go with the model that they belong to
    return code


if __name__ == "__main__":
    cli.leave(main())
