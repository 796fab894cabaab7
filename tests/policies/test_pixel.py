import math

import pytest
import torch

from fovea.batch import collate
from fovea.policies.pixel import PixelPolicy, normals
from fovea.rollout.sampling import uniforms
from fovea.types import Episode, Group, Score, Segment, Task

TASK = Task(id="t", source="s", prompt=())


def batch_of(policy, lengths=(3, 5)):
    groups = []
    for i, n in enumerate(lengths):
        obs = torch.randint(0, 256, (n + 1, *policy.obs_shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        out = policy.act(obs[:n], uniforms([i] * (n * policy.draws), range(n * policy.draws)).view(n, -1), torch.zeros(n, dtype=torch.bool))
        segment = Segment(
            None, out["actions"], torch.ones(n, dtype=torch.bool), out["logp"], torch.arange(n), torch.zeros(n, dtype=torch.long)
        )
        segment.reward, segment.extras = (1.0,) * n, {"obs": obs[:n], "next_obs": obs[n:]}
        groups.append(Group(TASK, [Episode(id=str(i), task=TASK, segments=[segment], score=Score(0.0))]))
    return collate(groups)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_padding_changes_nothing(kind):
    torch.manual_seed(0)
    policy = PixelPolicy((8, 8, 3), 3, kind)
    both, alone = batch_of(policy), batch_of(policy, (3,))
    want = frozenset({"logp", "entropy", "value", "next_value"})
    a, b = policy.evaluate(both, want), policy.evaluate(alone, want)
    for name in want - {"next_value"}:
        assert a[name].shape == (2, 5) and torch.allclose(a[name][0, :3], b[name][0], atol=1e-6) and (a[name][0, 3:] == 0).all()
    assert torch.allclose(a["next_value"][:1], b["next_value"], atol=1e-6)


def test_categorical_draws_follow_its_probabilities():
    torch.manual_seed(0)
    policy = PixelPolicy((2,), 3)
    policy.head.weight.data.mul_(200)
    n = 20000
    obs = torch.tensor([[0.3, -1.0]]).expand(n, 2)
    actions = policy.act(obs, uniforms([5] * n, range(n))[:, None], torch.zeros(n, dtype=torch.bool))["actions"]
    p = policy.distribution(policy.features(obs[:1])).probs[0]
    assert torch.allclose(torch.bincount(actions, minlength=3) / n, p, atol=0.02) and p.max() < 0.9


def test_gaussian_logp_and_entropy_by_hand():
    policy = PixelPolicy((2,), 2, "gaussian", log_std=math.log(2.0))
    policy.head.weight.data.zero_()
    out = policy.act(torch.zeros(1, 2), torch.tensor([[0.5, 0.5]], dtype=torch.float64), torch.tensor([False]))
    assert out["actions"].tolist() == [[0.0, 0.0]] and out["logp"].item() == pytest.approx(
        -2 * math.log(2 * math.sqrt(2 * math.pi)), abs=1e-6
    )
    assert policy.distribution(torch.zeros(1, 64)).entropy().item() == pytest.approx(
        2 * (math.log(2) + 0.5 * math.log(2 * math.pi * math.e)), abs=1e-5
    )


def test_normals_are_the_inverse_cdf():
    assert normals(torch.tensor([0.5, 0.975], dtype=torch.float64)).tolist() == pytest.approx([0.0, 1.959964], abs=1e-6)
    assert torch.isfinite(normals(torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64))).all()


def test_the_reference_stays_behind():
    policy = PixelPolicy((8, 8, 3), 3)
    batch, want = batch_of(policy), frozenset({"logp"})
    with pytest.raises(ValueError, match="set_reference"):
        policy.evaluate(batch, want, "reference")
    policy.set_reference()
    before = policy.evaluate(batch, want)["logp"]
    policy.head.bias.data[0] += 1.0
    assert torch.equal(policy.evaluate(batch, want, "reference")["logp"], before) and not torch.equal(
        policy.evaluate(batch, want)["logp"], before
    )
    assert len(list(policy.parameters())) == len(policy.state_dict())


def test_save_and_load(tmp_path):
    policy = PixelPolicy((8, 8, 3), 2, "gaussian", log_std=0.25)
    policy.save(tmp_path)
    again = PixelPolicy.load(tmp_path)
    batch = batch_of(policy)
    assert torch.equal(policy.evaluate(batch, frozenset({"logp"}))["logp"], again.evaluate(batch, frozenset({"logp"}))["logp"])
    assert again.config == policy.config


def test_unknown_streams_and_kinds_are_named():
    with pytest.raises(ValueError, match="'beta'"):
        PixelPolicy((2,), 2, "beta")
    policy = PixelPolicy((8, 8, 3), 2)
    with pytest.raises(ValueError, match="hidden"):
        policy.evaluate(batch_of(policy), frozenset({"hidden"}))
