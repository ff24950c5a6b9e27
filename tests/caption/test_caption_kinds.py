"""Inputs of every kind in one run: sounds, films, words and movements beside pictures, whole and in windows."""

import json
import math
import wave
from dataclasses import replace

import folders
import numpy
import pytest

from adapter_llm.caption.captioner import CaptionOptions
from adapter_llm.caption.inputs import SourceOptions
from adapter_llm.caption.job import Job, run_job
from adapter_llm.caption.model import ModelFolders
from adapter_llm.caption.outputs import open_output
from adapter_llm.processing import InputOptions, Processor
from adapter_llm.prompts import describe
from adapter_llm.results import GenerationOptions
from imagebind_encoder.media.source import MediaError


def sound(path, pitch, seconds=1.0, rate=8000):
    samples = [math.sin(pitch * step / rate) for step in range(round(seconds * rate))]
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((numpy.array(samples) * 20_000).astype("<i2").tobytes())


def motion(path, pace):
    lines = ["time_s,acc_x,acc_y,acc_z,gyro_x,gyro_y,gyro_z"]
    for step in range(60):
        lines.append(",".join([str(step / 20), *(f"{math.sin(pace * step * axis):.4f}" for axis in range(1, 7))]))
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def model(decoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("senses")
    folders.save_weights(folder, decoder, sizes=folders.every_sense())
    return ModelFolders.find(folder, str(decoder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def pipe(model):
    return model.load()


@pytest.fixture
def media(tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    for number in range(4):
        folders.picture(number).save(folder / f"{number}.png")
        sound(folder / f"{number}.wav", 500 + 3000 * number, seconds=1 + number / 2)
        (folder / f"{number}.txt").write_text(f"a dog and {number} cats")
        motion(folder / f"{number}.csv", 0.1 + number / 3)
    return folder


def captioned(model, given, output, reading=InputOptions(), forced=None, batch_size=3):
    options = CaptionOptions(generation=GenerationOptions(max_new_tokens=6), reading=reading, batch_size=batch_size)
    job = Job(model, [str(one) for one in given], SourceOptions(model.keywords, forced), options)
    found = open_output(output)
    outcome = run_job(job, found)
    found.close()
    return outcome, [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


KINDS = {".png": "image", ".wav": "audio", ".txt": "text"}


@pytest.mark.parametrize("reading", [InputOptions(), InputOptions(window=0.3, hop=0.2, pool="max"),
                                     InputOptions(window=0.4, pool="none")])  # fmt: skip
def test_each_gets_the_caption_it_would_get_alone(model, pipe, media, tmp_path, reading):
    folders.picture(9).save(media / "cut.png")
    (media / "cut.png").write_bytes((media / "cut.png").read_bytes()[:50])
    (media / "cut.wav").write_bytes((media / "0.wav").read_bytes()[:20])
    # in a folder words and tables may be about the others; they are inputs if they are named as such
    outcome, rows = captioned(model, [media, *media.glob("*.txt")], tmp_path / "rows.jsonl", reading)
    assert (outcome.captioned, outcome.failed) == (12, 2)
    how = {name: value for name, value in vars(reading).items() if value is not None}
    for row in rows:
        path = media / row["id"].rpartition("/")[2]
        if path.stem == "cut":
            assert row["status"] == "error" and str(path) in row["error"]
            continue
        keyword = KINDS[path.suffix]
        assert row["prompt"] == describe([keyword])
        assert row["caption"] == pipe.ask(**{keyword: path}, **how, max_new_tokens=6)


def test_a_recording_that_breaks_off_half_way_spoils_no_other(model, pipe, media, tmp_path, monkeypatch):
    load, broken = Processor.load, []

    def breaks_off(windows):
        yield next(windows)
        raise MediaError("the recording ends here")

    def loaded(self, items, reading):
        found = load(self, items, reading)
        if items[0].source == (media / "2.wav").read_bytes():
            broken.append(True)
            return [replace(item, windows=breaks_off(item.windows)) for item in found]
        return found

    reading = InputOptions(window=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(Processor, "load", loaded)
        sounds = [media / f"{number}.wav" for number in range(4)]
        _, rows = captioned(model, sounds, tmp_path / "rows.jsonl", reading, batch_size=9)
    assert len(broken) == 1 and len(rows) == 4
    for row in rows:
        if row["id"].endswith("2.wav"):
            assert (row["status"], row["error"]) == ("error", "the recording ends here") and row["sha256"]
        else:
            assert row["caption"] == pipe.ask(audio=row["path"], window=0.2, max_new_tokens=6)


@pytest.mark.parametrize("kind", ["thermal", "audio", "imu"])
def test_what_everything_is_can_be_said(model, pipe, media, tmp_path, kind):
    for path in media.glob("*.png"):
        folders.picture(int(path.stem)).convert("L").save(path)
    outcome, rows = captioned(model, [media], tmp_path / "rows.jsonl", forced=kind)
    assert outcome.captioned == len(rows) == 4 and outcome.failed == 0
    for row in rows:
        assert row["caption"] == pipe.ask(**{kind: media / row["id"].rpartition("/")[2]}, max_new_tokens=6)


def test_only_the_trunks_of_what_is_left_are_loaded(model, media, tmp_path, monkeypatch):
    loaded = []
    load = ModelFolders.load

    def watched(self, keywords):
        found = load(self, keywords)
        loaded.append({str(name) for name in found.model.encoder.modalities})
        return found

    monkeypatch.setattr(ModelFolders, "load", watched)
    captioned(model, [media], tmp_path / "rows.jsonl")
    captioned(model, [media, media / "3.txt"], tmp_path / "rows.jsonl")
    assert loaded == [{"vision", "audio"}, {"text"}]
