"""The language-model stage: what it moves, what it leaves alone, and that it learns."""

import copy
import random
from dataclasses import replace

import folders
import pytest
import torch
from torch.nn import functional as F

from adapter_llm.config import PromptConfig
from adapter_llm.data import FIRST_WORD, Example
from adapter_llm.prompts import render
from adapter_llm.train import TrainConfig, batches, fit, parameter_groups

PROMPT = PromptConfig(system="You see a picture.")
ANSWERS = ("A dog.", "Rain.", "No.")


@pytest.fixture(scope="module")
def built(decoder):
    return folders.build(decoder)[0]


@pytest.fixture
def model(built):
    return copy.deepcopy(built)


@pytest.fixture(scope="module")
def examples():
    features = F.normalize(torch.randn(3, 7, 20, generator=torch.Generator().manual_seed(1)), dim=-1)
    return [Example(row, "What is this?", answer) for row, answer in zip(features, ANSWERS, strict=True)]


def cycle(examples):
    return lambda count: [examples[n % len(examples)] for n in range(count)]


def train(model, tokenizer, examples, save=None, output=None, evaluate=None, **settings):
    config = TrainConfig(**{"batch_size": 3, "save_every": 0, **settings})
    return fit(model, tokenizer, PROMPT, cycle(examples), config, save, output, evaluate)


def answer(model, tokenizer, example):
    ids = torch.tensor([render(tokenizer, PROMPT, example.question, has_media=True)])
    with torch.inference_mode():
        state = model.adapt(example.features[None])
    output = model.generate(ids, torch.ones_like(ids), state, max_new_tokens=8, do_sample=False)
    return tokenizer.decode(output[0, ids.shape[1] :])


def test_it_learns_to_answer(model, tokenizer, examples):
    """A random decoder, frozen, says what the adapter makes it say: one answer a picture, to the very end."""
    frozen = {k: v.clone() for k, v in model.state_dict().items() if k.startswith(("encoder.", "llama."))}
    trained = {k: v.clone() for k, v in model.state_dict().items() if k not in frozen}
    assert answer(model, tokenizer, examples[1]) != "Rain.<|im_end|>"
    losses = train(model, tokenizer, examples, steps=160, connector_rate=5e-3, tokens_rate=2e-2, gate_rate=2e-2)
    assert len(losses) == 160
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])
    assert answer(model, tokenizer, examples[1]) == "Rain.<|im_end|>"
    assert answer(model, tokenizer, examples[2]) == "No.<|im_end|>"
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in frozen.items())
    unmoved = [key for key, value in trained.items() if torch.equal(after[key], value)]
    assert not unmoved
    assert {key.split(".")[0] for key in trained} == {"connector", "adapter"}
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.llama.parameters())
    assert all(parameter.grad is None for parameter in model.encoder.parameters())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_first_loss_is_that_of_the_model_as_it_came(model, tokenizer, examples, number):
    """Cross entropy of the answer's tokens and its end alone, the first of them counting more than the others."""
    example = examples[number]
    asked = render(tokenizer, PROMPT, example.question, has_media=True)
    answered = [*tokenizer(example.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    ids = torch.tensor([asked + answered])
    with torch.inference_mode():
        logits = model(ids, torch.ones_like(ids), model.adapt(example.features[None])).logits[0]
    said = logits[len(asked) - 1 : -1].log_softmax(-1)[torch.arange(len(answered)), torch.tensor(answered)]
    weights = torch.tensor([FIRST_WORD] + [1.0] * (len(answered) - 1))
    expected = -float((said * weights).sum() / weights.sum())
    assert train(model, tokenizer, [example], steps=1)[0] == pytest.approx(expected, rel=1e-5)


def test_every_parameter_has_its_own_rate(model, tokenizer, examples):
    config = TrainConfig(connector_rate=1e-5, tokens_rate=2e-5, gate_rate=3e-5)
    connector, tokens, gates = parameter_groups(model, config)
    assert connector["params"] == list(model.connector.parameters())
    assert [id(p) for p in tokens["params"]] == [id(model.adapter.queries), id(model.adapter.scale)]
    assert [id(p) for p in gates["params"]] == [id(model.adapter.gates)]
    assert [group["lr"] for group in (connector, tokens, gates)] == [1e-5, 2e-5, 3e-5]
    assert "weight_decay" not in connector and tokens["weight_decay"] == gates["weight_decay"] == 0.0
    model.adapter.scale = None
    assert len(parameter_groups(model, config)[1]["params"]) == 1


def test_a_rate_of_zero_leaves_its_group_alone(model, tokenizer, examples):
    before = copy.deepcopy(model.state_dict())
    train(model, tokenizer, examples, steps=3, connector_rate=0.0, tokens_rate=0.0, gate_rate=1e-2)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {"adapter.gates"}


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 40])
def test_any_number_of_steps_will_do(model, tokenizer, examples, steps):
    """With 20 the schedule's rise of 5 % was one step long, and it divided by zero."""
    assert len(train(model, tokenizer, examples[2:], steps=steps, batch_size=1)) == steps


def test_a_seed_repeats_itself(built, tokenizer, examples):
    runs = []
    for seed in (5, 5, 6):
        model, rng = copy.deepcopy(built), random.Random(0)

        def sample(count, rng=rng):  # noise comes from torch's own numbers, as in the recipe
            chosen = [rng.choice(examples) for _ in range(count)]
            return [replace(e, features=e.features + 0.1 * torch.randn(7, 20)) for e in chosen]

        losses = fit(model, tokenizer, PROMPT, sample, TrainConfig(steps=12, batch_size=2, seed=seed, save_every=0))
        runs.append((losses, model.adapter.state_dict()))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert all(torch.equal(runs[0][1][key], runs[1][1][key]) for key in runs[0][1])


def test_every_step_has_its_own_gradient(built, tokenizer, examples):
    """Rates of 0 leave everything as it is, so the third gradient of an example is its first."""
    gradients = []
    for steps in (1, 3):
        model = copy.deepcopy(built)
        train(
            model,
            tokenizer,
            examples[:1],
            steps=steps,
            connector_rate=0.0,
            tokens_rate=0.0,
            gate_rate=0.0,
            clip_norm=1e9,
        )
        gradients.append(model.adapter.gates.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


def test_gradients_are_clipped(model, tokenizer, examples):
    train(model, tokenizer, examples, steps=1, clip_norm=1e-3)
    trained = [*model.connector.parameters(), *model.adapter.parameters()]
    assert float(torch.stack([p.grad.norm() for p in trained]).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_bfloat16_decoder_trains_float32_parts(model, tokenizer, examples):
    model.llama.to(torch.bfloat16)
    losses = train(model, tokenizer, examples, steps=4)
    assert all(loss == loss for loss in losses)
    assert {p.dtype for part in (model.connector, model.adapter) for p in part.parameters()} == {torch.float32}


@pytest.mark.parametrize("steps, every, expected", [(7, 3, [3, 6, 7]), (6, 3, [3, 6]), (4, 0, [4]), (2, 5, [2])])
def test_save_and_evaluate_are_called_on_time(model, tokenizer, examples, tmp_path, steps, every, expected):
    seen, saved = [], []
    gates = model.adapter.gates.detach().clone()

    def save(folder):
        saved.append(folder)
        assert not torch.equal(model.adapter.gates, gates)  # after the step, not before

    train(model, tokenizer, examples[2:], save, tmp_path, seen.append, steps=steps, save_every=every, gate_rate=0.1)
    assert seen == expected
    assert saved == [tmp_path] * len(expected)


def test_batches_give_every_example_of_a_pool_once():
    drawn = []

    def sample(count):
        pool = [Example(torch.empty(0), "?" * (n % 7), "." * (n % 5)) for n in range(count)]
        random.Random(len(drawn)).shuffle(pool)
        drawn.append(pool)
        return pool

    stream = batches(sample, 4, seed=0)
    for number in range(2):
        given = [next(stream) for _ in range(8)]
        assert len(drawn) == number + 1  # a pool of 8 batches is used up before the next is drawn
        assert all(len(batch) == 4 for batch in given)
        assert sorted(map(id, sum(given, []))) == sorted(map(id, drawn[number]))
        lengths = [sorted(len(e.question) + len(e.answer) for e in batch) for batch in given]
        assert sum(sorted(lengths), []) == sorted(sum(lengths, []))  # alike in length
        assert lengths != sorted(lengths)  # in random order
