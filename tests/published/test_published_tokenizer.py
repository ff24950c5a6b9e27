"""A converted tokenizer gives sentencepiece's ids and texts, and nothing else becomes a tokenizer."""

import itertools
import random

import pytest
from made_pieces import BYTES, CONTROL, NORMAL, RUNS, SPECIAL, UNKNOWN, UNUSED, USER_DEFINED, model, vocabulary
from sentencepiece import SentencePieceProcessor
from tokenizers import decoders
from transformers import AutoTokenizer, LlamaConfig

from adapter_llm.convert import pieces
from adapter_llm.convert import tokenizer as tokenizer_module
from adapter_llm.convert.errors import ConversionError
from adapter_llm.convert.tokenizer import convert_tokenizer

TEXTS = [
    "", " ", "   ", "\n", "\n\n  \n", "\t", " \t ", "a", " a", "  a", "a ", "a  b   c", "the picture is\n\n### x:",
    "<s>", "</s>", "</s> a", " <s>a</s>b<s>", "<unk>", "<0x41>", "<0xE8>x", "▁", "▁▁a", "a▁b ▁ c", "▁·", "▁¦", "▁¬ x",
    "é", "e\u0301", "日本語", "今日は🙂👩‍👩‍👧", "½ł", "łłł ł", "\x00a\x7f", "\u00a0\u3000\u2028\ufeff",
    "\ufffd\ufffe\uffff", "\U0010ffff", "http://a.b/c)##", "hahahahaha", "=====", "==========",
    *(" " * n + "a" for n in range(40)), *("a" + " " * n for n in range(40)),
]  # fmt: skip
PARTS = (
    "é 日 本 🙂 한 \u0301 ▁ a b the ing ha = == \n \t \x00 <s> </s> <unk> <0x41> · ¦ ¬ \ufffd \uffff \U000f0000"
).split(" ")
# around every boundary of the table of well-formed UTF-8
EDGES = bytes.fromhex("41 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 e1 ec ed ee ef f0 f1 f3 f4 f5 ff")


def save(folder, data):
    path = folder / "tokenizer.model"
    path.write_bytes(data)
    return path


def loaded(tmp_path, data):
    """The original and the tokenizer that plain transformers loads."""
    count = convert_tokenizer(save(tmp_path, data), tmp_path / "converted")
    original = SentencePieceProcessor(model_proto=data)
    assert count == len(original)
    return original, AutoTokenizer.from_pretrained(tmp_path / "converted")


@pytest.fixture(scope="module", params=["made", "adapter_v2", "imagebind_llm"])
def both(request, golden, tmp_path_factory):
    if request.param == "made":
        return loaded(tmp_path_factory.mktemp("made"), model())
    path = golden / request.param / "llama" / "tokenizer.model"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return loaded(tmp_path_factory.mktemp(request.param), path.read_bytes())


def assert_same_ids(both, texts):
    original, tokenizer = both
    for text in texts:
        assert tokenizer(text).input_ids == [original.bos_id(), *original.encode(text)], text


def assert_same_texts(both, rows):
    original, tokenizer = both
    for ids in rows:
        kept = [n for n in ids if not original.is_control(n)]
        assert tokenizer.decode(ids, skip_special_tokens=True) == original.decode(kept), ids


def byte_ids(original, data):
    return [original.piece_to_id(f"<0x{byte:02X}>") for byte in data]


def random_texts(seed, count=800):
    draw = random.Random(seed)
    ranges = [(0x20, 0x7F), (0x20, 0x300), (0x20, 0xD800), (0xE000, 0x110000)]
    for _ in range(count):
        length = draw.randrange(30)
        if draw.random() < 0.7:
            yield "".join(draw.choice([*PARTS, " ", "  "]) for _ in range(length))
        else:
            yield "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(length))


def test_ids(both):
    assert_same_ids(both, TEXTS)
    assert_same_ids(both, random_texts(1))


def test_texts_survive(both):
    original, tokenizer = both
    for text in [*TEXTS, *random_texts(2)]:
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == original.decode(ids) == text.replace("▁", " ")


def test_texts_of_any_ids(both):
    original, _ = both
    draw, everything = random.Random(3), range(len(original))
    high = byte_ids(original, range(0x80, 0x100))
    pools = [everything, high, [*high, *draw.sample(everything, 20)]]
    assert_same_texts(
        both, ([draw.choice(pool) for _ in range(draw.randrange(40))] for pool in pools for _ in range(400))
    )


def test_texts_that_are_cut_anywhere(both):
    original, _ = both
    for text in ("今日は🙂 ▁é½ a", "🙂🙂", "▁▁ x", "▁·▁¦▁¬"):
        ids = [*original.encode(text), *byte_ids(original, text.encode())]
        assert_same_texts(both, (ids[a:b] for a in range(len(ids)) for b in range(a, len(ids) + 1)))


def test_every_way_for_bytes_to_be_no_character(both):
    original, _ = both
    edges = byte_ids(original, EDGES)
    assert_same_texts(both, (list(ids) for n in (1, 2) for ids in itertools.product(edges, repeat=n)))
    assert_same_texts(both, (list(ids) for ids in itertools.product(edges[::2], edges, edges[2:11])))
    draw = random.Random(4)
    assert_same_texts(both, ([draw.choice(edges) for _ in range(draw.randint(4, 9))] for _ in range(1500)))


def test_unknown_and_special_tokens(both):
    original, tokenizer = both
    unknown, bos, eos = original.unk_id(), original.bos_id(), original.eos_id()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (bos, eos, None)
    assert_same_texts(both, [[unknown], [bos, unknown, eos], [unknown, unknown, 5, unknown], [bos, eos, bos]])
    word = original.encode("a")
    assert (
        tokenizer.decode([bos, *word, eos])
        == f"<s>{original.id_to_piece(word)[0].replace('▁', ' ')}" + ("a" if len(word) == 2 else "") + "</s>"
    )
    assert len(tokenizer) == tokenizer.vocab_size == len(original)


def test_a_text_cannot_end_itself(both):
    original, tokenizer = both
    assert original.eos_id() not in tokenizer("a</s>b").input_ids
    assert original.eos_id() in tokenizer("a</s>b", split_special_tokens=False).input_ids


def test_the_folder(tmp_path):
    original, tokenizer = loaded(tmp_path, model())
    folder = tmp_path / "converted"
    assert {path.name for path in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json", "tokenizer.model"}
    assert (folder / "tokenizer.model").read_bytes() == model()
    LlamaConfig(vocab_size=len(original)).save_pretrained(folder)  # transformers has a class of its own for LLaMA
    tokenizer.save_pretrained(tmp_path / "again")
    for again in (folder, tmp_path / "again"):
        both = original, AutoTokenizer.from_pretrained(again)
        assert both[1].padding_side == "left"  # as generation needs it
        assert_same_ids(both, TEXTS)
        assert_same_texts(both, [byte_ids(original, "a🙂".encode()[:-1]), [0, 1, 2, 3]])


def test_batches_have_the_begin_token_too(tmp_path):
    original, tokenizer = loaded(tmp_path, model())
    assert tokenizer(["a", " the  dog"]).input_ids == [[1, *original.encode(text)] for text in ("a", " the  dog")]
    assert tokenizer("a dog", add_special_tokens=False).input_ids == original.encode("a dog")


def test_settings_of_the_model(tmp_path):
    changes = {
        "plain": ({}, {3: 0}),  # no space in front
        "defaults": ({}, {3: None}),
        "unknown": ({44: "▁·⁇?"}, {}),
    }
    for name, (trainer, normalizer) in changes.items():
        (tmp_path / name).mkdir()
        both = loaded(tmp_path / name, model(trainer=trainer, normalizer=normalizer))
        assert_same_ids(both, TEXTS)
        assert_same_texts(both, [both[0].encode(text) for text in TEXTS])
        assert_same_texts(both, [[0], [0, 0, 300], byte_ids(both[0], b" a"), byte_ids(both[0], "▁a".encode())])


def test_more_control_tokens_and_another_order(tmp_path):
    first, last = ("[END]", 0.0, CONTROL), [("[BEGIN]", 0.0, CONTROL), ("[HOLE]", 0.0, CONTROL), ("[?.]", 0.0, UNKNOWN)]
    trainer = {40: 259, 41: 257, 42: 0, 45: "[?.]", 46: "[BEGIN]", 47: "[END]"}
    both = loaded(tmp_path, model([first, *BYTES, *last, *RUNS, *vocabulary()], trainer))
    assert (both[1].bos_token, both[1].eos_token_id) == ("[BEGIN]", 0)
    assert_same_ids(both, [*TEXTS, "[HOLE] a[END]"])
    assert_same_texts(both, [[0, 1, 258, 300, 1, 259, 301], [259], [300, 1, 301], [258, 300]])


def test_pieces_without_a_score_or_a_kind(tmp_path):
    """A score left out is 0, here the second best, and a kind left out is the normal one."""
    few = [("ab", 0.5, None), ("ba", None, None), ("bb", -0.5, NORMAL), ("a", -9.0, None), ("b", -9.5, None)]
    both = loaded(tmp_path, model([*SPECIAL, *BYTES, *few, ("▁", -10.0, None)]))
    assert_same_ids(both, ["aba", "bba", "abab", "bbab"])
    assert both[1].tokenize("aba") == ["▁", "ab", "a"]
    assert both[1].tokenize("bba") == ["▁", "b", "ba"]


def test_leftmost_of_equal_scores(tmp_path):
    pair = [("aa", -1.0, NORMAL), ("a", -9.0, NORMAL), ("▁", -9.5, NORMAL), ("aaa", -1.0, NORMAL)]
    both = loaded(tmp_path, model([*SPECIAL, *BYTES, *pair]))
    assert_same_ids(both, ["a" * n for n in range(30)])


def test_equal_scores_that_no_order_can_settle(tmp_path):
    circle = [
        ("ab", -1.0, NORMAL),
        ("ba", -1.0, NORMAL),
        ("a", -9.0, NORMAL),
        ("b", -9.5, NORMAL),
        ("▁", -10.0, NORMAL),
    ]
    refused(tmp_path, model([*SPECIAL, *BYTES, *circle]), r"rules that Hugging Face tokenizers cannot follow .*'bab'")


def test_pieces_made_of_what_is_no_piece(tmp_path):
    pair = [("qz", -1.0, NORMAL), ("▁", -10.0, NORMAL)]
    refused(tmp_path, model([*SPECIAL, *BYTES, *pair]), "rules that Hugging Face tokenizers cannot follow")


def test_a_tokenizer_that_writes_other_texts_is_not_saved(tmp_path, monkeypatch):
    """No rule is known that would get there; it is what an unknown one would run into."""
    monkeypatch.setattr(tokenizer_module, "piece_decoder", lambda *args: decoders.ByteFallback())
    refused(tmp_path, model(), "rules that Hugging Face tokenizers cannot follow")


def refused(tmp_path, data, sentence):
    path = save(tmp_path, data)
    with pytest.raises(ConversionError, match=sentence) as caught:
        convert_tokenizer(path, tmp_path / "converted")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "converted").exists()


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 99, b"<!DOCTYPE html><html>...", b"PK\3\4" + b"x" * 99, b"\xff" * 99, b"\x0a"]
)
def test_other_files(tmp_path, data):
    refused(tmp_path, data, "not a complete sentencepiece model, as LLaMA's tokenizer.model is; download it again")


def test_downloads_that_broke_off(tmp_path):
    whole = model()
    cuts = random.Random(5).sample(range(len(whole)), 60)
    for cut in [*cuts, *range(len(whole) - 40, len(whole))]:
        with pytest.raises(ConversionError, match="sentencepiece"):
            convert_tokenizer(save(tmp_path, whole[:cut]), tmp_path / "converted")
    refused(tmp_path, whole + b"\x0a\xff", "not a complete sentencepiece model")
    refused(tmp_path, whole[: whole.rindex(b"\x1a")], "not a complete sentencepiece model")
    refused(tmp_path, b"\x8a" + b"\x80" * 10 + b"\0" + whole[1:], "not a complete sentencepiece model")


def test_files_far_too_large_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "LARGEST", len(model()) - 1)
    refused(tmp_path, model(), "not a complete sentencepiece model")


def test_no_file(tmp_path):
    with pytest.raises(ConversionError, match=r"tokenizer.model cannot be read \(No such file"):
        convert_tokenizer(tmp_path / "tokenizer.model", tmp_path / "converted")


@pytest.mark.parametrize("line", [b"IQ== 0\nIg== 1\n", b"4pWU4pWQ4pWQ 99\r\n"])
def test_the_tokenizer_of_llama_3(tmp_path, line):
    refused(tmp_path, line * 50, "a tiktoken vocabulary, as LLaMA 3 has it.*give that language model as a Hugging Face")


WRONG = {
    "made by byte-pair": dict(trainer={3: 1}),
    "made by byte-pair encoding": dict(trainer={3: None}),
    "pieces for the 256 bytes": dict(pieces=[*SPECIAL, *vocabulary()], trainer={35: 0}),
    "pieces for the 256": dict(pieces=[*SPECIAL, *BYTES[:-1], *vocabulary()]),
    "has a piece twice": dict(pieces=[*SPECIAL, *BYTES, *vocabulary(), ("a", -3.0, NORMAL)]),
    "not have one unknown": dict(pieces=[*SPECIAL[1:], *BYTES, *vocabulary()]),
    "have one unknown piece": dict(pieces=[*SPECIAL, *BYTES, *vocabulary(), ("<u>", 0.0, UNKNOWN)]),
    "its user defined": dict(pieces=[*SPECIAL, *BYTES, *vocabulary(), ("[X]", 0.0, USER_DEFINED)]),
    "that are not used": dict(pieces=[*SPECIAL, *BYTES, *vocabulary(), ("[X]", 0.0, UNUSED)]),
    "rewrites characters": dict(normalizer={2: b"\x04\0\0\0\0\0\0\0"}),
    "removes spaces": dict(normalizer={4: 1}),
    "removes": dict(normalizer={4: None}),
    "writes spaces": dict(normalizer={5: 0}),
    "spaces in another way": dict(trainer={24: 1}),
    "begin or no end": dict(trainer={46: "<none>"}),
    "no end token": dict(pieces=[*SPECIAL[:2], ("</s>", 0.0, NORMAL), *BYTES, *vocabulary()]),
    "not a complete": dict(pieces=[*SPECIAL, *BYTES, *vocabulary(), (b"\xff", 0.0, NORMAL)]),
    "not a complete sentencepiece": dict(pieces=[*SPECIAL, *BYTES, *vocabulary(), ("x!", 0.0, 9)]),
    "cannot be read by sentencepiece": dict(pieces=[*SPECIAL, *BYTES, *vocabulary(), ("", -3.0, NORMAL)]),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_models_of_other_kinds(tmp_path, sentence):
    refused(tmp_path, model(**WRONG[sentence]), sentence)
