"""Align — A trained policy's encoder for a world that looks different (RePo's test-time adaptation, Zhu et al. 2023, arXiv 2309.00082).

The encoder E alone is trained, without any reward: what it makes of target pictures o shall be what the dynamics and the actor, which stay
as they are, know from the source. S is the encoder as it was, o' a recorded source picture, D a judge, τ a density ratio with mean 1.

    encoder = −mean f*(D(E(o))) + mean ½ ‖E(o) − S(twin(o))‖² / dim       f*(x) = x + ¼ x²
    judge   = −mean τ(S(o')) D(S(o')) + mean f*(D(E(o))) + β (KL − K) + λ mean ‖∂D/∂S(o')‖²
    ratio   = mean τ(S(o')) D(S(o')) + u (mean τ(S(o')) − 1)
    u      ← u + rate · (mean τ − 1),    β ← max(0, β + rate · (KL − K))

τ lets target embeddings cover any part of the source's support. With `match="distribution"` the target is to have the source's
distribution instead: D is then the judge of a GAN, whose encoder's loss is −mean log σ(D(E(o))), and there is no τ. KL holds back the code
through which D judges (Peng et al. 2019, arXiv 1810.00821). The second term of the encoder's loss is over those target pictures alone of
which the source's picture of the same state is known (`fovea.envs.twin`); without any it is 0.

Source pictures are those that the run which trained the policy had recorded.

Departures from the paper: paired pictures are a share of the target episodes, played by the policy as it is, rather than episodes of the
source policy before the first update. The variant that also asks for consistent dynamics ("pair" in the published code) is left out.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from fovea.batch import Needs, Windows
from fovea.math import adversarial
from fovea.math.bootstrapped import multiplier_loss
from fovea.math.latent import Gaussian, gaussian_kl
from fovea.math.options import check
from fovea.math.values import value_loss
from fovea.methods.state import MethodState
from fovea.policies.world_model import WorldModel, mlp


@dataclass(frozen=True)
class Align:
    """Hyperparameters, with the defaults of the published code; the recipe's learning rate is that of encoder and judge.

    Attributes:
      match: "support" or "distribution".
      weight: of the judge's term in the encoder's loss. calibration: of that of pairs.
      width: units of the four hidden layers of judge and ratio. code: numbers through which the judge sees.
      bound: K in nats. squeeze: β to begin with. squeeze_rate: what β gains per nat and update.
      penalty: λ.
      ratio_rate: learning rate of τ, as a multiple of the recipe's.
      dual: u to begin with. dual_rate: its learning rate, as a multiple of the recipe's.
    """

    match: Literal["support", "distribution"] = "support"
    weight: float = 1.0
    calibration: float = 1.0
    width: int = 256
    code: int = 64
    bound: float = 0.1
    squeeze: float = 0.1
    squeeze_rate: float = 5e-3
    penalty: float = 1.0
    ratio_rate: float = 1 / 6
    dual: float = 1e-4
    dual_rate: float = 50 / 3

    def __post_init__(self) -> None:
        check("Align.match", self.match, ("support", "distribution"))
        if min(self.width, self.code) < 1:
            raise ValueError(f"Align.width is {self.width}, .code is {self.code}, expected at least 1")
        for name in ("weight", "calibration", "bound", "squeeze", "squeeze_rate", "penalty"):
            if getattr(self, name) < 0:
                raise ValueError(f"Align.{name} is {getattr(self, name)}, expected 0 or more")

    @property
    def needs(self) -> Needs:
        return Needs(data="replay", policy="world-model", recorded=True)

    def init(self, policy: WorldModel, adam: Any) -> MethodState:
        """
        Raises:
          ValueError: observations are normalised by what is seen, which would change what source pictures look like.
        """
        if policy.senses.normalise:
            raise ValueError("Align with network.normalise = True; expected False: what is normalised by would move from source to target")
        embedding = policy.dynamics.sizes[-1]
        modules = {
            "policy": policy,
            "source": copy.deepcopy(policy.encoder).requires_grad_(False),
            "judge": Judge(embedding, self.width, self.code),
        }
        trained: dict[str, nn.Module] = {"encoder": policy.encoder, "judge": modules["judge"]}
        duals = {"squeeze": nn.Parameter(torch.tensor(self.squeeze), requires_grad=False)}
        if self.match == "support":
            modules["ratio"] = trained["ratio"] = mlp(embedding, self.width, 4, 1, nn.LeakyReLU)
            duals["ratio"] = nn.Parameter(torch.tensor(self.dual))
            trained["dual"] = nn.ParameterList([duals["ratio"]])
        optimizers = {name: adam.build(module) for name, module in trained.items()}
        rates = {"ratio": self.ratio_rate, "dual": self.dual_rate}
        return MethodState(modules, optimizers, duals, rates=rates, max_grad_norm=adam.max_grad_norm)

    def update(self, state: MethodState, batch: Windows) -> tuple[MethodState, dict[str, Tensor]]:
        policy, source, judge = (state.modules[name] for name in ("policy", "source", "judge"))
        assert isinstance(policy, WorldModel) and batch.recorded is not None
        with torch.no_grad():
            source_NE = source(policy.pixels(shown(batch.recorded)))
        target_ME = policy.encoder(policy.pixels(shown(batch)))
        N, M = len(source_NE), len(target_ME)
        # each sample is judged twice: for the judge, and then by it for the encoder and the ratio
        noise = batch.noise(2 * (N + M), self.code).split((N, M, N, M))

        ratio_N = state.modules["ratio"](source_NE)[:, 0].exp() if self.match == "support" else None
        seen_NE = source_NE.clone().requires_grad_()
        on_source_N, q = judge(seen_NE, noise[0])
        on_target_M, p = judge(target_ME.detach(), noise[1])
        nats = 0.5 * (kept(q) + kept(p))
        if ratio_N is None:
            apart = adversarial.distribution_judge_loss(on_source_N, on_target_M)
        else:
            apart = adversarial.support_judge_loss(on_source_N, ratio_N, on_target_M)
        squeeze = state.duals["squeeze"]
        steep = adversarial.steepness(on_source_N, seen_NE)
        state.descend("judge", apart + squeeze * (nats - self.bound) + self.penalty * steep)
        squeeze.add_(self.squeeze_rate * (nats.detach() - self.bound)).clamp_(min=0)

        on_target_M, _ = judge(target_ME, noise[3])
        fooled = adversarial.distribution_loss(on_target_M) if ratio_N is None else adversarial.support_loss(on_target_M)
        paired = calibration_loss(policy, source, batch, target_ME)
        state.descend("encoder", self.weight * fooled + self.calibration * paired)
        metrics = {"loss/judge": apart, "loss/encoder": fooled, "loss/calibration": paired, "align/nats": nats}
        if ratio_N is not None:
            on_source_N, _ = judge(source_NE, noise[2])
            dual = state.duals["ratio"]
            state.descend("ratio", adversarial.ratio_loss(ratio_N, on_source_N, dual))
            state.descend("dual", multiplier_loss(dual, 1 - ratio_N))
            metrics |= {"align/ratio": ratio_N.mean(), "align/dual": dual}
        return state, {k: x.detach().clone() for k, x in metrics.items()}


class Judge(nn.Module):
    """Judges embeddings (N, E) by a random code of C numbers: (judgement (N,), the Gaussian of the code)."""

    def __init__(self, embedding: int, width: int, code: int):
        super().__init__()
        self.encode, self.decide = mlp(embedding, width, 4, 2 * code, nn.LeakyReLU), nn.Linear(code, 1)

    def forward(self, embedding_NE: Tensor, noise_NC: Tensor) -> tuple[Tensor, Gaussian]:
        mean_NC, log_std_NC = self.encode(embedding_NE).chunk(2, -1)
        code_NC = mean_NC + log_std_NC.exp() * noise_NC
        return self.decide(leaky_relu(code_NC))[:, 0], (mean_NC, log_std_NC.exp())


def kept(code: Gaussian) -> Tensor:
    """Nats that a code keeps of what is judged: its mean KL from the standard normal distribution."""
    mean, std = code
    return gaussian_kl(code, (torch.zeros_like(mean), torch.ones_like(std))).mean()


def shown(windows: Windows) -> Tensor:
    """(N, ...): every observation on which a unit was chosen."""
    return windows.obs[:, :-1].flatten(0, 1)


def calibration_loss(policy: WorldModel, source: nn.Module, batch: Windows, target_ME: Tensor) -> Tensor:
    """−log N(E(o); S(twin(o)), 1) less its constant, mean over numbers of the embeddings that have a twin; 0 where none has."""
    if "twin" not in batch.extras or not bool(batch.extras["paired"].any()):
        return target_ME.new_zeros(())
    paired_M = batch.extras["paired"].flatten()
    with torch.no_grad():
        wanted_PE = source(policy.pixels(batch.extras["twin"].flatten(0, 1)[paired_M]))
    return value_loss(target_ME[paired_M], wanted_PE).mean()
