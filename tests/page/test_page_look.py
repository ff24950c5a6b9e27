"""How the page looks: on a phone and a desk, by day and by night, with a keyboard alone, and nothing from elsewhere."""

import os
import re
from pathlib import Path

import folders
import pytest

PHOTO = Path(__file__).parent.parent.parent / "examples" / "coffee.jpg"
WHAT = "What is in this picture?"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
BRIGHTNESS = """element => {
    const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d");
    const light = colour => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
        return alpha < 128 ? null : [red, green, blue].map(value => value / 255)
            .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
            .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
    };
    let behind = element, found = null;
    while (behind && (found = light(getComputedStyle(behind).backgroundColor)) === null) behind = behind.parentElement;
    return [light(getComputedStyle(element).color), found ?? 1];
}"""  # relative luminance as WCAG 2 defines it, of the text and of what is behind it


def brightness(element):
    """Of the text, and of its background: 0 is black, 1 is white."""
    return element.evaluate(BRIGHTNESS)


def contrast(element):
    darker, lighter = sorted(brightness(element))
    return (lighter + 0.05) / (darker + 0.05)


def widest(person):
    """By how much the page is wider than its window, and the elements that stick out at its right."""
    return person.page.evaluate("""() => {
        const width = document.documentElement.clientWidth;
        const out = [...document.querySelectorAll("#chat *, #question *, #media *, #settings *, #top *, #footer *")]
            .filter(one => one.offsetParent && one.getBoundingClientRect().right > width + 1)
            .filter(one => getComputedStyle(one).position !== "fixed").map(one => one.outerHTML.slice(0, 80));
        return [document.documentElement.scrollWidth - width, out];
    }""")


def in_window(person, element):
    box, window = element.bounding_box(), person.page.viewport_size
    return box["x"] >= 0 and box["x"] + box["width"] <= window["width"] + 1 and box["y"] + box["height"] <= (
        window["height"] + 1
    )


@pytest.mark.parametrize("window", [PHONE, {"viewport": {"width": 1280, "height": 800}}], ids=["phone", "desk"])
def test_nothing_sticks_out_and_the_question_box_is_in_sight(visit, talkative, tmp_path, window):
    long_name = tmp_path / ("holiday" * 15 + ".png")
    folders.picture(3, 900, 300).save(long_name)
    ann = visit(**window)
    assert widest(ann) == [0, []] and in_window(ann, ann.box)
    ann.attach(long_name, PHOTO)
    for area in ("settings", "explain"):
        ann.unfold(area)
    with talkative.says("word" * 60):
        ann.ask("Unbreakable" * 20)
    assert widest(ann) == [0, []]
    for name in ("#chat img", "#chat [data-testid=bot]", "#weight-0 input"):
        assert ann.find(name).first.bounding_box()["width"] > 20, name
    assert ann.box.bounding_box()["width"] > 100


def test_on_a_phone_everything_can_be_reached_and_pressed(visit):
    ann = visit(**PHONE)
    ann.find("#chat .example").first.tap()
    ann.until(lambda: ann.answers, "an answer")
    ann.answer()
    for name in ("#question button[data-testid=upload-button]", "#question [data-testid=submit-button]", "#new"):
        box = ann.find(name).first.bounding_box()
        assert min(box["width"], box["height"]) >= 24, name  # WCAG 2.2, target size
    ann.find("#footer").scroll_into_view_if_needed()
    assert in_window(ann, ann.find("#footer"))
    ann.find("#new").tap()
    ann.until(lambda: not ann.questions, "an empty page")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_bright_by_day_and_dark_by_night_and_can_be_read_at_both(visit, scheme):
    ann = visit(color_scheme=scheme)
    ann.attach(PHOTO)
    ann.ask(WHAT)
    other = {"light": "dark", "dark": "light"}
    for expected in (scheme, other[scheme]):
        if expected != scheme:
            ann.find("#theme").click()
        for name in ("#chat [data-testid=user] .message-content", "#chat [data-testid=bot] .message-content",
                     "#name-0 strong", "#title h1", "#settings button span", "#footer .prose"):  # fmt: skip
            text, behind = brightness(ann.find(name).first)
            assert (text > behind) == (expected == "dark"), name
            ann.until(lambda name=name: contrast(ann.find(name).first) >= 4.5, f"text of {name} that can be read")
    ann.open()
    assert ann.find("body.dark").count() == (other[scheme] == "dark")  # what was chosen stays


def test_it_can_be_used_with_the_keyboard_alone(visit):
    ann = visit()
    ann.until(lambda: ann.box.evaluate("box => box === document.activeElement"), "the question box to be typed into")
    ann.page.keyboard.type(WHAT)
    ann.page.keyboard.press("Shift+Enter")
    ann.page.keyboard.type("And where?")
    ann.page.keyboard.press("Enter")
    ann.until(lambda: ann.answers, "an answer")
    assert ann.questions[0].splitlines() == [WHAT, "And where?"] and ann.answer()


def test_buttons_have_names(visit):
    ann = visit()
    ann.attach(PHOTO)
    ann.ask(WHAT)
    nameless = ann.find("button:visible").evaluate_all("""buttons => buttons
        .filter(one => !one.innerText.trim() && !one.ariaLabel && !one.title && !one.querySelector("img[alt]"))
        .map(one => one.outerHTML.slice(0, 200))""")
    assert nameless == []


def test_nothing_is_offered_that_goes_elsewhere(visit):
    ann = visit()
    ann.attach(PHOTO)
    ann.ask(WHAT)
    assert ann.find("[aria-label=Share]:visible, [title=Share]:visible").count() == 0
    links = ann.find("a:visible").evaluate_all("links => links.map(link => new URL(link.href).hostname)")
    assert set(links) <= {"127.0.0.1", ""}


def test_the_footer_says_what_answers_and_on_what(visit):
    words = visit().find("#footer").inner_text()
    assert "tiny-llama" in words and "float32" in words
    number, unit = re.search(r"([\d.]+) ([MG])B of memory", words).groups()
    pages = int(Path("/proc/self/statm").read_text().split()[1])  # the page is served by this process
    assert 0.5 < float(number) * {"M": 2**20, "G": 2**30}[unit] / (pages * os.sysconf("SC_PAGE_SIZE")) < 2
