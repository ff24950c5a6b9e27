"""requirements.txt and req_fix.txt agree, for every Python they are meant for, and ask for nothing special."""

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
PYTHONS = ["3.10", "3.11", "3.12"]


def read(name):
    lines = [line.partition(" #")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def applies(requirement, python):
    return requirement.marker is None or requirement.marker.evaluate({"python_version": python})


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_one_pin_inside_its_range(python):
    pins = {}
    for pin in read("req_fix.txt"):
        if applies(pin, python):
            assert pins.setdefault(canonicalize_name(pin.name), pin) is pin, f"{pin.name} is pinned twice"
            (only,) = pin.specifier
            assert only.operator == "==" and "*" not in only.version
    for needed in read("requirements.txt"):
        version = next(iter(pins[canonicalize_name(needed.name)].specifier)).version
        assert needed.specifier.contains(version), f"{needed.name} {version}"


def test_every_requirement_is_a_range():
    for needed in read("requirements.txt"):
        assert any(s.operator == ">=" for s in needed.specifier), needed.name
        assert needed.url is None and needed.marker is None and not needed.extras


@pytest.mark.parametrize("name", ["requirements.txt", "req_fix.txt"])
def test_nothing_special_is_asked_for(name):
    names = {canonicalize_name(requirement.name) for requirement in read(name)}
    assert not names & {"torchaudio", "pytorchvideo", "decord", "fairscale", "open3d", "triton"}
    assert not [other for other in names if other.startswith(("nvidia-", "cuda-"))]  # other systems have none
    text = (ROOT / name).read_text()
    assert "git+" not in text and "://" not in text and "--" not in text


def test_what_the_issue_names_is_there():
    names = {canonicalize_name(requirement.name) for requirement in read("requirements.txt")}
    assert names >= {"torch", "torchvision", "transformers", "sentencepiece", "timm", "accelerate", "gradio",
                     "safetensors", "huggingface-hub", "pillow", "av", "pytest"}  # fmt: skip
