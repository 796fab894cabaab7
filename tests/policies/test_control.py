import json

import pytest
import torch

from fovea.policies.control import KINDS, Critics, Network, Random, Spaces, build, load, saved
from fovea.policies.pixel import PixelPolicy, Senses

BOX, FEW, PICTURES = Spaces((3,), 2, False), Spaces((3,), 4, True), Spaces((12, 12, 3), 2, False)


def asked(policy, n, greedy=False, seed=0):
    spaces = getattr(policy, "spaces", BOX)
    g = torch.Generator().manual_seed(seed)
    obs = torch.rand((n, *spaces.obs_shape), generator=g)
    uniform = torch.rand((n, policy.draws), generator=g, dtype=torch.float64)
    return policy.act(obs, uniform, torch.full((n,), greedy))


def test_a_squashed_policy_stays_inside_and_knows_its_density():
    torch.manual_seed(0)
    policy = build("squashed", BOX, Network(8))
    out = asked(policy, 500)
    assert out["actions"].abs().max() < 1 and out["actions"].shape == (500, 2)
    x = torch.atanh(out["actions"].double())
    mean, log_std = policy(torch.rand((500, 3), generator=torch.Generator().manual_seed(0))).double().chunk(2, -1)
    expected = (torch.distributions.Normal(mean, log_std.exp()).log_prob(x) - (1 - x.tanh() ** 2).log()).sum(1)
    assert torch.allclose(out["logp"].double(), expected, atol=1e-3)
    cold = asked(policy, 5, greedy=True)["actions"]
    assert torch.equal(cold, asked(policy, 5, greedy=True)["actions"]) and not torch.equal(cold, out["actions"][:5])


def test_a_bounded_policy_explores_by_noise_of_the_given_size():
    torch.manual_seed(0)
    policy = build("bounded", BOX, Network(8))
    cold = asked(policy, 4000, greedy=True)["actions"]
    policy.exploration = 0.1
    noise = asked(policy, 4000)["actions"] - cold
    assert noise.std() == pytest.approx(0.1, abs=0.005) and asked(policy, 9, greedy=True)["actions"].equal(
        asked(policy, 9, True)["actions"]
    )
    policy.exploration = 9.0
    assert asked(policy, 100)["actions"].abs().max() == 1


def test_a_policy_of_values_takes_the_best_but_for_a_share():
    torch.manual_seed(0)
    policy = build("values", FEW, Network(8))
    policy.head.weight.data.zero_()
    policy.head.bias.data = torch.tensor([0.0, 3.0, 1.0, 2.0])
    policy.exploration = 0.4
    out = asked(policy, 4000)
    share = torch.bincount(out["actions"], minlength=4) / 4000
    assert share.tolist() == pytest.approx([0.1, 0.7, 0.1, 0.1], abs=0.03)
    assert out["logp"].exp()[out["actions"] == 1][0] == pytest.approx(0.7) and out["logp"].exp()[out["actions"] == 2][0] == pytest.approx(
        0.1
    )
    assert asked(policy, 50, greedy=True)["actions"].tolist() == [1] * 50


@pytest.mark.parametrize(("spaces", "logp"), [(BOX, -1.3863), (FEW, -1.3863)])
def test_random_actions_are_even(spaces, logp):
    out = asked(Random(spaces), 4000)
    assert out["logp"].tolist() == pytest.approx([logp] * 4000, abs=1e-4)
    if spaces.discrete:
        assert torch.bincount(out["actions"], minlength=4).min() > 900
    else:
        assert out["actions"].abs().max() <= 1 and abs(float(out["actions"].mean())) < 0.05
        assert torch.histc(out["actions"], 4, -1, 1).min() > 1800


def test_critics_side_by_side_are_separate_networks():
    torch.manual_seed(0)
    critics = Critics(BOX, Network(5), count=3)
    seen, actions = torch.randn(7, 3), torch.randn(7, 2)
    together = critics(seen, actions)
    x = torch.cat([seen, actions], 1)
    for n in range(3):
        one = x
        for i, (weight, bias) in enumerate(zip(critics.weights, critics.biases)):
            one = one @ weight[n] + bias[n]
            one = one.relu() if i < 2 else one
        assert torch.allclose(together[n], one[:, 0], atol=1e-6)
    assert together.shape == (3, 7) and not torch.allclose(together[0], together[1])


def test_pictures_pass_through_senses_policy_and_critics():
    policy, critics = build("squashed", PICTURES, Network(6)), Critics(PICTURES, Network(6))
    obs = torch.randint(0, 256, (4, 12, 12, 3), dtype=torch.uint8)
    seen = policy.senses(obs)
    assert seen.shape == (4, 3, 12, 12) and float(seen.min()) >= -0.5 and float(seen.max()) <= 0.5
    assert critics(seen, policy.sample(obs, torch.zeros(4, 2))[0]).shape == (2, 4)
    for side in (64, 84, 97):
        big = Spaces((side, side, 1), 2, False)
        assert build("squashed", big, Network(6))(torch.zeros(1, side, side, 1, dtype=torch.uint8)).shape == (1, 4)


def test_normalising_looks_different_only_after_it_is_renewed_and_is_kept_with_the_weights(tmp_path):
    senses, x = Senses((2,), normalise=True), torch.tensor([[0.0, 10.0], [2.0, 30.0], [4.0, 50.0]])
    senses.observe(x[:1])
    senses.observe(x[1:])
    assert torch.equal(senses(x), torch.where(x > 10, 10, x)), "nothing is scaled yet; ±10 is the limit"
    senses.renew()
    assert torch.allclose(senses(x), torch.tensor([[-1.2247], [0.0], [1.2247]]).expand(3, 2), atol=1e-4)
    policy = build("actor-critic", Spaces((2,), 2, True), Network(4, normalise=True))
    policy.senses.load_state_dict(senses.state_dict())
    policy.save(tmp_path)
    assert torch.equal(load(tmp_path).features(x), policy.features(x))
    flat = Senses((2,), normalise=True)
    flat.observe(torch.full((5, 2), 3.0))
    flat.renew()
    assert torch.isfinite(flat(torch.full((1, 2), 3.1))).all(), "what never changed has no deviation to divide by"


@pytest.mark.parametrize(("shape", "shared"), [((3,), False), ((12, 12, 3), True)])
def test_the_value_of_vectors_has_a_trunk_of_its_own(shape, shared):
    policy = build("actor-critic", Spaces(shape, 2, True), Network(8))
    obs = torch.rand((4, *shape))
    policy.value(obs, policy.features(obs)).sum().backward()
    assert (policy.trunk[0].weight.grad is not None) == shared


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_is_loaded(kind, tmp_path):
    spaces = FEW if kind == "values" else Spaces((3,), 3, False)
    policy = build(kind, spaces, Network(4))
    policy.save(tmp_path)
    again = load(tmp_path)
    assert saved(tmp_path) and type(again) is type(policy)
    assert all(torch.equal(a, b) for a, b in zip(policy.state_dict().values(), again.state_dict().values(), strict=True))


def test_what_is_no_saved_network_is_not_taken_for_one(tmp_path):
    assert not saved(tmp_path)
    (tmp_path / "config.json").write_text("[")
    assert not saved(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    assert not saved(tmp_path)
    PixelPolicy((3,), 2).save(tmp_path)
    assert saved(tmp_path)
    with pytest.raises(ValueError, match="width = 0; expected at least 1"):
        Network(0)
    with pytest.raises(ValueError, match=r"policy 'squash' is not known; .*did you mean 'squashed'"):
        build("squash", BOX, Network())
