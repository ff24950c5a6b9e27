"""The page's parts and where they are. What happens when one is used is for `app` to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import gradio as gr

from ..pipeline import Pipeline
from .attachments import CALLED, HEAVIEST, MOST, endings, lacking
from .chat import OWN_TAG, TAGS
from .examples import Example
from .footer import footer
from .settings import PageSettings

LONGEST = 512  # tokens, and the ranges below: those of the originals' demos
ALONE = "The loaded weights know no conversations: each question is asked without what was said before."
THEME = """() => {
    const dark = document.body.classList.toggle("dark");
    localStorage.setItem("adapter_llm_theme", dark ? "dark" : "light");
}"""
CHIPS = "(box) => (box && box.files ? box.files.map((file) => file.path).join('\\n') : '')"


@dataclass(frozen=True)
class Slot:
    """The place of an attachment."""

    row: gr.Row
    name: gr.HTML
    kind: gr.Dropdown
    weight: gr.Slider
    remove: gr.Button

    @property
    def parts(self) -> list:
        return [self.row, self.name, self.kind, self.weight]


@dataclass
class Parts:
    """Everything that something happens to."""

    chat: gr.Chatbot = None
    box: gr.MultimodalTextbox = None
    chips: gr.Textbox = None
    status: gr.HTML = None
    new: gr.Button = None
    slots: list[Slot] = field(default_factory=list)
    nothing: gr.HTML = None
    words: gr.Textbox | None = None
    add_words: gr.Button | None = None
    camera: gr.Image | None = None
    film: gr.Video | None = None
    sampling: list = field(default_factory=list)
    retrieval: list = field(default_factory=list)
    explain: gr.Button = None
    told: gr.HTML = None
    figure: gr.Image = None
    footer: gr.HTML = None


def arrange(pipe: Pipeline, settings: PageSettings, examples: Sequence[Example]) -> Parts:
    """Build the parts, inside of a Blocks."""
    parts, taken = Parts(), pipe.keywords
    with gr.Row(elem_id="top"):
        gr.HTML(_title(taken), elem_id="title")
        parts.new = gr.Button("New conversation", elem_id="new", size="sm", scale=0, min_width=90)
        gr.Button("Light / dark", elem_id="theme", size="sm", scale=0, min_width=80).click(
            fn=None, js=THEME, api_visibility="private"
        )
    with gr.Row(elem_id="columns"):
        with gr.Column(scale=5, min_width=320, elem_id="talk"):
            _talk(parts, taken, examples)
        with gr.Column(scale=2, min_width=300, elem_id="side"):
            _media(parts, taken, alone=pipe.config.prompt.template == "alpaca")
            _sampling(parts, settings)
            if pipe.index is not None:
                _retrieval(parts, settings)
            _explain(parts)
    parts.footer = gr.HTML(footer(pipe, settings.name), elem_id="footer")
    return parts


def _title(taken: Sequence[str]) -> str:
    kinds = [CALLED[keyword] + ("s" if keyword not in ("text", "imu") else "") for keyword in taken]
    listed = " and ".join(filter(None, [", ".join(kinds[:-1]), *kinds[-1:]]))
    return f"<h1>adapter_llm</h1><p>Ask about {escape(listed)}, alone or together.</p>"


def _talk(parts: Parts, taken: Sequence[str], examples: Sequence[Example]) -> None:
    parts.chat = gr.Chatbot(
        elem_id="chat",
        show_label=False,
        container=False,
        height=None,
        layout="bubble",
        editable="user",
        buttons=["copy"],
        feedback_options=None,
        group_consecutive_messages=False,  # each is edited and copied by itself
        render_markdown=False,  # what people and models write is shown as it is
        allow_tags=[tag for tag in TAGS.split() if tag != OWN_TAG],  # as text
        latex_delimiters=[],
        allow_file_downloads=False,
        examples=[example.card() for example in examples] or None,
        placeholder="### What would you like to know?\nDrop a file anywhere on the box below, or take an example.",
    )
    parts.box = gr.MultimodalTextbox(
        elem_id="question",
        label="Question",
        show_label=False,
        placeholder="Ask, or drop files",
        file_count="multiple",
        file_types=endings(taken),
        sources=["upload", "microphone"] if "audio" in taken else ["upload"],
        max_plain_text_length=20_000,
        max_lines=8,
        autofocus=True,
    )
    parts.chips = gr.Textbox(visible="hidden", elem_id="chips")
    parts.box.change(
        fn=None, js=CHIPS, inputs=parts.box, outputs=parts.chips, api_visibility="private", show_progress="hidden"
    )
    parts.status = gr.HTML(elem_id="status")


def _media(parts: Parts, taken: Sequence[str], alone: bool) -> None:
    with gr.Column(elem_id="media", elem_classes="card"):
        gr.HTML("<h2>What it is about</h2>")
        parts.nothing = gr.HTML(
            "<p>Nothing yet. What you add stays for all questions of this conversation.</p>", elem_id="nothing"
        )
        parts.slots = [_slot(number) for number in range(MOST)]
        if "text" in taken:
            with gr.Accordion("Words to look at", open=False, elem_id="words-area", elem_classes="quiet"):
                parts.words = gr.Textbox(
                    label="Words to look at", show_label=False, container=False, lines=2, max_lines=6,
                    placeholder="Encoded as a picture would be, not read as part of the question", elem_id="add-text",
                )  # fmt: skip
                parts.add_words = gr.Button("Add these words", size="sm", elem_id="add-text-button")
        if "image" in taken:
            with gr.Accordion("Camera", open=False, elem_id="camera-area", elem_classes="quiet"):
                with gr.Tab("Photo"):
                    parts.camera = gr.Image(
                        sources=["webcam"], type="filepath", image_mode=None, show_label=False, elem_id="camera",
                        webcam_options=gr.WebcamOptions(mirror=False), buttons=[], height=220,
                    )  # fmt: skip
                if "video" in taken:
                    with gr.Tab("Film"):
                        parts.film = gr.Video(
                            sources=["webcam"], include_audio=True, show_label=False, elem_id="film", buttons=[],
                            height=220, webcam_options=gr.WebcamOptions(mirror=False),
                        )  # fmt: skip
        if missing := lacking(taken):
            gr.HTML(f"<p class='fine'>The loaded weights do not take {escape(missing)}.</p>", elem_id="lacking")
        if alone:
            gr.HTML(f"<p class='fine'>{ALONE}</p>", elem_id="alone")


def _slot(number: int) -> Slot:
    with gr.Row(visible=False, elem_id=f"item-{number}", elem_classes="item") as row:
        name = gr.HTML(elem_id=f"name-{number}", elem_classes="name")
        remove = gr.Button(
            "Remove", size="sm", scale=0, min_width=70, elem_id=f"remove-{number}", elem_classes="remove"
        )
        kind = gr.Dropdown(
            label="Read as", elem_id=f"kind-{number}", elem_classes="kind", filterable=False, min_width=120
        )
        weight = gr.Slider(
            0, HEAVIEST, 1, step=0.05, label="Weight", elem_id=f"weight-{number}", elem_classes="weight",
            min_width=160, buttons=[],
        )  # fmt: skip
    return Slot(row, name, kind, weight, remove)


def _sampling(parts: Parts, settings: PageSettings) -> None:
    chosen = settings.options
    with gr.Accordion("How answers are drawn", open=False, elem_id="settings", elem_classes="card"):
        parts.sampling = [
            gr.Slider(
                1, LONGEST, min(chosen.max_new_tokens, LONGEST), step=1, label="Longest answer", info="in tokens",
                elem_id="max-new-tokens", buttons=[],
            ),
            gr.Slider(
                0, 1, min(chosen.temperature, 1), step=0.05, label="Temperature", info="0 takes the likeliest word",
                elem_id="temperature", buttons=[],
            ),
            gr.Slider(
                0, 1, chosen.top_p, step=0.05, label="Top p", info="the likeliest words only", elem_id="top-p",
                buttons=[],
            ),
            gr.Textbox(
                "" if chosen.seed is None else str(chosen.seed), max_lines=1, label="Seed", placeholder="any number",
                info="makes drawn answers repeatable", elem_id="seed",
            ),
        ]  # fmt: skip


def _retrieval(parts: Parts, settings: PageSettings) -> None:
    chosen = settings.retrieval
    with gr.Accordion("Blend with the index", open=False, elem_id="retrieval", elem_classes="card"):
        parts.retrieval = [
            gr.Slider(0, 1, chosen.weight, step=0.05, label="Weight of the neighbours", elem_id="blend", buttons=[]),
            gr.Slider(1, 50, chosen.neighbours, step=1, label="Neighbours", elem_id="neighbours", buttons=[]),
            gr.Slider(0, 100, chosen.sharpness, step=1, label="Sharpness", elem_id="sharpness", buttons=[]),
        ]


def _explain(parts: Parts) -> None:
    with gr.Accordion("What the model looked at", open=False, elem_id="explain", elem_classes="card"):
        parts.explain = gr.Button("Explain the last answer", size="sm", elem_id="explain-button")
        parts.told = gr.HTML(elem_id="explain-words")
        parts.figure = gr.Image(
            visible=False, interactive=False, show_label=False, buttons=["fullscreen", "download"],
            elem_id="explain-figure", alt_text="gates, attention, and where the model looked",
        )  # fmt: skip
