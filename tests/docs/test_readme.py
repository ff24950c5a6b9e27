"""What the README says is run, and what it shows is compared with what comes out."""

import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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


COFFEE = 'python demo.py --image examples/coffee.jpg --prompt "What is in this picture?"'
YOURS = ("photo.jpg", "a.jpg", "film.mp4")  # files that the reader has to bring
PAGE = "python demo.py"  # goes on until it is stopped; tests/page opens it
READY = [command for command in COMMANDS if command != PAGE and not any(name in command for name in YOURS)]
SCRIPTS = [block for language, block in BLOCKS if language == "python"]


@pytest.fixture(scope="module")
def done():
    """Everything that the README says to run, two at a time: most of each is imports."""
    commands = {line: [sys.executable, *shlex.split(line)[1:]] for line in (COFFEE, *READY)}
    commands |= {script: [sys.executable, "-c", script] for script in SCRIPTS}
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(commands, pool.map(run, commands.values()), strict=True))


@pytest.mark.weights
def test_first_answer_is_the_one_the_readme_shows(done):
    shown = [block.strip() for language, block in BLOCKS if not language]
    answer = done[COFFEE]
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() in shown


@pytest.mark.weights
@pytest.mark.parametrize("command", READY)
def test_readme_commands_answer(done, command):
    answer = done[command]
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()


def test_the_page_is_tried_elsewhere():
    assert PAGE in COMMANDS
    assert "open_page" in (ROOT / "tests" / "page" / "conftest.py").read_text(encoding="utf-8")


@pytest.mark.weights
def test_readme_python_runs(done):
    [script] = SCRIPTS
    answer = done[script]
    assert answer.returncode == 0, answer.stderr
    assert "missing.jpg" in answer.stdout
