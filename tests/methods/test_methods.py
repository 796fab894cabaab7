"""Every method: what it asks for, what it credits, what its loss is, by hand and against plain loops."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch

from fovea.batch import Method, OffPolicyMethod, Streams, collate
from fovea.methods import METHODS, get
from fovea.methods.cispo import CISPO
from fovea.methods.dapo import DAPO
from fovea.methods.dpo import DPO
from fovea.methods.dr_grpo import DrGRPO
from fovea.methods.grpo import GRPO
from fovea.methods.gspo import GSPO
from fovea.methods.ppo import PPO
from fovea.methods.reinforce_pp import ReinforcePP
from fovea.methods.remax import ReMax
from fovea.methods.rloo import RLOO
from fovea.methods.sft import SFT
from fovea.trainer.update import evaluate_all
from fovea.types import Episode, Group, Prefix, Score, Segment, Task, user
from tests.methods.toy import CREDITED, T_MAX, Toy, gold, pairs, rollout


def credited(method, policy, groups, max_tokens=T_MAX):
    batch = collate(groups, dtype=torch.float64)
    with torch.no_grad():
        batch.stored = Streams(evaluate_all(policy, batch, method.needs.before, 100, views=method.needs.views), "before")
        batch.adv_BT = method.credit(batch)
    batch.totals = batch.count(max_tokens)
    return batch


def loss_of(method, policy, batch):
    return method.loss(Streams(policy.evaluate(batch, method.needs.loss)), batch)


def answers(*scores, length=2, role="sample", rewards=None, **more):
    """One group of answers of equal length to one task, with the toy's own log-probs left at zero."""
    task = Task("t", "toy", user("?"))
    n = length
    out = []
    for i, score in enumerate(scores):
        row = Segment(
            Prefix("p0", data=0), torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.float64),
            torch.arange(n), torch.zeros(n, dtype=torch.long), reward=rewards[i] if rewards else (), **more
        )  # fmt: skip
        verdict = score if isinstance(score, Score) or score is None else Score(float(score))
        out.append(Episode(f"t/{i}", task, role, [row], score=verdict))
    return Group(task, out)


def adv_of(method, groups, stored=None):
    batch = collate(groups, dtype=torch.float64)
    batch.stored = Streams(stored or {}, "before")
    return method.credit(batch), batch


# -- the registry and the contract --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_frozen_dataclass_with_the_contract(name):
    method = get(name)()
    assert isinstance(method, OffPolicyMethod if method.needs.data == "replay" else Method)
    assert type(method).__mro__[1:] == (object,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.beta = 1.0
    module = sys.modules[type(method).__module__]
    assert "Departures" in module.__doc__
    documented = type(method).__doc__
    assert all(f.name in documented for f in dataclasses.fields(method)), "every field is documented"


def test_an_unknown_method_lists_the_known_and_names_the_nearest():
    with pytest.raises(ValueError, match=r"method 'drgrpo' is not known; expected one of: grpo, .*dpo; did you mean 'dr_grpo'\?"):
        get("drgrpo")


def test_the_index_imports_no_method():
    code = "import sys, fovea.methods; assert 'torch' not in sys.modules and 'fovea.methods.grpo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "field, value", [("aggregation", "mean"), ("kl", "k4"), ("kl_in", "losses"), ("scale", "std"), ("behaviour", "tis")]
)
def test_an_unknown_switch_is_refused_when_the_method_is_made(field, value):
    with pytest.raises(ValueError, match=rf"GRPO.{field} '{value}' is not known; expected one of"):
        GRPO(**{field: value})


@pytest.mark.parametrize("name", [n for n in CREDITED if n not in ("sft", "dpo", "prdp")])
def test_the_reference_is_asked_for_only_when_beta_is_not_zero(name):
    assert "reference/logp" not in get(name)(beta=0.0).needs.before
    assert "reference/logp" in get(name)(beta=0.1).needs.before
    assert "entropy" not in get(name)().needs.loss
    assert "entropy" in get(name)(entropy_coef=0.1).needs.loss


@pytest.mark.parametrize("name", CREDITED)
def test_reading_an_undeclared_stream_is_an_error(name):
    method, policy = get(name)(), Toy().set_reference()
    groups = {"pairs": pairs, "responses": gold}.get(method.needs.data, rollout)(policy)
    batch = credited(method, policy, groups)
    with pytest.raises(KeyError, match=r"not declared in needs\.loss"):
        method.loss(Streams({}), batch)


@pytest.mark.parametrize("name", ["grpo", "ppo", "dpo"])
def test_streams_before_credit_must_be_declared_too(name):
    method = get(name)(beta=0.1)
    groups = pairs(Toy()) if name == "dpo" else rollout(Toy())
    batch = collate(groups, dtype=torch.float64)
    with pytest.raises(KeyError, match=r"not declared in needs\.before"):
        batch.adv_BT = method.credit(batch)
        batch.totals = batch.count(T_MAX)
        loss_of(method, Toy(), batch)


def test_defaults_are_those_of_the_papers():
    assert (GRPO().beta, GRPO().eps_hi, GRPO().aggregation, GRPO().ddof) == (0.04, 0.2, "seq-mean-token-mean", 1)
    assert (DAPO().eps_lo, DAPO().eps_hi, DAPO().beta, DAPO().aggregation) == (0.2, 0.28, 0.0, "token-mean")
    assert (GSPO().eps_lo, GSPO().eps_hi, GSPO().beta, GSPO().aggregation) == (3e-4, 4e-4, 0.0, "seq-mean-token-mean")
    assert (DrGRPO().aggregation, CISPO().eps_lo, PPO().dual_clip, DPO().beta) == ("dr_grpo", 1.0, 3.0, 0.1)
    assert ReMax().needs.members == ("greedy",) and DPO().needs.unit == "group"


# -- credit -------------------------------------------------------------------------------------------------------------------

CREDIT = {
    "grpo": (GRPO(std_eps=0.0), [1.5, -0.5, -0.5, -0.5]),
    "grpo ddof 0": (GRPO(std_eps=0.0, ddof=0), [math.sqrt(3), *[-1 / math.sqrt(3)] * 3]),
    "dapo": (DAPO(std_eps=0.0), [1.5, -0.5, -0.5, -0.5]),
    "gspo": (GSPO(std_eps=0.0), [1.5, -0.5, -0.5, -0.5]),
    "cispo": (CISPO(std_eps=0.0), [1.5, -0.5, -0.5, -0.5]),
    "dr_grpo": (DrGRPO(), [0.75, -0.25, -0.25, -0.25]),
    "rloo": (RLOO(), [1.0, -1 / 3, -1 / 3, -1 / 3]),
    "reinforce_pp": (ReinforcePP(beta=0.0, ddof=0), [math.sqrt(3), *[-1 / math.sqrt(3)] * 3]),
    "reinforce_pp baseline": (ReinforcePP(beta=0.0, ddof=0, baseline=True), [math.sqrt(3), *[-1 / math.sqrt(3)] * 3]),
}


@pytest.mark.parametrize("method, want", CREDIT.values(), ids=CREDIT)
def test_credit_by_hand(method, want):
    adv, _ = adv_of(method, [answers(1, 0, 0, 0)])
    assert torch.allclose(adv, torch.tensor(want, dtype=torch.float64)[:, None].expand(4, 2), atol=1e-6)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp"])
def test_equal_rewards_give_exactly_zero(name):
    options = {"baseline": True} if name == "reinforce_pp" else {}
    adv, _ = adv_of(get(name)(beta=0.0, **options), [answers(0.1, 0.1, 0.1), answers(0.7, 0.7, 0.7)])
    assert (adv == 0).all()


def test_remax_takes_the_greedy_score_and_never_trains_on_it():
    group = answers(1, 0, 0.25)
    group.episodes[2].role = "greedy"
    adv, batch = adv_of(ReMax(), [group])
    assert adv.tolist() == [[0.75, 0.75], [-0.25, -0.25]] and batch.episode_B.tolist() == [0, 1]
    with pytest.raises(ValueError, match="no episode of role 'greedy'"):
        adv_of(ReMax(), [answers(1, 0)])


def test_the_greedy_member_is_no_part_of_a_group_baseline():
    group = answers(1, 0, 100)
    group.episodes[2].role = "greedy"
    adv, _ = adv_of(DrGRPO(), [group])
    assert adv[:, 0].tolist() == [0.5, -0.5]


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce_pp", "ppo"])
def test_an_episode_without_a_score_leaves_baseline_loss_and_totals(name):
    method = get(name)(beta=0.0)
    groups = [answers(1, 0, None), answers(1, 0.5)]
    stored = {"value": torch.zeros(5, 2, dtype=torch.float64)} if name == "ppo" else {}
    adv, batch = adv_of(method, groups, stored)
    clean = [answers(1, 0), answers(1, 0.5)]
    want, _ = adv_of(method, clean, {k: v[:4] for k, v in stored.items()})
    assert torch.allclose(adv[[0, 1, 3, 4]], want) and (adv[2] == 0).all()
    assert batch.count(5).rows == 4


def test_a_group_with_one_score_left_does_not_train_and_a_batch_of_them_is_an_error():
    adv, batch = adv_of(GRPO(beta=0.0), [answers(1, None), answers(1, 0)])
    assert (adv[:2] == 0).all() and batch.count(5).rows == 2
    with pytest.raises(ValueError, match="none of 2 groups has two scored answers"):
        adv_of(GRPO(beta=0.0), [answers(1), answers(0)])


def test_overlong_shaping_and_filtering():
    adv, _ = adv_of(DAPO(overlong_max=10, overlong_cache=5, overlong_factor=1.0, std_eps=0), [answers(1, 0, length=8)])
    assert torch.allclose(adv[:, 0], torch.tensor([math.sqrt(0.5), -math.sqrt(0.5)], dtype=torch.float64))
    short, long = answers(1, length=5), answers(1, length=10)
    mixed = Group(short.task, short.episodes + long.episodes)
    adv, _ = adv_of(DAPO(overlong_max=10, overlong_cache=5, std_eps=0), [mixed])
    assert adv[0, 0] > 0 > adv[1, 0]
    mixed.episodes[1].stop = "length"
    _, batch = adv_of(DAPO(filter_cut=True), [mixed])
    assert batch.mask_BT.sum(1).tolist() == [5, 0] and batch.count(10).rows == 1
    with pytest.raises(ValueError, match="overlong_cache is 0, expected between 1 and overlong_max = 10"):
        DAPO(overlong_max=10)


def test_reward_parts_are_normalised_one_by_one():
    scores = [Score(0.0, {"format": f, "answer": a}) for f, a in ((1, 100), (0, 0), (1, 0))]
    adv, _ = adv_of(GRPO(beta=0.0, part_weights=(("format", 1.0), ("answer", 2.0)), std_eps=0), [answers(*scores)])
    third = 1 / math.sqrt(3)
    want = [third + 2 * 2 * third, -2 * third - 2 * third, third - 2 * third]
    assert adv[:, 0].tolist() == pytest.approx(want)
    with pytest.raises(ValueError, match="a KL inside the reward has no place"):
        GRPO(part_weights=(("format", 1.0),), kl_in="reward")


def test_kl_in_the_reward_of_an_episode_and_of_a_unit():
    reference = {"reference/logp": torch.tensor([[-1.0, -2.0], [0.0, 0.0]], dtype=torch.float64)}  # k1 = 1 and 2 on the first answer
    adv, _ = adv_of(DrGRPO(beta=0.1, kl="k1", kl_in="reward"), [answers(1, 0)], reference)
    assert adv[:, 0].tolist() == pytest.approx([0.35, -0.35])
    batch = collate([answers(1, 0)], dtype=torch.float64)
    batch.stored = Streams({**reference, "value": torch.zeros(2, 2, dtype=torch.float64)}, "before")
    adv = PPO(beta=0.1, lam=1.0, whiten=False).credit(batch)
    assert torch.allclose(adv, torch.tensor([[0.7, 0.8], [0, 0]], dtype=torch.float64))
    adv, _ = adv_of(ReinforcePP(beta=0.1, ddof=0), [answers(1, 0)], reference)
    ret = torch.tensor([0.7, 0.8, 0, 0], dtype=torch.float64)
    assert torch.allclose(adv.flatten(), (ret - ret.mean()) / ret.std(correction=0), atol=1e-6)


def test_ppo_bootstraps_where_an_episode_was_cut_and_follows_its_rows():
    values = torch.tensor([[0.5, 0.25]], dtype=torch.float64)
    ended = answers(5, rewards=[[1.0, 2.0]])
    method = PPO(gamma=0.9, lam=0.8, whiten=False)
    adv, batch = adv_of(method, [ended], {"value": values})
    last = 2.0 - 0.25
    first = 1 + 0.9 * 0.25 - 0.5 + 0.72 * last
    assert adv[0].tolist() == pytest.approx([first, last])
    assert batch.stored["ret"][0].tolist() == pytest.approx([first + 0.5, last + 0.25])
    cut = answers(5, rewards=[[1.0, 2.0]], bootstrap=True)
    adv, _ = adv_of(method, [cut], {"value": values, "next_value": torch.tensor([4.0], dtype=torch.float64)})
    assert adv[0, 1].item() == pytest.approx(2.0 + 0.9 * 4 - 0.25)
    with pytest.raises(KeyError, match="next_value"):
        adv_of(method, [cut], {"value": values})

    two_rows = answers(5, rewards=[[1.0, 2.0]])
    (whole,) = two_rows.episodes[0].segments
    halves = [
        Segment(Prefix(k, data=0), whole.actions[:1], whole.mask[:1], whole.logp_old[:1], whole.turn[:1], whole.version[:1], reward=[r])
        for k, r in (("p0", 1.0), ("p1", 2.0))
    ]
    two_rows.episodes[0].segments = halves
    adv, _ = adv_of(method, [two_rows], {"value": values.T})
    assert adv[:, 0].tolist() == pytest.approx([first, last])


def test_the_reward_of_ppo_comes_from_the_steps_or_the_score():
    flat = {"value": torch.zeros(1, 2, dtype=torch.float64)}

    def adv(rewards, source):
        return adv_of(PPO(lam=1.0, whiten=False, reward=source), [answers(5, rewards=[rewards])], flat)[0][0].tolist()

    assert adv([1.0, 2.0], "auto") == [3, 2]
    assert adv([0.0, 0.0], "auto") == [5, 5]
    assert adv([1.0, 2.0], "score") == [5, 5]
    assert adv([0.0, 0.0], "steps") == [0, 0]


def test_dpo_and_sft_credit_name_what_does_not_belong():
    with pytest.raises(ValueError, match="episodes of role sample; expected only 'chosen' and 'rejected'"):
        adv_of(DPO(), [answers(1, 0)])
    with pytest.raises(ValueError, match="a group with 2 episodes of role 'chosen'; expected one"):
        adv_of(DPO(), [answers(None, None, role="chosen")])
    adv, _ = adv_of(SFT(), [answers(None, role="gold")])
    assert adv.tolist() == [[1, 1]]


# -- loss ---------------------------------------------------------------------------------------------------------------------


def policy_gradient(method, policy, batch):
    policy.zero_grad()
    loss_of(method, policy, batch)[0].backward()
    return policy.weight_DV.grad.clone()


def test_at_the_sampling_weights_every_surrogate_has_the_same_gradient():
    policy = Toy()
    groups = rollout(policy)
    base = credited(GRPO(beta=0.0), policy, groups)
    common = {"aggregation": "token-mean", "beta": 0.0}
    methods = [GRPO(**common), GRPO(dual_clip=3.0, **common), GRPO(delta=2.0, **common), DAPO(**common), CISPO(**common), RLOO(**common)]
    methods += [RLOO(clip=True, **common), DrGRPO(**common), ReinforcePP(**common), PPO(value_coef=0.0, **common)]
    base.store(ret=torch.zeros_like(base.mask_BT), value=torch.zeros_like(base.mask_BT))
    want = policy_gradient(methods[0], policy, base)
    assert want.abs().max() > 1e-3
    for method in methods[1:]:
        assert torch.allclose(policy_gradient(method, policy, base), want, atol=1e-12), method
    by_row = policy_gradient(GRPO(beta=0.0), policy, base)
    assert torch.allclose(policy_gradient(GSPO(), policy, base), by_row, atol=1e-12)


def loop_objective(kind, ratio, s, logp, adv):
    if kind == "gspo":
        return min(s * adv, max(1 - 0.1, min(1 + 0.15, s)) * adv)
    if kind == "cispo":
        return max(0.0, min(1.5, ratio)) * adv * logp
    if kind == "rloo":
        return adv * logp
    hi = 1.28 if kind == "dapo" else 1.2
    objective = min(ratio * adv, max(0.8, min(hi, ratio)) * adv)
    return max(objective, 1.1 * adv) if kind == "ppo" and adv < 0 else objective


LOOPS = {
    "grpo": GRPO(beta=0.0),
    "dapo": DAPO(),
    "dr_grpo": DrGRPO(),
    "gspo": GSPO(eps_lo=0.1, eps_hi=0.15),
    "cispo": CISPO(eps_hi=0.5),
    "rloo": RLOO(),
    "ppo": PPO(dual_clip=1.1, value_coef=0.0),
}


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("kind", LOOPS)
def test_losses_match_plain_loops(kind, continuous):
    policy, method = Toy(continuous=continuous), LOOPS[kind]
    batch = credited(method, policy, rollout(policy, off_policy=0.3, seed=3))
    loss, metrics = loss_of(method, policy, batch)
    logp = policy.evaluate(batch, frozenset({"logp"}))["logp"].detach()
    per_row, clipped, tokens = [], 0, 0
    for b in range(batch.B):
        units = [t for t in range(batch.mask_BT.shape[1]) if batch.mask_BT[b, t]]
        ratio = {t: math.exp(float(logp[b, t] - batch.logp_old_BT[b, t])) for t in units}
        s = math.exp(sum(math.log(r) for r in ratio.values()) / max(1, len(units)))
        per_row.append([loop_objective(kind, ratio[t], s, float(logp[b, t]), float(batch.adv_BT[b, t])) for t in units])
        lo, hi = getattr(method, "eps_lo", 0.2), getattr(method, "eps_hi", 0.2)
        for t in units:
            r, a = (s if kind == "gspo" else ratio[t]), float(batch.adv_BT[b, t])
            clipped += (r > 1 + hi and a > 0) or (r < 1 - lo and a < 0)
            tokens += 1
    per_row = [r for r in per_row if r]
    n = len(per_row)
    want = {
        "seq-mean-token-mean": sum(sum(r) / len(r) for r in per_row) / n,
        "token-mean": sum(map(sum, per_row)) / tokens,
        "dr_grpo": sum(map(sum, per_row)) / (n * T_MAX),
        "seq-mean-token-sum": sum(map(sum, per_row)) / n,
    }[method.aggregation]
    assert loss.item() == pytest.approx(-want, abs=1e-12)
    assert metrics["policy/clip_frac"].item() == pytest.approx(clipped / tokens, abs=1e-12)
    assert metrics["loss/policy"].item() == pytest.approx(-want, abs=1e-12)
    assert metrics["policy/kl"] > 0 and not any(m.requires_grad for m in metrics.values())


def test_kl_and_entropy_enter_the_loss_with_their_weights():
    policy = Toy().set_reference()
    groups = rollout(policy, seed=5)
    plain = loss_of(GRPO(beta=0.0), policy, credited(GRPO(beta=0.0), policy, groups))[0]
    method = GRPO(beta=0.3, entropy_coef=0.05, aggregation="token-mean")
    batch = credited(method, policy, groups)
    loss, metrics = loss_of(method, policy, batch)
    mask, n = batch.mask_BT, batch.totals.tokens
    streams = {k: x.detach() for k, x in policy.evaluate(batch, frozenset({"logp", "entropy"})).items()}
    d = batch.stored["reference/logp"] - streams["logp"]
    kl = float(((d.exp() - d - 1) * mask).sum() / n)
    entropy = float((streams["entropy"] * mask).sum() / n)
    assert metrics["loss/kl"].item() == pytest.approx(0.3 * kl) and metrics["policy/kl_ref"].item() == pytest.approx(kl)
    assert metrics["loss/entropy"].item() == pytest.approx(-0.05 * entropy) and metrics["policy/entropy"].item() == pytest.approx(entropy)
    assert loss.item() == pytest.approx(metrics["loss/policy"].item() + 0.3 * kl - 0.05 * entropy)
    assert plain.isfinite()


def test_behaviour_weights_multiply_the_objective():
    policy = Toy()
    groups = rollout(policy, seed=2)
    plain, weighted = GRPO(beta=0.0), GRPO(beta=0.0, behaviour="token", behaviour_cap=0.95)
    batch = credited(plain, policy, groups)
    w = (batch.logp_old_BT - batch.logp_behaviour_BT).exp().clamp(max=0.95)
    got = loss_of(weighted, policy, batch)[0]
    batch.adv_BT = batch.adv_BT * w
    assert torch.allclose(got, loss_of(plain, policy, batch)[0], atol=1e-12)


def test_dpo_loss_by_hand():
    policy = Toy().set_reference()
    method = DPO(beta=0.5, label_smoothing=0.1)
    batch = credited(method, policy, pairs(policy))
    loss, metrics = loss_of(method, policy, batch)
    gain = ((policy.evaluate(batch, frozenset({"logp"}))["logp"] - batch.stored["reference/logp"]) * batch.mask_BT).sum(1).detach()
    margins = [0.5 * float(gain[2 * i] - gain[2 * i + 1]) for i in range(5)]
    want = sum(0.9 * math.log1p(math.exp(-h)) + 0.1 * math.log1p(math.exp(h)) for h in margins) / 5
    assert loss.item() == pytest.approx(want, abs=1e-12)
    assert metrics["policy/preference_accuracy"].item() == pytest.approx(sum(h > 0 for h in margins) / 5)
    at_start = credited(DPO(), policy, pairs(policy))
    at_start.stored = Streams({"reference/logp": policy.evaluate(at_start, frozenset({"logp"}))["logp"].detach()}, "before")
    assert loss_of(DPO(), policy, at_start)[0].item() == pytest.approx(math.log(2))


def test_sft_is_the_mean_negative_log_likelihood_of_the_marked_units():
    policy = Toy()
    batch = credited(SFT(), policy, gold(policy))
    logp = policy.evaluate(batch, frozenset({"logp"}))["logp"].detach()
    want = -sum(float(logp[b, t]) for b in range(batch.B) for t in range(logp.shape[1]) if batch.mask_BT[b, t]) / float(batch.mask_BT.sum())
    assert loss_of(SFT(), policy, batch)[0].item() == pytest.approx(want)


def test_the_value_loss_pulls_towards_the_returns():
    policy, method = Toy(), PPO(value_coef=1.0, value_clip=0.0)
    groups = rollout(policy, rewards=True, cuts=True)
    batch = credited(method, policy, groups)
    loss, metrics = loss_of(method, policy, batch)
    error = (batch.stored["value"] - batch.stored["ret"]) ** 2 * batch.mask_BT
    assert metrics["loss/value"].item() == pytest.approx(0.5 * float(error.sum() / batch.totals.tokens))
    assert metrics["value/error"].item() == pytest.approx(2 * metrics["loss/value"].item())
    (grad,) = torch.autograd.grad(loss, policy.value_D)
    step = (batch.mask_BT * (batch.stored["value"] - batch.stored["ret"]))[..., None] * policy.features_PTD[
        torch.tensor([batch.prefixes[p].data for p in batch.prefix_B.tolist()]), : batch.mask_BT.shape[1]
    ]
    assert torch.allclose(grad, step.sum((0, 1)) / batch.totals.tokens, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in CREDITED if n not in ("gspo", "cispo")])
def test_gradients_of_the_whole_loss_by_finite_differences(name):
    """GSPO and CISPO detach on purpose, so value and gradient differ: tests/math/test_surrogates.py has theirs."""
    policy = Toy().set_reference()
    method = get(name)(**({"beta": 0.5, "eps": 0.05} if name == "prdp" else {}))  # its published scale is that of the finite difference
    groups = {"pairs": pairs, "responses": gold}.get(method.needs.data)
    batch = credited(method, policy, groups(policy, groups=2) if groups else rollout(policy, groups=2, failed=False, off_policy=0.2))

    def f(weight_DV, value_D):
        streams = torch.func.functional_call(policy, {"weight_DV": weight_DV, "value_D": value_D}, (batch, method.needs.loss))
        return method.loss(Streams(streams), batch)[0]

    inputs = tuple(p.detach().clone().requires_grad_() for p in (policy.weight_DV, policy.value_D))
    assert torch.autograd.gradcheck(f, inputs, eps=1e-7, atol=1e-6)
