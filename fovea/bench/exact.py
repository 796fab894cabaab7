"""Exactness: our log-probabilities and gradients against the plain repeated computation, which a number is void without.

The reference is the unmodified transformers model called the way most trainers call it: image, prompt and answer once per sample, the
head on every position. Both sides read the same checkpoint with peaked weights and the same sampled answers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fovea.batch import Batch
from fovea.bench import ours, peer_trl
from fovea.bench.workload import Cell, Row, rows

LOGP_LIMIT, GRADIENT_LIMIT, GRADIENT_FLOOR = 1e-5, 1e-5, 1e-3


@dataclass(frozen=True)
class Exactness:
    """Largest errors.

    Attributes:
      logp: max |Δ log-prob| over sampled tokens, nats.
      sampler_logp: the same between what the sampler recorded and what the trainer computes.
      gradient: max over parameters of ‖Δg‖ / max(‖g‖, 1e-3 · norm of the whole gradient).
      parameters: number of parameter tensors compared.
    """

    logp: float
    sampler_logp: float
    gradient: float
    parameters: int

    @property
    def exact(self) -> bool:
        return self.logp <= LOGP_LIMIT and self.sampler_logp <= LOGP_LIMIT and self.gradient <= GRADIENT_LIMIT

    def to_json(self) -> dict[str, Any]:
        limits = {"logp": LOGP_LIMIT, "sampler_logp": LOGP_LIMIT, "gradient": GRADIENT_LIMIT}
        return asdict(self) | {"limits": limits}


def check(folder: Path, cell: Cell) -> Exactness:
    """Sample once with our engine, then compare log-probs and gradients of a random linear loss on all rows."""
    policy, batch = sample(folder, cell)
    weight_BT = torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(0)) * batch.mask_BT
    logp_BT = shared_logp(policy, batch)
    (logp_BT * weight_BT).sum().backward()

    model = peer_trl.load_model(folder)
    want_BT = repeated_logp(model, peer_trl.load_processor(folder), batch, rows(0, cell.image_tokens), list(policy.banned_ids))
    (want_BT * weight_BT).sum().backward()

    mask_BT = batch.mask_BT > 0
    return Exactness(
        logp=float((logp_BT - want_BT).detach()[mask_BT].abs().max()),
        sampler_logp=float((logp_BT.detach() - batch.logp_old_BT)[mask_BT].abs().max()),
        gradient=worst_gradient(dict(policy.model.vlm.named_parameters()), dict(model.named_parameters())),
        parameters=sum(p.grad is not None for p in model.parameters()),
    )


@torch.no_grad()
def check_bfloat16(folder: Path, cell: Cell) -> dict[str, float]:
    """|Δ log-prob| in bfloat16, nats, mean and largest over sampled tokens: against the plain repeated computation (`logp_…`), of the
    sampler against the trainer (`sampler_…`), and for scale of the plain computation in bfloat16 against itself in float32 (`plain_…`).
    """
    policy, batch = sample(folder, cell, dtype="bfloat16")
    ask = peer_trl.load_processor(folder), batch, rows(0, cell.image_tokens), list(policy.banned_ids)
    found_BT, mask_BT = shared_logp(policy, batch), batch.mask_BT > 0
    model = peer_trl.load_model(folder)
    plain_BT, want_BT = (repeated_logp(model.to(dtype), *ask) for dtype in (torch.float32, torch.bfloat16))
    pairs = {"logp": (found_BT, want_BT), "sampler": (batch.logp_old_BT, found_BT), "plain": (want_BT, plain_BT)}
    errors = {name: (x - y).abs()[mask_BT] for name, (x, y) in pairs.items()}
    return {f"{name}_{how}": float(getattr(e, how)()) for name, e in errors.items() for how in ("mean", "max")}


def sample(folder: Path, cell: Cell, **changes: Any) -> tuple[Any, Batch]:
    """(policy, what its engine sampled in one step).

    The end-of-sequence token is not suppressed here: while it is, a sampler's distribution differs from the trainer's by design.
    """
    from fovea.rollout.sampling import Sampling

    trainer = ours.Trainer(ours.recipe(folder, cell, sampling=Sampling(max_new_tokens=cell.new_tokens), **changes))
    return trainer.policy, trainer.prepare(trainer.collect(ours.tasks(0, cell.image_tokens)))


def shared_logp(policy: Any, batch: Batch) -> Tensor:
    """(B, T) log-probs of the batch's actions, each prefix computed once."""
    parts = [policy.evaluate(micro, frozenset({"logp"}))["logp"] for micro in _groups(batch)]
    T = batch.mask_BT.shape[1]
    return torch.cat([torch.nn.functional.pad(part, (0, T - part.shape[1])) for part in parts])


def _groups(batch: Batch) -> list[Batch]:
    """One micro-batch per prefix; the engine returns rows in the order of their tasks."""
    return [batch.rows((batch.prefix_B == p).nonzero()[:, 0]) for p in range(len(batch.prefixes))]


def repeated_logp(model: torch.nn.Module, processor: Any, batch: Batch, pictures: list[Row], banned: list[int]) -> Tensor:
    """(B, T) log-probs of the batch's actions with image and prompt repeated for every row."""
    from fovea.bench.workload import QUESTION

    out = []
    for p, row in enumerate(pictures):
        actions_GT = batch.actions_BT[batch.prefix_B == p]
        G, T = actions_GT.shape
        message = [{"role": "user", "content": [{"type": "image", "image": row.image}, {"type": "text", "text": QUESTION}]}]
        x = processor.apply_chat_template(message, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        ids = torch.cat([x["input_ids"].expand(G, -1), actions_GT], 1)
        kinds = torch.cat([x["mm_token_type_ids"].expand(G, -1), torch.zeros_like(actions_GT)], 1)
        logits = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=x["pixel_values"].repeat(G, 1),
            image_grid_thw=x["image_grid_thw"].repeat(G, 1),
            mm_token_type_ids=kinds,
        ).logits[:, -T - 1 : -1]
        keep = torch.zeros(logits.shape[-1]).index_fill(0, torch.tensor(banned, dtype=torch.long), -torch.inf)
        out.append(torch.log_softmax(logits + keep, -1).gather(-1, actions_GT[..., None])[..., 0])
    return torch.cat(out)


def worst_gradient(found: dict[str, torch.nn.Parameter], expected: dict[str, torch.nn.Parameter]) -> float:
    """Largest ‖Δg‖ / max(‖g‖, 1e-3 · global norm); every tensor with a gradient on one side must have one on the other."""
    mine, theirs = ({n: p.grad for n, p in side.items() if p.grad is not None} for side in (found, expected))
    if set(mine) != set(theirs):
        raise AssertionError(f"gradients exist on one side only: {sorted(set(mine) ^ set(theirs))[:5]}")
    total = torch.stack([g.norm() for g in theirs.values()]).norm()
    return max(float((mine[n] - g).norm() / torch.maximum(g.norm(), GRADIENT_FLOOR * total)) for n, g in theirs.items())
