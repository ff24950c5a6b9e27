"""What the README says is run, and what it shows is compared with what comes out."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.partition("#")[0].strip()
    for language, block in BLOCKS if not language
    for line in block.splitlines() if line.startswith("python demo.py")
]  # fmt: skip


def run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_readme_links_and_make_targets_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


def test_readme_shows_every_room_of_the_house():
    for name in re.findall(r"^  (\w+)(?:, (\w+), (\w+))?  ", README, re.MULTILINE):
        for module in filter(None, name):
            found = [*ROOT.glob(f"adapter_llm/{module}*"), *ROOT.glob(f"imagebind_encoder/{module}*")]
            assert found, f"the README lists {module}"


@pytest.mark.weights
def test_first_answer_is_the_one_the_readme_shows():
    shown = [block.strip() for language, block in BLOCKS if not language]
    answer = run([sys.executable, "demo.py", "--image", "examples/coffee.jpg", "--prompt", "What is in this picture?"])
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() in shown


@pytest.mark.weights
@pytest.mark.parametrize("command", [c for c in COMMANDS if "photo.jpg" not in c and "a.jpg" not in c])
def test_readme_commands_answer(command):
    answer = run([sys.executable, *shlex.split(command)[1:]])
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()


@pytest.mark.weights
def test_readme_python_runs():
    [block] = [block for language, block in BLOCKS if language == "python"]
    answer = run([sys.executable, "-c", block])
    assert answer.returncode == 0, answer.stderr
    assert "missing.jpg" in answer.stdout
