"""Off-policy from pixels on the same `Segment` and `Batch`: a replay of whole segments, windows of them, and soft actor-critic."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fovea.batch import Batch, collate
from fovea.envs.gym import vector
from fovea.envs.pixels import Reach
from fovea.policies.pixel import normals, trunk
from fovea.rollout.vector import VectorEngine
from fovea.types import Context, Episode, Group, Segment, Task
from tests.learns.problems import WORLD, reach_level

TASK = Task(id="reach", source="reach", prompt=())


# -- the replay -----------------------------------------------------------------------------------------------------------------


def window(s: Segment, t: int, length: int) -> Segment:
    """Units t to t + length of a segment as a segment of its own."""
    end = t + length
    last = end == len(s)
    extras = {k: v[t:end] for k, v in s.extras.items() if not k.startswith("next_")}
    return replace(
        s,
        **{name: getattr(s, name)[t:end] for name in ("actions", "mask", "logp_old", "turn", "version")},
        reward=s.reward[t:end],
        bootstrap=s.bootstrap or not last,
        extras={**extras, "next_obs": s.extras["next_obs"] if last else s.extras["obs"][end : end + 1]},
    )


def collated(segments: Sequence[Segment]) -> Batch:
    return collate([Group(TASK, [Episode(str(i), TASK, segments=[s])]) for i, s in enumerate(segments)])


@dataclass
class Replay:
    """Whole segments, each frame once; a sample is a batch of windows of one unit."""

    segments: list[Segment] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)

    def add(self, groups: Sequence[Group]) -> None:
        for s in (s for g in groups for e in g.episodes for s in e.segments):
            self.places += [(len(self.segments), t) for t in range(len(s))]
            self.segments.append(s)

    def sample(self, count: int, generator: torch.Generator) -> Batch:
        drawn = torch.randint(len(self.places), (count,), generator=generator).tolist()
        return collated([window(self.segments[i], t, 1) for i, t in (self.places[d] for d in drawn)])


# -- soft actor-critic ------------------------------------------------------------------------------------------------------------


class Squashed(nn.Module):
    """A Gaussian policy squashed into [-1, 1] by tanh; an `ArrayPolicy`."""

    def __init__(self, obs_shape: tuple[int, ...], actions: int, width: int = 48):
        super().__init__()
        self.draws, self.version, self.kind = actions, 0, "gaussian"
        self.trunk, self.head = trunk(obs_shape, width), nn.Linear(width, 2 * actions)
        nn.init.orthogonal_(self.head.weight, 0.01)

    def forward(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(actions, logp) for standard normal `noise`; d tanh(x)/dx = 1 − tanh² enters the density."""
        mean, log_std = self.head(self.trunk((obs.float() / 255 - 0.5).movedim(-1, -3))).chunk(2, -1)
        normal = torch.distributions.Normal(mean, log_std.clamp(-4, 1).exp())
        x = mean + normal.stddev * noise
        actions = x.tanh()
        return actions, (normal.log_prob(x) - (1 - actions**2 + 1e-6).log()).sum(-1)

    @torch.no_grad()
    def act(self, obs: Tensor, uniform_ED: Tensor, greedy_E: Tensor) -> dict[str, Tensor]:
        actions, logp = self(obs, normals(uniform_ED).float() * ~greedy_E[:, None])
        return {"actions": actions, "logp": logp}


class Critic(nn.Module):
    def __init__(self, obs_shape: tuple[int, ...], actions: int, width: int = 48):
        super().__init__()
        self.trunk = trunk(obs_shape, width)
        self.head = nn.Sequential(nn.Linear(width + actions, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        return self.head(torch.cat([self.trunk((obs.float() / 255 - 0.5).movedim(-1, -3)), actions], -1))[:, 0]


@dataclass
class State:
    """Everything of SAC that changes: two critics, their slow copies, the optimizers."""

    critics: nn.ModuleList
    slow: nn.ModuleList
    optimizers: dict[str, torch.optim.Optimizer]


@dataclass(frozen=True)
class SAC:
    """Soft actor-critic (Haarnoja et al., 2018, arXiv 1812.05905) with a fixed entropy temperature."""

    gamma: float = 0.9
    temperature: float = 0.01
    tau: float = 0.02
    lr: float = 2e-3

    def init(self, policy: Squashed, obs_shape: tuple[int, ...]) -> State:
        critics = nn.ModuleList([Critic(obs_shape, policy.draws) for _ in range(2)])
        optimizers = {name: torch.optim.Adam(m.parameters(), lr=self.lr) for name, m in (("critic", critics), ("actor", policy))}
        return State(critics, copy.deepcopy(critics).requires_grad_(False), optimizers)

    def update(self, policy: Squashed, state: State, batch: Batch, noise: Tensor) -> None:
        obs, next_obs = batch.extras["obs"][:, 0], batch.extras["next_obs"][:, 0]
        with torch.no_grad():
            after, logp = policy(next_obs, noise[0])
            value = torch.stack([q(next_obs, after) for q in state.slow]).amin(0) - self.temperature * logp
            target = batch.reward_BK[:, 0] + self.gamma * batch.bootstrap_B * value
        self.step(state.optimizers["critic"], sum(((q(obs, batch.actions_BT[:, 0]) - target) ** 2).mean() for q in state.critics))
        actions, logp = policy(obs, noise[1])
        worth = torch.stack([q(obs, actions) for q in state.critics]).amin(0)
        self.step(state.optimizers["actor"], (self.temperature * logp - worth).mean())
        for slow, fast in zip(state.slow.parameters(), state.critics.parameters(), strict=True):
            slow.lerp_(fast.detach(), self.tau)

    @staticmethod
    def step(optimizer: torch.optim.Optimizer, loss: Any) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# -- tests ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bootstrap", [False, True])
def test_windows_of_one_unit_are_transitions(bootstrap):
    n = 3
    s = Segment(
        prefix=None,
        actions=torch.arange(n),
        mask=torch.ones(n, dtype=torch.bool),
        logp_old=torch.zeros(n),
        turn=torch.arange(n),
        version=torch.zeros(n, dtype=torch.long),
        reward=(0.5, 1.5, 2.5),
        bootstrap=bootstrap,
        extras={"obs": torch.tensor([[10], [11], [12]]), "next_obs": torch.tensor([[13]])},
    )
    batch = collated([window(s, t, 1) for t in range(n)])
    rows = zip(batch.extras["obs"].flatten(), batch.actions_BT.flatten(), batch.reward_BK.flatten(), batch.extras["next_obs"].flatten())
    assert [tuple(map(float, r)) for r in rows] == [(10, 0, 0.5, 11), (11, 1, 1.5, 12), (12, 2, 2.5, 13)]
    assert batch.bootstrap_B.tolist() == [True, True, bootstrap], "only an end is worth nothing afterwards"
    pair = collated([window(s, 1, 2)])
    assert pair.reward_BK.tolist() == [[1.5, 2.5]] and pair.extras["next_obs"].tolist() == [[[13]]]
    assert pair.turn_BT.tolist() == [[0, 1]]


def test_soft_actor_critic_learns_from_a_replay_of_pixels():
    torch.manual_seed(0)
    shape, generator = (WORLD["size"], WORLD["size"], 3), torch.Generator().manual_seed(0)
    policy, method, replay = Squashed(shape, 2), SAC(), Replay()
    engine = VectorEngine(policy, vector(Reach, 16, continuous=True, **WORLD))
    state, level = method.init(policy, shape), [reach_level(policy, WORLD)]
    for step in range(60):
        replay.add(engine.stream(TASK, 4, Context(step)))
        for _ in range(8):
            batch = replay.sample(64, generator)
            method.update(policy, state, batch, torch.randn(2, 64, 2, generator=generator))
        policy.version += 1
        if step % 10 == 9:
            level.append(reach_level(policy, WORLD))
            if level[-1] > 0.85:
                break
    assert {int(v) for s in replay.segments for v in s.version.unique()} == set(range(step + 1)), "transitions of every age are kept"
    assert level[-1] > 0.85 > 0.6 > level[0], level
