"""LLaMA's `tokenizer.model` as Hugging Face tokenizer files that give exactly sentencepiece's ids and texts.

transformers' own conversion is not used: its LLaMA tokenizers put no second space in front of a text that begins
with one, take a literal "</s>" in a question for the end token, and lose every neighbour of a broken character
(see `decoding`).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from .decoding import piece_decoder
from .errors import ConversionError
from .pieces import SPACE, Kind, Pieces, read_pieces

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

MODEL = "tokenizer.model"  # the original's own name, under which its bytes are kept

SAMPLES = (
    "",
    "### Instruction:\nWhat is it?\r\n\r\n\t### Response:",
    "<s>literal</s> <unk> <0x41> [INST]",
    f"{SPACE}a {SPACE} sign for a space",
    "naïve café, ½ of 日本語 and العربية, 🙂👩‍👩‍👧 \u00a0\u3000\ufeff\ufffd\uffff\U0010ffff \x00\x1f\x7f",
    *(f"{' ' * n}indented{' ' * (n // 2)}{'=' * n}{'a' * n}{'ha' * n}\n" for n in range(1, 40)),
)
MOST_RIVALS = 20_000  # texts; the published models have some hundred


def convert_tokenizer(model: Path, folder: Path) -> int:
    """Write tokenizer.json, tokenizer_config.json and the original into `folder`; return the number of its pieces.

    The tokenizer puts the begin token in front of a text and no end token behind it. Special tokens written out in a
    text, as in "</s>", are text, so that no question can end itself; give `split_special_tokens=False` to change that.
    `decode(ids, skip_special_tokens=True)` is sentencepiece's decoding of the ids that are no special tokens.

    Raises ConversionError for what is no tokenizer of LLaMA 1 or 2, before anything is written.
    """
    pieces = read_pieces(model)
    original = load_original(model)
    tokenizer = build_tokenizer(pieces, original)
    check_same(model, tokenizer, original, pieces)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / MODEL).write_bytes(model.read_bytes())
    return len(pieces.texts)


def load_original(model: Path) -> SentencePieceProcessor:
    """Raise ConversionError for a model that sentencepiece does not take, or that lacks a begin or end token."""
    from sentencepiece import SentencePieceProcessor

    try:
        original = SentencePieceProcessor(model_proto=model.read_bytes())
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConversionError(f"{model} cannot be read by sentencepiece ({reason}); download it again") from error
    if min(original.bos_id(), original.eos_id()) < 0:
        raise ConversionError(f"{model} has no begin or no end token; give the one that came with the weights")
    return original


def build_tokenizer(pieces: Pieces, original: SentencePieceProcessor) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=build_backend(pieces),
        bos_token=pieces.texts[original.bos_id()],
        eos_token=pieces.texts[original.eos_id()],
        add_bos_token=True,
        split_special_tokens=True,
        padding_side="left",
    )


def build_backend(pieces: Pieces) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer, models, normalizers

    vocabulary = {text: n for n, text in enumerate(pieces.texts)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges(pieces), byte_fallback=True))
    steps = [normalizers.Replace(" ", SPACE)]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), *steps] if pieces.prefix else steps)
    [unknown] = pieces.of(Kind.UNKNOWN)
    backend.decoder = piece_decoder(unknown, pieces.unknown, pieces.prefix)
    # the unknown piece is not among them: sentencepiece writes it out
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in pieces.of(Kind.CONTROL)])
    return backend


def merges(pieces: Pieces) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third, the best score first.

    sentencepiece takes the leftmost of equal scores. Equal are, in the published models, runs of spaces: what is left
    of one after its powers of two are merged gets shorter to the right, so that the longer left part comes first.
    """
    normal, found = pieces.of(Kind.NORMAL), []
    for text, n in normal.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in normal and right in normal:
                found.append((-pieces.scores[n], -len(left), -len(right), left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def rivals(pieces: Pieces) -> Iterator[str]:
    """Texts of three pieces in which two merges of one score compete, and the right one has the earlier rank."""
    normal, earlier = pieces.of(Kind.NORMAL), defaultdict(list)
    for left, right in merges(pieces):
        score = pieces.scores[normal[left + right]]
        yield from (left + right + last for last in earlier[score, right])
        earlier[score, left].append(right)


def check_same(
    model: Path, tokenizer: PreTrainedTokenizerBase, original: SentencePieceProcessor, pieces: Pieces
) -> None:
    """Raise ConversionError if the two give different ids or texts for samples, among them every piece."""
    ids = list(range(len(pieces.texts)))
    shuffled = random.Random(0).sample(ids, len(ids))
    parts = [row[start : start + 200] for row in (ids, shuffled) for start in range(0, len(row), 200)]
    texts = [*SAMPLES, *("".join(pieces.texts[n] for n in part) for part in parts)]
    texts += islice(rivals(pieces), MOST_RIVALS)
    for text in (text.replace(SPACE, " ") for text in texts):
        wanted = original.encode(text)
        parts.append(wanted)
        if tokenizer(text).input_ids != [original.bos_id(), *wanted]:
            raise ConversionError(_different(model, text))
    control = set(pieces.of(Kind.CONTROL).values())
    for part in parts:
        wanted = original.decode([n for n in part if n not in control])
        if tokenizer.decode(part, skip_special_tokens=True) != wanted:
            raise ConversionError(_different(model, wanted))


def _different(model: Path, text: str) -> str:
    return (
        f"{model} has rules that Hugging Face tokenizers cannot follow exactly, as in {text[:40]!r}; "
        "give the language model as a Hugging Face folder with its own tokenizer"
    )
