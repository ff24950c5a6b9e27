"""The published families, converted and run by this project, against everything recorded of the originals."""

import pytest
import torch
from originals import IMAGEBIND_LLM, V2, assert_close

from adapter_llm import processing
from adapter_llm.results import GenerationOptions

both = pytest.mark.parametrize("family", [V2, IMAGEBIND_LLM], indirect=True)
TOKENS = {V2: 2e-5, IMAGEBIND_LLM: 5e-5}  # limit on query tokens and features
LOGITS = 2e-4


def each_case(family):
    """Names and features of the cases whose files and inputs the folder has."""
    found = 0
    assert family.first  # or the test is skipped
    for case in family.cases:
        if family.weights(family.variant(case)) is not None and f"out.{case}.logits" in family.recorded:
            features = family.features(case)
            if features is not None:
                found += 1
                yield case, features
    assert found


@both
@torch.no_grad()
def test_features_and_query_tokens(family):
    for case, features in each_case(family):
        model = family.checkpoint(family.variant(case)).model
        if f"out.{case}.features" in family.recorded:
            assert_close(features, family.recorded[f"out.{case}.features"], TOKENS[family.name], f"{case} features")
        expected = family.recorded[f"out.{case}.visual_query"]
        assert_close(model.connector(features), expected, TOKENS[family.name], f"{case} query tokens")


@pytest.mark.parametrize("family", [V2], indirect=True)
@torch.no_grad()
def test_clip_tokens_and_their_projection(family):
    tokens = family.recorded["out.clip_tokens"]
    if family.has_clip:
        encoder = family.checkpoint(family.first).model.encoder
        found = encoder({"vision": family.recorded["in.images"][: len(tokens)].float()})["vision"]
        assert_close(found, tokens, 2e-5, "clip tokens")
    projected = [name for name in family.published if f"out.{name}.clip_projected" in family.recorded]
    for name in projected:
        if family.weights(name) is not None:
            connector = family.checkpoint(name).model.connector
            found = connector.input_norm(connector.input_proj(tokens.float()))
            assert_close(found, family.recorded[f"out.{name}.clip_projected"], 2e-5, f"{name} projected")


@both
@torch.no_grad()
def test_logits_of_every_step_and_hidden_states_of_every_layer(family):
    for case, features in each_case(family):
        model = family.checkpoint(family.variant(case)).model
        state, tokens = model.adapt(features), family.sequences(case)
        start, steps = family.cases[case]["prefill_length"], len(family.cases[case]["argmax_ids_per_step"][0])
        logits = model(tokens[:, :-1], state=state).logits[:, start - 1 :]
        assert_close(logits, family.recorded[f"out.{case}.logits"], LOGITS, f"{case} logits")
        best = [row[start:].tolist() for row in torch.cat([tokens[:, :start], logits.argmax(-1)], dim=1)]
        assert best == family.cases[case]["argmax_ids_per_step"], case
        assert logits.shape[1] == steps
        if f"out.{case}.prefill_hidden" in family.recorded:
            found = layer_outputs(model, tokens[:, :start], state)
            assert_close(found, family.recorded[f"out.{case}.prefill_hidden"], LOGITS, f"{case} hidden states")


def layer_outputs(model, tokens, state):
    """What every decoder layer hands on: (B, layers, T, D)."""
    outputs = []

    def keep(layer, given, output):
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep) for layer in model.llama.model.layers]
    model(tokens, state=state)
    for hook in hooks:
        hook.remove()
    return torch.stack(outputs, dim=1)


def answers(family, case, features, monkeypatch, **options):
    """Results of a case, asked through the pipeline's own path with the recorded token ids."""
    described = family.cases[case]
    pipe = family.pipeline(family.variant(case), **options)
    prompts = {str(row): ids for row, ids in enumerate(described["prompt_token_ids"])}
    monkeypatch.setattr(processing, "render", lambda tokenizer, config, question, has_media: prompts[question])
    chosen = GenerationOptions(max_new_tokens=described["max_gen_len"], temperature=described["temperature"])
    with torch.no_grad():
        state = pipe.model.adapt(features)
        ids = pipe.answerer.generate(list(prompts), state, [True] * len(prompts), chosen)
        results = pipe.answerer.answer(list(prompts), state, [True] * len(prompts), chosen)
    return pipe, ids, results


@both
def test_cached_generation_gives_the_recorded_ids_and_texts(family, monkeypatch):
    """Ragged batches, the limit of 512 tokens and the end token are cases like any other."""
    for case, features in each_case(family):
        described = family.cases[case]
        pipe, found, results = answers(family, case, features, monkeypatch)
        tokenizer = pipe.processor.tokenizer
        tokens, prompts = family.sequences(case), described["prompt_token_ids"]
        for row, (ids, result) in enumerate(zip(found, results, strict=True)):
            expected = tokens[row, len(prompts[row]) :][: described["max_gen_len"]].tolist()
            if tokenizer.eos_token_id in expected:
                expected = expected[: expected.index(tokenizer.eos_token_id)]
            ids = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
            assert ids == expected, f"{case}, row {row}"
            assert tokenizer.decode(ids, skip_special_tokens=True) == described["decoded_text"][row], case
            assert result.text == described["decoded_text"][row].strip()


@both
def test_streams_join_to_the_answer(family, monkeypatch):
    """The originals' tokenizer drops a space where a text begins, and only there; pieces are no beginnings."""
    most = 0
    for case, features in each_case(family):
        described = family.cases[case]
        if len(features) > 1:
            continue
        pipe = family.pipeline(family.variant(case))
        ids = described["prompt_token_ids"][0]
        monkeypatch.setattr(processing, "render", lambda *args, ids=ids: ids)
        state = pipe.model.adapt(features)
        options = {"state": state, "max_new_tokens": 60}
        for chosen in ({}, {"temperature": 1.0, "seed": 3}, {"temperature": 2.0, "seed": 7}):
            pieces = list(pipe.stream("x", **options, **chosen))
            assert "".join(pieces) == pipe.ask("x", **options, **chosen), case
            most = max(most, len(pieces))
    assert most > 1


@both
def test_a_batch_is_its_rows(family, monkeypatch):
    for case, features in each_case(family):
        if len(features) > 1:
            together = answers(family, case, features, monkeypatch)[1]
            described = family.cases[case]
            alone = []
            for row in range(len(features)):
                single = {**described, "prompt_token_ids": described["prompt_token_ids"][row : row + 1]}
                monkeypatch.setitem(family.cases, case, single)
                alone += answers(family, case, features[row : row + 1], monkeypatch)[1]
                monkeypatch.setitem(family.cases, case, described)
            end = family.pipeline(family.variant(case)).processor.tokenizer.eos_token_id
            cut = [[ids[: ids.index(end)] if end in ids else ids for ids in rows] for rows in (together, alone)]
            assert cut[0] == cut[1], case


@pytest.mark.parametrize("family", [V2], indirect=True)
def test_the_length_limit_is_the_originals_only_when_asked_for(family, monkeypatch):
    prompt = [1] + [5] * 508
    described = {"variant": family.first, "prompt_token_ids": [prompt], "max_gen_len": 9, "temperature": 0.0}
    monkeypatch.setitem(family.cases, "limit", described)
    features = family.recorded["out.clip_tokens"].float()[:1]
    _, ids, _ = answers(family, "limit", features, monkeypatch)
    assert len(ids[0]) <= 3
    monkeypatch.setitem(described, "prompt_token_ids", [prompt + [5] * 4])
    with pytest.raises(ValueError, match="a prompt has 513 tokens, and prompt and answer together may have 512"):
        answers(family, "limit", features, monkeypatch)
    _, ids, _ = answers(family, "limit", features, monkeypatch, faithful=False)
    assert len(ids[0]) > 3 or ids[0][-1] == 2
