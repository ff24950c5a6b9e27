"""python -m adapter_llm serve: what it takes, what it refuses, and a whole run of it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from serving import until

import demo
from adapter_llm import __main__ as program
from adapter_llm import cli, commands_serve
from adapter_llm.serve.port import bind

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "fastapi", "uvicorn", "starlette", "prometheus_client", "httpx", "PIL", "av")


def parse(*arguments):
    return program.build_parser().parse_args(["serve", *arguments])


def test_help_imports_nothing_heavy():
    script = "import sys\nfrom adapter_llm.__main__ import build_parser\nbuild_parser()\n"
    script += f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_it_is_safe_by_default():
    args = parse()
    assert args.host == "127.0.0.1" and args.api_key is None and not args.cors and not args.allow_urls
    assert commands_serve.host_names(args, loopback=True) == ("localhost", "127.0.0.1", "::1", "127.0.0.1")
    assert commands_serve.host_names(args, loopback=False) is None
    assert "box.lan" in commands_serve.host_names(parse("--allow-host", "Box.lan"), loopback=False)
    assert commands_serve.host_names(parse("--allow-host", "*"), loopback=True) is None


@pytest.mark.parametrize("arguments, says", [
    (["--max-body", "much"], "'much' is no size; write bytes, or 500K, 64M, 1G"),
    (["--max-body", "0"], "'0' is no size"),
    (["--max-body", "m"], "'m' is no size"),
    (["--cors", "example.org"], "'example.org' is no origin; write https://example.org, without a path"),
    (["--cors", "https://example.org/"], "is no origin"),
    (["--port", "70000"], "'70000' is not a whole number from 0 to 65535"),
    (["--timeout", "0"], "'0' is not a number above 0"),
    (["--batch-size", "0"], "'0' is not a whole number from 1 up"),
    (["--temperature", "3"], "'3' is not a number from 0 to 2"),
])  # fmt: skip
def test_wrong_use_is_a_sentence(capsys, arguments, says):
    with pytest.raises(SystemExit) as raised:
        parse(*arguments)
    assert raised.value.code == 2 and says in capsys.readouterr().err


def test_sizes():
    found = {text: commands_serve.size_argument(text) for text in ("17", "3k", "64M", "1G")}
    assert found == {"17": 17, "3k": 3 * 2**10, "64M": 2**26, "1G": 2**30}


@pytest.mark.parametrize("given, variable, wanted", [
    (None, None, None), ("a", None, "a"), (None, "b", "b"), ("a", "b", "a"),
    ("", None, "the key of --api-key is empty"), (None, "", "the key of $ADAPTER_LLM_API_KEY is empty"),
    ("a b", None, "has characters that no HTTP header carries"), ("ä", None, "characters"), ("a\n", None, "characters"),
])  # fmt: skip
def test_keys(monkeypatch, given, variable, wanted):
    monkeypatch.delenv(commands_serve.KEY, raising=False)
    if variable is not None:
        monkeypatch.setenv(commands_serve.KEY, variable)
    if wanted is None or len(wanted) == 1:
        assert commands_serve.api_key(given) == wanted
    else:
        with pytest.raises(ValueError, match=re.escape(wanted)):
            commands_serve.api_key(given)


def test_both_command_lines_load_all_that_they_offer(monkeypatch):
    from adapter_llm.pipeline import Pipeline

    given = ["--weights", "w", "--llm", "l", "--set", "imu.rate=50", "--index", "i", "--faithful", "--device", "cpu",
             "--allow-base-mismatch", "--device-map", "auto", "--offload-folder", "o", "--dtype",
             "float32"]  # fmt: skip
    found = []
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda **options: found.append(options))
    cli.load_pipeline(parse(*given))
    cli.load_pipeline(demo.build_parser().parse_args(given))
    served, asked = found
    assert served == asked and served.pop("media") is None
    assert None not in served.values() and served["faithful"] and served["allow_base_mismatch"]


def test_a_blend_needs_an_index(capsys):
    with pytest.raises(SystemExit) as raised:
        program.main(["serve", "--blend", "0.5"])
    assert raised.value.code == 2 and "--blend says how much of an index" in capsys.readouterr().err


def test_names_of_models(tmp_path):
    (tmp_path / "mine").mkdir()
    assert commands_serve.model_name(str(tmp_path / "mine" / ".")) == "mine"
    assert commands_serve.model_name("someone/model") == "someone/model"


@pytest.mark.loopback
def test_a_port_in_use_is_known_before_anything_is_loaded(capsys):
    with bind("127.0.0.1", 0) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        assert program.main(["serve", "--port", str(port), "--weights", "nowhere"]) == 1
    assert capsys.readouterr().err == (
        f"python -m adapter_llm: port {port} of 127.0.0.1 is in use; give another --port, or 0 for any that is free\n"
    )


@pytest.mark.loopback
def test_a_whole_run(weights, decoder, tmp_path):
    arguments = ["--port", "0", "--weights", weights, "--llm", decoder, "--name", "tiny", "--threads", "1", "--device",
                 "cpu", "--max-tokens", "5", "--timeout", "60"]  # fmt: skip
    command = [sys.executable, "-m", "adapter_llm", "serve", *map(str, arguments)]
    log, env = tmp_path / "log", {**os.environ, commands_serve.KEY: "k"}
    with log.open("w") as file, subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=env) as server:
        try:
            assert until(lambda: "Ctrl-C ends it" in log.read_text() or server.poll() is not None, 120)
            line = log.read_text().strip()
            assert line.startswith("serving tiny at http://127.0.0.1:") and line.endswith("/v1; Ctrl-C ends it"), line
            url = line.split()[3].rstrip(";")
            body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
            headers = {"Authorization": "Bearer k"}
            answer = httpx.post(f"{url}/chat/completions", json=body, headers=headers, verify=False)
            assert answer.json()["usage"]["completion_tokens"] <= 5, answer.text
            assert httpx.get(f"{url}/models", verify=False).status_code == 401
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()
    assert log.read_text().strip() == line
