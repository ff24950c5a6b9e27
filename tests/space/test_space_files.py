"""Which files are meant by paths, folders and globs."""

import os
from pathlib import Path

import pytest

from adapter_llm.processing import KEYWORDS
from adapter_llm.space.files import BY_SUFFIX, SUFFIXES, find_media

ALL = tuple(KEYWORDS)


def found_names(found, folder):
    return [(Path(file.path).relative_to(folder).as_posix(), file.keyword) for file in found.files]


def test_a_folder_is_all_below_it_in_order(media):
    found = find_media([str(media)], ALL)
    assert found_names(found, media) == [
        ("0.png", "image"), ("1.png", "image"), ("2.png", "image"), ("3.png", "image"), ("4.png", "image"),
        ("a.csv", "imu"), ("a.mp4", "video"), ("a.txt", "text"), ("a.wav", "audio"),
        ("deep/b.jpg", "image"), ("deep/b.wav", "audio"),
    ]  # fmt: skip
    assert not found.problems
    assert found.left_out == "files left out: 1 of unknown kind"


def test_hidden_folders_are_passed_over_and_the_others_come_in_order(tmp_path):
    for name in ("c/1.png", ".git/2.png", "a/3.png", "b/.x/4.png", "b/5.png", "a/a/6.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names = [name for name, _ in found_names(find_media([str(tmp_path)], ALL), tmp_path)]
    assert names == ["a/3.png", "a/a/6.png", "b/5.png", "c/1.png"]


def test_what_the_weights_do_not_know_is_counted(media):
    found = find_media([str(media)], ("image", "text"))
    assert {keyword for _, keyword in found_names(found, media)} == {"image", "text"}
    kinds = "2 of the kind audio, 1 of the kind imu, 1 of the kind video, 1 of unknown kind"
    assert found.left_out == f"files left out: {kinds}"


def test_each_file_once(media):
    given = [str(media / "1.png"), str(media), str(media / "deep" / ".." / "1.png"), str(media / "*.png")]
    names = [name for name, _ in found_names(find_media(given, ("image",)), media)]
    assert names == ["1.png", "0.png", "2.png", "3.png", "4.png", "deep/b.jpg"]


def test_size_and_time_of_a_file(media):
    os.utime(media / "0.png", ns=(5, 1_234_567_891))
    [file] = find_media([str(media / "0.png")], ALL).files
    assert (file.size, file.modified) == ((media / "0.png").stat().st_size, 1_234_567_891)


def test_globs(media):
    assert len(find_media([str(media / "*.png")], ALL).files) == 5
    assert len(find_media([str(media / "**" / "*.wav")], ALL).files) == 2
    assert len(find_media([str(media / "d*")], ALL).files) == 2  # a folder that matches is searched
    assert not find_media([str(media / "*.md")], ALL).files
    [problem] = find_media([str(media / "*.xyz")], ALL).problems
    assert problem == f"nothing matches {str(media / '*.xyz')!r}; check the pattern"


def test_a_name_with_a_pattern_in_it_is_a_name(media):
    (media / "[1].png").write_bytes((media / "1.png").read_bytes())
    found = find_media([str(media / "[1].png")], ALL)
    assert found_names(found, media) == [("[1].png", "image")]


@pytest.mark.parametrize("name, keywords, forced, problem", [
    ("nothing.png", ALL, None, "there is no file or folder"),
    ("notes.md", ALL, None, "does not tell what it is; say it with --as image|video|"),
    ("a.wav", ("image", "text"), None, "is of the kind audio, and these weights take image, text"),
    ("a.wav", ("image", "text"), "depth", "is of the kind depth, and these weights take image, text"),
])  # fmt: skip
def test_a_named_file_that_cannot_be_read_is_a_problem_and_the_others_go_on(media, name, keywords, forced, problem):
    found = find_media([str(media / name), str(media / "0.png")], keywords, forced)
    assert len(found.problems) == (2 if forced else 1) and problem in found.problems[0]
    assert len(found.files) == (0 if forced else 1)


def test_all_of_one_kind(media):
    (media / "d.npy").write_bytes(b"")
    found = find_media([str(media)], ALL, "depth")
    assert [name for name, _ in found_names(found, media)] == ["0.png", "1.png", "2.png", "3.png", "4.png", "d.npy"]
    assert {keyword for _, keyword in found_names(found, media)} == {"depth"}
    named = find_media([str(media / "notes.md")], ALL, "text")  # whatever its suffix
    assert found_names(named, media) == [("notes.md", "text")]
    sounds = find_media([str(media)], ALL, "audio")
    assert [name for name, _ in found_names(sounds, media)] == ["a.mp4", "a.wav", "deep/b.wav"]


def test_arrays_are_ambiguous(media):
    (media / "p.npy").write_bytes(b"")
    found = find_media([str(media), str(media / "p.npy")], ALL)
    assert found.unknown == 2 and "p.npy" not in dict(found_names(found, media))
    assert find_media([str(media / "p.npy")], ALL).problems


def test_a_folder_that_may_not_be_read(media, monkeypatch):
    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", folder))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)
    [problem] = find_media([str(media)], ALL).problems
    assert problem == f"the folder {str(media)!r} cannot be read (Permission denied); check its permissions"


def test_a_file_that_vanishes(media, monkeypatch):
    def stat(path, **options):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("adapter_llm.space.files.os.stat", stat)
    monkeypatch.setattr("adapter_llm.space.files.os.path.isdir", lambda path: False)
    monkeypatch.setattr("adapter_llm.space.files.os.path.exists", lambda path: True)
    [problem] = find_media([str(media / "0.png")], ALL).problems
    assert problem.endswith("0.png' cannot be read (Permission denied); check its permissions")


def test_suffixes_tell_one_kind_each():
    suffixes = [suffix for kinds in BY_SUFFIX.values() for suffix in kinds]
    assert len(suffixes) == len(set(suffixes))
    assert set(SUFFIXES) == set(KEYWORDS)
    assert all(set(BY_SUFFIX.get(keyword, ())) <= set(SUFFIXES[keyword]) for keyword in SUFFIXES)


def test_a_pipe_is_no_file(media):
    os.mkfifo(media / "pipe.png")
    for given in (media, media / "pipe.png"):
        found = find_media([str(given)], ALL)
        assert found.problems == [f"{str(media / 'pipe.png')!r} is no regular file; save what it gives in one"]
        assert not any(file.path.endswith("pipe.png") for file in found.files)
