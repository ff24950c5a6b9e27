"""`python -m adapter_llm`: quick to answer, plain about what is wrong, and a run from pictures to weights."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import folders
import pytest
import torch

from adapter_llm.__main__ import main
from adapter_llm.pipeline import Pipeline

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("torch", "transformers", "timm", "torchvision", "PIL", "numpy")
REPORT = """
import sys
from adapter_llm.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print("LOADED", [name for name in {heavy} if name in sys.modules], "EXIT", end.code)
"""


def python(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.fixture
def captions(tmp_path):
    for n in range(3):
        folders.picture(n).save(tmp_path / f"{n}.png")
    path = tmp_path / "captions.csv"
    path.write_text("image,caption\n0.png,a dog\n1.png,rain .\n2.png,a cat\n0.png,the dog\n")
    return path


@pytest.mark.parametrize("command", [[], ["train"], ["train-default"], ["evaluate"]])
def test_help_loads_nothing_heavy(command):
    done = python("-c", REPORT.replace("{heavy}", repr(HEAVY)), *command, "--help")
    assert done.returncode == 0, done.stderr
    assert "LOADED [] EXIT 0" in done.stdout
    assert "usage: python -m adapter_llm" in done.stdout
    assert ("train-default" in done.stdout) == (command in ([], ["train-default"]))


def test_the_module_is_a_command():
    done = python("-m", "adapter_llm", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "evaluate" in done.stdout


@pytest.mark.parametrize("arguments, said", [
    ([], "COMMAND"), (["learn"], "invalid choice"), (["train"], "captions"), (["train", "x.csv"], "--output"),
    (["train", "x.csv", "--output", "o", "--steps", "0"], "not a whole number from 1 up"),
    (["train", "x.csv", "--output", "o", "--device", "gpu"], "not one of auto, cpu"),
    (["train-default", "d", "--output", "o"], "--wordnet"),
])  # fmt: skip
def test_wrong_use_is_one_line_and_exit_code_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert said in printed.err


def test_a_missing_captions_file_is_one_line(tmp_path):
    done = python("-m", "adapter_llm", "train", tmp_path / "none.csv", "--output", tmp_path / "new")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"python -m adapter_llm: {tmp_path / 'none.csv'}: No such file or directory\n"
    assert not (tmp_path / "new").exists()


def fails(arguments, capsys):
    """The one line a command that fails leaves."""
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return printed.err.strip().splitlines()[-1]


def test_missing_pictures_and_weights_are_named(captions, tmp_path, capsys, decoder):
    to = ["--output", str(tmp_path / "new"), "--llm", str(decoder), "--device", "cpu"]
    assert "there is no weights folder" in fails(["train", str(captions), "--weights", "no/such/folder", *to], capsys)
    (tmp_path / "1.png").unlink()
    assert "line 3: there is no picture" in fails(["train", str(captions), *to], capsys)
    assert not (tmp_path / "new").exists()


def test_a_picture_that_is_none_stops_before_training(captions, tmp_path, weights, decoder, capsys):
    (tmp_path / "1.png").write_text("no picture")
    arguments = [
        "train",
        captions,
        "--weights",
        weights,
        "--llm",
        decoder,
        "--output",
        tmp_path / "new",
        "--device",
        "cpu",
    ]
    assert "1.png" in fails([str(argument) for argument in arguments], capsys)
    assert not (tmp_path / "new").exists()


def test_training_ends_in_weights_that_load(captions, tmp_path, weights, decoder, capsys):
    weights = Path(shutil.copytree(weights, tmp_path / "old"))
    folders.change_json(weights / "manifest.json", lambda manifest: manifest.update(quality={"objects": 1}))
    new = tmp_path / "new"
    arguments = ["train", captions, "--weights", weights, "--llm", decoder, "--output", new,
                 "--steps", 2, "--batch-size", 3, "--device", "cpu"]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{new}\n"
    assert "step 2" in printed.err
    assert sorted(path.name for path in new.iterdir()) == [
        "adapter.safetensors", "config.json", "encoder.safetensors", "manifest.json"
    ]  # fmt: skip
    manifest = json.loads((new / "manifest.json").read_text())
    assert manifest["training"] == {"captions": 3, "steps": 2, "started_from": str(weights)}
    assert manifest["quality"] == {}  # what the old weights scored says nothing of the new ones
    before, after = (Pipeline.from_pretrained(f, llm=decoder, device="cpu", dtype="float32") for f in (weights, new))
    assert after.config == before.config
    assert isinstance(after.ask("What is this?", image=tmp_path / "0.png", max_new_tokens=3), str)
    assert not torch.equal(after.model.adapter.gates, before.model.adapter.gates)
    for name, tensor in before.model.encoder.state_dict().items():  # stored in half precision, otherwise untouched
        assert torch.equal(after.model.encoder.state_dict()[name], tensor.half().float())


def test_evaluate_prints_and_records_scores(tmp_path, weights, decoder, capsys):
    folder, data = Path(shutil.copytree(weights, tmp_path / "weights")), tmp_path / "data"
    for kind in ("objects", "scenes"):
        (data / kind).mkdir(parents=True)
        folders.picture(1).save(data / kind / "1.png")
    (data / "objects.csv").write_text("image,synset,label\n1.png,n01440764,tench\n")
    (data / "scenes.csv").write_text("image,caption\n1.png,a dog\n")
    arguments = ["evaluate", data, "--weights", folder, "--llm", decoder, "--device", "cpu", "--dtype", "float32",
                 "--all", "--missed", "--record"]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr().out
    scores = json.loads(printed[: printed.index("}") + 1])
    assert scores["objects: named in a description"].endswith(" of 1")
    assert "1.png\ttench\t" in printed
    quality = json.loads((folder / "manifest.json").read_text())["quality"]
    assert quality.keys() == scores.keys()
    assert quality["objects: named in a description"] == {"share": 0.0, "count": 1}
    assert Pipeline.from_pretrained(folder, llm=decoder, device="cpu").manifest.quality == quality


def test_evaluate_misses_its_data_before_it_loads_anything(tmp_path, capsys):
    from adapter_llm.__main__ import main

    assert main(["evaluate", str(tmp_path), "--weights", str(tmp_path / "none")]) == 1
    assert "objects.csv" in capsys.readouterr().err
