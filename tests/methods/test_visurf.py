"""ViSurf: the worked numbers of its three controls, and what its label does to the gradient."""

import pytest
import torch

from fovea.batch import Streams, collate
from fovea.methods.grpo import GRPO
from fovea.methods.visurf import ViSurf
from fovea.types import Score
from tests.methods.test_methods import adv_of, answers

PURE = ViSurf(beta=0.0)


def joined(drawn, label, parts=None, length=2):
    """A group of drawn answers and one label."""
    group = answers(*drawn, length=length)
    (gold,) = answers(Score(float(label), parts or {}), role="gold", length=length).episodes
    group.episodes.append(gold)
    if parts is not None:
        for e in group.episodes[:-1]:
            e.score = Score(e.score.value, {"thinking": 1.0})
    return group


def credit(method, drawn, label, **more):
    adv_BT, batch = adv_of(method, [joined(drawn, label, **more)])
    return adv_BT[:, 0].tolist(), batch


@pytest.mark.parametrize(
    "drawn, label, expected",
    [
        ((0, 0, 0, 0), 1, (-0.4472, -0.4472, -0.4472, -0.4472, 1.7889)),
        ((1, 0, 0, 0), 1, (1.7320, -0.5773, -0.5773, -0.5773, 0.0)),
        ((0.5, 0.2, 0, 0), 1, (0.3792, -0.3318, -0.8059, -0.8059, 1.5643)),
        ((1, 1, 1, 1), 1, (0.0, 0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_the_cards_numbers(drawn, label, expected):
    assert credit(PURE, drawn, label)[0] == pytest.approx(expected, abs=1e-4)


def test_without_smoothing_the_label_trains_on():
    found, _ = credit(ViSurf(beta=0.0, smoothing=False), (1, 0, 0, 0), 1)
    assert found == pytest.approx((1.0954, -0.7303, -0.7303, -0.7303, 1.0954), abs=1e-4)


@pytest.mark.parametrize("drawn", [(1.2, 1.2, 1.2), (0.1, 1.3, 0.7), (2.0, 0.3, 0.3, 0.1)])
def test_a_label_that_is_reached_is_off_to_the_last_bit(drawn):
    found, _ = credit(PURE, drawn, 1)
    assert found[-1] == 0.0 and (len(set(drawn)) > 1 or found == [0.0] * len(found))


@pytest.mark.parametrize("drawn", [(1, 0, 0, 0), (0.2, 1.0, 0.4), (3.0, 1.0, 1.0, 0.0, 2.0)])
def test_with_the_label_off_only_the_spread_differs_from_grpo(drawn):
    """Factor √(G/(G−1)) on the drawn answers, whose mean stays the group's."""
    found, _ = credit(PURE, drawn, 1)
    plain, _ = adv_of(GRPO(beta=0.0), [answers(*drawn)])
    G = len(drawn)
    assert found[:-1] == pytest.approx([float(a) * (G / (G - 1)) ** 0.5 for a in plain[:, 0]], rel=1e-5)


@pytest.mark.parametrize("earned", [0.0, 1.0])
def test_the_label_earns_nothing_for_a_thought(earned):
    """Its own verdict 1 + 0.5 earned counts as 1 whatever the verifier gave; with the control left out as 1.5."""
    method = ViSurf(beta=0.0, thinking=("thinking", 0.5))
    bare, _ = credit(method, (0.5, 0.5, 0.5), 1 + 0.5 * earned, parts={"thinking": earned})
    assert bare == credit(PURE, (0.5, 0.5, 0.5), 1)[0]
    paid, _ = credit(
        ViSurf(beta=0.0, thinking=("thinking", 0.5), label_thinks=True), (0.5, 0.5, 1.2), 1 + 0.5 * earned, parts={"thinking": earned}
    )
    assert paid == credit(PURE, (0.5, 0.5, 1.2), 1.5)[0]


def test_an_unscored_label_leaves_its_group_to_plain_grpo():
    group = joined((1, 0, 0), 0)
    group.episodes[-1].score = Score.failed("cut")
    found, batch = adv_of(PURE, [group])
    assert batch.B == 3
    assert torch.allclose(found, adv_of(GRPO(beta=0.0), [answers(1, 0, 0)])[0])


def test_smoothing_looks_at_each_group_alone():
    adv_BT, _ = adv_of(PURE, [joined((1, 0, 0, 0), 1), joined((0, 0, 0, 0), 1)])
    assert adv_BT[:, 0].tolist() == pytest.approx([1.7320, -0.5773, -0.5773, -0.5773, 0.0, *[-0.4472] * 4, 1.7889], abs=1e-4)


def losses(method, drawn, label, shift=0.0):
    group = joined(drawn, label)
    batch = collate([group], dtype=torch.float64)
    batch.adv_BT = method.credit(batch)
    batch.totals = batch.count(8)
    logp = (batch.logp_old_BT + shift * batch.given_B[:, None]).requires_grad_()
    loss, metrics = method.loss(Streams({"logp": logp}), batch)
    loss.backward()
    return logp.grad, metrics


def test_at_the_first_update_the_label_is_weighted_supervised_finetuning():
    """loss = (1/5) Σ_i mean_t −A_i log π, so each of the label's two units gets −A_y / (2 · 5)."""
    grad, metrics = losses(PURE, (0, 0, 0, 0), 1)
    assert grad[-1].tolist() == pytest.approx([-1.7889 / 10] * 2, abs=1e-4)
    assert metrics["policy/label_frac"] == 1.0
    off, metrics = losses(PURE, (1, 0, 0, 0), 1)
    assert not off[-1].any() and metrics["policy/label_frac"] == 0.0


def test_the_clip_stops_a_label_that_has_grown_and_can_be_left_out():
    assert not losses(PURE, (0, 0, 0), 1, shift=0.3)[0][-1].any()
    assert losses(ViSurf(beta=0.0, clip_label=False), (0, 0, 0), 1, shift=0.3)[0][-1].all()


def test_the_labels_surprise_is_no_entropy():
    group = joined((1, 0, 0), 1)
    for e in group.episodes:
        e.segments[0].logp_old -= 9.0 if e.role == "gold" else 0.5
    batch = collate([group], dtype=torch.float64)
    batch.adv_BT, batch.totals = PURE.credit(batch), batch.count(8)
    _, metrics = PURE.loss(Streams({"logp": batch.logp_old_BT.clone().requires_grad_()}), batch)
    assert metrics["policy/entropy"] == pytest.approx(0.5)
