"""Pages that show what --help says show what it says now."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import write_help

PAGES = sorted((ROOT / "docs").glob("*.md"))
SHOWN = {command for page in PAGES for _, command, *_ in write_help.BLOCK.findall(page.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_help_is_as_shown(page):
    text = page.read_text(encoding="utf-8")
    assert write_help.with_help(text) == text, "run python docs/write_help.py"


def test_the_ways_in_are_shown():
    assert {"demo", "caption", "serve"} <= SHOWN


def test_other_text_is_left_alone():
    page = "# x\n<!-- help: inspect -->\n```\nstale text\n```\nrest\n```\nother\n```\n"
    changed = write_help.with_help(page)
    assert changed.startswith("# x\n<!-- help: inspect -->\n```\nusage: python -m adapter_llm inspect")
    assert changed.endswith("\n```\nrest\n```\nother\n```\n") and "stale text" not in changed
