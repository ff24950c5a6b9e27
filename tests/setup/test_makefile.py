"""make demo and make test: the same set-up, done once, and a sentence when it cannot be done."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


def make(*arguments, folder=ROOT, **variables):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", *arguments, *(f"{name}={value}" for name, value in variables.items())]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def project(tmp_path):
    """The Makefile with a demo of one line, in a folder whose name is no word."""
    folder = tmp_path / "a b"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("requirements.txt", "requirements-test.txt", "req_fix.txt"):
        (folder / name).write_text("# nothing is needed\n")
    (folder / "demo.py").write_text("import sys\nprint(sys.argv[1:])\n")
    return folder


def fake_python(folder, body):
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    return python


def test_help_is_what_make_alone_says():
    for arguments in ([], ["help"]):
        done = make(*arguments)
        assert done.returncode == 0 and "make demo" in done.stdout and "make test" in done.stdout


@pytest.mark.parametrize("target, command", [
    ("demo", 'demo.py --image "a.jpg" --prompt "What is in this picture?"'), ("test", "-m pytest tests"),
])  # fmt: skip
def test_targets_run_what_they_say(project, target, command):
    done = make("-n", target, folder=project, PHOTO="a.jpg")
    assert done.returncode == 0 and f".venv/bin/python {command}" in done.stdout
    assert "-m pip install" in done.stdout and "-r requirements.txt -c req_fix.txt" in done.stdout
    assert ("-r requirements-test.txt -c req_fix.txt" in done.stdout) == (target == "test")


def test_the_photo_of_the_demo_is_there():
    (photo,) = re.findall(r"^PHOTO \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert (ROOT / photo).exists()


def test_nothing_names_a_machine():
    for name in ("Makefile", "requirements.txt", "requirements-test.txt", "req_fix.txt", "pyproject.toml", ".ci/run", "demo.py"):
        text = (ROOT / name).read_text()
        assert not [word for word in ("/work/", "/opt/", "/root/", "/home/") if word in text], name


def test_ci_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert [line for line in script.read_text().splitlines() if line.startswith("make")] == ["make test"]


def test_setting_up_happens_once(project):
    first = make("demo", folder=project, PYTHON=sys.executable, PHOTO="a.jpg")
    assert first.returncode == 0, first.stderr
    assert "making .venv" in first.stderr and "installing the requirements" in first.stderr
    assert first.stdout.endswith("['--image', 'a.jpg', '--prompt', 'What is in this picture?']\n")
    second = make("demo", folder=project, PYTHON=sys.executable, PHOTO="a.jpg")
    assert "making" not in second.stderr and "installing" not in second.stderr
    assert second.stdout == first.stdout.splitlines(keepends=True)[-1]
    os.utime(project / "requirements.txt", (2**32, 2**32))
    third = make("demo", folder=project, PYTHON=sys.executable)
    assert "making" not in third.stderr and "installing" in third.stderr


@pytest.mark.parametrize("body, message", [
    ('[ "$1" = --version ] && echo Python 3.8.18; exit 1', "is Python 3.8.18, and Python 3.10 or newer is needed"),
    (f'[ "$2" = venv ] && mkdir -p .venv && exit 1; exec {sys.executable} "$@"', "install its venv module"),
])  # fmt: skip
def test_an_unfit_python_is_a_sentence(project, tmp_path, body, message):
    done = make("demo", folder=project, PYTHON=fake_python(tmp_path, body))
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
    assert not (project / ".venv").exists()


def test_a_missing_python_is_a_sentence(project):
    done = make("demo", folder=project, PYTHON="no-such-python")
    assert done.returncode != 0 and "Python 3.10 or newer is needed; name one" in done.stderr


def test_a_failed_installation_is_not_taken_for_done(project):
    (project / "requirements.txt").write_text("./nowhere\n")
    for _ in range(2):
        done = make("demo", folder=project, PYTHON=sys.executable)
        assert done.returncode != 0 and "nowhere" in done.stderr and not (project / ".venv" / ".ready").exists()
