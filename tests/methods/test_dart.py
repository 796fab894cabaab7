"""DART: advantages over steps, uncertain steps, truncated weights, by hand."""

import pytest
import torch

from fovea.batch import Streams, collate
from fovea.checks import check_method
from fovea.math.entropy import at_least_quantile
from fovea.math.ratios import behaviour_weight
from fovea.methods.dart import DART, SCRIPT, step_advantage
from fovea.methods.grpo import GRPO
from fovea.methods.gspo import GSPO
from fovea.types import Context, Episode, Group, Prefix, Score, Segment, Task, user

TASK = Task("t", "toy", user("?"))
LENGTHS = (2, 3, 5, 10)


def row(key, turn=(0, 0), behaviour=0.0):
    n = len(turn)
    zeros = torch.zeros(n, dtype=torch.float64)
    return Segment(
        Prefix(key, data=key), torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool), zeros, torch.tensor(turn),
        torch.zeros(n, dtype=torch.long), logp_behaviour=zeros + behaviour,
    )  # fmt: skip


def batch_of(*groups, behaviour=0.0):
    """Groups of (score, steps) pairs; every step is a row of two units."""
    made = [
        Group(TASK, [
            Episode(f"{g}/{i}", TASK, segments=[row(f"{g}/{i}/{k}", behaviour=behaviour) for k in range(steps)], score=Score(score))
            for i, (score, steps) in enumerate(members)
        ])
        for g, members in enumerate(groups)
    ]  # fmt: skip
    return collate(made, Context(), dtype=torch.float64)


def credited(method, batch, entropy_B=None, reference=0.0):
    stored = {"entropy": (torch.zeros(batch.B) if entropy_B is None else torch.tensor(entropy_B))[:, None].expand(batch.B, 2).double()}
    batch.stored = Streams({**stored, "reference/logp": torch.zeros_like(batch.mask_BT) + reference}, "before")
    batch.adv_BT = method.credit(batch)
    batch.totals = batch.count(64)
    return batch


def loss_of(method, batch, log_ratio=0.0):
    logp = torch.full(batch.mask_BT.shape, log_ratio, dtype=torch.float64, requires_grad=True)
    loss, _ = method.loss(Streams({"logp": logp}), batch)
    loss.backward()
    return loss.item(), logp.grad


@pytest.mark.parametrize(
    ("method", "won", "lost"),
    [
        (DART(), 2.9240, -0.3249),
        (DART(ddof=0), 3.0, -1 / 3),
        (DART(over="episodes", ddof=0), 1.7320, -0.5773),
        (DART(over="episodes"), 1.5, -0.5),
    ],
)
def test_the_mean_is_over_steps(method, won, lost):
    batch = credited(method, batch_of([(float(i == 0), n) for i, n in enumerate(LENGTHS)]))
    assert torch.allclose(batch.adv_BT[:2], torch.tensor(won, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(batch.adv_BT[2:], torch.tensor(lost, dtype=torch.float64), atol=1e-4)
    assert batch.B == 20


def test_steps_within_a_row_count_as_rows_do():
    def group(*episodes):
        return collate([Group(TASK, [Episode(str(i), TASK, segments=s, score=Score(float(i == 0))) for i, s in enumerate(episodes)])])

    apart = credited(DART(), group([row("a"), row("b")], [row("c"), row("d"), row("e")]))
    joined = group([row("a", (0, 0, 1, 1))], [row("c", (0, 0, 1, 1, 2, 2))])
    joined.stored = Streams({"entropy": torch.zeros_like(joined.mask_BT), "reference/logp": torch.zeros_like(joined.mask_BT)}, "before")
    adv = DART().credit(joined)
    assert [float(adv[0, 0]), float(adv[1, 5])] == pytest.approx([float(apart.adv_BT[0, 0]), float(apart.adv_BT[2, 0])])


def test_episodes_that_are_no_members_count_nowhere():
    adv = step_advantage(
        torch.tensor([1.0, 0.0, 9.0]).double(), torch.zeros(3, dtype=torch.long), torch.tensor([True, True, False]), torch.tensor([1, 3, 5])
    )
    assert adv.tolist() == pytest.approx([1.5, -0.5, 0.0], abs=1e-5)


def test_the_most_certain_steps_do_not_train():
    assert at_least_quantile(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]), torch.zeros(5), 0.2).tolist() == [False, True, True, True, True]
    batch = credited(DART(), batch_of([(1.0, 2), (0.0, 3)], [(1.0, 1), (0.0, 1)]), [0.1, 0.2, 0.3, 0.4, 0.5, 9.0, 8.0])
    assert (batch.mask_BT.sum(1) > 0).tolist() == [False, True, True, True, True, True, False]  # by group
    assert batch.totals.turns == 5 and batch.adv_BT[0].abs().sum() == 0
    assert credited(DART(quantile=0.0), batch_of([(1.0, 2), (0.0, 3)])).totals.turns == 5
    assert "entropy" not in DART(quantile=0.0).needs.before


@pytest.mark.parametrize(("gap", "weight"), [(0.5, 1.0), (-0.5, 0.6065)])
def test_truncated_weights_by_hand(gap, weight):
    zeros = torch.zeros(1, 2)
    assert behaviour_weight(zeros + gap, zeros, torch.ones(1, 2), "token", 1.0)[0, 0] == pytest.approx(weight, abs=1e-4)
    scores = [(1.0, 1), (0.0, 1)]
    plain = loss_of(DART(beta=0.0), credited(DART(beta=0.0), batch_of(scores)))
    seen = loss_of(DART(beta=0.0), credited(DART(beta=0.0), batch_of(scores, behaviour=-gap)))
    assert torch.allclose(seen[1], plain[1] * weight, atol=1e-4)  # no gradient of w itself


def test_with_equal_engines_the_loss_is_grpos():
    scores = [(1.0, 1), (0.0, 1), (0.0, 1)]
    ours = loss_of(DART(quantile=0.0), credited(DART(quantile=0.0), batch_of(scores), reference=-0.3), 0.1)
    grpo = GRPO(beta=0.1, eps_lo=0.2, eps_hi=0.28, aggregation="seq-mean-token-mean", kl="k3", std_eps=1e-6)
    theirs = loss_of(grpo, credited(grpo, batch_of(scores), reference=-0.3), 0.1)
    assert ours[0] == pytest.approx(theirs[0]) and torch.allclose(ours[1], theirs[1])


def test_a_group_without_a_success_teaches_nothing_until_one_is_given():
    assert credited(DART(), batch_of([(0.0, 2), (0.0, 3)])).adv_BT.abs().max() == 0
    assert credited(DART(), batch_of([(0.0, 2), (1.0, 3)])).adv_BT.abs().max() > 0


def test_the_script_is_gspo_with_a_dual_clip():
    scores, method = [(1.0, 1), (0.0, 1), (0.0, 1)], DART(**SCRIPT)
    gspo = GSPO(eps_lo=0.1, eps_hi=0.28, beta=0.1, std_eps=1e-6)
    for log_ratio in (0.05, 0.4):
        ours = loss_of(method, credited(method, batch_of(scores)), log_ratio)
        theirs = loss_of(gspo, credited(gspo, batch_of(scores)), log_ratio)
        assert ours[0] == pytest.approx(theirs[0]) and torch.allclose(ours[1], theirs[1])
    far = loss_of(method, credited(method, batch_of(scores)), 3.0)[0]
    assert far < loss_of(gspo, credited(gspo, batch_of(scores)), 3.0)[0]  # e³ > 10, so bad steps cost no more than ten times


def test_the_contract_holds():
    check_method(DART())
    check_method(DART(**SCRIPT))
    for wrong in ({"quantile": 1.0}, {"behaviour": "half"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DART(**wrong)
