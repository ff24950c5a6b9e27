"""Small sentencepiece models, written field by field as sentencepiece_model.proto numbers them."""

import struct

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BPE = 2
WORDS = (
    "▁a ▁the ▁picture ▁dog ▁is ▁Instruction ▁Response ing ed tion é 日本 ½ ł ł▁ :// ) ## ha haha ==== <s > ▁·"
).split()
SPECIAL = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
BYTES = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
# as in the published models: powers of two first, all the others with one score
RUNS = [("▁" * n, -0.5 * (n.bit_length()), NORMAL) for n in (2, 4, 8, 16)]
RUNS += [("▁" * n, -1e9, NORMAL) for n in range(3, 16) if n & (n - 1)]


def varint(value):
    value &= 2**64 - 1
    encoded = b""
    while value > 0x7F:
        encoded, value = encoded + bytes([value & 0x7F | 0x80]), value >> 7
    return encoded + bytes([value])


def field(number, value):
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(*fields):
    return b"".join(field(number, value) for number, value in fields)


def vocabulary(words=WORDS):
    """Words with all that they are merged from, and the characters of ASCII that are not left to the bytes."""
    parts = {}
    for word in words:
        for end in range(2, len(word) + 1):
            parts.setdefault(word[:end])
    letters = dict.fromkeys("".join(words) + "▁bcdfhklmnpqrstuvwxyz0123,.")
    learned = [(part, -float(n), NORMAL) for n, part in enumerate(parts, 10)]
    return [*learned, *((letter, -1000.0 - n, NORMAL) for n, letter in enumerate(letters))]


def model(pieces=None, trainer=None, normalizer=None):
    """The bytes of a tokenizer.model; `trainer` and `normalizer` are changes to LLaMA's settings, None drops one."""
    pieces = [*SPECIAL, *BYTES, *RUNS, *vocabulary()] if pieces is None else pieces
    trainer = {3: BPE, 4: len(pieces), 35: 1, 40: 0, 41: 1, 42: 2, 43: -1} | (trainer or {})
    normalizer = {1: "identity", 2: b"", 3: 1, 4: 0} | (normalizer or {})
    messages = [(1, {1: text, 2: score, 3: kind}) for text, score, kind in pieces]
    messages += [(2, trainer), (3, normalizer)]
    return message(*((n, message(*((k, v) for k, v in fields.items() if v is not None))) for n, fields in messages))
