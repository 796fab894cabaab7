"""Chunks by flow: a stored chain has the likelihood it was drawn with, greedy ones go straight, one pass is enough for one random step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fovea.batch import collate
from fovea.envs.parts import Part, pack
from fovea.math import flow
from fovea.policies import control
from fovea.policies.control import Flow, Spaces
from fovea.policies.flow_vla import VOCABULARY, numbered
from fovea.types import Episode, Group, Segment, Task

PARTS = (Part("eye", (8, 8, 3), "uint8"), Part("state", (3,)), Part("told", (24,), "uint8"))
SPACES = Spaces((sum(p.bytes for p in PARTS),), 4, False, PARTS)
SDE, LEARNED, EVERY = Flow(width=16), Flow(width=16, noise="learned"), Flow(width=16, every=True)


def policy(network=SDE):
    torch.manual_seed(0)
    made = control.build("flow", SPACES, network)
    torch.nn.init.normal_(made.leave.weight, std=0.3)
    torch.nn.init.normal_(made.critic[-1].weight, std=0.3)
    return made


def seen(n=5):
    rng = torch.Generator().manual_seed(1)
    rows = []
    for i in range(n):
        told = np.frombuffer(f"go to {i}".encode().ljust(24, b"\0"), np.uint8)
        eye = torch.randint(0, 256, (8, 8, 3), generator=rng)
        rows.append(torch.from_numpy(pack(PARTS, {"eye": eye, "state": torch.randn(3, generator=rng), "told": told})))
    return torch.stack(rows)


def uniform(made, n=5):
    return torch.rand(n, made.draws, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def batch_of(obs, out, rows=((0, 3), (3, 5))):
    """Rows of several chunks, as the driver would collate them."""
    task = Task("t", "robot", ())
    groups = []
    for a, b in rows:
        extras = {"obs": obs[a:b], **{k: v[a:b] for k, v in out.items() if k not in ("actions", "logp")}, "next_obs": obs[:1]}
        n = torch.arange(b - a)
        segment = Segment(None, out["actions"][a:b], n >= 0, out["logp"][a:b], n, 0 * n, extras=extras, bootstrap=True)
        groups.append(Group(task, [Episode(f"e{a}", task, segments=[segment])]))
    return collate(groups)


@pytest.mark.parametrize("network", [SDE, LEARNED, EVERY], ids=["sde", "learned", "every"])
def test_a_chain_has_the_likelihood_that_it_was_drawn_with(network):
    made, obs = policy(network), seen()
    out = made.act(obs, uniform(made), torch.zeros(5, dtype=torch.bool))
    batch = batch_of(obs, out)
    again = made.evaluate(batch, frozenset({"logp", "value", "entropy"}))
    torch.testing.assert_close(again["logp"], batch.logp_old_BT, atol=1e-5, rtol=0)
    assert (again["logp"][1, 2:] == 0).all() and again["value"].shape == (2, 3)
    with torch.no_grad():
        made.leave.bias += 0.1
    assert (made.evaluate(batch, frozenset({"logp"}))["logp"] - batch.logp_old_BT).abs().max() > 1e-3


def test_one_step_is_random_and_its_likelihood_is_that_of_the_card():
    made, obs = policy(), seen()
    out = made.act(obs, uniform(made), torch.zeros(5, dtype=torch.bool))
    chain, at, context = out["chain"], out["step"], made.context(obs)
    assert chain.shape == (5, 5, 4) and (chain[:, -1] == out["actions"]).all() and len(set(at.tolist())) > 1
    for e in range(5):
        for i in range(4):
            x, step, t = chain[e, i][None], torch.tensor([i]), flow.times(4)[i]
            v = made.velocity(made.features(x, t[None], context[e][None]))[0]
            straight = chain[e, i] - v / 4
            if i != at[e]:
                torch.testing.assert_close(chain[e, i + 1], straight)
                continue
            mean, std = flow.sde_step(chain[e, i], v, t, 0.25, 0.5)
            expected = torch.distributions.Normal(mean, std).log_prob(chain[e, i + 1]).sum()
            assert float(out["logp"][e]) == pytest.approx(float(expected.detach()), abs=1e-4)
            assert (chain[e, i + 1] - straight).abs().max() > 1e-3 and step is not None


def test_the_learned_kind_takes_the_mean_over_the_start_and_all_steps():
    made, obs = policy(LEARNED), seen(2)
    out = made.act(obs, uniform(made, 2), torch.zeros(2, dtype=torch.bool))
    assert out["step"].tolist() == [-1, -1]
    chain, context = out["chain"][0], made.context(obs)[:1]
    total = torch.distributions.Normal(0.0, 1.0).log_prob(chain[0]).sum()
    for i in range(4):
        h = made.features(chain[i][None], flow.times(4)[i][None], context)
        std = flow.learned_std(made.spread(h), 0.08, 0.16)[0]
        total = total + torch.distributions.Normal(chain[i] - made.velocity(h)[0] / 4, std).log_prob(chain[i + 1]).sum()
    assert float(out["logp"][0]) == pytest.approx(float(total.detach()) / 5, abs=1e-4)


def test_a_greedy_chunk_goes_straight_and_its_likelihood_is_not_learned_from():
    made, obs = policy(), seen()
    greedy = made.act(obs, uniform(made), torch.ones(5, dtype=torch.bool))
    made.tune(replace(SDE, level=0.0))
    still = made.act(obs, uniform(made), torch.zeros(5, dtype=torch.bool))
    torch.testing.assert_close(greedy["actions"], still["actions"])
    assert greedy["logp"].tolist() == still["logp"].tolist() == [0.0] * 5
    batch = batch_of(obs, still)
    logp = made.evaluate(batch, frozenset({"logp"}))["logp"]
    logp.sum().backward()
    assert (logp == 0).all() and all(p.grad is None or not p.grad.any() for p in made.parameters())


def test_the_update_of_one_random_step_passes_the_network_once(monkeypatch):
    passes = {}
    for name, network in (("sde", SDE), ("every", EVERY)):
        made, obs = policy(network), seen()
        batch = batch_of(obs, made.act(obs, uniform(made), torch.zeros(5, dtype=torch.bool)))
        rows = []
        features = made.features
        monkeypatch.setattr(made, "features", lambda x, *a, rows=rows, features=features: rows.append(len(x)) or features(x, *a))
        made.evaluate(batch, frozenset({"logp"}))
        passes[name] = sum(rows)
    assert passes == {"sde": 5, "every": 20}


def test_the_value_has_no_gradient_into_what_sees_and_follows_a_cut():
    made, obs = policy(), seen()
    batch = batch_of(obs, made.act(obs, uniform(made), torch.zeros(5, dtype=torch.bool)))
    out = made.evaluate(batch, frozenset({"value", "next_value"}))
    assert float(out["next_value"][0]) == pytest.approx(float(out["value"][0, 0]), abs=1e-5), "the same observation"
    out["value"].sum().backward()
    assert made.critic[0].weight.grad.abs().sum() > 0 and made.join[0].weight.grad is None


def test_given_chunks_are_learned_by_flow_matching():
    """For one chunk under one observation the best velocity at time t is (x_t − A)/t; the error of what is learned falls."""
    made, obs = policy(), seen(1)
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    chunk, generator = torch.tensor([0.5, -0.5, 1.0, 0.0]), torch.Generator().manual_seed(3)
    context, errors = None, []
    for _ in range(150):
        noise, t = torch.randn(64, 4, generator=generator), torch.rand(64, generator=generator) * 0.9 + 0.1
        context = made.context(obs).expand(64, -1)
        loss = made.error(chunk.expand(64, -1), noise, t, context).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.25 * errors[0]
    drawn = made.act(obs.expand(16, -1), uniform(made, 16), torch.ones(16, dtype=torch.bool))["actions"]
    assert (drawn - chunk).abs().mean() < 0.25


def test_what_sees_can_be_frozen_and_settings_are_kept(tmp_path):
    made = policy(replace(SDE, frozen=True, level=0.3))
    trained = {n.partition(".")[0] for n, p in made.named_parameters() if p.requires_grad}
    assert trained == {"enter", "expert", "leave", "noise", "critic"}
    made.save(tmp_path)
    again = control.load(tmp_path)
    assert again.network == made.network and again.spaces == SPACES
    out = [m.act(seen(), uniform(m), torch.zeros(5, dtype=torch.bool)) for m in (made, again)]
    assert torch.equal(out[0]["chain"], out[1]["chain"])
    again.tune(replace(made.network, noise="learned", steps=2))
    assert again.draws == 3 * 4 + 1 and again.act(seen(), uniform(again), torch.zeros(5, dtype=torch.bool))["chain"].shape == (5, 3, 4)
    with pytest.raises(ValueError, match="width = 32; expected 16"):
        again.tune(Flow(width=32))
    with pytest.raises(ValueError, match=r"expected fovea.policies.control.Flow"):
        again.tune(control.Network(width=16))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"noise": "pink"}, "network: noise 'pink' is not known"),
        ({"steps": 0}, "steps = 0; expected at least 1"),
        ({"std": (0.2, 0.1)}, "two rising positive numbers"),
        ({"steps": 1, "ignore_last": True}, "ignore_last = True; expected False"),
    ],
)
def test_impossible_settings_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        Flow(**options)


def test_the_last_step_can_be_left_out():
    made = policy(replace(SDE, ignore_last=True))
    steps = made.act(seen(1).expand(64, -1), uniform(made, 64), torch.zeros(64, dtype=torch.bool))["step"]
    assert sorted(set(steps.tolist())) == [0, 1, 2]


def test_words_have_numbers():
    ids = numbered(b"Reach the red pad, the RED one\0\0")
    assert ids[2] == ids[5] and ids[1] == ids[4] and ids[7:] == (0,) * 9 and 0 < min(ids[:7]) <= max(ids) < VOCABULARY
