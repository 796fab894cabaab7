"""The lock-step driver: the default episode program for many copies of a simulator at once.

All environments of a Gymnasium `VectorEnv` step together; one whose episode ends takes the next episode of the queue. Autoreset is off, so
the observation after a cut is the real one and is kept for its value estimate. Members of a group share their start by seed. Random numbers
are addressed by (seed, step, attempt, task, episode, environment step), so the number of environments changes nothing but speed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fovea.rollout.given import check_members
from fovea.rollout.sampling import Sampling, address, uniforms
from fovea.types import Context, Episode, Group, Score, Segment, Task, Turn

SEED_BITS = 31  # Gymnasium seeds: non-negative, 32 bits


class ArrayPolicy(Protocol):
    """What the lock-step driver asks of a policy.

    Attributes:
      draws: how many uniform numbers one action consumes.
    """

    version: int
    draws: int

    def act(self, obs: Tensor, uniform_ED: Tensor, greedy_E: Tensor) -> Mapping[str, Tensor]:
        """(E, ...) observations -> "actions" (E, ...), "logp" (E,), and whatever else an action carries, each with leading (E,)."""
        ...


@dataclass
class Slot:
    """One environment and the episode it plays; columns grow by one unit per step."""

    episode: Episode
    key: int
    columns: dict[str, list[Tensor]] = field(default_factory=dict)
    reward: list[float] = field(default_factory=list)
    version: list[int] = field(default_factory=list)

    @property
    def n(self) -> int:
        return len(self.reward)

    def close(self, stop: str, next_obs: Tensor) -> None:
        """Write the episode's segment; `stop` is "terminated" or "cut". The return is the score until a verifier says otherwise."""
        T, extras = self.n, {k: torch.stack(v) for k, v in self.columns.items()}
        logp = extras.pop("logp").float()
        self.episode.segments.append(
            Segment(
                prefix=None,
                actions=extras.pop("actions"),
                mask=torch.ones(T, dtype=torch.bool),
                logp_old=logp,
                turn=torch.arange(T),
                version=torch.tensor(self.version, dtype=torch.long),
                reward=tuple(self.reward),
                bootstrap=stop == "cut",
                extras={**extras, "next_obs": next_obs[None]},
            )
        )
        self.episode.turns.append(Turn(text="", reward=sum(self.reward), stop=stop))
        self.episode.stop = stop
        self.episode.score = Score(sum(self.reward), parts={"return": sum(self.reward), "steps": float(T)})


class VectorEngine:
    """Rolls out an `ArrayPolicy` in a Gymnasium vector environment; the counterpart of `Engine` for simulators.

    Args:
      envs: made with autoreset disabled, e.g. by `fovea.envs.gym.vector`.
      seed: first part of every random address.
      max_steps: an episode longer than this is cut (None: only the environment's own limit).
    """

    def __init__(self, policy: ArrayPolicy, envs: Any, seed: int = 0, max_steps: int | None = None):
        mode = getattr(envs, "metadata", {}).get("autoreset_mode")
        if getattr(mode, "name", str(mode)) != "DISABLED":
            raise ValueError(
                f"the vector environment has autoreset mode {mode}; expected DISABLED, because an automatic reset hides the observation "
                "after a cut: make it with fovea.envs.gym.vector or vector_kwargs={'autoreset_mode': AutoresetMode.DISABLED}"
            )
        self.policy, self.envs, self.seed, self.max_steps = policy, envs, seed, max_steps
        self.counts: Counter[str] = Counter()
        self._slots: list[Slot | None] = [None] * envs.num_envs
        self._obs: Any = None
        self._stream: Iterator[Slot] | None = None

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
        """Whole episodes, `group_size` (and one per name in `members`) for each task; of `sampling` only "temperature 0 is greedy" applies.

        A task whose `meta` has an integer "seed" always starts there; others start where (seed, step, attempt, task) say.
        """
        check_members(members, ("greedy",))
        roles = ["sample" if sampling.temperature else "greedy"] * group_size + list(members)
        groups, slots, seen = [], [], Counter[str]()
        for task in tasks:
            name = task.id if not seen[task.id] else f"{task.id}#{seen[task.id]}"
            seen[task.id] += 1
            group = Group(task, [])
            for g, role in enumerate(roles):
                episode = Episode(id=f"{context.step}/{name}/{g}", task=task, role="sample" if g < group_size else role)
                group.episodes.append(episode)
                slots.append((Slot(episode, address(self.seed, context.step, attempt, name, g)), self._start(task, context, attempt, name)))
            groups.append(group)
        greedy = {id(slot) for (slot, _), role in zip(slots, roles * len(tasks), strict=True) if role == "greedy"}
        queue, total, done, steps = slots[::-1], len(slots), 0, 0
        self._slots, self._stream = [None] * self.envs.num_envs, None
        while queue or any(self._slots):
            self._fill(lambda: queue.pop() if queue else None)
            for e, stop, next_obs in self._step(greedy):
                slot = self._slots[e]
                assert slot is not None
                slot.close(stop, next_obs)
                self._slots[e] = None
                done, steps = done + 1, steps + slot.n
                if on_progress is not None:
                    on_progress(done, total, steps)
        if score is not None:
            for group in groups:
                score.submit(group, context)
            score.finish()
        return groups

    def stream(self, task: Task, steps: int, context: Context = Context()) -> list[Group]:  # noqa: B008 - frozen
        """Exactly `steps` steps of every environment; episodes at the end are cut and go on in the next call, as PPO's buffers do.

        Each piece of an episode is a group of its own.
        """
        groups: list[Group] = []
        if self._stream is None:
            self._slots = [None] * self.envs.num_envs

        def fresh(piece: str) -> Slot:
            episode = Episode(id=f"{context.step}/{task.id}/{piece}", task=task)
            groups.append(Group(task, [episode]))
            return Slot(episode, address(self.seed, context.step, task.id, piece))

        def start() -> tuple[Slot, int]:
            piece = str(len(groups))
            return fresh(piece), self._start(task, context, 0, piece)

        if self._stream is not None:
            self._slots = [fresh(str(e)) for e in range(self.envs.num_envs)]
        self._stream = iter(())
        for t in range(steps):
            self._fill(start)
            ended = {e: (stop, obs) for e, stop, obs in self._step(set())}
            for e, slot in enumerate(self._slots):
                assert slot is not None
                if e in ended or t == steps - 1:
                    slot.close(*ended.get(e, ("cut", self._tensor(self._obs[e]))))
                if e in ended:
                    self._slots[e] = None
        return groups

    def _start(self, task: Task, context: Context, attempt: int, name: str) -> int:
        fixed = task.meta.get("seed")
        return int(fixed) if fixed is not None else address(self.seed, context.step, attempt, name) >> (64 - SEED_BITS)

    def _fill(self, next_slot: Any) -> None:
        """Give every free environment an episode; where none is left, an ended environment is reset and its steps are not recorded."""
        free = [e for e, slot in enumerate(self._slots) if slot is None]
        seeds: list[int | None] = [None] * self.envs.num_envs
        for e in free:
            taken = next_slot()
            if taken is not None:
                self._slots[e], seeds[e] = taken
        ended = getattr(self, "_over", np.ones(self.envs.num_envs, dtype=bool))
        mask = np.array([seed is not None for seed in seeds]) | ended
        if self._obs is None or mask.all():
            self._obs, _ = self.envs.reset(seed=seeds)
        elif mask.any():
            self._obs, _ = self.envs.reset(seed=seeds, options={"reset_mask": mask})

    def _step(self, greedy: set[int]) -> list[tuple[int, str, Tensor]]:
        """One step of every environment; returns (environment, stop, observation after it) of the episodes that ended."""
        obs = self._tensor(self._obs)
        keys = [slot.key if slot else 0 for slot in self._slots]
        first = np.array([slot.n if slot else 0 for slot in self._slots])[:, None] * self.policy.draws + np.arange(self.policy.draws)
        uniform_ED = uniforms(np.repeat(np.asarray(keys, dtype=np.uint64), self.policy.draws), first.reshape(-1)).view(
            -1, self.policy.draws
        )
        out = self.policy.act(obs, uniform_ED, torch.tensor([id(slot) in greedy for slot in self._slots]))
        self._obs, reward_E, terminated_E, truncated_E, _ = self.envs.step(self._to_env(out["actions"]))
        self._over = terminated_E | truncated_E
        after = self._tensor(self._obs)
        ended = []
        for e, slot in enumerate(self._slots):
            if slot is None:
                continue
            for name, x in {"obs": obs, **out}.items():
                slot.columns.setdefault(name, []).append(x[e])
            slot.reward.append(float(reward_E[e]))
            slot.version.append(self.policy.version)
            self.counts["steps"] += 1
            if terminated_E[e]:
                ended.append((e, "terminated", after[e]))
            elif truncated_E[e] or slot.n == self.max_steps:
                ended.append((e, "cut", after[e]))
        return ended

    def _to_env(self, actions: Tensor) -> np.ndarray:
        """Actions as the environment takes them; a Box clips what an unbounded Gaussian asked for, the stored action stays as sampled."""
        space = self.envs.single_action_space
        raw = actions.cpu().numpy()
        return raw if not hasattr(space, "low") else np.clip(raw.reshape(-1, *space.shape), space.low, space.high).astype(space.dtype)

    @staticmethod
    def _tensor(x: Any) -> Tensor:
        return torch.from_numpy(np.array(x))
