"""Tabular policies and ragged random rollouts, small enough to differentiate by hand and rich enough to break a careless loss."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from fovea.batch import Batch
from fovea.types import Episode, Group, Prefix, Score, Segment, Task, user

V, T_MAX, PROMPTS, A = 5, 12, 4, 2


class Toy(torch.nn.Module):
    """One logit vector and one value for each (prompt, position); float64. Continuous rows read the first A of them as means."""

    def __init__(self, seed: int = 0, continuous: bool = False):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.logits_PTV = torch.nn.Parameter(torch.randn(PROMPTS, T_MAX, V, generator=g, dtype=torch.float64))
        self.value_PT = torch.nn.Parameter(torch.randn(PROMPTS, T_MAX, generator=g, dtype=torch.float64))
        self.log_std_A = torch.nn.Parameter(torch.zeros(A, dtype=torch.float64))
        self.continuous = continuous
        self.frozen: Toy | None = None

    def set_reference(self) -> Toy:
        self.frozen = copy.deepcopy(self)
        with torch.no_grad():
            self.frozen.logits_PTV.add_(0.3 * torch.sin(torch.arange(self.logits_PTV.numel())).reshape(self.logits_PTV.shape))
        return self

    def evaluate(self, batch: Batch, want: frozenset[str], variant: str = "policy") -> dict[str, Tensor]:
        if variant == "reference":
            assert self.frozen is not None
            with torch.no_grad():
                return self.frozen.evaluate(batch, want)
        prompt_B = torch.tensor([batch.prefixes[p].data for p in batch.prefix_B.tolist()])
        T = batch.mask_BT.shape[1]
        logits_BTV = self.logits_PTV[prompt_B, :T]
        if self.continuous:
            normal = torch.distributions.Normal(logits_BTV[..., :A], self.log_std_A.exp())
            logp, entropy = normal.log_prob(batch.actions_BT).sum(-1), normal.entropy().sum(-1)
        else:
            logp_BTV = logits_BTV.log_softmax(-1)
            logp = logp_BTV.gather(-1, batch.actions_BT[..., None])[..., 0]
            entropy = -(logp_BTV.exp() * logp_BTV).sum(-1)
        streams = {"logp": logp, "entropy": entropy, "value": self.value_PT[prompt_B, :T]}
        if "next_value" in want:
            streams["next_value"] = batch.extras["next_obs"].reshape(batch.B).to(torch.float64)
        return {k: streams[k] for k in want}


def rollout(
    policy: Toy,
    seed: int = 0,
    groups: int = 4,
    size: int = 4,
    *,
    off_policy: float = 0.0,
    segments: int = 1,
    rewards: bool = False,
    cuts: bool = False,
    greedy: bool = True,
    failed: bool = True,
) -> list[Group]:
    """Ragged groups: answers of 1 to 12 units, some masked out, two turns; one failed episode; two equal-score groups at most.

    off_policy: size of the noise on the recorded log-probs. segments: rows per episode. rewards: environment rewards on the turns.
    cuts: every other episode was cut and carries a next observation.
    """
    g = torch.Generator().manual_seed(seed)

    def uniform() -> float:
        return float(torch.rand((), generator=g))

    def segment(prompt: int, cut: bool) -> Segment:
        n = int(torch.randint(1, T_MAX + 1, (), generator=g))
        logits_TV = policy.logits_PTV.detach()[prompt, :n]
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
            extras={"next_obs": torch.full((1,), uniform(), dtype=torch.float64)} if cut else {},
        )

    out = []
    for i in range(groups):
        task = Task(id=f"t{i}", source="toy", prompt=user("?"))
        episodes = []
        for j in range(size):
            cut = cuts and j % 2 == 0
            rows = [segment(i % PROMPTS, cut and s == segments - 1) for s in range(segments)]
            parts = {"format": float(uniform() > 0.5), "answer": uniform()}
            score = Score.failed("timeout") if failed and i == 1 and j == 2 else Score(sum(parts.values()), parts)
            episodes.append(Episode(f"e{i}/{j}", task, segments=rows, stop="length" if j % 3 == 2 else "eos", score=score))
        if greedy:
            parts = {"format": 1.0, "answer": uniform()}
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
