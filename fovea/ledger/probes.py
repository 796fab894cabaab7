"""What a trained policy knows of a simulator: linear probes on what it remembers, and how well it foresees rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fovea.tasks.gym import HELDOUT

RIDGE = 1.0
"""Penalty of a probe's weights, on features of standard deviation 1."""


@dataclass(frozen=True)
class Memory:
    """Asks a policy with a memory (`fovea.policies.world_model.WorldModel`) after training. An examination of a claim.

    Held-out episodes with random actions are played in a simulator whose `info["truth"]` says how things stand, by name. A linear probe is
    fitted on half of the episodes and judged on the other half.

    Attributes:
      episodes, steps: how many, and their length, which none may end before.
      elsewhere: name -> changes of the simulator's arguments: what it looks like where the policy has not been; only rewards are asked
        there, because a probe is about what is kept, not about where it is found.

    Gives, for every thing in "truth", NAME: R² of the probe (mean over its dimensions, at least 0); "reward_error" and
    "reward_error/WHERE": mean squared error of the foreseen reward over the variance of the reward.
    """

    episodes: int = 100
    steps: int = 40
    elsewhere: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __call__(self, policy: Any, recipe: Any) -> dict[str, float]:
        from fovea.api import build_sources

        source = build_sources(recipe)[1]
        latent_BTF, reward_BT, truth = self.play(policy, source)
        half = self.episodes // 2
        out = {name: heard(latent_BTF[:half], x[:half], latent_BTF[half:], x[half:]) for name, x in truth.items()}
        out["reward_error"] = error(policy, latent_BTF, reward_BT)
        for name, changes in self.elsewhere.items():
            out[f"reward_error/{name}"] = error(policy, *self.play(policy, replace(source, kwargs={**source.kwargs, **changes}))[:2])
        return out

    def play(self, policy: Any, source: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(latent (B, T, F), reward that led to each (B, T), truth at each by name), T = `steps`.

        Raises:
          ValueError: the simulator tells no truth, or an episode is shorter.
        """
        envs, rng = source.vector(self.episodes), np.random.default_rng(0)
        obs, info = envs.reset(seed=[HELDOUT + i for i in range(self.episodes)])
        if "truth" not in info:
            raise ValueError(f"gym:{source.name} tells no truth; expected info['truth'], from name to numbers, to ask a policy about")
        seen, done, rewards, truths = [obs.copy()], [], [], []
        for t in range(self.steps):
            action = rng.uniform(-1, 1, envs.action_space.shape).astype(np.float32)
            obs, reward, terminated, truncated, info = envs.step(action)
            if (terminated | truncated).any() and t + 1 < self.steps:
                raise ValueError(f"gym:{source.name}: an episode ended after {t + 1} steps; expected at least {self.steps}")
            truths.append({name: x.copy() for name, x in info["truth"].items() if not name.startswith("_")})
            for kept, x in zip((seen, done, rewards), (obs, action, reward)):
                kept.append(x.copy())
        envs.close()
        obs_BT, action_BTA = (torch.from_numpy(np.stack(x, 1)) for x in (seen, [*done, np.zeros_like(done[0])]))
        g = torch.Generator().manual_seed(0)
        noise_BTS = torch.randn(*obs_BT.shape[:2], policy.network.stochastic, generator=g)
        latent_BTF = policy.recall(obs_BT, action_BTA, noise_BTS)[:, 1:]
        truth = {name: torch.from_numpy(np.stack([x[name] for x in truths], 1)).float() for name in truths[0]}
        return latent_BTF, torch.from_numpy(np.stack(rewards, 1)).float(), {n: x for n, x in truth.items() if x.shape[-1]}


def heard(fit_BTF: Tensor, told_BTD: Tensor, new_BTF: Tensor, true_BTD: Tensor) -> float:
    """R² of a ridge regression on other episodes than it was fitted on: mean over dimensions, at least 0."""
    x, y, z, true = (a.flatten(0, 1).double() for a in (fit_BTF, told_BTD, new_BTF, true_BTD))
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    x, z = ((a - mean) / std for a in (x, z))
    weight = torch.linalg.solve(x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T @ (y - y.mean(0)))
    left = ((z @ weight + y.mean(0) - true) ** 2).mean(0) / true.var(0, correction=0).clamp(min=1e-12)
    return max(0.0, float(1 - left.mean()))


def error(policy: Any, latent_BTF: Tensor, reward_BT: Tensor) -> float:
    return float(((policy.expected_reward(latent_BTF) - reward_BT) ** 2).mean() / reward_BT.var(correction=0))
