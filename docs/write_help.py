#!/usr/bin/env python3
"""Write what --help says into the pages of this folder:  python docs/write_help.py

A page holds a line `<!-- help: COMMAND -->`, such as `<!-- help: demo -->` or `<!-- help: caption -->`, and below it a
block of code. Without changes nothing is written; a test compares the pages with what they should be.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- help: (\w+) -->\n+```\n)(.*?)(```)", re.DOTALL)
COLUMNS = "100"


def help_of(command: str) -> str:
    """The text of --help of demo.py or of a command of adapter_llm, for a terminal of 100 columns."""
    from adapter_llm.__main__ import build_parser
    from demo import build_parser as build_demo

    kept, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), COLUMNS
    try:
        if command == "demo":
            return build_demo().format_help()
        [commands] = [action.choices for action in build_parser()._actions if action.dest == "command"]
        return commands[command].format_help()
    finally:
        if kept is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = kept


def with_help(page: str) -> str:
    """A page with the help texts as they are now."""
    return BLOCK.sub(lambda found: found[1] + help_of(found[2]) + found[4], page)


def main() -> None:
    for path in sorted((ROOT / "docs").glob("*.md")):
        old = path.read_text(encoding="utf-8")
        if (page := with_help(old)) != old:
            path.write_text(page, encoding="utf-8")
            print(path)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
