"""Files that people attach: looked at, or refused in words where they are; theirs alone, and gone when they go."""

import re
from pathlib import Path

import folders
from browser import noise

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PHOTO, DOG = EXAMPLES / "coffee.jpg", EXAMPLES / "dog.ogg"
WHAT = "What is in this picture?"
LIMIT = 2**20  # bytes of a file


def kept(site, name):
    """Where the page keeps files of this name for its visitors."""
    return list(site.folder.glob(f"visitors/**/{name}"))


def refusal(person):
    """What a person is told at the file or in a corner of the page."""
    told = person.find(".problem:visible, .toast-body:visible").first
    words = person.until(lambda: told.is_visible() and told.inner_text().strip(), "words")
    assert "error" not in words.lower(), words
    return words


def test_a_recording_is_listened_to(visit, talkative, tmp_path):
    ann = visit()
    ann.attach(noise(tmp_path / "noise.wav"))
    assert "noise.wav" in ann.cards.inner_text() and "sound" in ann.cards.inner_text()
    expected = talkative.pipe.ask("What do you hear?", audio=tmp_path / "noise.wav", max_new_tokens=24)
    assert ann.ask("What do you hear?") == expected
    assert ann.find("#chat [data-testid=user] audio, #chat [data-testid=user] [data-testid*=audio]").count()


def test_the_microphone_can_be_used(visit):
    ann = visit(permissions=["microphone"])
    ann.find("#question [data-testid=microphone-button]").click()
    ann.find("#question [aria-label='Start recording']").click()
    ann.page.wait_for_timeout(500)
    ann.find("#question [aria-label='Stop recording']").click()
    ann.find("#question [aria-label='Attach audio']").click()
    ann.until(lambda: ann.cards.count() == 1, "a card of the recording")
    assert "sound" in ann.cards.inner_text() and ann.problems == []
    assert ann.ask("What do you hear?")


def test_photo_and_sound_count_by_their_weights(visit, talkative):
    ann = visit()
    ann.attach(PHOTO, DOG)
    for card, weight in enumerate([0.5, 2]):
        ann.set(f"weight-{card}", weight)
    expected = talkative.pipe.ask(WHAT, image=(PHOTO, 0.5), audio=(DOG, 2.0), max_new_tokens=24)
    assert ann.ask(WHAT) == expected != talkative.pipe.ask(WHAT, image=PHOTO, audio=DOG, max_new_tokens=24)
    ann.set("weight-1", 0)
    ann.find("#new").click()
    ann.until(lambda: ann.cards.count() == 0, "no cards")
    ann.attach(PHOTO)
    assert ann.ask(WHAT) == talkative.pipe.ask(WHAT, image=PHOTO, max_new_tokens=24)  # weights began anew


def test_a_file_can_be_read_as_something_else(visit, talkative, tmp_path):
    folders.picture(3).convert("L").save(tmp_path / "room.png")
    ann = visit()
    ann.attach(tmp_path / "room.png")
    ann.find("#kind-0 input").click()
    ann.find("[role=option]").filter(has_text="thermal").click()
    expected = talkative.pipe.ask(WHAT, thermal=tmp_path / "room.png", max_new_tokens=24)
    ann.until(lambda: "thermal" in ann.find("#kind-0 input").input_value(), "a thermal picture")
    assert ann.ask(WHAT) == expected != talkative.pipe.ask(WHAT, image=tmp_path / "room.png", max_new_tokens=24)


def test_words_can_be_looked_at(visit, talkative):
    ann = visit()
    ann.unfold("words-area")
    ann.find("#add-text textarea").fill("a dog is barking")
    ann.find("#add-text-button").click()
    ann.until(lambda: ann.cards.count() == 1, "a card")
    assert ann.ask("What is it?") == talkative.pipe.ask("What is it?", text="a dog is barking", max_new_tokens=24)


def test_what_is_removed_is_not_looked_at(visit, site, talkative):
    ann = visit()
    ann.attach(PHOTO, DOG)
    chips = ann.find("#question .thumbnail-item")
    ann.find("#remove-1").click()
    ann.until(lambda: ann.cards.count() == chips.count() == 1, "one card, and one file in the question box")
    ann.attach(DOG)
    ann.find("#question [aria-label='Remove file']").last.click()
    ann.until(lambda: ann.cards.count() == chips.count() == 1, "one card, and one file in the question box")
    assert ann.ask(WHAT) == talkative.pipe.ask(WHAT, image=PHOTO, max_new_tokens=24)
    ann.find("#remove-0").click()
    ann.until(lambda: ann.cards.count() == 0, "no card")
    first = ann.answers[0]
    messages = [(WHAT, "user"), (first, "assistant"), ("And now?", "user")]
    said = [{"role": role, "content": words} for words, role in messages]
    assert ann.ask("And now?") == talkative.pipe.ask(said, max_new_tokens=24)


def test_a_broken_file_is_said_on_its_card_and_the_page_goes_on(visit, talkative, tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"this is no picture")
    ann = visit()
    ann.attach(tmp_path / "holiday.jpg")
    words = ann.problem("holiday.jpg")
    assert ann.cards.first.locator(".problem").inner_text() == words
    assert "/" not in words.replace("holiday.jpg", "") and words.lower() != "error"
    ann.send(WHAT)
    ann.problem("cannot be looked at; remove it")
    assert ann.questions == [] and ann.box.input_value() == WHAT  # what was typed is not lost
    ann.find("#remove-0").click()
    ann.until(lambda: ann.cards.count() == 0, "no card")
    ann.box.press("Enter")
    ann.until(lambda: ann.answers, "an answer")
    assert ann.answer() == talkative.pipe.ask(WHAT, max_new_tokens=24)


def test_a_file_of_another_kind_is_refused_in_words_and_the_page_goes_on(visit, tmp_path):
    (tmp_path / "letter.docx").write_bytes(b"words")
    ann = visit()
    ann.find("#question input[type=file]").first.set_input_files(tmp_path / "letter.docx")
    assert len(refusal(ann).split()) > 3
    ann.attach(PHOTO)
    assert ann.ask(WHAT)


def test_a_file_that_is_too_large_is_refused_in_words_and_not_kept(visit, site, tmp_path):
    large, small = tmp_path / "large.wav", tmp_path / "small.wav"
    noise(small)
    large.write_bytes(small.read_bytes() + bytes(LIMIT))
    ann = visit()
    ann.find("#question input[type=file]").first.set_input_files(large)
    assert re.search(r"1(\.0+)? MB", refusal(ann), re.IGNORECASE)
    assert kept(site, "large.wav") == [] and ann.cards.count() == 0
    ann.complaints.clear()  # the browser notes what the server refuses
    ann.attach(small)
    assert ann.ask("What do you hear?")


def test_what_one_visitor_uploads_no_other_can_read(visit, site):
    ann, bob = visit(), visit()
    ann.attach(PHOTO)
    ann.ask(WHAT)
    address = ann.find("#chat [data-testid=user] img").get_attribute("src")
    assert ann.context.request.get(address).body() == PHOTO.read_bytes()
    for stranger in (bob.context.request, bob.page.context.browser.new_context().request):
        refused = stranger.get(address)
        assert refused.status in (401, 403, 404) and PHOTO.read_bytes()[:100] not in refused.body()
    bob.attach(PHOTO)  # the same content is no key to it either
    assert bob.context.request.get(address).status in (401, 403, 404)
    assert len(kept(site, "coffee.jpg")) >= 2


def test_no_other_file_of_the_machine_is_given(visit, site):
    ann, root, folder = visit(), EXAMPLES.parent, site.folder
    elsewhere = f"{folder}/visitors/../../../etc/passwd"
    for path in ("/etc/passwd", folder, f"{folder}/visitors", f"{root}/demo.py", elsewhere, "file:///etc/passwd"):
        answer = ann.context.request.get(f"{site.url}gradio_api/file={path}")
        assert answer.status in (400, 403, 404), path
        assert b"root:" not in answer.body() and b"import" not in answer.body()
    for route in ("docs", "openapi.json", "monitoring", "gradio_api/mcp/", "gradio_api/proxy=http://127.0.0.1:1/"):
        assert ann.context.request.get(f"{site.url}{route}").status == 404, route


def test_files_are_deleted_when_they_are_not_needed_any_more(visit, site):
    bob = visit()
    bob.attach(PHOTO)
    bob.ask(WHAT)
    [his] = kept(site, "coffee.jpg")
    for leave in (
        lambda ann: ann.find("#new").click(),
        lambda ann: ann.page.goto("about:blank"),
        lambda ann: ann.page.close(),
        lambda ann: ann.context.close(),
    ):
        ann = visit()
        ann.attach(PHOTO)
        ann.ask(WHAT)
        assert len(kept(site, "coffee.jpg")) > 1
        leave(ann)
        bob.until(lambda: kept(site, "coffee.jpg") == [his], "the end of ann's files")
    assert bob.find("#chat img").first.evaluate("image => image.naturalWidth") > 100
    assert bob.ask("And what else?")
