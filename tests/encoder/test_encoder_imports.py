"""The package loads what a name needs, when it is needed."""

import subprocess
import sys

import pytest

import imagebind_encoder
import imagebind_encoder.convert
import imagebind_encoder.media


def loaded_after(statement):
    script = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement, absent", [
    ("import imagebind_encoder, imagebind_encoder.config", {"torch", "PIL", "numpy", "httpx", "timm", "torchvision"}),
    ("import imagebind_encoder.media", {"torch", "httpx", "timm", "torchvision"}),
    ("from imagebind_encoder import ImageBindEncoder, load_official", {"PIL", "httpx", "timm", "torchvision"}),
    ("from imagebind_encoder import load_point_cloud", {"torch", "httpx", "timm", "plyfile", "pypcd4", "pydantic"}),
])  # fmt: skip
def test_imports_stay_light(statement, absent):
    assert loaded_after(statement) & absent == set()


@pytest.mark.parametrize("module", [imagebind_encoder, imagebind_encoder.media, imagebind_encoder.convert])
def test_public_names_exist(module):
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)
    assert set(module.__all__) <= set(dir(module))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        imagebind_encoder.nothing  # noqa: B018
