"""What messages are made of, and the hash of a file."""

import hashlib

import pytest

from adapter_llm.words import listed, not_downloaded, one_line, sha256_of


@pytest.mark.parametrize("count, limit, text", [
    (0, 3, ""), (1, 3, "n0"), (3, 3, "n0, n1, n2"), (5, 3, "n0, n1, n2, and 2 more"),
])  # fmt: skip
def test_names_are_listed(count, limit, text):
    names = [f"n{number}" for number in range(count)]
    assert listed(names, limit) == listed(iter(names), limit) == text
    assert listed(names, limit, "; ") == text.replace(", ", "; ")


def test_eight_names_are_listed_unless_told():
    assert listed("abcdefgh") == "a, b, c, d, e, f, g, h"
    assert listed("abcdefghi") == "a, b, c, d, e, f, g, h, and 1 more"


def test_errors_fit_into_a_sentence():
    assert one_line(ValueError(" a\n  b\tc ")) == "a b c"
    assert one_line(ValueError("x" * 300)) == "x" * 200 and one_line(ValueError("x" * 300), 7) == "x" * 7
    assert one_line(KeyError()) == "KeyError"


@pytest.mark.parametrize("head, words", [
    (b"<!DOCTYPE html>", "is a web page, not a thing; download the file itself"),
    (b"\xef\xbb\xbf\n <html>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1", "is only a pointer to a file"),
    (b"", None), (b"text", None), (b"<\0\0\0\0\0\0\0{", None), (b" <\0\0\0\0\0\0{", None),
])  # fmt: skip
def test_what_downloads_often_are_instead(head, words):
    found = not_downloaded(head, "a thing")
    assert found is None if words is None else found.startswith(words)


def test_hash_of_a_file(tmp_path):
    path, told = tmp_path / "x", []
    path.write_bytes(bytes(range(251)) * 10_000)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sha256_of(path) == sha256_of(path, told.append) == expected
    assert sum(told) == 2_510_000 and max(told) == 2**20
    path.write_bytes(b"")
    assert sha256_of(path) == hashlib.sha256(b"").hexdigest()
