"""Dreamer — latent imagination with a world model that draws what it sees (Hafner et al. 2020, arXiv 1912.01603).

    model = mean [ −log N(o; ô(z), 1) − log N(r; r̂(z), 1) ] + max(KL(q ‖ p), free)
    actor, critic: see `fovea.methods.imagined.behave`

The likelihood of an observation is summed over its pixels, each in [−1, 1].

Departures from the paper: the sizes and learning rates are those of RePo's published code, so that the two differ by the model's loss
alone; the end of an episode is not predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fovea.batch import Needs, Windows
from fovea.math.latent import gaussian_kl
from fovea.methods.imagined import begin, behave, check_imagined, drawing_loss, reward_loss, see
from fovea.methods.state import MethodState
from fovea.policies.world_model import WorldModel


@dataclass(frozen=True)
class Dreamer:
    """Hyperparameters; the recipe's learning rate is that of the model.

    Attributes:
      free: nats of KL that cost nothing.
      gamma: discount per environment step. lam: λ.
      imagine: steps of imagination, the start among them.
      entropy: weight of the policy's entropy. actor_rate: learning rate of actor and critic, as a multiple of the recipe's.
    """

    free: float = 3.0
    gamma: float = 0.99
    lam: float = 0.95
    imagine: int = 15
    entropy: float = 3e-4
    actor_rate: float = 4 / 15

    def __post_init__(self) -> None:
        check_imagined(self)

    @property
    def needs(self) -> Needs:
        return Needs(data="replay", policy="world-model")

    def init(self, policy: WorldModel, adam: Any) -> MethodState:
        return begin(self, policy, adam, decoder=True, with_model=True)

    def update(self, state: MethodState, batch: Windows) -> tuple[MethodState, dict[str, Tensor]]:
        policy = state.modules["policy"]
        assert isinstance(policy, WorldModel)
        seen = see(self, policy, batch)
        reward, kl = reward_loss(policy, seen), gaussian_kl(seen.q, seen.p).mean()
        drawing = drawing_loss(state.modules["decoder"], seen.latent_TBF, seen.pixels)
        state.descend("model", drawing + reward + kl.clamp(min=self.free))
        metrics = {"loss/reward": reward, "model/kl": kl, "loss/drawing": drawing} | behave(self, state, seen)
        return state, {k: x.detach() for k, x in metrics.items()}
