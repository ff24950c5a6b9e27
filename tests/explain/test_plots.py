"""The figure of an explanation: what is drawn where, that nothing hides anything else, and what is refused."""

import sys
from dataclasses import replace
from itertools import pairwise

import folders
import pytest
import torch

from adapter_llm import plots
from adapter_llm.explain import Explanation, View, explain
from imagebind_encoder.config import Modality

TOKENS = (
    " the", " dog", "\n", "<|im_start|>", "\t", " ", "extraordinarilylong", "你好", " é", "$x_1$", "\ufffd", "\x07",
)  # fmt: skip


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


def view(modality="vision", size=(30, 30), grid=(3, 4)):
    colours = (3,) if modality == "vision" else ()
    shown = torch.randint(0, 256, (*size, *colours), dtype=torch.uint8) if colours else torch.randn(size)
    patch_map = torch.rand(grid)
    return View(Modality(modality), shown, patch_map / patch_map.sum(), (0.0, size[1], size[0], 0.0))


def made(prompt=9, answer=40, layers=5, heads=6, queries=4, views=None, words=TOKENS, **said):
    """An explanation of random numbers, all of whose gates are different."""
    length = prompt + answer
    attention = torch.softmax(torch.randn(layers, heads, queries, length), dim=2)
    tokens = tuple(words[number % len(words)] for number in range(length))
    return Explanation(
        **{"question": "What does it cost, $5 or $6?", "answer": "".join(tokens[prompt:]).strip(), **said},
        tokens=tokens, prompt_length=prompt, layers=tuple(range(2, 2 + layers)),
        gates=torch.randn(layers, heads).tanh(), attention=attention,
        contribution=attention * torch.rand(layers, heads, 1, length) * 0.8, gain=torch.randn(answer),
        views=(view(),) if views is None else views,
    )  # fmt: skip


def drawn(told):
    """The figure and the axes of its three parts."""
    figure = plots.draw(told)
    return figure, [part.axes for part in figure.subfigs]


def laid_out(figure):
    """Paint it; matplotlib warns of what has no room."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()


def boxes(figure, texts):
    renderer = figure.canvas.get_renderer()
    return [text.get_window_extent(renderer) for text in texts if text.get_text().strip()]


@pytest.mark.parametrize("answer, views", [
    (1, ()), (40, (view(),)), (40, (view(),) * 2), (200, (view("audio", (12, 20)),) * 5),
])  # fmt: skip
def test_nothing_overlaps_and_nothing_leaves_the_figure(matplotlib, answer, views):
    words = " ".join(["What is this, and why?"] * 40)
    figure, (seen, heads, tokens) = drawn(made(prompt=60, answer=answer, views=views, question=words))
    laid_out(figure)
    width, height = figure.get_size_inches() * figure.dpi
    assert width <= 1600
    labels = boxes(figure, tokens[2].get_xticklabels())
    assert len(labels) == min(60 - 1, plots.PROMPT) + min(answer, plots.ANSWER)
    for left, right in pairwise(labels):
        assert left.x1 <= right.x0 + 0.5
    titles = [axes.title for axes in figure.findobj(matplotlib.axes.Axes)]
    everything = boxes(figure, [*titles, *(text for axes in seen for text in axes.texts)]) + labels
    for number, box in enumerate(everything):
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= -1
        for other in everything[:number]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            down = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(across, down) <= 1
    for box in boxes(figure, [text for axes in seen for text in axes.texts]):
        assert box.y0 >= heads[0].get_window_extent().y1


def test_what_is_drawn_is_what_was_explained(matplotlib):
    told = made(answer=7)
    _, (seen, heads, tokens) = drawn(told)
    plain, marked, said = seen
    assert torch.equal(torch.tensor(plain.images[0].get_array()), told.views[0].shown)
    assert torch.equal(torch.tensor(marked.images[1].get_array().data), told.patch_maps[0])
    (text,) = said.texts
    assert "What does it cost, $5 or $6?" in text.get_text()
    gates, through = (torch.tensor(axes.images[0].get_array().data) for axes in heads[:2])
    assert torch.equal(gates, told.gates)
    low, high = heads[0].images[0].get_clim()
    assert low == -high == -float(told.gates.abs().max())
    torch.testing.assert_close(through, told.contribution[..., 8:15].sum(2).mean(2))
    assert [label.get_text() for label in heads[0].get_yticklabels()] == ["2", "3", "4", "5", "6"]
    attention, share, gain = tokens[:3]
    torch.testing.assert_close(torch.tensor(attention.images[0].get_array().data), told.mean_attention[:, :15])
    for axes, start, heights in ((share, 0, told.share[:15]), (gain, 8, told.gain)):
        bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches]
        expected = torch.stack([torch.arange(start, 15), heights], 1)
        torch.testing.assert_close(torch.tensor(bars), expected, check_dtype=False)


def test_columns_bear_the_token_read_in_the_prompt_and_the_one_decided_in_the_answer(matplotlib):
    told = made(prompt=4, answer=3, words=tuple("abcdefg"))
    _, (_, _, tokens) = drawn(told)
    assert [label.get_text() for label in tokens[2].get_xticklabels()] == ["a", "b", "c", "e", "f", "g"]
    (line,) = tokens[0].lines
    assert list(line.get_xdata()) == [2.5, 2.5]


def test_long_texts_keep_the_end_of_the_prompt_and_the_beginning_of_the_answer(matplotlib):
    words = tuple(f"w{number}" for number in range(500))
    told = made(prompt=100, answer=90, words=words)
    _, (_, _, tokens) = drawn(told)
    labels = [label.get_text() for label in tokens[2].get_xticklabels()]
    assert labels == [*words[100 - 1 - plots.PROMPT : 99], *words[100 : 100 + plots.ANSWER]]
    assert f"the first {plots.ANSWER} of 90" in tokens[0].get_title()
    image = torch.tensor(tokens[0].images[0].get_array().data)
    torch.testing.assert_close(image, told.mean_attention[:, 99 - plots.PROMPT : 99 + plots.ANSWER])


def test_labels_can_be_read(matplotlib):
    """No formulas, no warnings about letters that no font has, blanks that can be seen, no very long words."""
    told = made(prompt=2, answer=len(TOKENS), words=("?", "?", *TOKENS))
    _, (_, _, tokens) = drawn(told)
    labels = [label.get_text() for label in tokens[2].get_xticklabels()][1:]
    chinese = labels[7]
    assert chinese in ("你好", "□□")
    cut = "extraordinari…"
    assert labels == ["the", "dog", "↵", "<|im_start|>", "⇥", "␣", cut, chinese, "é", "$x_1$", "\ufffd", "□"]
    assert not any(label.get_parse_math() for label in tokens[2].get_xticklabels())


@pytest.mark.parametrize("count, panels", [(0, 1), (3, 7), (4, 7)])
def test_each_view_has_two_panels_up_to_three(matplotlib, count, panels):
    _, (seen, _, _) = drawn(made(answer=3, views=tuple(view() for _ in range(count))))
    assert len(seen) == panels
    assert ("(views not drawn: 1)" in seen[-1].texts[0].get_text()) == (count == 4)


def test_low_notes_are_at_the_bottom_and_maps_turn_with_their_sounds(matplotlib):
    _, (seen, _, _) = drawn(made(answer=3, views=(view("audio", (12, 20)), view())))
    for axes in seen[:2]:
        assert axes.get_ylim() == (0, 12) and axes.get_ylabel() == "frequency"
    for axes in seen[2:4]:
        assert axes.get_ylim() == (30, 0) and axes.get_ylabel() == ""
    assert seen[1].images[0].get_extent() == [0, 20, 12, 0]


def test_a_map_that_is_smaller_than_its_picture_hides_none_of_it(matplotlib):
    small = replace(view(size=(30, 40)), extent=(5.0, 25.0, 20.0, 2.0))
    _, (seen, _, _) = drawn(made(answer=3, views=(small,)))
    assert seen[1].images[1].get_extent() == [5, 25, 20, 2]
    for axes in seen[:2]:
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 40), (30, 0))


@pytest.mark.parametrize("sizes", [dict(layers=1, heads=1, queries=1), dict(answer=0), dict(prompt=1, answer=1)])
def test_the_smallest_explanations_are_drawn(matplotlib, sizes):
    laid_out(plots.draw(made(**sizes)))


def test_without_an_answer_the_shares_are_those_of_the_prompt(matplotlib):
    told = made(answer=0)
    _, (_, heads, _) = drawn(told)
    shares = torch.tensor(heads[1].images[0].get_array().data)
    torch.testing.assert_close(shares, told.contribution.sum(2).mean(2))


def test_shut_gates_are_drawn(matplotlib):
    told = made(answer=3)
    for tensor in (told.gates, told.contribution, told.gain):
        tensor.zero_()
    figure, (_, heads, _) = drawn(told)
    laid_out(figure)
    low, high = heads[0].images[0].get_clim()
    assert low < 0 < high, "white, the middle, is a shut gate"


@pytest.mark.parametrize("kind, head", [("PNG", b"\x89PNG"), ("pdf", b"%PDF")])
def test_files(matplotlib, tmp_path, pipe, kind, head):
    told = explain(pipe, "What is it?", image=folders.picture(1), max_new_tokens=5)
    plots.save(told, tmp_path / f"x.{kind}")
    assert (tmp_path / f"x.{kind}").read_bytes().startswith(head)


@pytest.mark.parametrize("name, sentence", [
    ("x.docx", r"x\.docx is no file to draw into; give it one of the endings .*pdf, .*png"),
    ("x", "is no file to draw into"),
    ("absent/x.png", "lies in .*absent, which is no folder; name a file in a folder that exists"),
    ("folder.png", r"folder\.png is a folder"),
])  # fmt: skip
def test_files_that_cannot_be_drawn_are_refused_before_the_work(matplotlib, tmp_path, name, sentence):
    (tmp_path / "folder.png").mkdir()
    for call in (plots.check, lambda path: plots.save(made(), path)):
        with pytest.raises(plots.PlotError, match=sentence):
            call(tmp_path / name)


def test_the_global_state_of_matplotlib_is_left_alone(matplotlib, tmp_path):
    before = dict(matplotlib.rcParams)
    plots.save(made(answer=3), tmp_path / "x.png")
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize("call", ["draw", "save", "check"])
def test_without_matplotlib_a_sentence_names_the_extra(monkeypatch, call):
    arguments = {"draw": [made()], "save": [made(), "x.png"], "check": ["x.png"]}[call]
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(plots.PlotError, match=r'needs matplotlib; pip install "adapter-llm\[plot\]"$'):
        getattr(plots, call)(*arguments)


def test_of_many_views_the_first_the_middle_and_the_last_are_drawn(matplotlib):
    """Of a film, once only its first moment was: three crops of one clip."""
    from adapter_llm.plots import VIEWS, _chosen

    views = [object() for _ in range(15)]
    assert VIEWS == 3 and _chosen(views) == [views[0], views[7], views[14]]
    assert _chosen(views[:2]) == views[:2]
