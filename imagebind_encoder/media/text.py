"""Words: any text -> token ids (context_length,), by the byte-pair encoding of CLIP.

A text is repaired and simplified, cut into words, and each word into the pieces of the vocabulary file that lies
beside this module. Ids are those of the original for the same release of the library that repairs.
"""

import gzip
import html
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ConfigError, TextConfig, TextStemConfig
from .source import Fetch, Limits, MediaError, Source, describe, read_source

if TYPE_CHECKING:
    import torch
    from tokenizers.models import BPE

START, END = 49406, 49407  # what stands before and after every text; END is the largest id, features are read there
VOCABULARY = Path(__file__).parent / "vocabulary" / "bpe_simple_vocab_16e6.txt.gz"
NUM_MERGES = START - 2 * 256  # the file lists more; CLIP uses so many
MAX_CHARACTERS = 10_000  # of a text; some 350 of them fit into the published context

# Contractions, words, single digits, runs of anything else. What looks like a mark is one only where a word may
# begin: in "!<|endoftext|>" the run of punctuation has swallowed its first half.
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
MARKS = {"<|startoftext|>": START, "<|endoftext|>": END}


def load_text(
    source: Source, config: TextConfig = TextConfig(), stem: TextStemConfig = TextStemConfig(), *,
    fetch: Fetch | None = None,
) -> "torch.Tensor":  # fmt: skip
    """int64 (context_length,): start, at most context_length - 2 ids of the text, end, zeros.

    A str is the text itself, whatever it looks like: a name that somebody wrote is never opened. A Path is a file,
    bytes are its content, both UTF-8. What does not fit into the context is cut off at its end.
    `fetch(url) -> bytes` replaces the download of a Path that is a URL.
    Raises MediaError: nothing in it, not UTF-8, more than MAX_CHARACTERS, an object that is no text.
    """
    text, name = _read(source, fetch), describe(source)
    if len(text) > MAX_CHARACTERS:
        raise MediaError(
            f"{name} has {len(text)} characters and is a document, not a caption; "
            f"give at most {MAX_CHARACTERS}, of which the encoder reads the first few sentences"
        )
    if not clean(text):
        raise MediaError(f"{name} has no words in it; write what is to be encoded")
    return tokenize([text], config, stem)[0]


def tokenize(
    texts: Sequence[str], config: TextConfig = TextConfig(), stem: TextStemConfig = TextStemConfig()
) -> "torch.Tensor":
    """int64 (len(texts), context_length), as `load_text`, of texts of any length, empty ones too.

    Without `config.keep_end` a text that is too long loses its end. Raises ConfigError for a stem whose vocabulary
    is too small for the ids.
    """
    import torch

    if stem.vocab_size <= END:
        raise ConfigError(
            f"a text stem with {stem.vocab_size} ids cannot read words, whose ids go up to {END}; "
            f"give it ids of another tokenizer, or a vocab_size of {END + 1}"
        )
    rows = torch.zeros(len(texts), stem.context_length, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        ids = [START, *pieces(clean(text))]
        if config.keep_end:
            ids = ids[: stem.context_length - 1]
        ids = [*ids, END][: stem.context_length]
        row[: len(ids)] = torch.tensor(ids)
    return rows


def clean(text: str) -> str:
    """Broken encodings repaired, HTML escapes undone (twice, as the web has them), blanks single, lower case."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _regex(r"\s+").sub(" ", text).strip().lower()


def pieces(text: str) -> list[int]:
    """The ids of a cleaned text, without start and end."""
    model, letters = _vocabulary()
    ids = []
    for word in _regex(PATTERN).findall(text):
        if word in MARKS:
            ids.append(MARKS[word])
        else:
            ids += [token.id for token in model.tokenize("".join(letters[byte] for byte in word.encode("utf-8")))]
    return ids


def vocabulary_texts() -> list[str]:
    """What each id stands for, as text: "" for start and end, U+FFFD for a part of a character."""
    model, letters = _vocabulary()
    byte_of = {letter: byte for byte, letter in enumerate(letters)}
    tokens = [model.id_to_token(number).removesuffix("</w>") for number in range(START)]
    return [bytes(byte_of[letter] for letter in token).decode("utf-8", "replace") for token in tokens] + ["", ""]


def _read(source: Source, fetch: Fetch | None) -> str:
    if isinstance(source, str):
        return source
    name = describe(source)
    if not isinstance(source, (os.PathLike, bytes, bytearray, memoryview)):
        raise MediaError(f"an object of type {name} is no text; give a str, the Path of a text file or bytes")
    # A byte more than the longest text, and a mark in front, may be read: more is refused unread.
    data = read_source(source, Limits(max_bytes=4 * MAX_CHARACTERS + 3), fetch)
    try:
        text = data.decode("utf-8-sig")  # editors write a mark in front
    except UnicodeDecodeError as error:
        raise MediaError(f"{name} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    if "\0" in text or text.startswith("%PDF-"):
        raise MediaError(f"{name} is no text but some other kind of file; give plain text in UTF-8")
    return text


@lru_cache(maxsize=4)
def _regex(pattern: str):
    import regex  # knows \p{L}

    return regex.compile(pattern, regex.IGNORECASE)


@lru_cache(maxsize=1)
def _vocabulary() -> "tuple[BPE, list[str]]":
    """The merging model, and the letter that stands for each of the 256 bytes.

    Ids count the letters of all bytes, the same at the end of a word, then the merges in their order. Bytes that
    are printable characters stand for themselves and come first, the others are given letters from 256 up.
    """
    from tokenizers.models import BPE

    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    with gzip.open(VOCABULARY, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : NUM_MERGES + 1]  # the first says what the file is
    merges = [tuple(line.split()) for line in lines]
    tokens = [*letters.values(), *(letter + "</w>" for letter in letters.values()), *map("".join, merges)]
    model = BPE({token: number for number, token in enumerate(tokens)}, merges, end_of_word_suffix="</w>")
    return model, [letters[byte] for byte in range(256)]
