"""SFT — supervised finetuning on given answers: maximum likelihood of the units that the mask marks.

    loss = −Σ_i Σ_t log π(y_it) / Σ_i |y_i|

Departures: none. `aggregation="seq-mean-token-mean"` weights every answer alike, whatever its length.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fovea.batch import Batch, Needs, Streams
from fovea.methods import common


@dataclass(frozen=True)
class SFT:
    """Hyperparameters.

    Attributes:
      aggregation: "token-mean" is the usual; see fovea.math.aggregate.
      entropy_coef: weight of an entropy bonus; 0 is the usual.
    """

    aggregation: str = "token-mean"
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        common.check_choices(self)

    @property
    def needs(self) -> Needs:
        return common.needs(entropy_coef=self.entropy_coef, data="responses")

    def credit(self, batch: Batch) -> Tensor:
        return batch.mask_BT.clone()

    def loss(self, out: Streams, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        nll = common.chosen(-out["logp"] * common.advantage(batch), batch)
        terms = {"policy": nll} | common.penalties(out, batch, 0.0, "k1", "loss", self.entropy_coef)
        loss, metrics = common.total(terms, batch, self.aggregation)
        metrics["policy/nll"] = common.unit_mean(nll, batch)
        if self.entropy_coef:
            metrics["policy/entropy"] = common.unit_mean(out["entropy"], batch)
        return loss, metrics
