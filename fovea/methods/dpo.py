"""DPO — Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290).

A group is a pair of given answers to one task, with roles "chosen" (w) and "rejected" (l):
    h = β [(log π(y_w) − log π_ref(y_w)) − (log π(y_l) − log π_ref(y_l))],     loss = −(1/N) Σ log σ(h)
With label smoothing s (conservative DPO): −(1−s) log σ(h) − s log σ(−h).

Departures from the paper: none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fovea.batch import Batch, Needs, Streams
from fovea.methods import common


@dataclass(frozen=True)
class DPO:
    """Hyperparameters.

    Attributes:
      beta: strength of the tie to the reference, 0.1 in the paper.
      label_smoothing: probability that a label is wrong; 0 in the paper.
      nll_coef: weight of the chosen answer's mean negative log-likelihood per unit, which keeps it likely; 0 in the paper.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    nll_coef: float = 0.0

    @property
    def needs(self) -> Needs:
        return common.needs(beta=1.0, data="pairs", unit="group")

    def credit(self, batch: Batch) -> Tensor:
        """+1 on chosen and −1 on rejected units; the loss weighs them."""
        sign = {"chosen": 1.0, "rejected": -1.0}
        unknown = {batch.role_E[int(e)] for e in batch.episode_B} - set(sign)
        if unknown:
            raise ValueError(f"DPO found episodes of role {', '.join(sorted(unknown))}; expected only 'chosen' and 'rejected'")
        sign_E = torch.tensor([sign.get(r, 0.0) for r in batch.role_E], dtype=batch.mask_BT.dtype, device=batch.mask_BT.device)
        for role in (1.0, -1.0):
            count_G = torch.bincount(batch.group_E[sign_E == role], minlength=int(batch.group_E.max()) + 1)
            if (count_G != 1).any():
                name = "chosen" if role > 0 else "rejected"
                raise ValueError(f"DPO found a group with {int(count_G[count_G != 1][0])} episodes of role {name!r}; expected one")
        return batch.per_row(sign_E) * batch.mask_BT

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.totals is not None
        sign_BT = common.advantage(batch)
        gain_BT = common.chosen(out["logp"] - batch.stored["reference/logp"].detach(), batch)
        groups, pair_B = batch.group_B.unique(return_inverse=True)
        margin_N = self.beta * gain_BT.new_zeros(len(groups)).index_add(0, pair_B, (gain_BT * sign_BT).sum(1))
        smooth = self.label_smoothing
        pair_loss_N = -(1 - smooth) * logsigmoid(margin_N) - smooth * logsigmoid(-margin_N)
        loss = pair_loss_N.sum() / batch.totals.groups
        metrics = {
            "loss/policy": loss.detach(),
            "policy/preference_accuracy": (margin_N > 0).to(margin_N.dtype).detach().sum() / batch.totals.groups,
            "policy/margin": margin_N.detach().sum() / batch.totals.groups,
        }
        if self.nll_coef:
            length_B = batch.mask_BT.sum(1).clamp(min=1)
            nll_B = -(common.chosen(out["logp"], batch) * (sign_BT > 0)).sum(1) / length_B
            metrics["loss/nll"] = self.nll_coef * nll_B.detach().sum() / batch.totals.groups
            loss = loss + self.nll_coef * nll_B.sum() / batch.totals.groups
        return loss, metrics
