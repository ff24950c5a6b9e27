"""What a file or folder of weights is and whether it is what it should be, as plain data and as a table."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .identify import ENCODER, LLAMA_HF, WEIGHTS, Found, identify
from .identify.published import PUBLISHED
from .manifest import Manifest
from .sources import MANIFEST, CheckpointError
from .words import listed, sha256_of

if TYPE_CHECKING:
    from tqdm import tqdm

COLUMNS, NO_BREAK = 100, "\u00a0"
SHOWN = 12  # keys named in the table; the data has them all
# the publishers of V2 begin the name of a download with its hash
_HASH_IN_NAME = re.compile(r"([0-9a-f]{64})_")


def inspect_path(path: str | Path, hashes: bool = True) -> dict[str, Any]:
    """All that can be told of a file or folder, ready for JSON; `hashes` False spares reading every byte.

    "complete" is false if anything is missing, unexpected or a problem. Raises what `identify` raises.
    """
    found = identify(path)
    report: dict[str, Any] = {
        "path": str(found.path),
        "family": found.family,
        "title": found.title,
        "variant": found.variant,
        "sizes": dict(found.sizes),
        "parts": dict(found.parts),
        "tensors": found.tensors,
        "dtypes": dict(found.dtypes),
        "bytes": found.bytes,
        "problems": list(found.problems),
        "missing": list(found.missing),
        "unexpected": list(found.unexpected),
        "needs": list(found.needs),
        "notes": list(found.notes),
        "files": _files(found, hashes),
    }
    report["problems"] += [f"{file['name']} {file['problem']}" for file in report["files"] if file["problem"]]
    if found.family in (WEIGHTS, ENCODER) and (found.path / MANIFEST).is_file():
        manifest = Manifest.load(found.path / MANIFEST)
        report["manifest"] = _facts(manifest)
        report["problems"] += _differences(manifest, report["files"]) + _wrong_base(manifest, found.path)
    if found.family == LLAMA_HF and not found.missing:
        report["fingerprint"] = _fingerprint(found.path)
    report["complete"] = not (found.missing or found.unexpected or report["problems"])
    return report


def _files(found: Found, hashes: bool) -> list[dict[str, Any]]:
    files = []
    with _progress(found.bytes if hashes else 0) as bar:
        for path in found.files:
            digest = sha256_of(path, bar.update) if hashes else None
            promised = _HASH_IN_NAME.match(path.name)
            wrong = promised and digest and promised[1] != digest
            files.append({
                "name": path.name if path.parent in (found.path, found.path.parent) else str(path),
                "bytes": path.stat().st_size,
                "sha256": digest,
                "published": PUBLISHED.get(digest) if digest else None,
                "problem": "has another SHA-256 than its name says: get it again" if wrong else None,
            })  # fmt: skip
    return files


@contextmanager
def _progress(total: int) -> Iterator[tqdm]:
    from tqdm import tqdm

    # none where nobody looks, nor for what takes a moment
    with tqdm(total=total, unit="B", unit_scale=True, desc="SHA-256", disable=None, delay=1, leave=False) as bar:
        yield bar


def _facts(manifest: Manifest) -> dict[str, Any]:
    facts: dict[str, Any] = {"licence": manifest.licence}
    if manifest.decoder is not None:
        facts["decoder"] = {
            "name": manifest.decoder.name,
            "source": manifest.decoder.source,
            "fingerprint": manifest.decoder.fingerprint,
            "tokenizer": manifest.decoder.tokenizer,
        }
    if manifest.origin is not None:
        facts["origin"] = {
            "family": manifest.origin.family,
            "name": manifest.origin.name,
            "bytes": manifest.origin.file.bytes,
            "sha256": manifest.origin.file.sha256,
            "published": PUBLISHED.get(manifest.origin.file.sha256),
        }
    return facts


def _differences(manifest: Manifest, files: list[dict[str, Any]]) -> list[str]:
    """Where the folder is not what its manifest says; hashes count where they were computed."""
    there = {file["name"]: file for file in files}
    differences = []
    for name, record in manifest.files.items():
        file = there.get(name)
        if file is None:
            differences.append(f"{name} is missing")
        elif file["bytes"] != record.bytes:
            differences.append(f"{name} has {file['bytes']} bytes instead of {record.bytes}")
        elif file["sha256"] not in (None, record.sha256):
            differences.append(f"{name} has another SHA-256 than its manifest says")
    return differences


def _wrong_base(manifest: Manifest, folder: Path) -> list[str]:
    """Whether the base model is still the one of the conversion, if it is on this machine where it was then."""
    decoder = manifest.decoder
    if decoder is None or decoder.source is None or decoder.fingerprint is None:
        return []
    base = folder / decoder.source
    found = _fingerprint(base) if base.is_dir() else None
    if found in (None, decoder.fingerprint):
        return []
    return [f"its base model {base} has the fingerprint {found[:12]} instead of {decoder.fingerprint[:12]}"]


def _fingerprint(folder: Path) -> str | None:
    from .shards import fingerprint

    try:
        return fingerprint(folder)
    except CheckpointError:  # kinds of files that it does not know; what is damaged, identify tells
        return None


def table(report: Mapping[str, Any]) -> str:
    """The report for people, at most 100 columns wide."""
    present = [name for name, there in report["parts"].items() if there]
    absent = [name for name, there in report["parts"].items() if not there]
    kinds = ", ".join(f"{count} {name}" for name, count in report["dtypes"].items())
    variant = f" ({report['variant']})" if report["variant"] else ""
    manifest = report.get("manifest", {})
    rows = [
        ("path", [report["path"]]),
        ("what", [f"{report['title']}{variant}"]),
        ("complete", ["yes" if report["complete"] else "NO"]),
        ("sizes", [", ".join(_words(f"{name} {value}") for name, value in report["sizes"].items())]),
        ("tensors", [f"{report['tensors']} ({kinds})" if kinds else ""]),
        ("holds", [", ".join(present)]),
        ("without", [", ".join(absent)]),
        ("missing", [_named(report["missing"])]),
        ("unexpected", [_named(report["unexpected"])]),
        ("problem", report["problems"]),
        ("needs", report["needs"]),
        *_manifest_rows(manifest),
        ("fingerprint", [report.get("fingerprint") or ""]),
        ("note", report["notes"]),
        ("on disk", [f"{_size(report['bytes'])} in {_counted(len(report['files']), 'file')}"]),
    ]
    lines = [line for name, texts in rows for text in texts if text for line in _wrapped(name, text)]
    for file in report["files"]:
        lines.append(f"  {file['name']}, {_size(file['bytes'])}")
        if file["sha256"]:
            lines.append(f"    SHA-256 {file['sha256']}")
        if file["published"]:
            lines.append(f"    this is {file['published']}")
    return "\n".join(lines)


def _manifest_rows(manifest: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    decoder, origin = manifest.get("decoder", {}), manifest.get("origin", {})
    if decoder.get("fingerprint"):
        yield "its base", [f"fingerprint {decoder['fingerprint']}"]
    if decoder.get("tokenizer"):
        yield "tokenizer", [f"fingerprint {decoder['tokenizer']}"]
    if decoder.get("source"):
        yield "found at", [decoder["source"]]
    if origin:
        published = f": {origin['published']}" if origin["published"] else ""
        yield "made from", [f"{origin['name']}, {_size(origin['bytes'])}{published}", f"SHA-256 {origin['sha256']}"]
    if manifest.get("licence"):
        yield "licence", [manifest["licence"]]


def _words(text: str) -> str:
    """A name and its number, to be kept on one line."""
    return text.replace("_", " ").replace(" ", NO_BREAK)


def _wrapped(name: str, text: str) -> list[str]:
    start = f"{name:<12}"
    lines = textwrap.wrap(
        text, COLUMNS, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False,
        break_long_words=False,  # a path that is too long stays one word, to be copied
    )  # fmt: skip
    return [line.replace(NO_BREAK, " ") for line in lines]


def _named(keys: list[str]) -> str:
    return f"{len(keys)}: {listed(keys, SHOWN)}" if keys else ""


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
