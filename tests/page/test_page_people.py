"""Several people at one page: each has their own conversation, files and stop button, and the queue is no secret."""

from pathlib import Path

PHOTO, CAT = (Path(__file__).parent.parent.parent / "examples" / name for name in ("coffee.jpg", "cat.jpg"))
WHAT = "What is in this picture?"

def test_two_at_once_are_both_answered_each_about_their_own(visit, site, talkative):
    ann, bob = visit(), visit()
    ann.attach(PHOTO)
    bob.attach(CAT)
    with talkative.slowly(0.3):
        ann.begin(WHAT)
        bob.begin(WHAT)
        assert site.engine.counts.running == 2
    for person, photo in [(ann, PHOTO), (bob, CAT)]:
        assert person.answer() == talkative.pipe.ask(WHAT, image=photo, max_new_tokens=24)
        assert person.questions == [WHAT]


def test_one_persons_stop_does_not_touch_another(visit, site, talkative):
    ann, bob = visit(), visit()
    with talkative.slowly(0.3):
        bob.begin("Is it a dog?")
        ann.begin(WHAT)
        ann.stop()
        stopped = ann.answer()
        assert site.engine.counts.running == 1 and bob.writing
    assert len(stopped) < len(talkative.pipe.ask(WHAT, max_new_tokens=24))
    assert bob.answer() == talkative.pipe.ask("Is it a dog?", max_new_tokens=24)


def test_who_leaves_is_not_written_for_and_does_not_touch_another(visit, site, talkative):
    ann, bob = visit(), visit()
    with talkative.slowly(0.3):
        bob.begin("Is it a dog?")
        ann.begin(WHAT)
        ann.page.close()
        bob.until(lambda: site.engine.counts.running == 1, "the end of what nobody reads")
        assert bob.writing
    assert bob.answer() == talkative.pipe.ask("Is it a dog?", max_new_tokens=24)


def test_what_breaks_for_one_is_said_to_that_one_alone(visit, talkative, monkeypatch, capfd):
    draft = type(talkative.pipe).draft

    def broken(self, prompt=None, **inputs):
        if "burn" in prompt[-1]["content"]:
            raise RuntimeError("no memory is left")
        return draft(self, prompt, **inputs)

    ann, bob = visit(), visit()
    with talkative.slowly(0.3), monkeypatch.context() as patch:
        patch.setattr(type(talkative.pipe), "draft", broken)
        bob.begin(WHAT)
        ann.send("burn")
        assert ann.problem("no memory is left") == "unexpected RuntimeError: no memory is left"
    assert "Traceback" in capfd.readouterr().err  # for whoever runs the page
    assert bob.answer() == talkative.pipe.ask(WHAT, max_new_tokens=24) and bob.problems == []
    ann.until(lambda: not ann.writing, "the end")
    ann.ask(WHAT)


def test_a_second_window_of_the_same_browser_is_a_conversation_of_its_own(visit):
    from visitor import Visitor

    ann = visit()
    ann.attach(PHOTO)
    ann.ask(WHAT)
    other = Visitor(ann.context, ann.url)
    other.open()
    assert other.questions == [] and other.cards.count() == 0
    other.attach(CAT)
    other.page.close()
    assert ann.ask("And what else?") and ann.cards.count() == 1
    assert ann.find("#chat [data-testid=user] img").evaluate("image => image.naturalWidth") > 100
    assert other.complaints == []
