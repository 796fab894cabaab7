"""Log-linear policies and ragged random rollouts, small enough to differentiate by hand and rich enough to break a careless loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fovea.batch import Batch
from fovea.methods import METHODS, get
from fovea.types import Episode, Group, Prefix, Score, Segment, Task, user

CREDITED = [n for n in METHODS if get(n)().needs.data != "replay"]
"""The methods with credit and loss; the others learn from a replay."""
V, T_MAX, PROMPTS, A, D = 5, 10, 4, 2, 6


class Toy(torch.nn.Module):
    """Logits and values linear in fixed features of (prompt, position); float64. Continuous rows read the first A logits as means.

    The weights are shared by all positions, so that no gradient cancels to rounding noise, which AdamW would blow up to a full step.
    """

    def __init__(self, seed: int = 0, continuous: bool = False):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.features_PTD = torch.randn(PROMPTS, T_MAX, D, generator=g, dtype=torch.float64)
        self.weight_DV = torch.nn.Parameter(0.5 * torch.randn(D, V, generator=g, dtype=torch.float64))
        self.value_D = torch.nn.Parameter(torch.randn(D, generator=g, dtype=torch.float64))
        self.log_std_A = torch.nn.Parameter(torch.zeros(A, dtype=torch.float64))
        self.continuous = continuous
        self.reference: list[Toy] = []

    def set_reference(self) -> Toy:
        frozen = copy.deepcopy(self)
        with torch.no_grad():
            frozen.weight_DV.mul_(0.7)
        self.reference = [frozen]
        return self

    def redraw(self, prefix: Prefix, change: Callable[..., Any]) -> Prefix:
        """Another picture is another prompt here; prompt 3 has no picture."""
        return prefix if prefix.data == 3 else Prefix(f"{prefix.key}~", data=(prefix.data + 1) % PROMPTS)

    def forward(self, batch: Batch, want: frozenset[str]) -> dict[str, Tensor]:
        return self.evaluate(batch, want)

    def evaluate(self, batch: Batch, want: frozenset[str], variant: str = "policy") -> dict[str, Tensor]:
        if variant == "reference":
            with torch.no_grad():
                return self.reference[0].evaluate(batch, want)
        prompt_B = torch.tensor([batch.prefixes[p].data for p in batch.prefix_B.tolist()])
        T = batch.mask_BT.shape[1]
        features_BTD = self.features_PTD[prompt_B, :T]
        logits_BTV = features_BTD @ self.weight_DV
        if self.continuous:
            normal = torch.distributions.Normal(logits_BTV[..., :A], self.log_std_A.exp())
            logp, entropy = normal.log_prob(batch.actions_BT).sum(-1), normal.entropy().sum(-1)
        else:
            logp_BTV = logits_BTV.log_softmax(-1)
            logp = logp_BTV.gather(-1, batch.actions_BT[..., None])[..., 0]
            entropy = -(logp_BTV.exp() * logp_BTV).sum(-1)
        streams = {"logp": logp, "entropy": entropy, "value": features_BTD @ self.value_D}
        if "next_value" in want:
            streams["next_value"] = batch.extras["next_obs"].reshape(batch.B).to(torch.float64)
        return {k: streams[k] for k in want}


def rollout(
    policy: Toy,
    seed: int = 0,
    groups: int = 4,
    size: int = 3,
    *,
    off_policy: float = 0.0,
    segments: int = 1,
    rewards: bool = False,
    cuts: bool = False,
    greedy: bool = True,
    failed: bool = True,
) -> list[Group]:
    """Ragged groups: answers of 1 to T_MAX units, some masked out, two turns each, and one failed episode.

    off_policy: size of the noise on the recorded log-probs. segments: rows per episode. rewards: environment rewards on the turns.
    cuts: every other episode was cut and carries a next observation.
    """
    g = torch.Generator().manual_seed(seed)

    def uniform() -> float:
        return float(torch.rand((), generator=g))

    def segment(prompt: int, cut: bool) -> Segment:
        n = int(torch.randint(1, T_MAX + 1, (), generator=g))
        logits_TV = (policy.features_PTD[prompt, :n] @ policy.weight_DV).detach()
        if policy.continuous:
            mean, std = logits_TV[:, :A], policy.log_std_A.detach().exp()
            actions = mean + std * torch.randn(n, A, generator=g, dtype=torch.float64)
            logp = torch.distributions.Normal(mean, std).log_prob(actions).sum(-1)
        else:
            actions = torch.multinomial(logits_TV.softmax(-1), 1, generator=g)[:, 0]
            logp = logits_TV.log_softmax(-1).gather(-1, actions[:, None])[:, 0]
        mask = torch.rand(n, generator=g) > 0.25
        mask[int(torch.randint(n, (), generator=g))] = True
        logp = logp + off_policy * torch.randn(n, generator=g, dtype=torch.float64)
        turn = (torch.arange(n) >= n // 2).long()
        return Segment(
            Prefix(f"p{prompt}", data=prompt),
            actions,
            mask,
            logp,
            turn,
            torch.zeros(n, dtype=torch.long),
            logp_behaviour=logp + 0.1 * torch.rand(n, generator=g, dtype=torch.float64),
            reward=[uniform(), uniform()] if rewards else (),
            bootstrap=cut,
            extras={
                "described": (torch.arange(n) < n // 2).double(),
                "action": (torch.arange(n) % 3 > 0).double(),
                **({"next_obs": torch.full((1,), uniform(), dtype=torch.float64)} if cut else {}),
            },
        )

    out = []
    for i in range(groups):
        task = Task(id=f"t{i}", source="toy", prompt=user("?"))
        episodes = []
        for j in range(size):
            cut = cuts and j % 2 == 0
            rows = [segment(i % PROMPTS, cut and s == segments - 1) for s in range(segments)]
            parts = {"format": float(uniform() > 0.5), "answer": uniform(), "visual": (i + 2 * j) % 3 / 2}
            score = Score.failed("timeout") if failed and i == 1 and j == 2 else Score(sum(parts.values()), parts)
            episodes.append(Episode(f"e{i}/{j}", task, segments=rows, stop="length" if j % 3 == 2 else "eos", score=score))
        if greedy:
            parts = {"format": 1.0, "answer": uniform(), "visual": 1.0}
            episodes.append(Episode(f"e{i}/greedy", task, "greedy", [segment(i % PROMPTS, False)], score=Score(1.0 + uniform(), parts)))
        out.append(Group(task, episodes))
    return out


def pairs(policy: Toy, seed: int = 0, groups: int = 5) -> list[Group]:
    """Preference pairs, unscored."""
    out = rollout(policy, seed, groups, size=2, greedy=False, failed=False)
    for group in out:
        for episode, role in zip(group.episodes, ("chosen", "rejected"), strict=True):
            episode.role, episode.score = role, None
    return out


def gold(policy: Toy, seed: int = 0, groups: int = 5) -> list[Group]:
    """One given answer per task, unscored."""
    out = rollout(policy, seed, groups, size=1, greedy=False, failed=False)
    for group in out:
        group.episodes[0].role, group.episodes[0].score = "gold", None
    return out
