"""What a conversation remembers, and what it says of files, without a page or a model."""

from pathlib import Path

import pytest

from adapter_llm.page.attachments import (
    CALLED,
    MOST,
    READ_AS,
    Attachment,
    endings,
    from_file,
    from_words,
    lacking,
    media_of,
)
from adapter_llm.page.conversation import Conversation

EVERYTHING = tuple(CALLED)
SIGHT = ("image", "video")


def described(keywords):
    return f"Describe the {' and the '.join(keywords)}."


def talked(*questions, answer=str.upper):
    """A conversation of these questions, each answered."""
    conversation = Conversation()
    for question in questions:
        conversation.ask(question, described).answer = answer(question)
    return conversation


# attachments


@pytest.mark.parametrize("ending, keywords", READ_AS.items())
def test_a_file_is_the_likeliest_that_the_weights_take(ending, keywords):
    whole = from_file(Path(f"a{ending}"), EVERYTHING)
    assert (whole.keyword, whole.choices, whole.problem) == (keywords[0], keywords, None)
    assert from_file(Path(f"A{ending.upper()}"), EVERYTHING).choices == keywords
    for only in keywords:
        one = from_file(Path(f"a{ending}"), [only])
        assert (one.keyword, one.choices, one.problem) == (only, (only,), None)
        assert ending in endings([only])
    others = [keyword for keyword in EVERYTHING if keyword not in keywords]
    refused = from_file(Path(f"a{ending}"), others)
    assert not refused.usable and refused.keyword == "" and "do not take" in refused.problem
    assert ending not in endings(others)


@pytest.mark.parametrize("name, words", [
    ("notes.docx", "files ending in .docx are not known here; give one of these: picture, film"),
    ("README", "files without an ending are not known here; give one of these: picture, film"),
    ("a.wav", "this is a sound, which the loaded weights do not take"),
    ("a.npy", "this is a depth map or thermal picture or motion or point cloud, which the loaded weights do not take"),
])  # fmt: skip
def test_a_file_that_cannot_be_looked_at_says_why(name, words):
    found = from_file(Path("/somewhere/private") / name, SIGHT)
    assert found.problem == words and found.name == name and not found.usable


def test_words_are_an_attachment_too_with_a_short_name():
    short, long = from_words(" a  dog\nis barking "), from_words("word " * 100)
    assert (short.keyword, short.source, short.name) == ("text", "a dog is barking", "“a dog is barking”")
    assert long.source == " ".join(["word"] * 100) and len(long.name) <= 42 and long.name.endswith("…”")


def test_what_weights_lack_is_said_in_words():
    assert lacking(EVERYTHING) == ""
    assert lacking([keyword for keyword in EVERYTHING if keyword != "image"]) == "pictures"
    assert lacking(["image", "video", "audio", "text", "imu"]) == "depth maps, thermal pictures and point clouds"


def test_media_are_grouped_by_keyword_without_what_counts_for_nothing():
    given = [
        Attachment("a.png", "image", path=Path("a.png")),
        Attachment("b.wav", "audio", path=Path("b.wav"), weight=0.5),
        Attachment("c.png", "image", path=Path("c.png"), weight=1.5),
        Attachment("d.png", "image", path=Path("d.png"), weight=0.0),
        Attachment("e.png", "image", path=Path("e.png"), problem="it is broken"),
        from_words("a dog"),
    ]
    assert media_of(given) == {
        "image": [(Path("a.png"), 1.0), (Path("c.png"), 1.5)],
        "audio": [(Path("b.wav"), 0.5)],
        "text": [("a dog", 1.0)],
    }


def test_messages_name_a_file_as_its_owner_does():
    one = from_file(Path("/private/83ab/cat.png"), SIGHT)
    assert one.in_words("/private/83ab/cat.png: not /private/83ab/cat.png") == "cat.png: not cat.png"
    assert from_words("a dog").in_words("as it is") == "as it is"


# turns


def test_attachments_are_shown_with_one_question_and_stay_for_the_next():
    conversation = Conversation()
    conversation.attach(Attachment("a.png", "image"))
    first = conversation.ask("What is it?", described)
    second = conversation.ask("And its colour?", described)
    conversation.attach(Attachment("b.wav", "audio"))
    third = conversation.ask("", described)
    assert [[one.name for one in turn.shown] for turn in (first, second, third)] == [["a.png"], [], ["b.wav"]]
    assert third.question == "Describe the audio."
    assert list(media_of(conversation.attachments)) == ["image", "audio"]
    assert conversation.ask(" ", described).question == "Describe the image and the audio."


@pytest.mark.parametrize("attached, words", [
    ([], "write a question, or attach something"),
    ([Attachment("a.png", problem="it is broken"), Attachment("b.png", "image")], "a.png cannot be looked at; remove"),
    ([Attachment(f"{name}.png", problem="broken") for name in "ab"], "a.png, b.png cannot be looked at; remove them"),
    ([Attachment("a.png", "image", weight=0.0)], "write a question, or attach something"),
])  # fmt: skip
def test_a_question_that_cannot_be_asked_changes_nothing(attached, words):
    conversation = Conversation()
    for one in attached:
        conversation.attach(one)
    with pytest.raises(ValueError, match=words):
        conversation.ask("  ", described)
    assert conversation.turns == [] and conversation.attachments == attached


def test_weights_that_are_all_zero_are_refused():
    conversation = Conversation()
    conversation.attach(Attachment("a.png", "image", weight=0.0))
    with pytest.raises(ValueError, match="all weights are 0"):
        conversation.ask("What?", described)
    conversation.change(0, weight=0.1)
    assert conversation.ask("What?", described).question == "What?"


def test_there_is_a_bound_to_attachments_and_removing_makes_room():
    conversation = Conversation()
    for number in range(MOST):
        conversation.attach(Attachment(f"{number}.png", "image"))
    with pytest.raises(ValueError, match=f"at most {MOST} attachments; remove one"):
        conversation.attach(Attachment("more.png", "image"))
    assert conversation.remove(1).name == "1.png"
    conversation.attach(Attachment("more.png", "image"))
    assert [one.name for one in conversation.attachments][:2] == ["0.png", "2.png"]


@pytest.mark.parametrize("place", [-1, 1, 99])
def test_places_that_are_gone_are_no_matter(place):
    conversation = talked("one")
    conversation.attach(Attachment("a.png", "image"))
    before = list(conversation.turns), list(conversation.attachments)
    conversation.change(place, weight=2.0)
    assert conversation.remove(place) is None and conversation.again(place) is None
    assert (conversation.turns, conversation.attachments) == before


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("words, asked", [(None, None), ("other", "other"), ("  ", None)])
def test_asking_again_takes_back_what_came_after(place, words, asked):
    conversation = talked("one", "two", "three")
    before = list(conversation.turns)
    turn = conversation.again(place, words)
    assert conversation.turns == [*before[:place], turn] and turn.question == (asked or before[place].question)
    assert not turn.answered and turn.answer == "" and turn.shown == before[place].shown


def test_what_went_before_is_told_without_what_was_not_answered():
    conversation = talked("one", "two", "three")
    conversation.turns[1].problem = "it broke"
    conversation.ask("four", described)
    assert conversation.messages(lambda messages: True) == (
        [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "ONE"},
            {"role": "user", "content": "three"},
            {"role": "assistant", "content": "THREE"},
            {"role": "user", "content": "four"},
        ],
        0,
    )


@pytest.mark.parametrize("most", range(8))
def test_the_oldest_turns_are_left_out_until_the_rest_fits(most):
    conversation = talked("one", "two", "three")
    conversation.ask("four", described)
    found, left_out = conversation.messages(lambda messages: len(messages) <= most)
    assert len(found) == max(1, most - (most + 1) % 2) and left_out == 3 - len(found) // 2
    assert found[-1] == {"role": "user", "content": "four"}
    assert [one["content"] for one in found[:-1:2]] == ["one", "two", "three"][left_out:]
