"""The default weights, whole: fetched, loaded, asked about a photo. Parts that are not in the cache are fetched."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapter_llm.fetch import decoder_folder
from adapter_llm.manifest import Manifest
from adapter_llm.pipeline import Pipeline
from adapter_llm.sources import record_of
from adapter_llm.vocabulary import mentions
from imagebind_encoder import Frames

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "weights" / "default"
PHOTO = ROOT / "examples" / "coffee.jpg"
WHAT = "What is in this picture?"
FRANCE = "What is the capital of France?"

pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(
        not FOLDER.is_dir(), reason="weights/default is not in this checkout; docs/training.md makes it"
    ),
]


@pytest.fixture(scope="session")
def pipe():
    return Pipeline.from_pretrained(FOLDER, device="cpu")


@pytest.fixture(scope="session")
def manifest():
    return Manifest.load(FOLDER / "manifest.json")


# the folder


def test_the_folder_is_small_enough_for_a_repository():
    files = sorted(FOLDER.rglob("*.safetensors"))
    assert [file.name for file in files] == ["adapter.safetensors", "encoder.safetensors"]
    assert sum(file.stat().st_size for file in files) <= 60e6


def test_the_manifest_lists_its_files_as_they_are(manifest):
    assert manifest.files.keys() == {"config.json", "encoder.safetensors", "adapter.safetensors"}
    for name, record in manifest.files.items():
        assert record_of(FOLDER / name) == record, name


def shares(manifest, start):
    """The scores whose names begin so; each is {"share": ..., "count": ...}."""
    found = {name: entry for name, entry in manifest.quality.items() if name.startswith(start)}
    assert found, f"no score in the manifest begins with {start!r}: {list(manifest.quality)}"
    assert all(set(entry) == {"share", "count"} for entry in found.values())
    return {name: (entry["share"], entry["count"]) for name, entry in found.items()}


@pytest.mark.parametrize("start, target, photos", [
    ("objects: named when asked", 0.70, 100), ("scenes: shares a content word", 0.50, 100),
    ("yes or no, dog", 0.80, 20),
])  # fmt: skip
def test_the_measured_quality_is_what_was_asked_for(manifest, start, target, photos):
    for name, (share, count) in shares(manifest, start).items():
        assert target <= share <= 1, name
        assert count >= photos, f"{name}: {count} say little"


@pytest.mark.parametrize("start, target, count", [
    ("audio: named when asked", 0.50, 200), ("imu: named when asked, 4 classes", 0.75, 20),
    ("photos found by their label, at 1", 0.40, 250), ("photos found by their label, at 5", 0.70, 250),
    ("text: agreement", 0.85, 1000),
])  # fmt: skip
def test_the_other_senses_are_what_was_asked_for(manifest, start, target, count):
    for name, (share, number) in shares(manifest, start).items():
        assert target <= share <= 1, name
        assert number >= count, f"{name}: {number} say little"


def test_at_least_forty_kinds_of_sound_are_known(manifest):
    [name] = shares(manifest, "audio: named when asked")
    assert int(re.search(r"(\d+) classes", name)[1]) >= 40


@pytest.mark.parametrize("keyword, source, question, words", [
    ("audio", ROOT / "examples" / "dog.ogg", "What is this sound?", ("dog",)),
    ("imu", ROOT / "examples" / "running.csv", "What is this person doing?", ("running",)),
    ("text", "a dog is barking", "What is this about?", ("dog",)),
    ("video", None, "What is in this video?", ("espresso", "coffee", "cup")),
])  # fmt: skip
def test_every_sense_names_what_it_is_shown(pipe, keyword, source, question, words):
    if source is None:
        source = Frames(torch.from_numpy(np.array(Image.open(PHOTO).convert("RGB"))).permute(2, 0, 1)[None], 5)
    assert mentions(pipe.ask(question, **{keyword: source}), words)


@pytest.mark.parametrize("keyword", ["depth", "thermal", "point"])
def test_what_it_was_not_trained_for_names_the_weights_to_get(pipe, keyword):
    with pytest.raises(ValueError, match=f"these weights take image, video, audio, text, imu, not {keyword}; ImageBind"):
        pipe.ask(WHAT, **{keyword: "x.png"})


def test_yes_and_no_are_right_over_all_questions(manifest):
    scores = shares(manifest, "yes or no").values()
    assert sum(share * count for share, count in scores) >= 0.80 * sum(count for _, count in scores)


def test_licences_and_sources_are_named(manifest):
    assert "Apache-2.0" in manifest.licence
    for part in (manifest.decoder.part, manifest.backbone):
        assert part.licence and part.description and part.package and len(part.sha256) == 64
    origin = json.dumps(manifest.training)
    assert all(word in origin for word in ("photos", "ImageNet", "WordNet", "minilm", "held out"))


def test_nothing_in_the_folder_is_unpickled():
    assert {file.suffix for file in FOLDER.rglob("*") if file.is_file()} <= {".json", ".safetensors", ".md"}


# the model


def test_it_sees_the_coffee(pipe):
    answer = pipe.ask(WHAT, image=PHOTO)
    assert mentions(answer, ("espresso", "coffee", "cup")), answer
    assert answer[0].isupper() and answer.endswith(".")


def test_a_stream_joins_to_the_answer(pipe):
    pieces = list(pipe.stream(WHAT, image=PHOTO))
    assert len(pieces) > 1
    assert "".join(pieces) == pipe.ask(WHAT, image=PHOTO)


def test_a_yes_or_no_question_is_answered_with_one(pipe):
    assert pipe.ask("Is there a dog in this picture?", image=PHOTO).startswith("No")
    assert pipe.ask("Is there a cup in this picture?", image=PHOTO).startswith(("Yes", "No"))


def test_without_a_picture_it_is_the_language_model_it_was(pipe, manifest):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = decoder_folder(manifest.decoder.part)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    llama = AutoModelForCausalLM.from_pretrained(folder, dtype=pipe.model.llama.dtype).eval()
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": FRANCE}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        output = llama.generate(**inputs, max_new_tokens=40, do_sample=False, temperature=None, top_p=None, top_k=None)
    expected = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert pipe.ask(FRANCE, max_new_tokens=40) == expected
    assert "Paris" in expected
