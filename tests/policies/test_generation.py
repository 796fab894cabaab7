"""Decoding from shared prefixes gives the logits of the plain forward, whatever is batched with whatever."""

from __future__ import annotations

import pytest
import torch

from fovea.policies.hf_vlm import HFVLM
from fovea.types import user
from tests.policies.plain import Plain, batch_of
from tests.policies.tiny_checkpoints import FAMILIES, VARIANTS, WORDS, build, picture

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=(*FAMILIES, *VARIANTS))
def folder(request, tmp_path_factory):
    return build(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def policy(folder):
    return HFVLM.load(folder)


@pytest.fixture(scope="module")
def plain(folder):
    return Plain(folder)


def prompts(policy):
    images = [[picture(0)], [picture(1, 140, 112), picture(2, 168, 56)], []]
    texts = ["How many circles?", "red or blue?", "a number"]
    return [policy.encode(user(text, len(shown)), shown) for text, shown in zip(texts, images)], images


def forced(policy, cohort, logits, rows):
    """Feed `rows` token by token; the logits (T, V) before each token of each row."""
    seen = [logits]
    for t in range(len(rows[0]) - 1):
        (logits,) = policy.decode([cohort], [torch.tensor([row[t] for row in rows])])
        seen.append(logits)
    return torch.stack(seen, 1)


@pytest.mark.support("shared_prefix", "multi_image")
def test_a_cohort_of_unequal_prompts_decodes_like_the_plain_forward(policy, plain):
    prefixes, images = prompts(policy)
    owners = [0, 0, 0, 1, 2, 2]
    rows = torch.randint(*WORDS, (6, 10), generator=torch.Generator().manual_seed(0)).tolist()
    cohort, logits = policy.prefill(prefixes, [[()] * 3, [()], [()] * 2], room=10)
    found = forced(policy, cohort, logits, rows)
    for r, n in enumerate(owners):
        with torch.no_grad():
            expected = plain.logits(prefixes[n], images[n], rows[r])
        assert (found[r] - expected).abs().max() <= 2e-5


def test_the_sampler_and_the_trainer_agree_on_log_probabilities(policy):
    prefixes, _ = prompts(policy)
    rows = torch.randint(*WORDS, (6, 20), generator=torch.Generator().manual_seed(1)).tolist()
    policy.temperature = 0.8
    cohort, logits = policy.prefill(prefixes, [[()] * 2] * 3, room=20)
    z = forced(policy, cohort, logits, rows) / policy.temperature
    sampled = z.index_fill(-1, torch.tensor(policy.banned_ids), float("-inf")).log_softmax(-1)
    sampled = sampled.gather(-1, torch.tensor(rows)[..., None])[..., 0]
    batch = batch_of([(p, rows[2 * n : 2 * n + 2]) for n, p in enumerate(prefixes)])
    trained = policy.evaluate(batch, frozenset({"logp"}))["logp"].detach()
    policy.temperature = 1.0
    assert (sampled - trained).abs().max() <= 1e-5


def test_rows_continue_from_what_they_already_hold(policy, plain):
    prefixes, images = prompts(policy)
    held = [[[20, 21, 22], []], [[30]]]
    cohort, logits = policy.prefill(prefixes[:2], held, room=3)
    tokens = [[40, 41, 42], [50, 51, 52], [60, 61, 62]]
    found = forced(policy, cohort, logits, tokens)
    for r, (n, before) in enumerate([(0, held[0][0]), (0, held[0][1]), (1, held[1][0])]):
        with torch.no_grad():
            expected = plain.logits(prefixes[n], images[n], [*before, *tokens[r]])[len(before) :]
        assert (found[r] - expected).abs().max() <= 2e-5


def test_dropping_rows_and_prompts_leaves_the_others_untouched(policy):
    prefixes, _ = prompts(policy)
    rows = torch.randint(*WORDS, (6, 8), generator=torch.Generator().manual_seed(2))
    cohort, logits = policy.prefill(prefixes, [[()] * 2] * 3, room=8)
    expected = forced(policy, cohort, logits, rows.tolist())
    cohort, logits = policy.prefill(prefixes, [[()] * 2] * 3, room=8)
    kept = torch.arange(6)
    for t, drop in enumerate([None, 1, None, 2, 3, None, None]):
        if drop is not None:
            inside = kept != drop
            cohort.keep(inside.nonzero()[:, 0])
            kept = kept[inside]
        (logits,) = policy.decode([cohort], [rows[kept, t]])
        assert (logits - expected[kept, t + 1]).abs().max() <= 2e-5
    assert cohort.R == 3 and len(cohort.prefix_k[0]) == 2


def test_several_cohorts_in_one_call_equal_one_by_one(policy):
    prefixes, _ = prompts(policy)
    first, second = [policy.prefill([p], [[()] * g], room=4) for p, g in zip(prefixes, (3, 2))]
    alone = [policy.prefill([p], [[()] * g], room=4) for p, g in zip(prefixes, (3, 2))]
    tokens = [torch.tensor([11, 12, 13]), torch.tensor([14, 15])]
    together = policy.decode([first[0], second[0]], tokens)
    for (cohort, _), t, found in zip(alone, tokens, together):
        (expected,) = policy.decode([cohort], [t])
        assert (found - expected).abs().max() <= 2e-5


def test_decoding_sees_new_weights_at_once(folder):
    policy = HFVLM.load(folder)
    prefix = policy.encode(user("a number", 0))
    cohort, _ = policy.prefill([prefix], [[()]], room=4)
    (before,) = policy.decode([cohort], [torch.tensor([20])])
    with torch.no_grad():
        for p in policy.parameters():
            p.mul_(1.05)
    cohort, _ = policy.prefill([prefix], [[()]], room=4)
    (after,) = policy.decode([cohort], [torch.tensor([20])])
    assert (before - after).abs().max() > 1e-3


def test_decoding_past_the_room_says_so(policy):
    cohort, _ = policy.prefill([policy.encode(user("a number", 0))], [[()]], room=1)
    policy.decode([cohort], [torch.tensor([20])])
    with pytest.raises(ValueError, match="room for no more"):
        policy.decode([cohort], [torch.tensor([20])])
