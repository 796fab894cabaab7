"""Groups of generated samples: one episode is one denoising chain, one action unit is one denoising step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fovea.rollout.given import check_members
from fovea.rollout.sampling import Sampling, address, uniforms
from fovea.types import Context, Episode, Group, Segment, Task, Turn


class Denoiser(Protocol):
    """What the driver asks of a policy; see `fovea.policies.flow.FlowPolicy`."""

    version: int
    draws: int

    def denoise(self, condition_EC: Tensor, uniform_ED: Tensor, greedy_E: Tensor) -> Mapping[str, Tensor]: ...


class DenoiseEngine:
    """Rolls out a denoiser; the counterpart of `Engine` for generated samples.

    Args:
      condition: Task -> (C,) float tensor that the policy is conditioned on.
      seed: first part of every random address.
      max_rows: chains per forward.
    """

    def __init__(self, policy: Denoiser, condition: Callable[[Task], Tensor], seed: int = 0, max_rows: int = 256):
        self.policy, self.condition, self.seed, self.max_rows = policy, condition, seed, max_rows

    def rollout(
        self,
        tasks: Sequence[Task],
        group_size: int,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        context: Context = Context(),  # noqa: B008 - frozen
        members: Sequence[str] = (),
        score: Any = None,
        on_progress: Any = None,
        attempt: int = 0,
    ) -> list[Group]:
        """`group_size` chains for each task (and one per name in `members`); of `sampling` only "temperature 0 is greedy" applies.

        The sample is the last action of the segment: ``episode.segments[-1].actions[-1]``.
        """
        check_members(members, ("greedy",))
        roles = ["sample"] * group_size + list(members)
        groups, keys, greedy, conditions = [], [], [], []
        seen = Counter[str]()
        for task in tasks:
            name = task.id if not seen[task.id] else f"{task.id}#{seen[task.id]}"
            seen[task.id] += 1
            groups.append(Group(task, [Episode(id=f"{context.step}/{name}/{g}", task=task, role=role) for g, role in enumerate(roles)]))
            keys += [address(self.seed, context.step, attempt, name, g) for g in range(len(roles))]
            greedy += [role == "greedy" or not sampling.temperature for role in roles]
            conditions += [self.condition(task)] * len(roles)
        episodes = [e for group in groups for e in group.episodes]
        D = self.policy.draws
        for at in range(0, len(episodes), self.max_rows):
            part = slice(at, at + self.max_rows)
            n = len(episodes[part])
            uniform_ED = uniforms(np.repeat(np.asarray(keys[part], dtype=np.uint64), D), np.tile(np.arange(D), n)).view(n, D)
            out = dict(self.policy.denoise(torch.stack(conditions[part]), uniform_ED, torch.tensor(greedy[part])))
            actions, logp = out.pop("actions"), out.pop("logp").float()
            S = actions.shape[1]
            for i, episode in enumerate(episodes[part]):
                episode.segments.append(
                    Segment(
                        prefix=None,
                        actions=actions[i],
                        mask=torch.ones(S, dtype=torch.bool),
                        logp_old=logp[i],
                        turn=torch.zeros(S, dtype=torch.long),
                        version=torch.full((S,), self.policy.version),
                        extras={k: v[i] for k, v in out.items()},
                    )
                )
                episode.turns.append(Turn(text="", stop="terminated"))
                episode.stop = "terminated"
            if on_progress is not None:
                on_progress(at + n, len(episodes), (at + n) * S)
        if score is not None:
            for group in groups:
                score.submit(group, context)
            score.finish()
        return groups
