"""The lock-step driver: the default episode program for many copies of a simulator at once.

All environments of a Gymnasium `VectorEnv` step together; one whose episode ends takes the next episode of the queue. Autoreset is off, so
the observation after a cut is the real one and is kept for its value estimate. Members of a group share their start by seed. Random numbers
are addressed by (seed, step, attempt, task, episode, environment step), so the number of environments changes nothing but speed.

What an environment says in ``info["noted"]`` is recorded with the unit: "action" is what was really done, where somebody else took over
("intervened", who then chose it, not the policy), and the rest are extras. ``info["measures"]`` at the end are parts of the score.

Episodes that go on from one training step to the next (`stream`) are in the middle of a simulator, which no file can hold. What is kept is
how to get there again: the seed, the actions so far, and what a person did in their place, which no seed repeats.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fovea.envs.films import Camera, Film, fps_of
from fovea.rollout.given import check_members
from fovea.rollout.sampling import Sampling, address, numbered, uniforms
from fovea.types import Context, Episode, Group, Score, Segment, Task, Turn

SEED_BITS = 31  # Gymnasium seeds: non-negative, 32 bits
NO_TASK = Task(id="", source="", prompt=())


class ArrayPolicy(Protocol):
    """What the lock-step driver asks of a policy.

    Attributes:
      draws: how many uniform numbers one action consumes.
      remembers: numbers that it keeps of an episode from step to step, where it has a memory: `act` then takes "memory_EM" as well, 0 at
        the start of an episode, and tells the next one as "memory".
    """

    version: int
    draws: int

    def act(self, obs: Tensor, uniform_ED: Tensor, greedy_E: Tensor) -> Mapping[str, Tensor]:
        """(E, ...) observations -> "actions" (E, ...), "logp" (E,), and whatever else an action carries, each with leading (E,)."""
        ...


@dataclass
class Slot:
    """One environment and the episode it plays; columns grow by one unit per step. `before`: units in earlier pieces of the episode."""

    episode: Episode
    key: int
    before: int = 0
    reward_before: float = 0.0
    columns: dict[str, list[Tensor]] = field(default_factory=dict)
    reward: list[float] = field(default_factory=list)
    version: list[int] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.reward)

    def close(self, stop: str, next_obs: Tensor) -> None:
        """Write the episode's segment; `stop` is "terminated", "cut", or "paused" where another piece will follow.

        The sum of rewards is the score until a verifier says otherwise; the return and the steps of a whole episode are parts of its last.
        """
        T, extras = self.n, {k: torch.stack(v) for k, v in self.columns.items()}
        logp = extras.pop("logp").float()
        mask = ~extras["intervened"] if "intervened" in extras else torch.ones(T, dtype=torch.bool)
        self.episode.segments.append(
            Segment(
                prefix=None,
                actions=extras.pop("actions"),
                mask=mask,
                logp_old=logp,
                turn=torch.arange(T),
                version=torch.tensor(self.version, dtype=torch.long),
                reward=tuple(self.reward),
                bootstrap=stop != "terminated",
                extras={**extras, "next_obs": next_obs[None]},
            )
        )
        self.episode.turns.append(Turn(text="", reward=sum(self.reward), stop=stop, measures=self.measures))
        self.episode.stop = stop
        whole = {"return": self.reward_before + sum(self.reward), "steps": float(self.before + T)} | self.measures
        self.episode.score = Score(sum(self.reward), parts={} if stop == "paused" else whole)


@dataclass
class Playing:
    """A whole episode in an environment of a stream: its seed and actions lead there again. `last` is the id of its last piece."""

    seed: int
    actions: list[Any] = field(default_factory=list)
    reward: float = 0.0
    last: str = ""


class VectorEngine:
    """Rolls out an `ArrayPolicy` in a Gymnasium vector environment; the counterpart of `Engine` for simulators.

    Args:
      envs: made with autoreset disabled, e.g. by `fovea.envs.gym.vector`.
      seed: first part of every random address.
      max_steps: an episode longer than this is cut (None: only the environment's own limit).
      senses: where the policy learns what to normalise observations by (`fovea.policies.pixel.Senses`); renewed before a rollout, so that
        the policy that acts is the one that the following update sees.
      options: of every `reset`.
      filmed: how many of a rollout's episodes, the first ones, become films (`fovea.envs.films`).

    Attributes:
      lost: episodes of a stream that could not be taken up again.
    """

    def __init__(
        self,
        policy: ArrayPolicy,
        envs: Any,
        seed: int = 0,
        max_steps: int | None = None,
        senses: Any = None,
        options: Mapping[str, Any] | None = None,
        filmed: int = 0,
    ):
        mode = getattr(envs, "metadata", {}).get("autoreset_mode")
        if getattr(mode, "name", str(mode)) != "DISABLED":
            raise ValueError(
                f"the vector environment has autoreset mode {mode}; expected DISABLED, because an automatic reset hides the observation "
                "after a cut: make it with fovea.envs.gym.vector or vector_kwargs={'autoreset_mode': AutoresetMode.DISABLED}"
            )
        self.policy, self.envs, self.seed, self.max_steps, self.senses = policy, envs, seed, max_steps, senses
        self.options, self.camera = dict(options or {}), Camera(filmed)
        self.counts: Counter[str] = Counter()
        self._slots: list[Slot | None] = [None] * envs.num_envs
        self._obs: Any = None
        self._playing: list[Playing | None] = [None] * envs.num_envs
        self._memory_EM: Tensor | None = None
        self.lost = 0

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
        self._renew()
        roles = ["sample" if sampling.temperature else "greedy"] * group_size + list(members)
        groups, slots = [], []
        for task, name in zip(tasks, numbered(t.id for t in tasks), strict=True):
            group = Group(task, [])
            for g, role in enumerate(roles):
                episode = Episode(id=f"{context.step}/{name}/{g}", task=task, role="sample" if g < group_size else role)
                group.episodes.append(episode)
                if len(slots) < self.camera.count:
                    episode.film = Film(fps_of(self.envs.envs[0]))
                slots.append((Slot(episode, address(self.seed, context.step, attempt, name, g)), self._start(task, context, attempt, name)))
            groups.append(group)
        greedy = {id(slot) for (slot, _), role in zip(slots, roles * len(tasks), strict=True) if role == "greedy"}
        queue, total, done, steps = slots[::-1], len(slots), 0, 0
        self._slots, self._playing = [None] * self.envs.num_envs, [None] * self.envs.num_envs
        while queue or any(self._slots):
            self._fill(lambda _: queue.pop() if queue else None)
            self._film(range(len(self._slots)))
            for e, stop, next_obs in self._step(greedy):
                slot = self._slots[e]
                assert slot is not None
                slot.close(stop, next_obs)
                self._film([e])
                self._slots[e] = None
                done, steps = done + 1, steps + slot.n
                if on_progress is not None:
                    on_progress(done, total, steps)
        self._observe(groups)
        if score is not None:
            for group in groups:
                score.submit(group, context)
            score.finish()
        return groups

    def stream(self, task: Task, steps: int, context: Context = Context()) -> list[Group]:  # noqa: B008 - frozen
        """Exactly `steps` steps of every environment; episodes at the end pause and go on in the next call, as PPO's buffers do.

        Each piece of an episode is a group of its own; the next one `follows` it.
        """
        groups: list[Group] = []
        self._renew()

        def piece(e: int) -> Slot:
            playing = self._playing[e]
            assert playing is not None
            name = str(len(groups))
            episode = Episode(id=f"{context.step}/{task.id}/{name}", task=task, follows=playing.last)
            groups.append(Group(task, [episode]))
            playing.last = episode.id
            return Slot(episode, address(self.seed, context.step, task.id, name), len(playing.actions), playing.reward)

        def begin(e: int) -> tuple[Slot, int]:
            seed = self._start(task, context, 0, str(len(groups)))
            self._playing[e] = Playing(seed)
            return piece(e), seed

        self._slots = [piece(e) if playing else None for e, playing in enumerate(self._playing)]
        for t in range(steps):
            self._fill(begin)
            ended = {e: (stop, obs) for e, stop, obs in self._step(set())}
            for e, (slot, playing) in enumerate(zip(self._slots, self._playing)):
                assert slot is not None and playing is not None
                playing.actions.append(self._sent[e].tolist())
                playing.reward += slot.reward[-1]
                if e in ended or t == steps - 1:
                    slot.close(*ended.get(e, ("paused", self._tensor(self._obs[e]))))
                if e in ended:
                    self._slots[e] = self._playing[e] = None
        self._observe(groups)
        return groups

    def _film(self, which: Iterable[int]) -> None:
        """This moment of the copies whose episodes are filmed."""
        for e in which:
            slot = self._slots[e]
            if slot is not None and slot.episode.film is not None:
                self.camera.look(slot.episode.film, self.envs.envs[e], self._obs[e])

    def _renew(self) -> None:
        if self.senses is not None:
            self.senses.renew()

    def _observe(self, groups: Sequence[Group]) -> None:
        if self.senses is not None:
            self.senses.observe(torch.cat([s.extras["obs"] for g in groups for e in g.episodes for s in e.segments]))

    def close(self) -> None:
        self.envs.close()

    def _people(self, e: int) -> list[Any]:
        """Who may act by hand in an environment."""
        return _people(self.envs.envs[e]) if hasattr(self.envs, "envs") else []

    def state_dict(self) -> dict[str, Any]:
        """The episodes of the stream that go on, and what they show; plain JSON."""

        def told(e: int, p: Playing) -> dict[str, Any]:
            hands = [list(person.done) for person in self._people(e)]
            return {**vars(p), "actions": list(p.actions), "shows": _digest(self._obs[e])} | ({"hands": hands} if hands else {})

        memory = {} if self._memory_EM is None else {"memory": self._memory_EM.tolist()}
        return {"playing": [p and told(e, p) for e, p in enumerate(self._playing)], **memory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Play the episodes of a stream again up to where they were; nobody can act meanwhile.

        An environment that then shows something else than it did is not deterministic; its episode is given up and counted in `lost`.
        """
        stored = [None if p is None else dict(p) for p in state["playing"]]
        if len(stored) != self.envs.num_envs:
            raise ValueError(f"the saved stream had {len(stored)} environments, this one has {self.envs.num_envs}; expected as many")
        shows = [p.pop("shows") if p else None for p in stored]
        hands = [p.pop("hands", []) if p else [] for p in stored]
        self._playing = [Playing(**p) if p else None for p in stored]
        longest = max((len(p.actions) for p in self._playing if p), default=0)
        idle = np.asarray(self.envs.single_action_space.sample())
        for t in range(longest + 1):  # all end at the same time, so the shorter ones begin later
            self._slots = [None] * self.envs.num_envs
            begin = {e: p.seed for e, p in enumerate(self._playing) if p and len(p.actions) == longest - t}
            self._fill(lambda e, begin=begin: (Slot(Episode("", NO_TASK), 0), begin[e]) if e in begin else None)
            if t < longest:
                sent = [p.actions[t - longest] if p and len(p.actions) >= longest - t else idle for p in self._playing]
                self._do_again(hands, longest - t)
                self._advance(np.stack([np.asarray(a, dtype=idle.dtype) for a in sent]))
        for e in range(self.envs.num_envs):
            for person in self._people(e):
                person.again = None
        self._memory_EM = torch.tensor(state["memory"]) if "memory" in state else None
        for e, shown in enumerate(shows):
            if shown is not None and shown != _digest(self._obs[e]):
                self._playing[e], self.lost = None, self.lost + 1

    def _do_again(self, hands: Sequence[Sequence[Sequence[Any]]], left: int) -> None:
        """Who acted `left` steps before the end of what is played again does the same in the next step, and nobody else acts."""
        for e, done in enumerate(hands):
            for i, person in enumerate(self._people(e)):
                steps = done[i] if i < len(done) else ()
                person.again = (steps[-left] if 0 < left <= len(steps) else None,)

    def _start(self, task: Task, context: Context, attempt: int, name: str) -> int:
        fixed = task.meta.get("seed")
        return int(fixed) if fixed is not None else address(self.seed, context.step, attempt, name) >> (64 - SEED_BITS)

    def _fill(self, next_slot: Any) -> None:
        """Give every free environment an episode; where none is left, an ended environment is reset and its steps are not recorded."""
        free = [e for e, slot in enumerate(self._slots) if slot is None]
        seeds: list[int | None] = [None] * self.envs.num_envs
        for e in free:
            taken = next_slot(e)
            if taken is not None:
                self._slots[e], seeds[e] = taken
        ended = getattr(self, "_over", np.ones(self.envs.num_envs, dtype=bool))
        mask = np.array([seed is not None for seed in seeds]) | ended
        if self._memory_EM is not None:
            self._memory_EM = self._memory_EM * ~torch.from_numpy(mask)[:, None]
        if self._obs is None or mask.all():
            self._obs, _ = self.envs.reset(seed=seeds, options=dict(self.options))
        elif mask.any():
            self._obs, _ = self.envs.reset(seed=seeds, options={**self.options, "reset_mask": mask})

    def _step(self, greedy: set[int]) -> list[tuple[int, str, Tensor]]:
        """One step of every environment; returns (environment, stop, observation after it) of the episodes that ended."""
        obs = self._tensor(self._obs)
        keys = [slot.key if slot else 0 for slot in self._slots]
        first = np.array([slot.n if slot else 0 for slot in self._slots])[:, None] * self.policy.draws + np.arange(self.policy.draws)
        uniform_ED = uniforms(np.repeat(np.asarray(keys, dtype=np.uint64), self.policy.draws), first.reshape(-1)).view(
            -1, self.policy.draws
        )
        greedy_E = torch.tensor([id(slot) in greedy for slot in self._slots])
        out = dict(self.policy.act(obs, uniform_ED, greedy_E, **self._remembered()))
        self._memory_EM = out.pop("memory", None)
        reward_E, terminated_E, truncated_E, infos = self._advance(self._to_env(out["actions"]))
        noted = {k: self._tensor(x) for k, x in infos.get("noted", {}).items() if not k.startswith("_")}
        out = {**out, "actions": noted.pop("action", out["actions"]), **noted}
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
            slot.measures = _of(infos.get("measures", {}), e)
            if terminated_E[e]:
                ended.append((e, "terminated", after[e]))
            elif truncated_E[e] or slot.before + slot.n == self.max_steps:
                ended.append((e, "cut", after[e]))
        return ended

    def _remembered(self) -> dict[str, Tensor]:
        """What a policy with a memory is given besides."""
        if not (size := getattr(self.policy, "remembers", 0)):
            return {}
        return {"memory_EM": torch.zeros(self.envs.num_envs, size) if self._memory_EM is None else self._memory_EM}

    def _advance(self, sent: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step every environment: (reward, terminated, truncated, what they say)."""
        self._sent = sent
        self._obs, reward_E, terminated_E, truncated_E, infos = self.envs.step(sent)
        self._over = terminated_E | truncated_E
        return reward_E, terminated_E, truncated_E, infos

    def _to_env(self, actions: Tensor) -> np.ndarray:
        """Actions as the environment takes them; a Box clips what an unbounded Gaussian asked for, the stored action stays as sampled."""
        space = self.envs.single_action_space
        raw = actions.cpu().numpy()
        return raw if not hasattr(space, "low") else np.clip(raw.reshape(-1, *space.shape), space.low, space.high).astype(space.dtype)

    @staticmethod
    def _tensor(x: Any) -> Tensor:
        return torch.from_numpy(np.array(x))


def _of(infos: Mapping[str, Any], e: int) -> dict[str, float]:
    """The numbers of one environment among those of all; a vector environment marks in "_name" who has one."""
    return {k: float(x[e]) for k, x in infos.items() if not k.startswith("_") and infos[f"_{k}"][e]}


def _people(env: Any) -> list[Any]:
    found = []
    while env is not None:
        found += [env.watcher] if hasattr(getattr(env, "watcher", None), "again") else []
        env = getattr(env, "env", None)
    return found


def _digest(obs: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(obs).tobytes()).hexdigest()[:16]
