"""Rows to write, and what a person finds in an output, whatever its format."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

from adapter_llm.caption.content import Content
from adapter_llm.caption.done import Done
from adapter_llm.caption.items import Input
from adapter_llm.caption.rows import CaptionRow

FORMATS = ("jsonl", "parquet", "txt", "webdataset")
NAMES = {"jsonl": "out.jsonl", "parquet": "out.parquet", "txt": "texts", "webdataset": "shards"}


def done(number, error=None, config_hash="h1", media=None):
    """A finished or failed input; its file lies in `media`, if that is given."""
    name = f"q/{number}.jpg"
    path = str(media / name) if media else name
    data = f"bytes of {number}".encode() * (number + 1)
    content = None if error else Content.of(data, name)
    row = CaptionRow(
        id=path, path=path, sha256=content and content.sha256, prompt="What?",
        caption=None if error else f"caption {number} by {config_hash}", model="tiny", config_hash=config_hash,
        generation={"max_new_tokens": 5, "temperature": 0.0}, n_tokens=0 if error else 3,
        finish_reason="error" if error else "stop", seconds=0.25, status="error" if error else "ok", error=error,
    )  # fmt: skip
    item = Input(path, path, "image", None, lambda: content, name, path if media else None)
    return Done(row, item, content)


def found(form, path):
    """(id, config_hash, status, caption) of every row, in the order of the output."""
    rows = {"jsonl": _lines, "parquet": _parts, "txt": _texts, "webdataset": _samples}[form](Path(path))
    return [(row["id"], row["config_hash"], row["status"], row["caption"]) for row in rows]


def _lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _parts(path):
    from pyarrow import parquet

    parts = [part for part in sorted(path.iterdir()) if not part.name.endswith(".lock")]
    assert not [part for part in parts if not part.name.startswith("part-")]
    return [row for part in parts for row in parquet.read_table(part, partitioning=None).to_pylist()]


def _texts(path):
    rows = _lines(path / "captions.jsonl")
    told = {row["file"]: f"{row['caption']}\n" for row in rows if row["status"] == "ok"}
    assert told == {str(text.relative_to(path)): text.read_text("utf-8") for text in path.rglob("*.txt")}
    return rows


def _samples(path):
    rows, samples = _lines(path / "captions.jsonl"), {}
    for shard in sorted(path.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                key, _, suffix = member.name.rpartition("/")[2].partition(".")
                samples.setdefault(key, {})[suffix] = archive.extractfile(member).read()
    columns = ("id", "config_hash", "caption", "sha256")
    kept = Counter(tuple(row[name] for name in columns) for row in rows if row["status"] == "ok")
    told = Counter()
    for sample in samples.values():
        row = json.loads(sample["json"])
        told[row["id"], row["config_hash"], sample["txt"].decode(), Content.of(sample["jpg"], "x").sha256] += 1
    assert told == kept
    return rows


def a_tar(path, members, mode="w"):
    """A tar file of names and bytes."""
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
