"""A page with a feature index: how much of it is blended in is set on the page, and only there."""

from pathlib import Path

import pytest
import torch

PHOTO = Path(__file__).parent.parent.parent / "examples" / "coffee.jpg"
WHAT = "What is in this picture?"


@pytest.fixture(scope="module")
def talkative(tmp_path_factory, decoder):
    from talkative import Talkative

    from adapter_llm.retrieval import FeatureIndex

    folder = tmp_path_factory.mktemp("indexed")
    vectors = torch.randn(60, 20, generator=torch.Generator().manual_seed(4))
    FeatureIndex(torch.nn.functional.normalize(vectors)).save(folder / "index.safetensors")
    return Talkative(folder / "weights", decoder, index=folder / "index.safetensors")


def test_the_blend_with_the_index_is_what_was_set(visit, talkative):
    from adapter_llm.retrieval import RetrievalOptions

    def expected(*options):
        return talkative.pipe.ask(WHAT, image=PHOTO, max_new_tokens=24, retrieval=RetrievalOptions(*options))

    wanted = (3, 7.0, 0.9)  # neighbours, sharpness, weight
    ann = visit()
    ann.attach(PHOTO)
    assert ann.ask(WHAT) == expected()
    ann.unfold("retrieval")
    for name, value in zip(("neighbours", "sharpness", "blend"), wanted, strict=True):
        ann.set(name, value)
    ann.find("#chat [aria-label=Retry]").last.click()
    ann.until(lambda: ann.answers == [expected(*wanted)], "an answer with other neighbours")
    others = [(20, 7.0, 0.9), (3, 90.0, 0.9), (3, 7.0, 0.2)]
    assert expected(*wanted) not in [expected(*other) for other in others]  # each setting matters
