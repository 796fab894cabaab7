"""From groups to new weights: credit once, then optimizer steps over micro-batches. Blind to the method."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fovea.batch import Batch, Learner, Method, Needs, Streams, collate
from fovea.rollout.given import given_episode
from fovea.trainer.distributed import ALONE, Team, local
from fovea.types import Context, Group, Prefix, Task, user
from fovea.views import View, generator


class TrainingDiverged(RuntimeError):
    """Loss or gradient is not finite, or exploded. The message names the step and the tasks."""


@dataclass(frozen=True)
class Adam:
    """AdamW with a schedule. `lr_at(step)` is a pure function, so nothing of it needs saving."""

    learning_rate: float
    warmup_steps: int = 0
    schedule: str = "constant"
    total_steps: int = 1
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    kind: str = "adamw"
    offload: bool = False

    def build(self, policy: Learner) -> torch.optim.Optimizer:
        trained = [p for p in policy.parameters() if p.requires_grad]
        if not trained:
            raise ValueError("nothing to train: every parameter is frozen; expected at least one of language model, projector, tower")
        options = {"lr": self.learning_rate, "betas": self.betas, "weight_decay": self.weight_decay}
        if self.kind != "adamw" or self.offload:
            from fovea.trainer.optimizers import build

            return build(self.kind, self.offload, trained, **options)
        kind = MasterAdamW if any(p.dtype in (torch.bfloat16, torch.float16) for p in trained) else torch.optim.AdamW
        return kind(trained, **options)

    def lr_at(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        left = 1 - (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.learning_rate * (left if self.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))


class MasterAdamW(torch.optim.AdamW):
    """AdamW with a float32 copy of weights that are kept in 16 bits, where an update of less than half a unit would be lost."""

    def __init__(self, params: Sequence[torch.nn.Parameter], **options: Any):
        self.low = list(params)
        super().__init__([p.detach().float().clone().requires_grad_() for p in self.low], **options)

    @property
    def masters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.low:
            p.grad = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for low, master in zip(self.low, self.masters, strict=True):
            master.grad = None if low.grad is None else low.grad.float()
        super().step(closure)
        for low, master in zip(self.low, self.masters, strict=True):
            master.grad = None
            low.copy_(master)


def trained_weights(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The policy's own parameters behind an optimizer, in order."""
    if hasattr(optimizer, "masters"):
        return list(optimizer.low)  # pyright: ignore[reportAttributeAccessIssue]
    return [p for group in optimizer.param_groups for p in group["params"]]


def trainable(groups: Sequence[Group], group_size: int) -> list[Group]:
    """Groups whose samples can be compared: unscored episodes leave their group, and a group left with fewer than two is dropped.

    A group that was meant to have a single member needs only that one.
    """
    kept = []
    for g in groups:
        members = [e for e in g.episodes if e.score is None or e.score.ok]
        samples = sum(e.role == "sample" for e in members)
        if samples >= min(2, group_size) or any(e.role in ("gold", "chosen") for e in members):
            kept.append(Group(g.task, members))
    return kept


def prepare(policy: Learner, method: Method, groups: Sequence[Group], context: Context, micro_batch: int, team: Team = ALONE) -> Batch:
    """Collate, compute the streams that credit needs (no gradient, once, each process its own rows), and credit.

    Where another engine sampled, `logp_old_BT` becomes the trainer's own log-probs; `logp_behaviour_BT` stays the sampler's, but for rows
    that nobody sampled (the "gold" members of a rollout), which get the trainer's as both.
    """
    batch = replace(collate(groups), context=context)

    def streams(names: frozenset[str]) -> dict[str, Tensor]:
        mine_B = batch.home_B == team.rank
        return team.add_rows(evaluate_all(policy, batch, names, micro_batch, mine_B, method.needs.views), batch.home_B)

    with torch.no_grad():
        if batch.remote:
            logp_BT = streams(frozenset({"logp"}))["logp"].to(batch.logp_old_BT.dtype)
            batch.logp_old_BT = logp_BT
            batch.logp_behaviour_BT = torch.where(batch.given_B[:, None], logp_BT, batch.logp_behaviour_BT)
        batch.stored = Streams(streams(method.needs.before), "before")
        batch.adv_BT = method.credit(batch)
    return batch


def evaluate_all(
    policy: Learner,
    batch: Batch,
    names: frozenset[str],
    micro_batch: int,
    mine_B: Tensor | None = None,
    views: Mapping[str, View] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Streams of the whole batch, one packed pass per variant; "reference/logp" means "logp" under variant "reference".

    Rows that are not in `mine_B` (default: all are) stay zero. Under a view, rows without pictures are NaN.

    "next_value", the value after a row's last unit, is asked for only when some row was cut.
    """
    if not bool(batch.bootstrap_B.any()):
        names = names - {"next_value"}
    out: dict[str, Tensor] = {}
    order = torch.argsort(batch.prefix_B, stable=True)
    order = order if mine_B is None else order[mine_B[order]]
    for variant, streams in by_variant(names).items():
        for part in order.split(max(1, micro_batch)) if len(order) else ():
            for stream, x in under(policy, batch.rows(part), streams, variant, views).items():
                name = stream if variant == "policy" else f"{variant}/{stream}"
                if name not in out:
                    shape = (batch.B, batch.mask_BT.shape[1], *x.shape[2:]) if x.ndim > 1 else (batch.B,)
                    out[name] = x.new_zeros(shape)
                if x.ndim > 1:
                    out[name][part, : x.shape[1]] = x
                else:
                    out[name][part] = x
    return out


def under(policy: Any, batch: Batch, streams: frozenset[str], variant: str, views: Mapping[str, View]) -> dict[str, Tensor]:
    """`policy.evaluate` under a variant: other weights, or the present ones with what a view shows."""
    if variant not in views:
        return policy.evaluate(batch, streams, variant)
    shown, blind_B = seen(policy, batch, views[variant])
    found = policy.evaluate(shown, streams, "policy")
    return {k: torch.where(blind_B.view(-1, *[1] * (x.ndim - 1)), math.nan, x) for k, x in found.items()}


def seen(policy: Any, batch: Batch, view: View) -> tuple[Batch, Tensor]:
    """(the batch with its prompts as `view` shows them, (B,) bool: rows whose prompt has no picture)."""
    index: dict[tuple[str | int, ...], int] = {}
    prefixes: list[Prefix] = []
    owners = zip(batch.prefix_B.tolist(), batch.episode_B.tolist())
    own = [(batch.prefixes[p], (e,) if view.per == "response" else ()) for p, e in owners]
    for prefix, episode in own:
        address = (prefix.key, batch.context.step, *episode)
        if address not in index:
            index[address] = len(prefixes)
            prefixes.append(policy.redraw(prefix, lambda i, image, address=address: view(image, generator((*address, i)))))
    at = [index[prefix.key, batch.context.step, *episode] for prefix, episode in own]
    blind = [prefixes[n] is prefix for n, (prefix, _) in zip(at, own)]
    return replace(batch, prefixes=prefixes, prefix_B=torch.tensor(at)), torch.tensor(blind)


def optimizer_step(
    policy: Learner,
    method: Method,
    part: Batch,
    optimizer: torch.optim.Optimizer,
    *,
    lr: float,
    micro_batch: int,
    max_grad_norm: float,
    max_tokens: int,
    team: Team = ALONE,
) -> dict[str, float]:
    """One optimizer step on `part`; gradients are summed over micro-batches and processes, so how many there are changes nothing else.

    Raises:
      TrainingDiverged: before the weights are touched, when loss or gradient norm is not finite.
    """
    part = replace(part, totals=part.count(max_tokens))
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Any] = {}
    mine = (part.home_B == team.rank).nonzero()[:, 0]
    micros = part.rows(mine).micro_batches(micro_batch, method.needs.unit) if len(mine) else []
    rounds = team.largest(len(micros)) if team.sharded else len(micros)  # a layer is put together by all processes at once
    for micro in micros:
        out = Streams(evaluate_with_gradient(policy, micro, method.needs.loss, method.needs.views), "loss")
        loss, metrics = method.loss(out, micro)
        if loss.requires_grad:
            loss.backward()
        elif team.sharded:
            team.go_along(out.values())
        for name, value in {"loss/total": loss.detach(), **metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    for _ in range(rounds - len(micros)):
        keep_step(policy, method.needs, team)
    sums = team.add(sums)
    trained = trained_weights(optimizer)
    team.add_gradients(trained)
    grad_norm = clip(trained, max_grad_norm if max_grad_norm > 0 else math.inf, team)
    if not (math.isfinite(sums["loss/total"]) and math.isfinite(grad_norm)):
        raise TrainingDiverged(f"loss {sums['loss/total']} and gradient norm {grad_norm}, expected finite numbers")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # a rollout has no use for gradients
    return {**sums, "optim/grad_norm": grad_norm, "optim/learning_rate": lr}


def clip(weights: Sequence[Tensor], largest: float, team: Team) -> float:
    """Scale the gradients down to norm `largest` where they exceed it; returns the norm before."""
    grads: list[Tensor] = [local(w.grad) for w in weights if w.grad is not None]
    norm = team.norm(torch.nn.utils.get_total_norm(grads))
    scale = (largest / (norm + 1e-6)).clamp(max=1.0)
    for g in grads:
        g.mul_(scale.to(g.dtype))
    return float(norm)


def keep_step(policy: Any, needs: Needs, team: Team) -> None:
    """A forward and backward on one token that changes nothing: with sharded weights every process must make equally many."""
    task = Task(id="idle", source="idle", prompt=user("", images=0))
    group = Group(task, [given_episode(policy, task, policy.encode(task.prompt, ()), "", "gold", Context())])
    team.go_along(evaluate_with_gradient(policy, collate([group]), needs.loss, needs.views).values())


def evaluate_with_gradient(policy: Learner, micro: Batch, names: frozenset[str], views: Mapping[str, View]) -> dict[str, Tensor]:
    """As `evaluate_all`, for one micro-batch and with gradient, the reference's streams without."""
    out: dict[str, Tensor] = {}
    for variant, streams in by_variant(names).items():
        with contextlib.nullcontext() if variant == "policy" or variant in views else torch.no_grad():
            found = under(policy, micro, streams, variant, views)
        out |= {stream if variant == "policy" else f"{variant}/{stream}": x for stream, x in found.items()}
    return out


def by_variant(names: frozenset[str]) -> dict[str, frozenset[str]]:
    """Variant -> its streams; "policy" first."""
    parts = sorted((variant or "policy", stream) for variant, _, stream in (name.rpartition("/") for name in names))
    order = sorted({variant for variant, _ in parts}, key=lambda v: (v != "policy", v))
    return {variant: frozenset(stream for v, stream in parts if v == variant) for variant in order}


def minibatches(batch: Batch, parts: int, epochs: int, seed: int, step: int) -> list[Batch]:
    """Whole groups dealt into `parts` optimizer steps per epoch, in an order addressed by (seed, step, epoch)."""
    groups = batch.group_B.unique()
    out = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(hash((seed, step, epoch)) & 0x7FFFFFFF)
        order = groups if parts == 1 else groups[torch.randperm(len(groups), generator=generator)]
        for chunk in order.tensor_split(min(parts, len(groups))):
            out.append(batch.rows(torch.isin(batch.group_B, chunk).nonzero()[:, 0]))
    return out
