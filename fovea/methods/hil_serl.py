"""HIL-SERL — Precise and Dexterous Robotic Manipulation via Human-in-the-Loop RL (Luo et al. 2024, arXiv 2410.21845).

Soft actor-critic on batches of which half are demonstrations and corrections (`fovea.methods.rlpd`, `replay.share`), on pictures that are
shifted at random. A gripper is no continuous action; a critic of its own values what it can be told:

    g = round(a_gripper) + 1 ∈ {close, stay, open}
    y_g = r + p + γ (1 − done) Q'_g(o', argmax_g Q_g(o', g)),   p a penalty of commands that change the gripper's state

Somebody watches the training episodes and takes over (`fovea.envs.watched`); what was really done is what is learned from, and all that was
done in the policy's place joins the demonstrations. The reward is a classifier of success (`fovea.envs.success`). What a robot feels stands
beside its pictures (`fovea.policies.parts`), and is told with its actions in frames of its own hand (`fovea.envs.frames`).

Departures from the paper: convolutions that are trained with the critics, and once more with the policy, take the place of a frozen
ResNet-10; layers of the policy have ReLU and no normalisation; the standard deviation is at most e²; collecting and learning take turns.
A time limit does not end an episode, where the code has no value after it; `LimitEnds` is the code's form.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fovea.batch import Needs, Windows
from fovea.math.augment import shifted
from fovea.math.bootstrapped import double_q, n_step, polyak
from fovea.math.grasps import command_index
from fovea.methods import rlpd
from fovea.methods.state import MethodState
from fovea.policies.control import Gripping


@dataclass(frozen=True)
class HILSERL:
    """Hyperparameters.

    Attributes:
      gamma: discount per environment step, 0.97 in the paper (0.98 and 0.985 for two tasks).
      tau, temperature, entropy, critics, subset, actor_every: see `fovea.methods.rlpd`; 0.005, 0.01, ½, 2, all of them, 2 in the paper.
      shift: pixels by which pictures are moved at most, 4 in the paper.
      grippers: how many of the last actions are commands of grippers, 0 to 2. Their penalty is what the simulator notes as
        "grasp_penalty".
    """

    gamma: float = 0.97
    tau: float = 0.005
    temperature: float = 0.01
    entropy: float = 0.5
    critics: int = 2
    subset: int = 0
    actor_every: int = 2
    shift: int = 4
    grippers: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.grippers <= 2:
            raise ValueError(f"hil-serl: grippers = {self.grippers}; expected 0, 1 or 2")

    @property
    def needs(self) -> Needs:
        kind = ("squashed", "gripping", "gripping2")[self.grippers]
        return Needs(data="replay", policy=kind, extras=("grasp_penalty",) if self.grippers else ())

    def init(self, policy: Any, adam: Any) -> MethodState:
        state = rlpd.init(self, policy, adam)
        if self.grippers:
            state.modules["slow_grasp"] = copy.deepcopy(policy.grasp).requires_grad_(False)
            state.optimizers["grasp"] = adam.build(policy.grasp)
        return state

    def update(self, state: MethodState, batch: Windows) -> tuple[MethodState, dict[str, Tensor]]:
        policy: Any = state.modules["policy"]
        batch = shifted(batch, self.shift, policy.spaces.parts)
        metrics = rlpd.update(self, state, batch)
        return state, metrics | (self.grasps(state, batch) if self.grippers else {})

    def grasps(self, state: MethodState, batch: Windows) -> dict[str, Tensor]:
        """One update of the gripper's critic, which alone sees the penalty."""
        policy, slow = state.modules["policy"], state.modules["slow_grasp"]
        assert isinstance(policy, Gripping)
        paid_BL = batch.reward_BL + batch.extras["grasp_penalty"].to(batch.reward_BL.dtype)
        index_B = command_index(batch.actions[:, 0, policy.draws :])
        with torch.no_grad():
            after = policy.senses(batch.obs[:, -1])
            ret_B, follows_B = n_step(paid_BL, batch.ended_BL, self.gamma)
            target_B = ret_B + follows_B * double_q(policy.grasp.from_seen(after), slow.from_seen(after))  # pyright: ignore[reportCallIssue]
        value_B = policy.grasp.from_seen(policy.senses(batch.obs[:, 0])).gather(1, index_B[:, None])[:, 0]
        loss = ((value_B - target_B) ** 2).mean()
        state.descend("grasp", loss)
        polyak(slow, policy.grasp, self.tau)
        return {"loss/grasp": loss.detach(), "value/grasp_target": target_B.mean()}
