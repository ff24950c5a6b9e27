"""The command serve: OpenAI's API over HTTP. Nothing heavy is imported by --help."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any, TextIO

from . import cli
from .serve.port import bind, is_loopback, url_of
from .strangers.limits import MediaLimits

KEY = "ADAPTER_LLM_API_KEY"
SIZES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}


def add_command(commands: Any) -> None:
    """Add it to the parser of `python -m adapter_llm`."""
    serve = commands.add_parser("serve", help="answer over HTTP, as OpenAI's API does")
    add, limits = serve.add_argument, MediaLimits()
    whole, seconds = cli.number(1, whole=True), cli.number(0, open_low=True)
    add("--host", default="127.0.0.1", help="address to listen at; default: 127.0.0.1, which is this machine alone")
    add("--port", type=cli.number(0, 65535, whole=True), default=8000, help="0: any that is free; default: 8000")
    add("--weights", default=cli.WEIGHTS, metavar="DIR_OR_HUB_ID", help="default: weights/default")
    add("--llm", metavar="DIR_OR_HUB_ID_OR_GGUF", help="language model; default: the one the weights name")
    add("--allow-base-mismatch", action="store_true", help="use a language model other than the weights were made for")
    add("--faithful", action="store_true", help="with published weights: the originals' limits, too")
    add("--set", action="append", default=[], type=cli.setting_argument, metavar="KIND.NAME=VALUE",
        help="how files are read: image.crop=squash, video.clips=3, ...; docs/media.md")  # fmt: skip
    add("--index", metavar="FILE", help="feature index whose nearest entries are blended into what is seen")
    add("--blend", type=cli.number(0, 1), metavar="W", help="weight of those entries; default: 0.5")
    add("--name", metavar="NAME", help="of the model in requests; default: that of the weights folder or hub id")
    add("--device", default="auto", type=cli.device_argument, help="auto, cpu, cuda, cuda:1 or mps; default: auto")
    add("--device-map", choices=("auto", "balanced", "sequential"), help="share a large model out: GPUs, memory, disk")
    add("--offload-folder", metavar="DIR", help="where --device-map may keep what memory has no room for")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"), help="default: auto")
    add("--threads", type=whole, metavar="N", help="processor threads; default: torch's choice")
    add("--api-key", metavar="KEY", help=f"that requests must send; default: ${KEY}, else none is needed")
    add("--cors", action="append", default=[], type=origin_argument, metavar="ORIGIN", help="whose pages may ask")
    add("--allow-host", action="append", default=[], metavar="NAME", help="a name the server goes by; * for any")
    add("--batch-size", type=whole, default=8, metavar="N", help="answers written together; default: 8")
    add("--queue-size", type=cli.number(0, whole=True), default=64, metavar="N",
        help="answers that may wait for those; more are refused with status 429; default: 64")  # fmt: skip
    add("--media-threads", type=whole, default=2, metavar="N", help="that decode and encode media; default: 2")
    add("--timeout", type=seconds, default=300.0, metavar="S", help="seconds for a whole answer; default: 300")
    add("--shutdown-timeout", type=cli.number(0), default=30.0, metavar="S",
        help="seconds that answers under way get to end after SIGTERM or Ctrl-C; default: 30")  # fmt: skip
    add("--max-tokens", type=whole, default=512, metavar="N", help="of an answer, where none are asked; default: 512")
    add("--temperature", type=cli.number(0, 2), default=0.0, metavar="T", help="where none is asked; default: 0")
    add("--max-body", type=size_argument, default=64 * 2**20, metavar="SIZE", help="of a request; default: 64M")
    add("--max-media-bytes", type=size_argument, default=limits.max_bytes, metavar="SIZE",
        help=f"of all files of a request together; default: {limits.max_bytes}")  # fmt: skip
    add("--max-pixels", type=whole, default=limits.max_pixels, metavar="N",
        help=f"of one picture; default: {limits.max_pixels}")  # fmt: skip
    add("--max-media-seconds", type=seconds, default=limits.max_seconds, metavar="S",
        help=f"of one recording or film; default: {limits.max_seconds:g}")  # fmt: skip
    add("--allow-urls", action="store_true", help="fetch http(s) URLs in requests, from public addresses only")
    serve.set_defaults(run=run_serve, wrong_use=serve.error)


def size_argument(text: str) -> int:
    """An argparse type: bytes, or 500K, 64M, 1G."""
    number, unit = (text[:-1], text[-1:].lower()) if text[-1:].lower() in ("k", "m", "g") else (text, "")
    if not (number.isascii() and number.isdigit() and int(number)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write bytes, or 500K, 64M, 1G")
    return int(number) * SIZES[unit]


def origin_argument(text: str) -> str:
    """An argparse type: the origin of web pages as browsers send it, or * for all."""
    if text != "*" and not re.fullmatch(r"https?://[^/\s?#]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no origin; write https://example.org, without a path")
    return text.lower()


def api_key(given: str | None) -> str | None:
    """The key that requests must send. Raises ValueError for one that no request could."""
    key, source = (os.environ.get(KEY), f"${KEY}") if given is None else (given, "--api-key")
    if key is None:
        return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        what = "is empty" if not key else "has characters that no HTTP header carries"
        raise ValueError(f"the key of {source} {what}; give letters, digits and signs without blanks")
    return key


def host_names(args: Namespace, loopback: bool) -> tuple[str, ...] | None:
    """The names that requests may call the server by; None: any, for what others are meant to reach."""
    if "*" in args.allow_host or not (loopback or args.allow_host):
        return None
    return ("localhost", "127.0.0.1", "::1", args.host.lower(), *(name.lower() for name in args.allow_host))


def run_serve(args: Namespace, out: TextIO) -> int:
    if args.blend is not None and args.index is None:
        args.wrong_use("--blend says how much of an index to take in; give one with --index")
    _serve(args)
    if args.offload_folder:
        cli.give_back_memory()  # files of weights there go with the model that they belong to
    return cli.OK


def _serve(args: Namespace) -> None:
    key = api_key(args.api_key)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    with bind(args.host, args.port) as sock:  # before anything is loaded: a port in use costs no time
        from .serve.launch import Server, serve
        from .serve.service import ServeConfig, Service

        local = is_loopback(sock)
        config = ServeConfig(
            name=args.name or model_name(args.weights),
            api_key=key,
            hosts=host_names(args, local),
            cors=tuple(args.cors),
            media=MediaLimits(
                allow_urls=args.allow_urls,
                max_bytes=args.max_media_bytes,
                max_pixels=args.max_pixels,
                max_seconds=args.max_media_seconds,
            ),
            **{
                name: getattr(args, name)
                for name in ("batch_size", "queue_size", "media_threads", "timeout", "shutdown_timeout", "max_tokens",
                             "temperature", "max_body", "blend")
            },
        )  # fmt: skip
        if not local and key is None:
            print("serve: whoever reaches this machine may ask, since there is no --api-key", file=sys.stderr)
        service = Service(cli.load_pipeline(args), config)
        url = url_of(sock)

        def ready() -> None:
            print(f"serving {config.name} at {url}/v1; Ctrl-C ends it", file=sys.stderr, flush=True)

        serve(Server(service, cli.leave, ready), sock)


def model_name(weights: str) -> str:
    """A folder by its own name, a hub id as it is."""
    path = Path(weights).expanduser()
    return path.resolve().name if path.is_dir() else weights
