"""Texts become the ids of the original tokenizer, whatever they are made of, or one sentence says why not."""

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imagebind_encoder.config import ConfigError, TextConfig, TextStemConfig
from imagebind_encoder.media import text as text_module
from imagebind_encoder.media.source import MediaError
from imagebind_encoder.media.text import (
    END,
    MARKS,
    MAX_CHARACTERS,
    START,
    VOCABULARY,
    clean,
    load_text,
    tokenize,
    vocabulary_texts,
)

CUT_END = TextConfig(keep_end=False)


def ids_of(text, **options):
    """The ids of a text without start, end and padding."""
    row = tokenize([text], **options)[0].tolist()
    return row[1 : row.index(END, 1)]


@pytest.fixture(scope="module")
def recorded(golden):
    path = golden / "preprocess" / "bpe.json"
    if not path.exists():
        pytest.skip(f"no texts in {golden}")
    return json.loads(path.read_text(encoding="utf-8"))


def padded(ids, recorded):
    return ids + [recorded["pad_id"]] * (recorded["context_length"] - len(ids))


def test_ids_are_those_of_the_original(recorded):
    stem = TextStemConfig(context_length=recorded["context_length"])
    texts = [case["text"] for case in recorded["cases"]]
    ids = tokenize(texts, stem=stem)
    assert ids.dtype == torch.int64
    for case, row in zip(recorded["cases"], ids, strict=True):
        assert row.tolist() == padded(case["ids"], recorded), case["text"]
        assert row.argmax() == case["eot_index"], case["text"]


def test_without_its_end_a_text_is_that_of_the_vendored_copy(recorded):
    stem = TextStemConfig(context_length=recorded["context_length"])
    for case in recorded["cases"]:
        expected = case["ids"] if case["same_in_vendored_copy"] else case["ids_vendored_copy"]
        assert tokenize([case["text"]], CUT_END, stem)[0].tolist() == padded(expected, recorded), case["text"]


def test_one_text_is_loaded_as_the_batch_has_it(recorded):
    for case in recorded["cases"]:
        if clean(case["text"]) and len(case["text"]) <= MAX_CHARACTERS:
            assert load_text(case["text"]).equal(tokenize([case["text"]])[0]), case["text"]


def test_the_vocabulary_is_the_recorded_file_with_its_licence(recorded):
    assert hashlib.sha256(VOCABULARY.read_bytes()).hexdigest() == recorded["vocabulary_file"]["sha256"]
    assert "MIT License" in (VOCABULARY.parent / "LICENSE").read_text()


def test_every_merge_is_reached_by_its_own_number():
    """A word of the vocabulary that stands alone becomes one id: line 1 of the file is the merge with id 512."""
    with gzip.open(VOCABULARY, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    for number in (1, 2, 3, 100, 5000, 20000, START - 512):
        word = "".join(lines[number].split())
        if word.endswith("</w>") and word[:-4].isascii() and word[:-4].isalpha():
            assert ids_of(word[:-4]) == [511 + number]
    assert ids_of("the") == [518] and ids_of("!") == [256]


def test_texts_of_ids_give_the_text_back():
    texts = vocabulary_texts()
    assert len(texts) == END + 1 and texts[START] == texts[END] == ""
    for text in ("a dog", "supercalifragilistic", "naïve", "日本語"):
        whole = "".join(texts[number] for number in ids_of(text) if "\ufffd" not in texts[number])
        assert set(whole) <= set(text) and (not text.isascii() or whole == text.replace(" ", ""))


@pytest.mark.parametrize("text, same", [
    ("  A\tdog \n runs ", "a dog runs"),
    ("A DOG", "a dog"),
    ("caf&eacute;", "café"), ("<b>caf&amp;eacute;", "<b>café"),  # escaped twice
    ("cafÃ©", "café"),  # UTF-8 read as Latin-1
    ("cafe\u0301", "café"),  # letter and accent apart
    ("it’s", "it's"),
    ("3.14", "3 . 1 4"),  # a digit is a word
    ("dog's", "dog 's"), ("we'll", "we 'll"),
    ("a\ud800", "a\ufffd"),  # half of a character, which no file can hold
    ("!<|endoftext|>", "!<| endoftext |>"),  # no mark inside of punctuation
])  # fmt: skip
def test_texts_that_are_the_same(text, same):
    assert tokenize([text]).equal(tokenize([same]))


@pytest.mark.parametrize("word", "'s 't 're 've 'm 'll 'd 'S".split())
def test_a_contraction_is_one_word(word):
    assert len(ids_of(f"dog{word}")) == 2
    assert ids_of(f"dog{word}") == ids_of("dog") + ids_of(word)
    assert ids_of("'ſ") != ids_of("' ſ")  # the pattern knows no case, and ſ is an s


def test_marks_become_their_ids_where_a_word_may_begin():
    assert tokenize(["<|startoftext|>a<|EndOfText|>"])[0, :5].tolist() == [START, START, *ids_of("a"), END, END]
    assert set(MARKS.values()) == {START, END}


@pytest.mark.parametrize("text", ["日本語", "مرحبا", "😀", "𐍈", "\U000e0041"])
def test_every_character_has_ids(text):
    """Bytes are what is merged, so nothing is unknown."""
    assert ids_of(text) and max(ids_of(text)) < START


def test_a_text_is_cut_to_the_context():
    words = " ".join(["dog"] * 100)
    (dog,) = ids_of("dog")
    for length in (1, 2, 3, 13, 77):
        stem = TextStemConfig(context_length=length)
        assert load_text(words, stem=stem).tolist() == ([START, *[dog] * 100][: length - 1] + [END])
        assert load_text(words, CUT_END, stem).tolist() == [START, *[dog] * 100][:length]
    # one that fits exactly, and one that is a word too long
    stem = TextStemConfig(context_length=4)
    assert load_text("dog dog", CUT_END, stem).equal(load_text("dog dog", stem=stem))
    assert load_text("dog dog dog", CUT_END, stem).tolist() == [START, dog, dog, dog]


def test_a_batch_is_its_texts():
    texts = ["a dog", "", "two dogs on a beach", "a dog"]
    batch = tokenize(texts)
    assert batch.shape == (4, 77) and batch.dtype == torch.int64
    for text, row in zip(texts, batch, strict=True):
        assert row.equal(tokenize([text])[0])
    assert batch[1].tolist() == [START, END] + [0] * 75
    assert tokenize([]).shape == (0, 77)


def test_files_and_bytes_are_text_and_a_string_is_never_a_file(tmp_path):
    path = tmp_path / "note.txt"
    path.write_bytes("\ufeffEin Hündchen\n".encode())
    expected = tokenize(["ein hündchen"])[0]
    data = path.read_bytes()
    for source in (path, data, bytearray(data), memoryview(data), "Ein Hündchen"):
        assert load_text(source).equal(expected)
    for name in (str(path), "https://host/note.txt", "data:text/plain,dog", "file:///etc/passwd"):
        assert load_text(name).equal(tokenize([name])[0]), "a str is read as it stands"


def test_a_path_that_is_an_address_is_fetched():
    asked = []

    def fetch(url):
        asked.append(url)
        return b"a dog"

    assert load_text(Path("https://host/note.txt"), fetch=fetch).equal(load_text("a dog"))
    assert asked == ["https://host/note.txt"]
    load_text("https://host/note.txt", fetch=fetch)
    assert len(asked) == 1


@pytest.mark.parametrize("source, message", [
    ("", "'' has no words in it; write what is to be encoded"),
    (" \n\t", "has no words in it"),
    ("\x07\x00", "has no words in it"),
    ("&nbsp;", "has no words in it"),
    (b"", "0 bytes is empty"),
    (b" ", "1 bytes has no words in it"),
    (b"\xff\xfea\x00", "4 bytes is not UTF-8 text (invalid start byte); save it as UTF-8"),
    ("caf\xe9".encode("latin-1"), "is not UTF-8 text"),
    (7, "an object of type int is no text; give a str, the Path of a text file or bytes"),
    (None, "an object of type NoneType is no text"),
    (["a dog"], "an object of type list is no text"),
    ("word " * 10_000, "' has 50000 characters and is a document, not a caption; give at most 10000"),
    (b"word " * 2001, "10005 bytes has 10005 characters and is a document"),
    (b"word " * 10_000, "50000 bytes is larger than the limit of 40003 bytes"),
    (Path("nowhere.txt"), "there is no file 'nowhere.txt'"),
])  # fmt: skip
def test_what_is_no_caption_is_refused_in_a_sentence(source, message):
    with pytest.raises(MediaError) as caught:
        load_text(source)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_longest_text_is_read():
    longest = ("word " * MAX_CHARACTERS)[:MAX_CHARACTERS]
    assert load_text(longest)[-1] == END
    with pytest.raises(MediaError, match="is a document"):
        load_text(longest + "s")
    characters = "𐍈" * MAX_CHARACTERS  # four bytes each, and a mark in front
    assert load_text(characters.encode("utf-8-sig")).equal(load_text(characters))


def test_a_stem_without_room_for_the_ids_is_refused():
    with pytest.raises(ConfigError, match="a text stem with 50 ids cannot read words, whose ids go up to 49407"):
        load_text("a dog", stem=TextStemConfig(vocab_size=50))
    with pytest.raises(ConfigError, match="a text stem with 49407 ids"):
        tokenize(["a"], stem=TextStemConfig(vocab_size=END))
    assert tokenize(["a"], stem=TextStemConfig(vocab_size=END + 1)).max() == END


def test_the_vocabulary_is_read_once_and_only_when_a_text_comes():
    text_module._vocabulary.cache_clear()
    tokenize(["a", "b"])
    tokenize(["c"])
    assert text_module._vocabulary.cache_info().misses == 1
    script = (
        "import sys, imagebind_encoder.media.text as t\n"
        "print(*{n.split('.')[0] for n in sys.modules} & {'torch', 'tokenizers', 'regex', 'ftfy', 'httpx'})\n"
        "t.load_text('a dog'); print('transformers' in sys.modules, t._vocabulary.cache_info().misses)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "\nFalse 1\n"


@pytest.mark.parametrize("data", [b"%PDF-1.7 a dog", b"a dog\0 and more"])
def test_other_files_are_no_text(data):
    with pytest.raises(MediaError, match="is no text but some other kind of file; give plain text in UTF-8"):
        load_text(data)
