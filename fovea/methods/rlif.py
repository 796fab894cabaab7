"""RLIF — Interactive Imitation Learning as Reinforcement Learning (Luo et al. 2023, arXiv 2311.12996).

That somebody takes over is the reward, whatever the environment pays:

    r_t = −(1 − i_t) i_{t+1},   i_t = 1 where somebody else acted, 0 where the policy did

on soft actor-critic with many critics (`fovea.methods.rlpd`). Demonstrations lie in the one replay, with reward 0.

A window is two units long (`replay.length`): the first is learned from, the second says whether it led to an intervention, and is learned
from where it ends the episode. An end is worth 0, the most there is. Where the simulator also ends episodes that failed the policy would
learn to fail; `ends=False` then leaves last units out, as the released code does with all of them.

Departures from the paper: all steps of an intervention are stored, as in the paper's algorithm and not in its code, which keeps the last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fovea.batch import Needs, Windows
from fovea.math.augment import shifted
from fovea.methods import rlpd
from fovea.methods.state import MethodState


@dataclass(frozen=True)
class RLIF:
    """Hyperparameters.

    Attributes:
      gamma: discount per environment step, 0.99 in the paper.
      tau, temperature, entropy, critics, subset, actor_every: see `fovea.methods.rlpd`; 0.005, 1, ½, 10, 2, and as many as there are
        updates for an environment step (1, 5 or 15) in the paper.
      shift: pixels by which pictures are moved at most.
      ends: learn that nothing comes after an end.
    """

    gamma: float = 0.99
    tau: float = 0.005
    temperature: float = 1.0
    entropy: float = 0.5
    critics: int = 10
    subset: int = 2
    actor_every: int = 5
    shift: int = 4
    ends: bool = True

    @property
    def needs(self) -> Needs:
        return Needs(data="replay", policy="squashed", units=2, extras=("intervened",))

    def init(self, policy: Any, adam: Any) -> MethodState:
        return rlpd.init(self, policy, adam)

    def update(self, state: MethodState, batch: Windows) -> tuple[MethodState, dict[str, Tensor]]:
        first = transitions(batch, self.ends)
        policy: Any = state.modules["policy"]
        metrics = rlpd.update(self, state, shifted(first, self.shift, policy.spaces.parts))
        return state, metrics | {"value/reward": first.reward_BL.mean()}


def transitions(batch: Windows, ends: bool = True) -> Windows:
    """The first unit of every window, paid by what comes next, and the second ones that end their episode.

    Raises:
      ValueError: nobody watches the simulator, so nothing was ever noted.
    """
    if "intervened" not in batch.extras:
        raise ValueError("rlif: no unit says who acted; expected a Gym whose `around` has somebody who watches (fovea.envs.watched)")
    last_B = batch.ended_BL[:, 1] & ends
    paid_BL = before_intervention(batch.extras["intervened"][:, :2])

    def both(x: Tensor, units: int) -> Tensor:
        return torch.cat([x[:, :units], x[last_B, 1 : 1 + units]])

    return replace(
        batch,
        obs=both(batch.obs, 2),
        actions=both(batch.actions, 1),
        reward_BL=both(paid_BL, 1),
        ended_BL=both(batch.ended_BL, 1),
        extras={},
    )


def before_intervention(intervened_BT: Tensor) -> Tensor:
    """r̃: −1 at the step before somebody takes over, 0 else; the last step, of which one does not know, 0."""
    out_BT = intervened_BT.new_zeros(intervened_BT.shape, dtype=torch.float32)
    out_BT[:, :-1] = -(intervened_BT[:, 1:].bool() & ~intervened_BT[:, :-1].bool()).float()
    return out_BT
