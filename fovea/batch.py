"""The one batch contract: segments collated into (B, T) streams, with the tables their rows point into.

A row is a segment. Rows point to episodes (`episode_B`), episodes to groups (`group_E`), rows to shared prefixes (`prefix_B`). Two clocks:
action units (B, T) and turns (B, K), joined by `turn_BT`. Global statistics (`Totals`) are taken over the whole optimizer step before any
loss, so a loss is a plain sum over rows and `micro_batch` cannot change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fovea.math.clock import turn_starts
from fovea.types import Context, Group, Prefix, Segment
from fovea.views import View

TRAINED_ROLES = ("sample", "gold", "chosen", "rejected")


@dataclass(frozen=True)
class Critic:
    """How the value head of a language policy is built, on the last hidden state.

    Attributes:
      hidden: widths of its hidden layers, with ReLU; none is a linear head.
      apart: no gradient goes from it into the model.
    """

    hidden: tuple[int, ...] = ()
    apart: bool = False


@dataclass(frozen=True)
class Needs:
    """What a method reads, in two phases.

    Names are "logp", "entropy", "value" under the current weights, "reference/logp" under those of the reference, or "NAME/logp" under the
    current weights with other pictures: those of the view NAME. A row whose prompt has no picture has NaN there.

    Attributes:
      before: computed once without gradient before `credit`, stored in `batch.stored`.
      loss: computed with gradient for every micro-batch; the reference's without.
      views: what is shown instead of the prompts' pictures, by name (see fovea.views).
      members: extra group members: "greedy" (ReMax), rolled out and scored; "gold" (ViSurf), the task's gold answer, scored and trained on.
      parts: reward parts that `credit` reads in `batch.parts_E`.
      extras: tensors that `credit` or `update` reads in `batch.extras`; programs mark them (`Actor.mark`), simulators note them.
      critic: the value head of a language policy, where a value is read.
      data: "rollout", what the offline loop reads, "responses" (SFT) or "pairs" (DPO), or "replay": windows of recorded episodes.
      policy: the kind of policy that is made for a simulator, a key of `fovea.policies.control.KINDS`.
      recorded: beside those windows, `Windows.recorded`: what the run that trained the recipe's model had recorded.
      units: how many units in a row a method reads in a window of the replay (`replay.length` must be as many).
      unit: "row", or "group" when the loss couples the rows of a group, which then never straddle micro-batches.
    """

    before: frozenset[str] = frozenset()
    loss: frozenset[str] = frozenset({"logp"})
    views: Mapping[str, View] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    critic: Critic = Critic()
    data: str = "rollout"
    policy: str = "actor-critic"
    recorded: bool = False
    units: int = 1
    unit: str = "row"


class Streams(Mapping[str, Tensor]):
    """Named tensors with leading (B, T). Reading a name that was not declared in `needs` is an error that says so."""

    def __init__(self, tensors: Mapping[str, Tensor], phase: str = "loss"):
        self._tensors, self._phase = dict(tensors), phase

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tensors:
            known = ", ".join(sorted(self._tensors)) or "nothing"
            raise KeyError(f"stream {name!r} was read but not declared in needs.{self._phase}; declared: {known}")
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def rows(self, index: Tensor) -> Streams:
        return Streams({k: v[index] for k, v in self._tensors.items()}, self._phase)

    def adding(self, **tensors: Tensor) -> Streams:
        return Streams({**self._tensors, **tensors}, self._phase)


@dataclass(frozen=True)
class Totals:
    """Sums over one whole optimizer step, the denominators of every aggregation.

    Attributes:
      tokens: number of trained action units (mask sum).
      sampled: those among them that the policy drew itself (a given answer's are not).
      rows: number of rows with at least one trained unit.
      groups: number of distinct groups among them.
      max_tokens: the constant length limit that Dr. GRPO divides by.
      turns: number of turns with at least one trained unit.
    """

    tokens: float
    rows: float
    groups: float
    max_tokens: float
    sampled: float = 1.0
    turns: float = 1.0


@dataclass
class Batch:
    """Rows of one rollout or of one optimizer step.

    Streams (B, T): `actions_BT` (…, A for continuous), `mask_BT` float 0/1, `logp_old_BT`, `logp_behaviour_BT`, `turn_BT` and
    `version_BT` (long), `adv_BT` once credited. Rows: `episode_B`, `prefix_B` (-1 without one), `group_B`, `length_B`, `bootstrap_B`.
    Step clock: `reward_BK`, `turns_B`. Episodes: `score_E` (NaN when unscored), `ok_E`, `group_E`, `length_E`, `cut_E` (stopped by the
    length limit), `home_E` (rank of the process that computes its rows), `parts_E` by name, `role_E`. `extras` are (B, T, ...) tensors;
    `extras["next_obs"]` is (B, 1, ...). `remote`: some row was sampled by another engine, so `logp_old_BT` is the trainer's only after
    `prepare`.
    """

    actions_BT: Tensor
    mask_BT: Tensor
    logp_old_BT: Tensor
    logp_behaviour_BT: Tensor
    turn_BT: Tensor
    version_BT: Tensor
    episode_B: Tensor
    prefix_B: Tensor
    length_B: Tensor
    bootstrap_B: Tensor
    reward_BK: Tensor
    turns_B: Tensor
    score_E: Tensor
    ok_E: Tensor
    group_E: Tensor
    length_E: Tensor
    cut_E: Tensor
    home_E: Tensor
    role_E: tuple[str, ...]
    parts_E: dict[str, Tensor]
    prefixes: list[Prefix]
    extras: dict[str, Tensor] = field(default_factory=dict)
    stored: Streams = field(default_factory=lambda: Streams({}, "before"))
    adv_BT: Tensor | None = None
    totals: Totals | None = None
    context: Context = field(default_factory=Context)
    remote: bool = False

    @property
    def group_B(self) -> Tensor:
        return self.group_E[self.episode_B]

    @property
    def home_B(self) -> Tensor:
        return self.home_E[self.episode_B]

    @property
    def given_B(self) -> Tensor:
        """(B,) bool: rows of given answers, which nobody sampled."""
        return torch.tensor([r == "gold" for r in self.role_E], device=self.episode_B.device)[self.episode_B]

    @property
    def B(self) -> int:
        return self.mask_BT.shape[0]

    def per_row(self, x_E: Tensor) -> Tensor:
        """(E,) -> (B, 1): an episode's value on each of its rows, ready to broadcast over T."""
        return x_E[self.episode_B][:, None]

    def reward_at_units(self) -> Tensor:
        """(B, K) -> (B, T): each turn's environment reward placed on the last chosen unit of that turn."""
        return to_units(self.reward_BK, self.turn_BT, self.mask_BT)

    def store(self, **streams_BT: Tensor) -> None:
        """Keep further streams beside the stored ones, for the loss (PPO's value targets)."""
        self.stored = self.stored.adding(**streams_BT)

    def drop(self, rows_B: Tensor) -> None:
        """Clear the mask of some rows, so that they leave the loss and its totals."""
        self.mask_BT = self.mask_BT * (~rows_B)[:, None]

    def rows(self, index: Tensor) -> Batch:
        """The batch restricted to some rows; T is trimmed to the longest of them. Tables and totals stay whole."""
        T = max(1, int(self.length_B[index].max())) if len(index) else 1

        def cut(x: Tensor) -> Tensor:
            return x[index, :T]

        return replace(
            self,
            actions_BT=cut(self.actions_BT),
            mask_BT=cut(self.mask_BT),
            logp_old_BT=cut(self.logp_old_BT),
            logp_behaviour_BT=cut(self.logp_behaviour_BT),
            turn_BT=cut(self.turn_BT),
            version_BT=cut(self.version_BT),
            episode_B=self.episode_B[index],
            prefix_B=self.prefix_B[index],
            length_B=self.length_B[index],
            bootstrap_B=self.bootstrap_B[index],
            reward_BK=self.reward_BK[index],
            turns_B=self.turns_B[index],
            extras={k: (v[index] if k.startswith("next_") else cut(v)) for k, v in self.extras.items()},
            stored=Streams(
                {k: (cut(v) if v.ndim > 1 and v.shape[1] == self.mask_BT.shape[1] else v[index]) for k, v in self.stored.items()}, "before"
            ),
            adv_BT=None if self.adv_BT is None else cut(self.adv_BT),
        )

    def count(self, max_tokens: int) -> Totals:
        """The totals of these rows."""
        trained = self.mask_BT.sum(1) > 0
        return Totals(
            tokens=max(1.0, float(self.mask_BT.sum())),
            rows=max(1.0, float(trained.sum())),
            groups=max(1.0, float(self.group_B[trained].unique().numel())),
            max_tokens=float(max_tokens),
            sampled=max(1.0, float(self.mask_BT[~self.given_B].sum())),
            turns=max(1.0, float(turn_starts(self.turn_BT, self.mask_BT).sum())),
        )

    def micro_batches(self, size: int, unit: str = "row") -> list[Batch]:
        """Split into micro-batches of at most `size` rows, rows of one prefix (or, for unit="group", of one group) side by side.

        A group larger than `size` is kept whole when the unit is the group.
        """
        order = torch.argsort(self.group_B if unit == "group" else self.prefix_B, stable=True)
        if unit == "row":
            return [self.rows(part) for part in order.split(max(1, size))]
        parts: list[list[int]] = [[]]
        for g in self.group_B[order].unique_consecutive():
            members = order[self.group_B[order] == g].tolist()
            if parts[-1] and len(parts[-1]) + len(members) > size:
                parts.append([])
            parts[-1].extend(members)
        return [self.rows(torch.tensor(p)) for p in parts if p]


def to_units(x_BK: Tensor, turn_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Place a per-turn value (B, K) on the last chosen unit of its turn (B, T); zero elsewhere."""
    out_BT = x_BK.new_zeros(mask_BT.shape)
    if x_BK.shape[1] == 0:
        return out_BT
    T = mask_BT.shape[1]
    position_BT = torch.arange(1, T + 1, device=mask_BT.device).expand_as(mask_BT) * (mask_BT > 0)
    for k in range(x_BK.shape[1]):
        last_B, at_B = (position_BT * (turn_BT == k)).max(1)
        has = last_B > 0
        out_BT[has, at_B[has]] += x_BK[has, k]
    return out_BT


def collate(groups: Sequence[Group], context: Context | None = None, dtype: torch.dtype = torch.float32) -> Batch:
    """Groups of scored episodes -> one batch. Baselines ("greedy") and episodes whose scoring failed enter the tables but give no rows.

    Turn indices are made relative to the segment, so `turn_BT` indexes `reward_BK` directly.
    """
    episodes = [(g, e) for g, group in enumerate(groups) for e in group.episodes]
    trains = [e.role in TRAINED_ROLES and (e.score is None or e.score.ok) for _, e in episodes]
    rows: list[tuple[int, Segment]] = [(i, s) for i, (_, e) in enumerate(episodes) if trains[i] for s in e.segments if len(s)]
    if not rows:
        raise ValueError(
            f"nothing to collate: none of {len(episodes)} episodes in {len(groups)} groups has a segment to train on; expected at least "
            f"one episode of role {', '.join(TRAINED_ROLES)} that has an action unit and whose scoring did not fail"
        )
    segments = [s for _, s in rows]
    T, K = max(len(s) for s in segments), max((len(s.reward) for s in segments), default=0)

    def stream(get: Any, like: torch.dtype | None = None) -> Tensor:
        first = get(segments[0])
        out = torch.zeros((len(segments), T, *first.shape[1:]), dtype=like or first.dtype)
        for b, s in enumerate(segments):
            x = get(s)
            out[b, : len(x)] = x
        return out

    prefixes: list[Prefix] = []
    index: dict[str, int] = {}
    prefix_B = []
    for s in segments:
        if s.prefix is None:
            prefix_B.append(-1)
            continue
        if s.prefix.key not in index:
            index[s.prefix.key] = len(prefixes)
            prefixes.append(s.prefix)
        prefix_B.append(index[s.prefix.key])

    reward_BK = torch.zeros(len(segments), K, dtype=dtype)
    for b, s in enumerate(segments):
        reward_BK[b, : len(s.reward)] = torch.as_tensor(s.reward, dtype=dtype)
    names = sorted({k for _, e in episodes if e.score for k in e.score.parts})
    scores = [e.score for _, e in episodes]
    extras = {}
    for name in sorted({k for s in segments for k in s.extras}):
        have = [s.extras[name] for s in segments if name in s.extras]
        if name.startswith("next_"):  # only rows that were cut carry one
            extras[name] = torch.stack([s.extras.get(name, torch.zeros_like(have[0])) for s in segments])
        elif len(have) == len(segments):
            extras[name] = stream(lambda s, name=name: s.extras[name])
        else:
            missing = next(episodes[i][1].id for i, s in rows if name not in s.extras)
            raise ValueError(f"extra {name!r} is on {len(have)} of {len(segments)} segments; expected on all, missing in {missing!r}")
    return Batch(
        actions_BT=stream(lambda s: s.actions),
        mask_BT=stream(lambda s: s.mask, dtype),
        logp_old_BT=stream(lambda s: s.logp_old, dtype),
        logp_behaviour_BT=stream(lambda s: s.logp_old if s.logp_behaviour is None else s.logp_behaviour, dtype),
        turn_BT=stream(lambda s: s.turn - s.turn.min()),
        version_BT=stream(lambda s: s.version),
        episode_B=torch.tensor([i for i, _ in rows]),
        prefix_B=torch.tensor(prefix_B),
        length_B=torch.tensor([len(s) for s in segments]),
        bootstrap_B=torch.tensor([s.bootstrap for s in segments]),
        reward_BK=reward_BK,
        turns_B=torch.tensor([len(s.reward) for s in segments]),
        score_E=torch.tensor([s.value if s and s.ok else float("nan") for s in scores], dtype=dtype),
        ok_E=torch.tensor([bool(s and s.ok) for s in scores]),
        group_E=torch.tensor([g for g, _ in episodes]),
        length_E=torch.tensor([e.length for _, e in episodes]),
        cut_E=torch.tensor([e.stop == "length" for _, e in episodes]),
        home_E=torch.tensor([e.home for _, e in episodes]),
        role_E=tuple(e.role for _, e in episodes),
        parts_E={
            n: torch.tensor([s.parts.get(n, float("nan")) if s and s.ok else float("nan") for s in scores], dtype=dtype) for n in names
        },
        prefixes=prefixes,
        extras=extras,
        context=context or Context(),
        remote=any(s.remote for s in segments),
    )


@dataclass(frozen=True)
class Windows:
    """Pieces of L units of recorded episodes, as a method reads them that learns from a replay.

    A piece never crosses the end of its episode, so only its last unit can end one; with L = 1 it is the transition (s, a, r, s', done).

    Attributes:
      obs: (B, L + 1, ...): what each unit was chosen on, and what followed the last.
      actions: (B, L) or (B, L, A).
      reward_BL: what the environment paid for each unit.
      ended_BL: bool, the episode terminated with this unit; one that was cut did not.
      key: address of the draws that a method makes on this batch.
      extras: what else was recorded of each unit, (B, L, ...).
      recorded: as many windows of what the run that trained the policy had recorded, for methods that need them (`Needs.recorded`).
    """

    obs: Tensor
    actions: Tensor
    reward_BL: Tensor
    ended_BL: Tensor
    key: int = 0
    extras: dict[str, Tensor] = field(default_factory=dict)
    recorded: Windows | None = None

    def noise(self, *shape: int) -> Tensor:
        """Standard normal numbers, the same for the same key."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.key >> 1))

    @classmethod
    def join(cls, parts: Sequence[Windows]) -> Windows:
        """Windows of several buffers as one batch: demonstrations and the policy's own episodes, half and half.

        Of the extras those that all of them have.
        """
        if len(parts) == 1:
            return parts[0]
        common = set(parts[0].extras).intersection(*(p.extras for p in parts))
        streams = [torch.cat([getattr(p, n) for p in parts]) for n in ("obs", "actions", "reward_BL", "ended_BL")]
        return cls(*streams, key=parts[0].key, extras={n: torch.cat([p.extras[n] for p in parts]) for n in sorted(common)})


@runtime_checkable
class Method(Protocol):
    """What is learned from the episodes? A frozen dataclass of hyperparameters with two functions.

    `credit(batch)` sees a whole rollout once, with `batch.stored` (needs.before), and returns adv_BT without gradient. It may `batch.drop`
    rows that shall not train and `batch.store` streams that the loss will read, so totals are counted after it. `loss(out, batch)` returns
    a scalar that is a SUM over the micro-batch's rows given `batch.totals`, and metrics with the same property (they are added over
    micro-batches).
    """

    @property
    def needs(self) -> Needs: ...

    def credit(self, batch: Batch) -> Tensor: ...

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]: ...


@runtime_checkable
class OffPolicyMethod(Protocol):
    """What is learned from recorded episodes, with several optimizers? A frozen dataclass of hyperparameters with two functions.

    `init(policy, adam)` makes everything that changes while training; `adam.build(module)` makes an optimizer as the recipe says. `update`
    takes one batch of windows and changes the state; its metrics are scalars without gradient. Methods that explore otherwise than by
    sampling have `explore(context)`, which sets `policy.exploration` before a rollout.
    """

    @property
    def needs(self) -> Needs: ...

    def init(self, policy: Any, adam: Any) -> Any: ...

    def update(self, state: Any, batch: Windows) -> tuple[Any, dict[str, Tensor]]: ...


@runtime_checkable
class Learner(Protocol):
    """The side of a policy that the trainer sees: `evaluate` re-computes streams for the actions of a batch."""

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def evaluate(self, batch: Batch, want: frozenset[str], variant: str = "policy") -> dict[str, Tensor]:
        """Streams (B, T) named in `want`: "logp", "entropy", "value" ("next_value" is (B,)), under "policy" or "reference"."""
        ...
