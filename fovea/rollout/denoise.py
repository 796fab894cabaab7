"""Groups of generated samples: one episode is one denoising chain, one action unit is one denoising step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fovea.rollout.given import chain_segment, check_members
from fovea.rollout.sampling import Sampling, address, numbered, uniforms
from fovea.types import Context, Episode, Group, Prefix, Task, Turn


class Denoiser(Protocol):
    """What the driver asks of a policy; see `fovea.policies.chain.GaussianChain`.

    One that is not conditioned by a function of the task has `encode(prompt, images) -> Prefix`; one that makes more than numbers has
    `show(samples)`, a text or a picture for each.
    """

    version: int
    draws: int

    def denoise(self, prefixes_E: Sequence[Prefix], uniform_ED: Tensor, greedy_E: Tensor) -> Mapping[str, Tensor]: ...


class DenoiseEngine:
    """Rolls out a denoiser; the counterpart of `Engine` for generated samples.

    Args:
      condition: Task -> (C,) float tensor that the policy is conditioned on; None asks the policy to encode the task's prompt.
      seed: first part of every random address.
      max_rows: chains per forward.
    """

    def __init__(self, policy: Any, condition: Callable[[Task], Tensor] | None = None, seed: int = 0, max_rows: int = 256):
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

        The sample is the last action of the segment, ``episode.segments[-1].actions[-1]``; verifiers find it as `Episode.text` or, where
        it is a picture, as `Episode.drawn`.
        """
        check_members(members, ("greedy",))
        roles = ["sample"] * group_size + list(members)
        groups, keys, greedy, prefixes = [], [], [], []
        for task, name in zip(tasks, numbered(t.id for t in tasks), strict=True):
            groups.append(Group(task, [Episode(id=f"{context.step}/{name}/{g}", task=task, role=role) for g, role in enumerate(roles)]))
            keys += [address(self.seed, context.step, attempt, name, g) for g in range(len(roles))]
            greedy += [role == "greedy" or not sampling.temperature for role in roles]
            prefixes += [self._prefix(task)] * len(roles)
        episodes = [e for group in groups for e in group.episodes]
        D = self.policy.draws
        for at in range(0, len(episodes), self.max_rows):
            part = slice(at, at + self.max_rows)
            n = len(episodes[part])
            uniform_ED = uniforms(np.repeat(np.asarray(keys[part], dtype=np.uint64), D), np.tile(np.arange(D), n)).view(n, D)
            out = self.policy.denoise(prefixes[part], uniform_ED, torch.tensor(greedy[part]))
            S = out["actions"].shape[1]
            for i, (episode, made) in enumerate(zip(episodes[part], self._shown(out["actions"][:, -1]), strict=True)):
                episode.segments.append(chain_segment(prefixes[at + i], {k: v[i] for k, v in out.items()}, self.policy.version))
                text, drawn = (made, None) if isinstance(made, str) else ("", made)
                episode.turns.append(Turn(text, drawn=drawn, stop="terminated"))
                episode.stop = "terminated"
            if on_progress is not None:
                on_progress(at + n, len(episodes), (at + n) * S)
        if score is not None:
            for group in groups:
                score.submit(group, context)
            score.finish()
        return groups

    def _prefix(self, task: Task) -> Prefix:
        if self.condition is None:
            return self.policy.encode(task.prompt, task.images)
        given = self.condition(task)
        return Prefix(hashlib.sha256(given.numpy().tobytes()).hexdigest(), given)

    def _shown(self, sample_EA: Tensor) -> Sequence[Any]:
        return self.policy.show(sample_EA) if hasattr(self.policy, "show") else [""] * len(sample_EA)
