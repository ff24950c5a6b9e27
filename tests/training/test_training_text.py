"""A text trunk learns another encoder's sentences: words first, then blocks, and the padding at the end."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from adapter_llm.train_text import (
    Bag,
    DistilConfig,
    _become_bag,
    distil,
    distil_text,
    draw,
    encode_short,
    fit_words,
    is_text,
    start_words,
    text_trunk,
)
from imagebind_encoder.config import EncoderConfig, Modality, TextStemConfig, TrunkConfig
from imagebind_encoder.media.text import tokenize
from imagebind_encoder.modeling import ImageBindEncoder

VOCABULARY, CONTEXT, WIDTH, E, HEADS, TOKENS = 31, 11, 12, 13, 3, 2
STEM = TextStemConfig(vocab_size=VOCABULARY, context_length=CONTEXT)
SHORT = DistilConfig(word_steps=3, word_batch=16, steps=3, batch_size=8, warm_up=1)


def made_encoder():
    trunk = TrunkConfig(width=WIDTH, depth=2, heads=HEADS, num_cls_tokens=TOKENS, mlp_ratio=2.0, stem=STEM)
    torch.manual_seed(5)
    return ImageBindEncoder(EncoderConfig(E, {Modality.TEXT: trunk}))


def made_texts(count=40):
    """Ids (count, CONTEXT): start, 1 to 8 words, end, zeros."""
    ids = torch.zeros(count, CONTEXT, dtype=torch.int32)
    for row in ids:
        words = int(torch.randint(1, CONTEXT - 2, ()))
        row[0], row[words + 1] = VOCABULARY - 2, VOCABULARY - 1
        row[1 : words + 1] = torch.randint(1, VOCABULARY - 2, (words,))
    return ids


@pytest.fixture
def vectors():
    """Of a space with no more directions than the trunk has."""
    return torch.randn(VOCABULARY, WIDTH) @ torch.randn(WIDTH, E)


@pytest.fixture
def texts():
    return made_texts()


@pytest.fixture
def targets(texts, vectors):
    """Sentences that are nothing but their words."""
    return F.normalize((vectors[texts.long()] * is_text(texts)[..., None]).sum(1), dim=-1)


def agreement(encoder, ids, targets):
    with torch.inference_mode():
        return (F.normalize(encoder({"text": ids})[Modality.TEXT], dim=-1) * targets[:, None]).sum(-1).mean(0)


def test_the_default_trunk_fits_into_its_budget():
    trunk = text_trunk()
    assert trunk.num_cls_tokens == 2
    encoder = EncoderConfig(384, {Modality.TEXT: trunk})
    with torch.device("meta"):
        parameters = ImageBindEncoder(encoder).state_dict().values()
    assert 2 * sum(p.numel() for p in parameters) < 30e6


def test_words_start_where_the_sentence_encoder_has_them(vectors):
    """Nothing is lost: the head gives each token's own vector back."""
    encoder = made_encoder()
    start_words(encoder, vectors)
    words, basis = encoder.stems["text"].token_embedding.weight, encoder.heads["text"].projection.weight
    assert basis.shape == (E, WIDTH) and F.cosine_similarity(words @ basis.T, vectors).min() > 0.9999
    assert words.std().item() == pytest.approx(0.3, rel=1e-3)
    assert encoder({"text": made_texts(3)})[Modality.TEXT].norm(dim=-1).allclose(torch.ones(3, TOKENS))


def test_fewer_directions_are_the_principal_ones():
    encoder = ImageBindEncoder(replace_width(4))
    strong = torch.randn(VOCABULARY, E) * torch.tensor([9.0, 8, 7, 6] + [0.01] * (E - 4))
    start_words(encoder, strong)
    basis = encoder.heads["text"].projection.weight
    assert basis.T.matmul(basis).allclose(torch.eye(4), atol=1e-5)
    assert basis[:4].square().sum().item() == pytest.approx(4, abs=1e-3)


def replace_width(width):
    config = made_encoder().config
    return EncoderConfig(E, {Modality.TEXT: replace(config.trunks[Modality.TEXT], width=width, heads=2)})


def test_blocks_begin_as_the_bag(texts, targets, vectors):
    """After the words are fitted the encoder is the bag, but for the end token that the pool is added to."""
    encoder = made_encoder()
    start_words(encoder, vectors)
    before = agreement(encoder, texts, targets)[0]
    fit_words(encoder, texts, targets, replace(SHORT, word_steps=60, word_rate=0.03))
    after = agreement(encoder, texts, targets)[0]
    assert after > 0.9 and after > before + 0.1


def test_a_bag_becomes_the_blocks_whatever_they_were(texts):
    encoder = made_encoder()
    for parameter in encoder.trunks["text"].parameters():
        torch.nn.init.normal_(parameter, std=0.5 if parameter.ndim == 2 else 0.0)
    for block in encoder.trunks["text"].blocks:
        torch.nn.init.ones_(block.attention_norm.weight)
        torch.nn.init.ones_(block.mlp_norm.weight)
    bag = Bag(encoder)
    torch.nn.init.normal_(bag.words.weight)
    torch.nn.init.normal_(bag.keys)
    with torch.inference_mode():
        expected = bag(texts.long())
    _become_bag(encoder, bag)
    with torch.inference_mode():
        same = (expected * encode_short(encoder, texts.long())[:, 0]).sum(-1)
    assert same.min() > 0.99


def test_a_bag_knows_no_order_and_no_padding():
    bag = Bag(made_encoder())
    torch.nn.init.normal_(bag.keys)
    one = torch.tensor([[29, 3, 4, 5, 30, 0, 0, 0]])
    other = torch.tensor([[29, 5, 3, 4, 30]])
    assert bag(one).allclose(bag(other), atol=1e-6)
    assert not bag(one).allclose(bag(torch.tensor([[29, 5, 3, 6, 30]])), atol=1e-3)


@pytest.mark.parametrize("shape", ["(M, E)", "(M, N, E)"])
def test_blocks_learn_what_words_cannot_say(texts, shape):
    """Targets that turn with the first word's position in the alphabet: the same words in another order differ."""
    torch.manual_seed(6)
    targets = F.normalize(torch.randn(VOCABULARY, E), dim=-1)[texts[:, 1].long()]
    if shape == "(M, N, E)":
        targets = torch.stack([targets, -targets], dim=1)
    encoder, losses = made_encoder(), []
    config = replace(SHORT, steps=150, batch_size=20, rate=0.01, warm_up=5, full_share=0.3)
    distil(encoder, texts, targets, config, lambda step, loss: losses.append(loss))
    assert len(losses) == 150 and losses[-1] < 0.3 < losses[0]
    with torch.inference_mode():
        features = encoder({"text": texts})[Modality.TEXT]
    wanted = targets if targets.ndim == 3 else targets[:, None]
    found = F.cosine_similarity(features, wanted, dim=-1).mean(0)
    assert found.shape == (TOKENS,) and found.min() > 0.7, "the padded text is what was trained last"


def test_the_last_steps_see_the_whole_context(texts, targets, monkeypatch):
    lengths = []
    monkeypatch.setattr(
        "adapter_llm.train_text.encode_short",
        lambda encoder, ids: lengths.append(ids.shape[1]) or encode_short(encoder, ids),
    )
    short = texts[texts.argmax(-1) < 5]
    distil(made_encoder(), short, targets[texts.argmax(-1) < 5], replace(SHORT, steps=10, full_share=0.2))
    assert max(lengths[:8]) <= 5 and lengths[8:] == [CONTEXT] * 2


def test_a_short_text_has_the_first_feature_of_the_padded_one(texts):
    encoder = made_encoder()
    ids = texts[texts.argmax(-1) < 6].long()
    with torch.inference_mode():
        full = F.normalize(encoder({"text": ids})[Modality.TEXT], dim=-1)
        short = encode_short(encoder, ids[:, :6])
        assert short.shape == full.shape == (len(ids), TOKENS, E)
        assert short[:, 0].allclose(full[:, 0], atol=1e-5)
        assert encode_short(encoder, ids).allclose(full, atol=1e-5)


def test_only_text_is_trained(texts, targets):
    encoder = made_encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    fit_words(encoder, texts, targets, SHORT)
    distil(encoder, texts, targets, SHORT)
    after = encoder.state_dict()
    assert after.keys() == before.keys()
    same = {name for name in after if after[name].equal(before[name])}
    assert same == {"postprocessors.text.log_scale"}


def test_every_text_is_drawn_once_an_epoch_with_little_padding(texts):
    batches = draw(texts, 8, seed=3)
    for _ in range(2):
        seen = []
        for _ in range(5):
            chosen, ids = next(batches)
            assert ids.dtype == torch.int64 and ids.shape == (8, int(texts[chosen].argmax(-1).max()) + 1)
            assert ids.equal(texts[chosen, : ids.shape[1]].long())
            seen += chosen.tolist()
        assert sorted(seen) == list(range(40))
    first, again, other = (next(draw(texts, 8, seed))[0] for seed in (3, 3, 4))
    assert first.equal(again) and not first.equal(other)


def test_what_is_text():
    ids = torch.tensor([[29, 3, 30, 0], [29, 30, 30, 2]])
    assert is_text(ids).int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]


def test_a_trunk_is_distilled_from_texts_in_one_call():
    """The words of the real vocabulary, a sentence encoder that counts letters."""
    letters = torch.randn(128, 6)

    def sentences(texts):
        return F.normalize(torch.stack([letters[[ord(c) % 128 for c in f"{text}."]].sum(0) for text in texts]), dim=-1)

    texts = ["a dog", "two cats", "a dog and a cat", "a bird on a branch"]
    trunk = TrunkConfig(width=4, depth=1, heads=1, num_cls_tokens=TOKENS)
    steps = []
    config = replace(SHORT, word_steps=25, steps=15, word_rate=0.05, rate=0.02, full_share=0.4)
    encoder = distil_text(texts, sentences, trunk, config, lambda step, loss: steps.append(step))
    assert steps == [*range(25), *range(15)] and not encoder.training
    assert encoder.config == EncoderConfig(6, {Modality.TEXT: trunk})
    assert agreement(encoder, tokenize(texts), sentences(texts)).min() > 0.7
