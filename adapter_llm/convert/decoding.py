"""How a converted tokenizer writes byte pieces: a byte that belongs to no character is one U+FFFD, as in sentencepiece.

The decoder that tokenizers have for byte pieces gives up a whole run of them for one broken character, so that an
answer cut off in the middle of a word of an Asian script loses all of that word. There is no decoder that does it
right, but a chain of them does, as data in `tokenizer.json`, which any program can load:

1. Space signs in pieces are marked, then real ones can be told from them; bytes below 0x80 become text.
2. The end of each piece that is text is marked. What has no mark is a byte above 0x7F.
3. Those bytes, less 0x80, are handed to the decoder for byte pieces: now always valid, a run of them becomes one
   string of characters below 0x80, in which regular expressions can look at the neighbours.
4. A byte without its neighbours becomes U+FFFD, the others the letters that stand for bytes in GPT-2's alphabet.
5. The decoder for that alphabet makes bytes of the runs and leaves alone what has a mark, and the marks go.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .pieces import SPACE

if TYPE_CHECKING:
    from tokenizers.decoders import Decoder

# after the sign for a space, which decoded text holds nowhere else: what the pair stands for
BLANK, END, REAL = f"{SPACE}·", f"{SPACE}¦", f"{SPACE}¬"  # a space; the end of a text piece; the sign itself

HIGH = f"{SPACE}[89A-F][0-9A-F]>"  # a byte above 0x7F in the first two steps
IN_RUN = f"(?![^{SPACE}]*{SPACE})"  # no mark follows: not in a text piece

# first bytes of characters in UTF-8, and how many bytes follow; whatever else is wrong with a complete sequence, the
# last decoder sees for itself, and replaces it byte by byte
SEQUENCES = ((0xC2, 0xDF, 1), (0xE0, 0xEF, 2), (0xF0, 0xF4, 3))
FOLLOWING = (0x80, 0xBF)


def piece_decoder(unknown_piece: str, unknown_text: str, prefix: bool) -> Decoder:
    """Pieces to text; `prefix`: a space in front of the first piece is not part of the text."""
    from tokenizers import Regex, decoders

    def replace(pattern: str, text: str) -> Decoder:
        return decoders.Replace(Regex(pattern), text)

    letters = byte_letters()
    return decoders.Sequence(
        [
            decoders.Replace(SPACE, BLANK),
            replace(rf"\A{re.escape(unknown_piece)}\z", unknown_text.replace(SPACE, REAL)),
            replace(r"\A<0x(?=[89A-F][0-9A-F]>\z)", SPACE),
            decoders.ByteFallback(),
            replace(rf"(?<!\A{HIGH})\z", END),
            *(replace(rf"\A{SPACE}{digit:X}(?=.>\z)", f"<0x{digit - 8}") for digit in range(8, 16)),
            decoders.ByteFallback(),
            replace(rf"(?!{whole_character()})[\x00-\x7F]{IN_RUN}", _spell("\ufffd", letters)),
            replace("".join(map(_code, SPACE.encode())) + IN_RUN, _spell(REAL, letters)),
            *(replace(_code(byte) + IN_RUN, letters[byte]) for byte in range(0x80, 0xF5)),  # others are in no character
            decoders.ByteLevel(),
            *([replace(rf"\A{BLANK}", "")] if prefix else []),
            decoders.Replace(BLANK, " "),
            decoders.Replace(END, ""),
            decoders.Replace(REAL, SPACE),
        ]
    )


def whole_character() -> str:
    """A pattern for one byte, less 0x80, that has around it all the others of its character."""
    following, places = f"[{_code(FOLLOWING[0])}-{_code(FOLLOWING[1])}]", []
    for first, last, count in SEQUENCES:
        parts = [f"[{_code(first)}-{_code(last)}]"] + [following] * count
        for n, part in enumerate(parts):
            places.append(f"(?<={''.join(parts[:n])}){part}(?={''.join(parts[n + 1 :])})")
    return "|".join(places)


def byte_letters() -> list[str]:
    """The letter for each byte: itself where it is a visible Latin-1 character, else one from 256 up, in order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(0x100)]


def _spell(text: str, letters: list[str]) -> str:
    return "".join(letters[byte] for byte in text.encode())


def _code(byte: int) -> str:
    return rf"\x{byte - 0x80:02X}"
