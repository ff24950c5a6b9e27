"""Whose conversation it is, and that nothing of it is left when its page is closed."""

import pytest

from adapter_llm.page import sessions as module
from adapter_llm.page.attachments import from_words
from adapter_llm.page.sessions import PageClosed, Sessions


@pytest.fixture
def sessions(tmp_path):
    return Sessions(tmp_path / "visitors")


class Answer:
    cancelled = False

    def cancel(self):
        self.cancelled = True


def written(session):
    """The answer to a question of this page, on its way."""
    session.begin(lambda: session.conversation.ask("What?", str))
    answer = Answer()
    session.claim().start(answer)
    return answer


def upload(sessions, page, visitor):
    """A file of this page, in a folder that the page keeps."""
    folder = sessions.folder / visitor / page
    folder.mkdir(parents=True)
    (folder / "photo.png").write_bytes(b"pixels")
    sessions.get(page, visitor).keep(folder)
    return folder / "photo.png"


def test_a_page_has_one_session_and_each_page_its_own(sessions):
    one = sessions.get("page", "ann")
    one.conversation.ask("What?", str)
    assert sessions.get("page", "ann") is one
    assert sessions.get("another", "ann") is not one and sessions.get("another", "ann").conversation.turns == []
    assert len(sessions) == 2


def test_nobody_takes_part_in_the_conversation_of_another(sessions):
    sessions.get("page", "ann")
    with pytest.raises(PageClosed, match="another browser; reload"):
        sessions.get("page", "bob")


def test_a_page_that_ends_takes_its_files_and_its_answer_along(sessions):
    ann, bob = upload(sessions, "a", "ann"), upload(sessions, "b", "bob")
    answers = {"a": written(sessions.get("a", "ann")), "b": written(sessions.get("b", "bob"))}
    sessions.end("a")
    assert not (sessions.folder / "ann").exists() and not ann.exists() and bob.exists()
    assert answers["a"].cancelled and not answers["b"].cancelled
    with pytest.raises(PageClosed, match="reload the page"):
        sessions.get("a", "ann")
    sessions.get("b", "bob")
    assert len(sessions) == 1


def test_two_pages_of_one_browser_keep_their_own_files(sessions):
    first, second = upload(sessions, "a", "ann"), upload(sessions, "b", "ann")
    sessions.end("a")
    assert not first.exists() and second.exists()
    sessions.end("b")
    assert not (sessions.folder / "ann").exists()


def test_ending_twice_or_what_never_was_is_no_matter(sessions):
    upload(sessions, "a", "ann")
    for page in ("never", "a", "a"):
        sessions.end(page)
    assert len(sessions) == 0


def test_forgetting_keeps_the_page_and_removes_the_rest(sessions):
    file = upload(sessions, "a", "ann")
    session = sessions.get("a", "ann")
    answer = written(session)
    session.conversation.attach(from_words("a dog"))
    session.forget()
    assert answer.cancelled and not file.exists()
    assert session.conversation.turns == [] and session.conversation.attachments == []
    assert sessions.get("a", "ann") is session


def test_pages_are_bounded_those_that_nobody_uses_give_way_and_others_do_not(sessions, monkeypatch):
    monkeypatch.setattr(module, "MOST_OPEN", 3)
    files = {page: upload(sessions, page, page) for page in "abc"}
    sessions.get("a", "a")
    with pytest.raises(PageClosed, match="too many pages are open; try again later"):
        sessions.get("d", "d")
    assert all(file.exists() for file in files.values())
    monkeypatch.setattr(module, "LONG", 0)
    sessions.get("d", "d")
    assert len(sessions) == 3 and {page for page, file in files.items() if file.exists()} == {"a", "c"}


def test_one_visitor_cannot_take_all_the_room(sessions, monkeypatch):
    monkeypatch.setattr(module, "MOST_OF_ONE", 2)
    other = upload(sessions, "b", "bob")
    files = [upload(sessions, page, "ann") for page in ("first", "second", "third")]
    assert len(sessions) == 3 and other.exists() and [file.exists() for file in files] == [False, True, True]


def test_a_page_can_only_be_ended_by_its_own_visitor(sessions):
    file = upload(sessions, "a", "ann")
    sessions.end("a", "bob")
    assert file.exists() and sessions.has("ann") and not sessions.has("bob")
    sessions.end("a", "ann")
    assert not file.exists() and not sessions.has("ann")


def test_who_has_no_name_has_no_page(sessions):
    with pytest.raises(PageClosed, match="by a cookie; allow it"):
        sessions.get("a", "")


def test_closing_all_leaves_no_file(sessions):
    files = [upload(sessions, page, visitor) for page, visitor in [("a", "ann"), ("b", "ann"), ("c", "bob")]]
    sessions.close()
    assert len(sessions) == 0 and not any(file.exists() for file in files)
    assert list(sessions.folder.iterdir()) == []
