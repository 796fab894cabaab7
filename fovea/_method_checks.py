"""The contract of a method, checked on a small ragged batch whose streams are leaves, so that every gradient is seen per unit."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fovea.batch import Batch, Needs, Streams, Windows, collate
from fovea.types import Context, Episode, Group, Prefix, Score, Segment, Task, user
from fovea.views import PER, View

if TYPE_CHECKING:
    from fovea.checks import Rules

STREAM = re.compile(r"(?:[a-z_]+/)?(?:logp|entropy|value)|next_value")
DATA = ("rollout", "responses", "pairs")
ROLES = {"rollout": ("sample", "sample", "sample"), "responses": ("gold",), "pairs": ("chosen", "rejected")}


def check(method: Any, r: Rules) -> list[str]:
    r.rule("`needs` is a fovea.batch.Needs that names known streams, unit and data")
    needs = r.attempt("needs", lambda: method.needs)
    r.need(isinstance(needs, Needs), f"got {needs!r:.80} ({type(needs).__name__})")
    unknown = [n for n in sorted(needs.before | needs.loss) if not STREAM.fullmatch(n)]
    r.need(not unknown, f"unknown streams {unknown}; known: logp, entropy, value, with a variant such as reference/logp, and next_value")
    variants = {n.partition("/")[0] for n in needs.before | needs.loss if "/" in n}
    unknown = sorted(variants - {"reference", *needs.views})
    r.need(not unknown, f"variants {unknown}; known: reference, and the names in needs.views ({', '.join(needs.views) or 'none'})")
    r.need(all(isinstance(v, View) and v.per in PER for v in needs.views.values()), f"views {dict(needs.views)}; see fovea.views.View")
    r.need(needs.unit in ("row", "group"), f'got unit {needs.unit!r}; expected "row" or "group"')
    r.need(needs.data in DATA, f"got data {needs.data!r}; expected one of {DATA}")

    r.rule("credit(batch) is finite, of shape (B, T), carries no gradient, and reads only streams declared in needs.before")
    record = repr(method)
    batch = credited(method, needs, r)

    r.rule("credit gives the same result again")
    other = credited(method, needs, r)
    r.need(torch.equal(batch.adv_BT, other.adv_BT), "two calls on equal batches differ")  # pyright: ignore[reportArgumentType]

    r.rule("loss(out, batch) is a finite scalar with metrics that are finite scalars, and reads only streams declared in needs.loss")
    leaves = leaves_of(batch, needs)
    loss, metrics, grads = run(method, batch, leaves, r)
    r.need(isinstance(loss, Tensor) and loss.ndim == 0, f"loss is {loss!r:.60}")
    whole = float(loss.detach())
    r.need(bool(torch.isfinite(loss)), f"loss is {whole}")
    r.need(isinstance(metrics, dict), f"metrics are {type(metrics).__name__}; expected a dict")
    bad = {k: v for k, v in metrics.items() if not torch.isfinite(torch.as_tensor(v, dtype=torch.float64)).all() or torch.as_tensor(v).ndim}
    r.need(not bad, f"metrics {', '.join(bad)} are not finite scalars")
    tied = [k for k, v in metrics.items() if isinstance(v, Tensor) and v.requires_grad]
    r.need(not tied, f"metrics {', '.join(tied)} carry a gradient; detach them")

    r.rule("the loss pulls on the log-probabilities of the chosen units and on nothing where the mask is 0")
    r.need(bool((grads["logp"] != 0).any()), "its gradient is zero everywhere")
    for name, grad in grads.items():
        r.need(bool((grad[batch.mask_BT == 0] == 0).all()), f"stream {name!r} has a gradient at a unit the policy did not choose")

    r.rule("what stands where the mask is 0 changes nothing")
    noise = {k: torch.where(batch.mask_BT > 0, v.detach(), torch.full_like(v, -3.0)).requires_grad_() for k, v in leaves.items()}
    noisy, _, noisy_grads = run(method, batch, noise, r)
    r.need(close(noisy, loss), f"the loss was {whole:.12g} and is {float(noisy.detach()):.12g} after a change at masked units")
    r.need(all(close(noisy_grads[k], g) for k, g in grads.items()), "a gradient changed with the values at masked units")

    r.rule("loss is a sum over rows given batch.totals: micro-batches add up to the whole")
    for size in (1, 2, 3):
        total, sums, pieces = (
            torch.zeros((), dtype=torch.float64),
            dict.fromkeys(metrics, 0.0),
            {k: torch.zeros_like(g) for k, g in grads.items()},
        )
        for micro in batch_with_index(batch).micro_batches(size, needs.unit):
            rows = micro.extras["index"][:, 0].long()
            T = micro.mask_BT.shape[1]
            part = {k: v.detach()[rows, :T].clone().requires_grad_() for k, v in leaves.items()}
            piece, piece_metrics, piece_grads = run(method, micro, part, r)
            total = total + piece.detach()
            for k, v in piece_metrics.items():
                sums[k] = sums.get(k, 0.0) + float(v)
            for k, g in piece_grads.items():
                pieces[k][rows, :T] = g
        r.need(
            close(total, loss),
            f"the whole gives {whole:.12g}, micro-batches of {size} give {float(total):.12g}; divide by batch.totals",
        )
        r.need(all(close(pieces[k], g) for k, g in grads.items()), f"micro-batches of {size} give another gradient")
        off = [k for k, v in metrics.items() if abs(sums[k] - float(v)) > 1e-8 * max(1.0, abs(float(v)))]
        r.need(not off, f"metrics {', '.join(off)} do not add up over micro-batches of {size}")

    r.rule("credit and loss leave the method as it was")
    r.need(repr(method) == record, f"it was {record[:80]} and is {repr(method)[:80]}")
    return r.end()


def credited(method: Any, needs: Needs, r: Rules) -> Batch:
    batch = example(needs)
    with torch.no_grad():
        adv = r.attempt("credit()", method.credit, batch)
    r.need(
        isinstance(adv, Tensor) and adv.shape == batch.mask_BT.shape,
        f"got {getattr(adv, 'shape', adv)!r}; expected {tuple(batch.mask_BT.shape)}",
    )
    r.need(bool(torch.isfinite(adv).all()), "it holds NaN or infinity")
    r.need(not adv.requires_grad, "it carries a gradient")
    batch.adv_BT = adv
    batch.totals = batch.count(max_tokens=8)
    return batch


def run(method: Any, batch: Batch, leaves: dict[str, Tensor], r: Rules) -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
    """Loss, metrics and the gradient of every declared stream."""
    for leaf in leaves.values():
        leaf.grad = None
    result = r.attempt("loss()", method.loss, Streams(leaves, "loss"), batch)
    r.need(isinstance(result, tuple) and len(result) == 2, f"loss() returned {type(result).__name__}; expected (loss, metrics)")
    loss, metrics = result
    r.need(not isinstance(loss, Tensor) or loss.requires_grad, "loss carries no gradient")
    if isinstance(loss, Tensor) and loss.requires_grad:
        loss.backward()
    return loss, metrics, {k: torch.zeros_like(v) if v.grad is None else v.grad.clone() for k, v in leaves.items()}


def close(a: Tensor, b: Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-9, atol=1e-10))


def batch_with_index(batch: Batch) -> Batch:
    """The batch with each row's number among its extras, to find the rows of a micro-batch again."""
    B, T = batch.mask_BT.shape
    return replace(batch, extras={**batch.extras, "index": torch.arange(B, dtype=torch.float64)[:, None].expand(B, T).clone()})


def example(needs: Needs) -> Batch:
    """Three groups of ragged rows with masked units, off-policy log-probabilities, reward parts and one cut-off episode."""
    g = torch.Generator().manual_seed(0)
    groups = []
    for i in range(3):
        task = Task(id=f"t{i}", source="check", prompt=user("?", images=0))
        roles = [*ROLES[needs.data], *needs.members]
        episodes = []
        for j, role in enumerate(roles):
            n = 2 + (2 * i + 3 * j) % 5
            mask = torch.ones(n, dtype=torch.bool)
            mask[n // 2] = n < 3
            logp = -torch.rand(n, generator=g, dtype=torch.float64) - 0.2
            segment = Segment(
                prefix=Prefix(f"p{i}", data=i),
                actions=torch.randint(0, 5, (n,), generator=g),
                mask=mask,
                logp_old=logp,
                logp_behaviour=logp + 0.05,
                turn=torch.zeros(n, dtype=torch.long),
                version=torch.zeros(n, dtype=torch.long),
                extras={name: (torch.arange(n) < n / 2).double() for name in needs.extras},
            )
            right = (i + j) % 2 == 0
            parts = {"correct": float(right), "format": 0.25 * j, **{p: float((i + j + k) % 3) for k, p in enumerate(needs.parts)}}
            score = Score(sum(parts.values()), parts, correct=right)
            episodes.append(Episode(f"t{i}/{j}", task, role=role, segments=[segment], stop="length" if i + j == 2 else "eos", score=score))
        groups.append(Group(task, episodes))
    batch = collate(groups, Context(step=3, total_steps=4), dtype=torch.float64)
    B, T = batch.mask_BT.shape
    names = sorted(needs.before - {"next_value"})
    streams = {k: -torch.rand(B, T, generator=g, dtype=torch.float64) * (-1 if k.endswith("entropy") else 1) for k in names}
    batch.stored = Streams(streams, "before")
    return batch


def leaves_of(batch: Batch, needs: Needs) -> dict[str, Tensor]:
    """The declared streams of the loss as float64 leaves; log-probabilities lie near the recorded ones."""
    g = torch.Generator().manual_seed(1)
    noise = {k: 0.3 * torch.randn(batch.mask_BT.shape, generator=g, dtype=torch.float64) for k in sorted(needs.loss)}
    return {k: ((batch.logp_old_BT if k.endswith("logp") else 0.0) + n).requires_grad_() for k, n in noise.items()}


def check_off_policy(method: Any, r: Rules) -> list[str]:
    """`init` and `update` of a method that learns from a replay, on small networks and random windows."""
    from fovea.methods.state import MethodState
    from fovea.policies.control import KINDS, Network, Spaces, build
    from fovea.trainer.update import Adam

    r.rule('`needs` is a fovea.batch.Needs with data="replay" and a known kind of policy')
    needs = r.attempt("needs", lambda: method.needs)
    r.need(isinstance(needs, Needs) and needs.data == "replay" and needs.policy in KINDS, f"got {needs!r:.200}; kinds: {', '.join(KINDS)}")
    record, spaces = repr(method), Spaces((3,), 2, needs.policy == "values")

    def made() -> tuple[Any, Any]:
        torch.manual_seed(0)
        policy = build(needs.policy, spaces, Network(4))
        return policy, r.attempt("init(policy, adam)", method.init, policy, Adam(1e-2))

    r.rule("init(policy, adam) gives a MethodState whose module `policy` is the one that acts")
    policy, state = made()
    r.need(isinstance(state, MethodState), f"got {type(state).__name__}")
    r.need(state.modules.get("policy") is policy, f"the modules are {', '.join(state.modules)}; `policy` must be the very object")

    r.rule("update(state, batch) gives the state and metrics that are finite scalars without gradient")
    for key in range(3):
        state, metrics = r.attempt("update", method.update, state, windows(spaces, key, needs))
    bad = {k: v for k, v in metrics.items() if not isinstance(v, Tensor) or v.ndim or v.requires_grad or not torch.isfinite(v)}
    r.need(not bad, f"found {bad}")
    r.need(all(bool(torch.isfinite(p).all()) for m in state.modules.values() for p in m.parameters()), "a weight is not finite")

    r.rule("all that an update depends on is in the state, the policy and the batch: put back, it gives the same")
    saved, weights = {k: v.clone() for k, v in state.tensors()}, {k: v.clone() for k, v in policy.state_dict().items()}
    first = method.update(state, windows(spaces, 9, needs))[1]
    policy, state = made()
    policy.load_state_dict(weights)
    r.attempt("load_tensors", state.load_tensors, saved)
    again = r.attempt("update", method.update, state, windows(spaces, 9, needs))[1]
    r.need(first.keys() == again.keys() and all(torch.equal(first[k], again[k]) for k in first), f"{first} once and {again} again")

    r.rule("hyperparameters do not change while training")
    r.need(repr(method) == record, f"it was {record:.80}, now {method!r:.80}; what changes belongs into the state")
    return r.end()


def windows(spaces: Any, key: int, needs: Needs = Needs()) -> Windows:  # noqa: B008 - frozen
    """Random windows of the units and extras that are needed; extras are flags."""
    g, BL = torch.Generator().manual_seed(key), (6, needs.units)
    actions = torch.randint(spaces.actions, BL, generator=g) if spaces.discrete else torch.rand((*BL, spaces.actions), generator=g) * 2 - 1
    obs = torch.randn((6, needs.units + 1, *spaces.obs_shape), generator=g)
    ended = torch.zeros(BL, dtype=torch.bool)
    ended[-1, -1] = True
    reward = torch.randn(BL, generator=g)
    extras = {name: torch.randint(2, BL, generator=g).bool() for name in needs.extras}
    earlier = windows(spaces, key + 1, replace(needs, recorded=False)) if needs.recorded else None
    return Windows(obs, actions, reward, ended, key, extras, earlier)
