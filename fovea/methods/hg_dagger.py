"""HG-DAgger — Interactive Imitation Learning with Human Experts (Kelly et al. 2019, arXiv 1810.02890), and DAgger with it.

    loss = mean ‖tanh μ(o) − a‖²     over demonstrations and what was done in the policy's place (`replay.share` = 1)

Who takes over, and when, makes the difference: a person who sees it go wrong (HG-DAgger), or one who does so now and then (`ByTurns`,
DAgger in RLIF's comparison).

Departures from the paper: no ensemble that says how sure the policy is; the policy acts by sampling around its mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fovea.batch import Needs, Windows
from fovea.math.augment import shifted
from fovea.methods.state import MethodState


@dataclass(frozen=True)
class HGDagger:
    """Hyperparameters.

    Attributes:
      shift: pixels by which pictures are moved at most.
    """

    shift: int = 4

    @property
    def needs(self) -> Needs:
        return Needs(data="replay", policy="squashed")

    def init(self, policy: Any, adam: Any) -> MethodState:
        trained = nn.ModuleList([policy.trunk, policy.head])
        return MethodState({"policy": policy}, {"policy": adam.build(trained)}, max_grad_norm=adam.max_grad_norm)

    def update(self, state: MethodState, batch: Windows) -> tuple[MethodState, dict[str, Tensor]]:
        policy: Any = state.modules["policy"]
        batch = shifted(batch, self.shift, policy.spaces.parts)
        mean_BA, log_std_BA = policy(batch.obs[:, 0]).chunk(2, -1)
        loss = ((torch.tanh(mean_BA) - batch.actions[:, 0]) ** 2).mean()
        state.descend("policy", loss + (log_std_BA - QUIET).square().mean())
        return state, {"loss/imitation": loss.detach()}


QUIET = -3.0
"""Where the log standard deviation of a policy goes that imitates: it acts by its mean, nearly."""
