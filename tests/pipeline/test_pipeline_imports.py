"""What a question loads: nothing of the chat page, of training, or of libraries that the decoder does not need."""

import json
import os
import subprocess
import sys
from pathlib import Path

import folders

ROOT = Path(__file__).parent.parent.parent
# what the libraries we stand on load by themselves is theirs; everything after that is ours
PROGRAM = """
import json, sys
import transformers.models.llama.modeling_llama, transformers.generation
import timm
theirs = set(sys.modules)
import demo
code = demo.main(json.loads(sys.argv[1]))
print(json.dumps([code, sorted(theirs), sorted(set(sys.modules) - theirs)]), file=sys.stderr)
"""
TRAINING = {"data", "train", "train_encoder", "warm_start", "vocabulary", "sentences", "recipe", "evaluate"}


def test_a_question_loads_neither_the_page_nor_training_code(weights, decoder, tmp_path):
    folders.picture(1).save(tmp_path / "photo.png")
    arguments = ["--image", str(tmp_path / "photo.png"), "--prompt", "What is it?", "--weights", str(weights)]
    arguments += ["--llm", str(decoder), "--device", "cpu", "--max-new-tokens", "3"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code, theirs, ours = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    assert done.stdout.endswith("\n")
    roots = {name.partition(".")[0] for name in ours}
    assert {"adapter_llm", "imagebind_encoder"} <= roots
    unwanted = {"gradio", "accelerate", "torchvision", "pandas", "sklearn", "scipy", "matplotlib", "datasets", "peft"}
    assert not roots & unwanted
    assert "gradio" not in {name.partition(".")[0] for name in theirs}
    training = {f"adapter_llm.{name}" for name in TRAINING}
    assert not set(ours) & training
    assert {path.stem for path in (ROOT / "adapter_llm").glob("*.py")} >= {"pipeline"}
