"""requirements.txt and req_fix.txt agree, for every Python they are meant for, and ask for nothing special."""

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
PYTHONS = ["3.10", "3.11", "3.12"]


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it where Python has none


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
    for needed in read("requirements.txt") + read("requirements-test.txt"):
        version = next(iter(pins[canonicalize_name(needed.name)].specifier)).version
        assert needed.specifier.contains(version), f"{needed.name} {version}"


def test_every_requirement_is_a_range():
    for needed in read("requirements.txt"):
        assert any(s.operator == ">=" for s in needed.specifier), needed.name
        assert needed.url is None and needed.marker is None and not needed.extras


def test_tests_need_the_extras_as_they_are_offered():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    offered = {str(Requirement(line)) for extra in project["optional-dependencies"].values() for line in extra}
    tested = {str(needed) for needed in read("requirements-test.txt")}
    assert tested - offered == {str(Requirement(line)) for line in ("playwright>=1.60,<2", "openai>=3.40,<4")}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-test.txt", "req_fix.txt"])
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
