"""demo.py: what it asks the pipeline, what goes to stdout, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from PIL import Image

import demo
from adapter_llm import cli
from adapter_llm.fetch import FetchError
from imagebind_encoder import ConfigError, MediaError

ROOT = Path(__file__).parent.parent.parent


LOADING = {"weights": str(ROOT / "weights" / "default"), "llm": None, "device": "auto", "dtype": "auto", "index": None,
           "media": ["image"], "settings": {}, "faithful": False, "allow_base_mismatch": False, "device_map": None, "offload_folder": None}  # fmt: skip


class Answer:
    def to_dict(self):
        return {"text": "a 🐕", "n_tokens": 3}


class FakePipeline:
    calls = []
    failure = None

    @classmethod
    def from_pretrained(cls, **options):
        cls.calls.append(("load", options))
        print("chatter of a library")
        if cls.failure:
            raise cls.failure
        return cls()

    def adapt(self, **media):
        self.calls.append(("adapt", media))
        return "what was seen"

    def release_encoder(self):
        pass

    def stream(self, prompt, **options):
        self.calls.append(("stream", prompt, options))
        yield from ("a ", "dog")

    def result(self, prompt, **options):
        self.calls.append(("result", prompt, options))
        return Answer()


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(FakePipeline, "calls", [])
    monkeypatch.setattr(FakePipeline, "failure", None)
    monkeypatch.setitem(sys.modules, "adapter_llm.pipeline", types.SimpleNamespace(Pipeline=FakePipeline))
    monkeypatch.setattr(cli, "quiet", lambda: None)  # it changes the process for good
    return FakePipeline


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", (12, 8), "red").save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def run(*arguments):
    try:
        return demo.main([*arguments])
    except SystemExit as end:
        return end.code


def test_the_answer_is_all_that_stdout_gets(fake, photo, capsys):
    assert run("--image", photo, "--prompt", "What is it?") == 0
    assert capsys.readouterr() == ("a dog\n", "chatter of a library\n")
    (_, options), (looked, seen), (kind, prompt, asked) = fake.calls
    assert options == LOADING
    assert (looked, kind, prompt, asked) == ("adapt", "stream", "What is it?", {"state": "what was seen"})
    ((image, weight),) = seen["image"]
    assert list(seen) == ["image"]
    assert image.size == (12, 8) and weight == 1


def test_every_option_reaches_the_pipeline(fake, photo, monkeypatch, tmp_path):
    threads = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    arguments = "--weights w --llm l.gguf --device cuda:1 --dtype bfloat16 --max-new-tokens 9 --temperature 0.5"
    arguments += " --top-p 0.9 --seed 7 --threads 3 --allow-base-mismatch --faithful --index i --device-map balanced"
    arguments += " --offload-folder o"
    cloud = tmp_path / "a.ply"
    cloud.touch()
    arguments += f" --point {cloud}:0.2 --blend 0.25 --set imu.rate=50 --set depth.unit=metres --window 4 --hop 2.5 --pool max --mix concat"
    assert run("--image", f"{photo}:0.7", "--image", f"{photo}:0.3", "--prompt", "x", *arguments.split()) == 0
    (_, loaded), (_, seen), (_, _, asked) = fake.calls
    assert loaded == {"weights": "w", "llm": "l.gguf", "device": "cuda:1", "dtype": "bfloat16", "index": "i",
                      "faithful": True, "allow_base_mismatch": True, "device_map": "balanced",
                      "offload_folder": "o", "media": ["image", "point"], "settings": {"imu.rate": 50, "depth.unit": "metres"}}  # fmt: skip
    assert [weight for _, weight in seen["image"]] == [0.7, 0.3]
    assert seen["point"] == [(str(cloud), 0.2)]
    assert [seen[name] for name in demo.LOOKING] == [4, 2.5, "max", "concat"]
    assert seen["retrieval"].weight == 0.25
    assert asked == {"state": "what was seen", "max_new_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 7}
    assert threads == [3]


def test_without_media_and_prompt_the_page_is_opened(fake, monkeypatch, capsys):
    from adapter_llm.page import command

    opened = []
    monkeypatch.setattr(command, "serve", lambda load, weights, given: opened.append((load(), weights, given)))
    assert run("--weights", "w/mine") == 0
    assert fake.calls == [("load", {**LOADING, "weights": "w/mine", "media": None})]
    arguments = "--host 0.0.0.0 --port 8000 --auth ann:a:b --max-file-size 0.5 --queue-size 3 --share --seed 7"
    assert run(*arguments.split(), "--index", "i", "--blend", "0.2", "--temperature", "0.5") == 0
    (_, _, nothing), (_, weights, given) = opened
    assert nothing == {} and given == {
        "host": "0.0.0.0", "port": 8000, "auth": ("ann", "a:b"), "max_file_size": 0.5, "queue_size": 3, "share": True,
        "temperature": 0.5, "seed": 7, "blend": 0.2,
    }  # fmt: skip
    settings = command.settings_of(weights, given)
    assert (settings.host, settings.port, settings.max_file_size, settings.queue_size) == ("0.0.0.0", 8000, 2**19, 3)
    assert settings.auth == ("ann", "a:b") and settings.share and settings.name == "default"
    assert (settings.options.temperature, settings.options.seed, settings.retrieval.weight) == (0.5, 7, 0.2)
    assert command.settings_of("a/b", {}) == command.PageSettings(name="b")
    assert capsys.readouterr().out == ""


def test_options_fit_the_real_pipeline():
    import inspect

    from adapter_llm import checkpoint, decoder, pipeline

    loading = inspect.signature(pipeline.Pipeline.from_pretrained).parameters
    assert {"weights", "llm", "device", "dtype"} <= set(loading)
    assert {"index", "faithful"} <= set(loading)
    loading = inspect.signature(checkpoint.from_pretrained).parameters
    assert "allow_base_mismatch" in loading
    assert {"device_map", "offload_folder"} <= set(inspect.signature(decoder.load_decoder).parameters)
    for method in (pipeline.Pipeline.stream, pipeline.Pipeline.result):
        assert {"prompt", "inputs"} <= set(inspect.signature(method).parameters)
    pipeline.GenerationOptions(max_new_tokens=9, temperature=0.5, top_p=0.9, seed=7)


@pytest.mark.parametrize("prompt", [["--prompt"], [], ["--prompt", ""]])
def test_without_words_a_description_is_asked_for(fake, photo, prompt):
    assert run("--image", photo, *prompt) == 0
    assert fake.calls[2][1] == "Describe this picture."


def test_a_question_needs_no_picture(fake, capsys):
    assert run("--prompt", "Who are you?") == 0
    assert fake.calls[1] == ("stream", "Who are you?", {})


def test_json_is_one_object(fake, photo, capsys):
    assert run("--image", photo, "--json") == 0
    out = capsys.readouterr().out
    assert json.loads(out) == {"text": "a 🐕", "n_tokens": 3} and out.count("\n") == 1 and "🐕" in out
    assert fake.calls[2][0] == "result"


@pytest.mark.parametrize("arguments, message", [
    ("--json", "give --image or a question"), ("--auth ann", "a name and a password are wanted"),
    ("--auth :x", "as in ann:secret"), ("--port 70000", "from 0 to 65535"), ("--max-file-size 0", "number above 0"), ("--queue-size -1", "from 0 up"),
    ("--image PHOTO --port 7860", "are about the chat page"), ("--prompt x --share", "are about the chat page"),
    ("--prompt", "there is nothing to describe; give --image or a question"),
    ("--image PHOTO:-1", "the weight of"), ("--image PHOTO:nan", "the weight of"),
    ("--image PHOTO:0 --image PHOTO:0", "all weights are 0"),
    ("--point PHOTO:0", "all weights are 0"),
    ("--image PHOTO --blend 0.5", "give one with --index"), ("--image PHOTO --set rate=5", "write KIND.NAME=VALUE"),
    ("--image PHOTO --explain e.png --json", "leave --json out"), ("--text nowhere.txt", "there is no file 'nowhere"),
    ("--prompt x --window 2", "are about media"), ("--prompt x --explain e.png", "are about media"),
    ("--image PHOTO --window 0", "number above 0"), ("--image PHOTO --pool sum", "invalid choice: 'sum'"),
    ("--image PHOTO --index x --blend 1.5", "'1.5' is not a number from 0 to 1"),
    ("--prompt x --device tpu", "'tpu' is not one of auto, cpu, cuda, cuda:1, mps"),
    ("--prompt x --dtype int8", "invalid choice: 'int8'"), ("--prompt x --max-new-tokens 0", "whole number from 1 up"),
    ("--prompt x --max-new-tokens 1.5", "whole number from 1 up"), ("--prompt x --temperature -1", "number from 0 up"),
    ("--prompt x --temperature nan", "number from 0 up"), ("--prompt x --temperature inf", "number from 0 up"),
    ("--prompt x --top-p 0", "number above 0, up to 1"), ("--prompt x --top-p 1.1", "number above 0, up to 1"),
    ("--prompt x --seed x", "whole number from 0 to"), ("--prompt x --threads 0", "whole number from 1 up"),
    ("--smell x", "unrecognized arguments: --smell"), ("x.jpg", "unrecognized arguments: x.jpg"),
])  # fmt: skip
def test_wrong_use_is_two_and_a_line(fake, photo, capsys, arguments, message):
    assert run(*arguments.replace("PHOTO", photo).split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1 and err.startswith("demo: ")
    assert fake.calls == []


def test_every_kind_of_media_has_its_keyword(fake, tmp_path):
    """One file of each, one with a weight; words are words unless they name a file."""
    from adapter_llm.processing import KEYWORDS

    assert list(demo.MEDIA) == list(KEYWORDS)
    arguments = []
    for name in demo.MEDIA:
        (tmp_path / name).touch()
        arguments += [f"--{name}", f"{tmp_path / name}:0.5"] if name != "image" else []
    assert run(*arguments, "--text", "a dog: barking", "--text", "no such file txt:0.25", "--prompt", "x") == 0
    (_, loaded), (_, seen), _ = fake.calls
    assert loaded["media"] == list(seen) == list(KEYWORDS)[1:]
    assert seen["audio"] == [(str(tmp_path / "audio"), 0.5)]
    assert seen["text"] == [(tmp_path / "text", 0.5), ("a dog: barking", 1.0), ("no such file txt", 0.25)]


@pytest.mark.parametrize("media, prompt", [
    (["audio"], "Describe this sound."), (["video"], "Describe this video."), (["imu"], "Describe this movement."),
    (["depth", "thermal"], "Describe this picture."), (["audio", "video"], "Describe this."),
])  # fmt: skip
def test_a_description_is_of_what_was_given(fake, tmp_path, media, prompt):
    (tmp_path / "a").touch()
    assert run(*(word for name in media for word in (f"--{name}", str(tmp_path / "a")))) == 0
    assert fake.calls[-1][1] == prompt


@pytest.mark.parametrize("name", [name for name in demo.MEDIA if name != "text"])
def test_a_file_that_is_not_there_is_known_before_the_model_is_loaded(fake, capsys, name):
    assert run(f"--{name}", "nowhere.xyz:0.5", "--prompt", "x") == 1
    assert capsys.readouterr().err == "demo: there is no file 'nowhere.xyz'; check the path\n"
    assert fake.calls == []


def test_a_broken_picture_is_known_before_the_model_is_loaded(fake, photo, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("not a picture")
    for name, message in (("no.jpg", "there is no file"), ("text.jpg", "is not a picture"), (".", "is a directory")):
        assert run("--image", photo, "--image", str(tmp_path / name), "--prompt", "x") == 1
        out, err = capsys.readouterr()
        assert out == "" and message in err and err.count("\n") == 1
    assert fake.calls == []


@pytest.mark.parametrize("error, message", [
    (ConfigError("unknown key 'a'"), "unknown key 'a'"), (MediaError("bad"), "bad"), (ValueError("no"), "no"),
    (FetchError("no network;\n do this"), "no network; do this"),
    (FileNotFoundError(2, "No such file or directory", "w/x"), "w/x: No such file or directory"),
    (OSError("plain"), "plain"), (ImportError("No module named 'torch'"), "No module named 'torch': install what"),
    (RuntimeError("odd"), "unexpected RuntimeError: odd; run again with --debug for the traceback"),
    (KeyError(), "unexpected KeyError: no message; run again"),
])  # fmt: skip
def test_every_error_is_one_and_a_line(fake, capsys, error, message):
    fake.failure = error
    assert run("--prompt", "x") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[1].startswith(f"demo: {message}") and err.count("\n") == 2


def test_debug_shows_the_traceback(fake):
    fake.failure = RuntimeError("odd")
    with pytest.raises(RuntimeError, match="odd"):
        run("--prompt", "x", "--debug")


def test_an_interrupt_ends_quietly(fake, capsys):
    fake.failure = KeyboardInterrupt()
    assert run("--prompt", "x") == 130
    assert capsys.readouterr() == ("", "chatter of a library\n")


# --- in a process of its own -----------------------------------------------------------------------------

STAND_IN = """
import sys, time, types
class Pipeline:
    @classmethod
    def from_pretrained(cls, **options):
        import warnings; warnings.warn("chatter"); print("chatter")
        return cls()
    def stream(self, prompt):
        yield "é word\\n"
        {then}
sys.modules["adapter_llm.pipeline"] = types.SimpleNamespace(Pipeline=Pipeline)
import demo
sys.exit(demo.main(["--prompt", "x"]))
"""


def start(then, **options):
    script = STAND_IN.format(then=then)
    environment = os.environ | {"PYTHONIOENCODING": options.pop("encoding", "utf-8")}
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # fmt: skip


def test_help_is_quick_and_light():
    script = "import sys, demo\ntry: demo.main(['--help'])\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", script]
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert time.perf_counter() - begin < 1
    assert "--image PATH[:WEIGHT]" in done.stdout
    assert not {"torch", "numpy", "PIL", "transformers", "gradio", "httpx", "timm"} & set(done.stderr.split())


def test_warnings_stay_off_the_terminal():
    out, err = start("pass").communicate(timeout=30)
    assert out.decode() == "é word\n\n" and err.decode() == "chatter\n"


def test_a_terminal_that_cannot_show_a_letter_shows_the_rest():
    out, _ = start("pass", encoding="ascii").communicate(timeout=30)
    assert out == b"? word\n\n"


def test_a_reader_that_leaves_early_is_no_error():
    process = start("yield from ('x' * 100000 for _ in range(99))")
    process.stdout.read(5)
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=30) == 0 and err == "chatter\n"


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
def test_control_c_while_answering_ends_quietly():
    process = start("time.sleep(60)")
    assert process.stdout.readline().decode() == "é word\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err == b"chatter\n"


# --- with the real thing ---------------------------------------------------------------------------------


@pytest.mark.weights
@pytest.mark.skipif(not Path(demo.cli.WEIGHTS).exists(), reason="weights/default is not there yet")
def test_the_default_weights_describe_a_photo():
    """The whole way, from the command line to the sentence; parts that are not in the cache are fetched."""
    command = [sys.executable, "demo.py", "--json", "--image", "examples/coffee.jpg"]
    command += ["--prompt", "What is in this picture?"]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert re.search("coffee|espresso|cup|mug", answer["text"].lower()), answer["text"]
    assert answer["n_tokens"] > 1 and answer["finish_reason"] in ("stop", "length")
