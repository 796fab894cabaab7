"""PAPO and VPPO: what the masked reading adds, by hand and against plain loops."""

import math
from dataclasses import replace

import pytest
import torch

from fovea.batch import Streams, collate
from fovea.math.perception import MASKED
from fovea.methods.dapo import DAPO
from fovea.methods.grpo import GRPO
from fovea.methods.papo import PAPO
from fovea.methods.vppo import VPPO
from fovea.types import Context
from tests.methods.test_methods import answers, credited, loss_of
from tests.methods.toy import Toy, rollout

BARE = {"beta": 0.0, "eps_hi": 0.28, "dual_clip": 0.0}


def gradient(method, policy, batch):
    policy.zero_grad()
    loss, metrics = loss_of(method, policy, batch)
    loss.backward()
    return loss.item(), policy.weight_DV.grad.clone(), metrics


def of_two_tokens(method, logp, masked, step=0):
    """One group of two answers of equal score, whose first answer has these readings."""
    batch = collate([answers(1.0, 1.0)], Context(step=step, total_steps=10), dtype=torch.float64)
    both = torch.tensor([logp, [1.0, 1.0]], dtype=torch.float64).log()
    batch.logp_old_BT = batch.logp_behaviour_BT = both
    batch.stored = Streams({MASKED: torch.tensor([masked, [1.0, 1.0]], dtype=torch.float64).log()}, "before")
    batch.adv_BT = method.credit(batch)
    batch.drop(torch.tensor([False, True]))
    batch.totals = batch.count(10)
    out = both.clone().requires_grad_()
    loss, metrics = method.loss(Streams({"logp": out}), batch)
    loss.backward()
    return loss.item(), out.grad, metrics


def test_papos_terms_for_two_tokens_by_hand():
    method = PAPO(gamma=0.02, eta=0.05, eta_masked=0.05, beta=0.0)
    loss, grad, metrics = of_two_tokens(method, (0.8, 0.5), (0.2, 0.5))
    assert metrics["perception/kl"].item() == pytest.approx(0.31815, abs=1e-5)
    assert metrics["loss/perception"].item() == pytest.approx(-0.006363, abs=1e-6)
    assert metrics["loss/entropy_own"].item() == pytest.approx(0.022907, abs=1e-6)
    assert metrics["loss/entropy_masked"].item() == pytest.approx(0.057565, abs=1e-6)
    assert loss == pytest.approx(0.074109, abs=1e-6)
    # two units: the mean halves each; -γ dK/dlogp = -0.02 * 0.75, and -η lifts every log-probability
    assert grad[0].tolist() == pytest.approx([(-0.02 * 0.75 - 0.05) / 2, -0.05 / 2])


def test_papo_without_its_terms_is_grpo():
    policy = Toy().set_reference()
    batch = credited(PAPO(gamma=0.0), policy, rollout(policy, off_policy=0.1))
    grpo = GRPO(beta=0.01, eps_hi=0.3, dual_clip=3.0, aggregation="token-mean")
    loss, grad, _ = gradient(PAPO(gamma=0.0), policy, batch)
    same, same_grad, _ = gradient(grpo, policy, batch)
    assert loss == pytest.approx(same, abs=1e-14)
    assert torch.equal(grad, same_grad)


def test_a_mask_that_covers_nothing_pulls_on_nothing():
    policy = Toy()
    batch = credited(PAPO(gamma=0.5, beta=0.0), policy, rollout(policy))
    batch.stored = Streams({MASKED: batch.logp_old_BT}, "before")
    _, grad, metrics = gradient(PAPO(gamma=0.5, beta=0.0), policy, batch)
    _, without, _ = gradient(PAPO(gamma=0.0, beta=0.0), policy, batch)
    assert metrics["perception/kl"].item() == pytest.approx(0.0, abs=1e-15)
    assert torch.allclose(grad, without, atol=1e-15, rtol=0)


def test_papo_drives_the_readings_apart_whatever_the_advantage():
    _, grad, _ = of_two_tokens(PAPO(gamma=0.1, beta=0.0), (0.8, 0.5), (0.2, 0.9))
    assert grad[0, 0] < 0 < grad[0, 1]  # likelier with the picture: up; likelier without: down


def test_papo_anneals_its_terms_and_nothing_else():
    method = PAPO(gamma=0.02, eta=0.05, beta=0.0, anneal=0.5)
    at = [of_two_tokens(method, (0.8, 0.5), (0.2, 0.5), step)[0] for step in (0, 1, 5, 9)]
    assert at == pytest.approx([at[0], 0.8 * at[0], 0.0, 0.0], abs=1e-12)
    assert at[0] > 0.01


def test_papo_may_look_at_the_most_dependent_tokens_only_and_limit_k():
    _, _, metrics = of_two_tokens(PAPO(gamma=0.1, beta=0.0, top=0.5), (0.8, 0.6), (0.2, 0.5))
    assert metrics["perception/kl"].item() == pytest.approx(0.6363 / 2, abs=1e-4)
    _, grad, metrics = of_two_tokens(PAPO(gamma=0.1, beta=0.0, limit=0.2), (0.8, 0.5), (0.2, 0.5))
    assert metrics["perception/kl"].item() == pytest.approx(0.1)
    assert not grad[0].any()


def test_papo_with_gradient_through_the_masked_reading_reads_it_in_the_loss():
    method = PAPO(masked_gradient=True, beta=0.0)
    assert method.needs.loss == {"logp", MASKED} and not method.needs.before
    assert PAPO(beta=0.0).needs.before == {MASKED}
    assert method.needs.views["masked"].probability == 0.6


def test_prompts_without_pictures_leave_papos_terms():
    policy = Toy()
    method = PAPO(gamma=0.5, beta=0.0)
    groups = [g for g in rollout(policy) if g.episodes[0].segments[0].prefix.data == 3]
    batch = credited(method, policy, groups)
    assert batch.stored[MASKED].isnan().all()
    loss, grad, metrics = gradient(method, policy, batch)
    assert math.isfinite(loss) and grad.isfinite().all()
    assert metrics["loss/perception"] == 0


def test_vppo_that_keeps_all_and_scales_nothing_is_dapo():
    policy = Toy()
    groups = rollout(policy, off_policy=0.1)
    vppo, dapo = VPPO(share=1.0, alpha_min=1.0, penalty=0.0, dual_clip=0.0), DAPO()
    loss, grad, _ = gradient(vppo, policy, credited(vppo, policy, groups))
    same, same_grad, _ = gradient(dapo, policy, credited(dapo, policy, groups))
    assert loss == pytest.approx(same, abs=1e-14)
    assert torch.allclose(grad, same_grad, atol=1e-14, rtol=0)


def test_vppo_against_a_plain_loop():
    policy = Toy()
    method = VPPO(beta=0.0)
    batch = credited(method, policy, rollout(policy, groups=6))
    plain = credited(DAPO(), policy, rollout(policy, groups=6)).adv_BT
    old, masked, mask = batch.logp_old_BT, batch.stored[MASKED], batch.mask_BT > 0
    means = {}
    for b in range(batch.B):
        units = mask[b].nonzero()[:, 0].tolist()
        s = {t: 0.0 if masked[b, t].isnan() else math.exp(d := float(masked[b, t] - old[b, t])) - d - 1 for t in units}
        if not units:
            continue
        means[b] = sum(s.values()) / len(s)
        kept = sorted(units, key=lambda t: (-s[t], t))[: math.ceil(0.4 * len(units))]
        assert batch.stored["kept"][b].nonzero()[:, 0].tolist() == sorted(kept)
    low, high = min(means.values()), max(means.values())
    n = {b: (m - low) / (high - low) for b, m in means.items()}
    most = 0.9 + 0.1 / (sum(n.values()) / len(n))
    for b, x in n.items():
        assert torch.allclose(batch.adv_BT[b], plain[b] * (0.9 + x * (most - 0.9)), atol=1e-7)


def test_unselected_tokens_have_no_policy_gradient_but_the_penalty():
    policy = Toy()
    groups = rollout(policy)
    for penalty in (0.0, 0.06):
        method = VPPO(penalty=penalty)
        batch = credited(method, policy, groups)
        out = batch.logp_old_BT.clone().requires_grad_()
        method.loss(Streams({"logp": out}), batch)[0].backward()
        aside = (batch.stored["kept"] == 0) & (batch.mask_BT > 0)
        assert aside.any() and bool(out.grad[aside].any()) == bool(penalty)
        assert out.grad[batch.stored["kept"] > 0].any()


def test_vppo_filters_nothing_where_no_token_depends_on_the_picture():
    policy = Toy()
    batch = collate(rollout(policy), dtype=torch.float64)
    batch.stored = Streams({MASKED: batch.logp_old_BT}, "before")
    adv = VPPO().credit(batch)
    assert torch.equal(batch.stored["kept"], batch.mask_BT)
    assert torch.allclose(adv, credited(DAPO(), policy, rollout(policy)).adv_BT)


def test_controls_keep_other_tokens():
    policy = Toy()
    groups = rollout(policy)
    top, bottom, random, later = (
        credited(VPPO(keep=keep, share=0.3), policy, groups).stored["kept"] for keep in ("top", "bottom", "random", "random")
    )
    assert torch.equal(top.sum(1), bottom.sum(1)) and torch.equal(top.sum(1), random.sum(1))
    assert not torch.equal(top, bottom) and not torch.equal(top, random)
    assert torch.equal(random, later)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PAPO(top=2.0),
        lambda: PAPO(mask_probability=1.2),
        lambda: VPPO(share=0.0),
        lambda: VPPO(keep="most"),
        lambda: VPPO(alpha_min=0),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(ValueError, match=r"PAPO\.top|PatchMask|VPPO"):
        make()


def test_masked_streams_are_refused_where_no_view_is_declared():
    from fovea.checks import check_method

    class Undeclared(PAPO):
        @property
        def needs(self):
            return replace(super().needs, views={})

    with pytest.raises(Exception, match=r"variants \['masked'\]; known: reference"):
        check_method(Undeclared(beta=0.0))
