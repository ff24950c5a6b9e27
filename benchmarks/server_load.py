"""Many clients of one server at once: how long until the first word, how many words a second, and is any lost?

    python benchmarks/server_load.py [--clients 64] [--requests 2] [--weights DIR]

Starts `python -m adapter_llm serve` on a free port of 127.0.0.1, asks it in streams about example pictures, first one
question after another, then from all clients at once, and ends it. Nothing leaves this machine, and all of it ends
after --seconds. Every answer of the crowd is compared with that of the one who asked alone: they are equal in float32,
while in bfloat16 two words that are about as likely may change places. Exit status 1 if an answer is lost.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TextIO

import httpx

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ("coffee.jpg", "cat.jpg")
QUESTIONS = ("What is in this picture?", "Describe this picture.", "Is there an animal in this picture?", "Hi")
MOST_CLIENTS, MOST_REQUESTS = 256, 20


@dataclass(frozen=True)
class Answer:
    kind: int
    text: str
    first: float  # seconds to the first text
    seconds: float
    tokens: int


def kinds() -> list[dict]:
    """Requests that differ in picture and question; the last question comes without a picture."""
    found = []
    for picture in PICTURES:
        data = b64encode((ROOT / "examples" / picture).read_bytes()).decode()
        image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
        for question in QUESTIONS:
            content = [{"type": "text", "text": question}]
            found.append(content if question == QUESTIONS[-1] else [*content, image])
    return found[: len(QUESTIONS) * len(PICTURES) - 1]  # a question without a picture once


async def ask(client: httpx.AsyncClient, kind: int, content: list[dict], max_tokens: int) -> Answer:
    """One streamed answer. Raises RuntimeError if the server refuses it or breaks off."""
    body = {
        "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    began, first, text, tokens, done = time.perf_counter(), None, "", 0, False
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError((await response.aread()).decode())
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
                first = first or (time.perf_counter() - began if text else None)
                tokens = (event["usage"] or {}).get("completion_tokens", tokens)
    if not done:
        raise RuntimeError("the stream broke off")
    seconds = time.perf_counter() - began
    return Answer(kind, text, first or seconds, seconds, tokens)


async def measure(url: str, args: argparse.Namespace) -> tuple[list[Answer], float, list[Answer | Exception], float]:
    """Answers and seconds of the one who asks alone, then those of all clients."""
    asked = kinds()
    limits = httpx.Limits(max_connections=args.clients)
    async with httpx.AsyncClient(base_url=url, timeout=args.seconds, limits=limits, trust_env=False) as client:
        await ask(client, 0, asked[-1], 2)  # whatever is made once is made now
        began = time.perf_counter()
        alone = [await ask(client, kind, content, args.max_tokens) for kind, content in enumerate(asked)]
        alone_seconds = time.perf_counter() - began

        async def visit(number: int) -> list[Answer | Exception]:
            found = []
            for turn in range(args.requests):
                kind = (number + turn) % len(asked)
                try:
                    found.append(await ask(client, kind, asked[kind], args.max_tokens))
                except (RuntimeError, httpx.HTTPError) as error:
                    found.append(error)
            return found

        began = time.perf_counter()
        crowd = await asyncio.gather(*(visit(number) for number in range(args.clients)))
        return alone, alone_seconds, [answer for found in crowd for answer in found], time.perf_counter() - began


def command_of(args: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-m", "adapter_llm", "serve", "--port", "0", "--weights", args.weights,
               "--batch-size", str(args.batch_size), "--queue-size", str(args.clients)]  # fmt: skip
    return [*command, "--dtype", args.dtype, *(["--threads", str(args.threads)] if args.threads else [])]


def start(command: list[str]) -> tuple[subprocess.Popen, str]:
    """The server, and its address once it is ready. What it says is passed on: a full pipe would hold it up."""
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        if line.startswith("serving "):
            Thread(target=pass_on, args=(server.stderr,), daemon=True).start()
            return server, line.split()[3].removesuffix("/v1;")
        print(line, end="", file=sys.stderr)
    raise SystemExit("the server did not start")


def pass_on(said: TextIO) -> None:
    with said:
        shutil.copyfileobj(said, sys.stderr)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def row(name: str, answers: list[Answer], seconds: float) -> str:
    first, whole = [answer.first for answer in answers], [answer.seconds for answer in answers]
    times = " | ".join(f"{percentile(part, share):.2f}" for part in (first, whole) for share in (0.5, 0.95))
    tokens = sum(answer.tokens for answer in answers)
    return f"| {name} | {len(answers)} | {times} | {len(answers) / seconds:.2f} | {tokens / seconds:.1f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=64, help=f"at once; default 64, at most {MOST_CLIENTS}")
    parser.add_argument("--requests", type=int, default=2, help="of each, one after another; default 2")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16, help="of the server; default 16")
    parser.add_argument("--threads", type=int, help="of the server")
    parser.add_argument("--dtype", default="auto", help="of the server")
    parser.add_argument("--weights", default=str(ROOT / "weights" / "default"))
    parser.add_argument("--seconds", type=float, default=300, help="after which all of it is ended; default 300")
    args = parser.parse_args()
    if not (1 <= args.clients <= MOST_CLIENTS and 1 <= args.requests <= MOST_REQUESTS):
        parser.error(f"at most {MOST_CLIENTS} clients and {MOST_REQUESTS} requests")
    server, url = start(command_of(args))
    try:
        alone, alone_seconds, crowd, seconds = asyncio.run(asyncio.wait_for(measure(url, args), args.seconds))
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
    lost = [answer for answer in crowd if isinstance(answer, Exception)]
    answers = [answer for answer in crowd if isinstance(answer, Answer)]
    differ = [answer for answer in answers if answer.text != alone[answer.kind].text]
    load = os.getloadavg()[0]
    print(f"{args.clients} clients, {args.dtype}, batches of {args.batch_size}, load of the machine {load:.1f}\n")
    print("| | answers | first text p50, s | p95 | whole answer p50, s | p95 | answers/s | tokens/s |")
    print("|---|---|---|---|---|---|---|---|")
    print(row("one after another", alone, alone_seconds))
    print(row("all at once", answers, seconds) if answers else "| all at once | 0 |")
    print(f"\nlost: {len(lost)}, other words than alone: {len(differ)}")
    for error in lost[:3]:
        print(f"  {error!r}", file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
