"""`python demo.py` opens the page: where, for whom, and until Ctrl-C; what it cannot do is a sentence."""

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import folders
import httpx
import pytest

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 90  # seconds; starting takes a few

pytestmark = pytest.mark.loopback


@pytest.fixture(scope="module")
def small(tmp_path_factory, decoder):
    """Arguments for tiny weights."""
    folder = tmp_path_factory.mktemp("weights")
    folders.save_weights(folder, decoder, sizes=folders.every_sense())
    return ["--weights", str(folder), "--llm", str(decoder), "--device", "cpu", "--dtype", "float32"]


@contextmanager
def demo(*arguments, **environment):
    process = subprocess.Popen(
        [sys.executable, ROOT / "demo.py", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment}, cwd=ROOT.parent,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def address(process):
    """The page's, as it is told."""
    line = process.stderr.readline()
    found = re.search(r"http://\S+", line)
    assert found, line + process.stderr.read()
    return found[0]


def test_the_page_is_opened_asks_for_the_password_and_ends_with_ctrl_c(small, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    arguments = [*small, "--port", "0", "--auth", "ann:secret:word"]
    with demo(*arguments, TMPDIR=str(temporary)) as process:
        url = address(process)
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/?", url)
        stranger, ann = httpx.Client(base_url=url), httpx.Client(base_url=url)
        for secret in ("", "secret", "ann"):
            assert stranger.post("/login", data={"username": "ann", "password": secret}).status_code >= 400
        assert "components" not in stranger.get("/config").text
        assert stranger.post("/gradio_api/upload", files={"files": ("a.png", b"x")}).status_code == 401
        assert ann.post("/login", data={"username": "ann", "password": "secret:word"}).status_code == 200
        assert ann.get("/config").json()["components"]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) in (0, 130)
        assert process.stdout.read() == "" and "Traceback" not in (words := process.stderr.read()), words
        for client in (stranger, ann):
            client.close()
    assert not [left for left in temporary.iterdir() if "adapter_llm" in left.name]


def test_a_port_that_is_taken_is_a_sentence_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with demo("--weights", "nowhere", "--port", str(port)) as process:
            assert process.wait(PATIENCE) == 1
            words = process.stderr.read()
    assert f"port {port} of 127.0.0.1" in words and "--port" in words and len(words.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments, words", [
    (["--auth", "ann"], "--auth"), (["--auth", ":secret"], "--auth"), (["--port", "70000"], "--port"),
    (["--max-file-size", "0"], "--max-file-size"), (["--queue-size", "-1"], "--queue-size"),
    (["--port", "7860", "--prompt", "Hi"], "--port"),
])  # fmt: skip
def test_wrong_use_is_one_line(arguments, words):
    with demo(*arguments) as process:
        assert process.wait(PATIENCE) == 2
        message = process.stderr.read()
    assert words in message and len(message.strip().splitlines()) == 1


def test_help_loads_nothing_heavy(tmp_path):
    script = (
        "import sys, demo\n"
        "try: demo.main(['--help'])\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    for option in ("--host", "--port", "--auth", "--max-file-size", "--queue-size", "--share"):
        assert option in done.stdout
    heavy = {"gradio", "fastapi", "uvicorn", "torch", "transformers", "pandas", "numpy", "httpx"}
    assert not heavy & set(done.stderr.split())


def test_a_missing_gradio_is_a_sentence_before_anything_is_loaded(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ImportError('No module named gradio')")
    with demo("--weights", "nowhere", PYTHONPATH=str(tmp_path)) as process:
        assert process.wait(PATIENCE) == 1
        words = process.stderr.read()
    assert "pip install -r requirements.txt" in words and len(words.strip().splitlines()) == 1
