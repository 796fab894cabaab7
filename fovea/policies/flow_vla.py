"""A small vision-language-action policy by flow matching: pictures, proprioception and words in, a chunk of actions out.

The chunk is drawn by K steps from noise (`fovea.math.flow`). T counts chunks; an action carries its chain, x_0 .. x_K, and which step of
it was random, so its likelihood can be computed again with one pass of the network (Flow-SDE) or K (Flow-Noise). Greedy ones have no noise
but that of the start.

Left out: a backbone that was pretrained. Instead of π0's, the value reads what the encoder makes of an observation (π0.5's variant), so it
does not depend on the chain, and has no gradient into the encoder.
"""

from __future__ import annotations

import copy
import math
import re
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fovea.batch import Batch
from fovea.envs.parts import Part, unpack
from fovea.math import flow
from fovea.policies.pixel import asked, normals, trunk
from fovea.policies.pixel import spread as by_unit

TOLD = "told"
"""The part of an observation that is the instruction, in bytes."""
VOCABULARY, FREQUENCIES = 512, 8


class ChunkFlow(nn.Module):
    """What flow policies share: sampling with noise, likelihoods of chains, flow matching. Implements `fovea.batch.Learner` and
    `fovea.rollout.vector.ArrayPolicy`.

    A subclass gives `context`, `features`, `velocity`, `spread` and `value`; what a context is, is its own affair.

    Args:
      spaces, network: a `fovea.policies.control.Spaces` and `Flow`.
      dim: A, numbers that are drawn for a chunk. kept: those of them that are acted on, all where there are no more.
    """

    kind = "flow"
    senses = None

    def __init__(self, spaces: Any, network: Any, dim: int, kept: Tensor | None = None):
        super().__init__()
        self.spaces, self.dim, self.version = spaces, dim, 0
        self.parts: tuple[Part, ...] = spaces.parts
        self.kept = torch.arange(dim) if kept is None else kept
        self.network = network
        self.reference: list[Any] = []  # in a list: not a submodule, so neither trained nor saved

    @property
    def draws(self) -> int:
        """The start, a draw for each step, and which step is random."""
        return (self.network.steps + 1) * self.dim + 1

    def tune(self, network: Any) -> None:
        """Sample as `network` says; its width must be the one the policy was made with.

        Raises:
          ValueError: another width, or settings of another kind of network.
        """
        if not isinstance(network, type(self.network)):
            raise ValueError(f"network = {network}; expected fovea.policies.control.Flow, for weights of a flow")
        if network.width != self.network.width:
            raise ValueError(f"network: width = {network.width}; expected {self.network.width}, that of the weights it starts from")
        self.network = network

    def context(self, obs: Tensor) -> Any:
        """What is seen, felt and told, (N, ...) observations."""
        raise NotImplementedError

    def features(self, x_NA: Tensor, t_N: Tensor, context: Any) -> Tensor:
        """What velocity and spread are read from."""
        raise NotImplementedError

    def velocity(self, features: Tensor) -> Tensor:
        """(N, A)"""
        raise NotImplementedError

    def spread(self, features: Tensor) -> Tensor:
        """(N, A): what `fovea.math.flow.learned_std` reads."""
        raise NotImplementedError

    def value(self, context: Any) -> Tensor:
        """(N,)"""
        raise NotImplementedError

    def gaussian(self, x_NA: Tensor, step_N: Tensor, context: Any) -> tuple[Tensor, Tensor, Tensor]:
        """(mean, std, mean of the ODE) of steps taken at random, each (N, A)."""
        K = self.network.steps
        t_N = flow.times(K)[step_N]
        h = self.features(x_NA, t_N, context)
        v = self.velocity(h)
        straight = flow.ode_step(x_NA, v, 1 / K)
        if self.network.noise == "learned":
            return straight, flow.learned_std(self.spread(h), *self.network.std), straight
        mean, std = flow.sde_step(x_NA, v, t_N[:, None], 1 / K, self.network.level)
        return mean, std, straight

    def error(self, clean_NA: Tensor, noise_NA: Tensor, t_N: Tensor, context_NC: Tensor) -> Tensor:
        """What flow matching minimises (Lipman et al. 2022, arXiv 2210.02747), ‖v(x_t) − (ε − A)‖² / A: (N,)."""
        x_NA = t_N[:, None] * noise_NA + (1 - t_N[:, None]) * clean_NA
        return ((self.velocity(self.features(x_NA, t_N, context_NC)) - (noise_NA - clean_NA)) ** 2).mean(-1)

    def given(self, actions_NA: Tensor) -> Tensor:
        """Actions that are kept as a whole chunk, 0 elsewhere."""
        return actions_NA.new_zeros(len(actions_NA), self.dim).index_copy(1, self.kept, actions_NA)

    # -- acting ---------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, obs: Tensor, uniform_ED: Tensor, greedy_E: Tensor) -> dict[str, Tensor]:
        """ "actions" (E, A) is x_K; "chain" (E, K+1, A) and "step" (E,), the random step, -1 for all of them, go with it."""
        E, K = len(uniform_ED), self.network.steps
        context = self.context(obs)
        noise_EKA = normals(uniform_ED[:, :-1]).float().view(E, K + 1, self.dim)
        step_E = self._random_step(uniform_ED[:, -1])
        chain = [noise_EKA[:, 0]]
        for i in range(K):
            mean, std, straight = self.gaussian(chain[-1], torch.full((E,), i), context)
            random_E = ~greedy_E & ((step_E == i) | (step_E < 0))
            drawn = mean + std * noise_EKA[:, i + 1]
            chain.append(torch.where(random_E[:, None], drawn, straight))
        made = torch.stack(chain, 1)
        logp = torch.where(greedy_E, 0.0, self._logp(made, step_E, context)[0])
        return {"actions": made[:, -1, self.kept], "logp": logp, "chain": made, "step": step_E}

    def _random_step(self, uniform_E: Tensor) -> Tensor:
        """Which step is random: one of them, or -1: all."""
        net = self.network
        if net.noise == "learned" or net.every:
            return torch.full((len(uniform_E),), -1)
        count = net.steps - 1 if net.ignore_last else net.steps
        return (uniform_E * count).long().clamp(max=count - 1)

    def _logp(self, chain_NKA: Tensor, step_N: Tensor, context: Any) -> tuple[Tensor, Tensor]:
        """(log-probability, entropy) of what is kept of chains, (N,) each, from one pass where one step was random, else from K."""
        N, K = len(chain_NKA), self.network.steps

        def of(step_N: Tensor) -> tuple[Tensor, Tensor]:
            rows = torch.arange(N)
            mean, std, _ = (x[:, self.kept] for x in self.gaussian(chain_NKA[rows, step_N], step_N, context))
            return flow.step_logp(chain_NKA[rows, step_N + 1][:, self.kept], mean, std).sum(-1), flow.step_entropy(std).mean(-1)

        if bool((step_N >= 0).all()):
            return of(step_N)
        each = [of(torch.full((N,), i)) for i in range(K)]
        logp, entropy = (torch.stack(x).sum(0) for x in zip(*each, strict=True))
        if self.network.noise != "learned":
            return logp / K, entropy / K
        start = flow.step_logp(chain_NKA[:, 0, self.kept], torch.zeros(()), torch.ones(())).sum(-1)
        return (start + logp) / (K + 1), entropy / K

    # -- learning -------------------------------------------------------------------------------------------------------------

    def evaluate(self, batch: Batch, want: frozenset[str], variant: str = "policy") -> dict[str, Tensor]:
        """See `Learner`. The "logp" of a given chunk, one with a time and noise in place of a chain, is minus its flow-matching error."""
        if (weights := asked(self, want, variant, "a flow policy")) is not self:
            return weights.evaluate(batch, want)
        real_BT = batch.mask_BT > 0
        out: dict[str, Tensor] = {}
        if want - {"next_value"}:
            more = {k: x[real_BT] for k, x in batch.extras.items() if not k.startswith("next_")}
            context = self.context(more["obs"])
            if "time" in more:
                clean, noise = self.given(batch.actions_BT[real_BT]), self.given(more["noise"])
                out["logp"] = by_unit(-self.error(clean, noise, more["time"], context), real_BT)
            elif want & {"logp", "entropy"}:
                logp, entropy = self._logp(more["chain"], more["step"], context)
                out |= {k: by_unit(x, real_BT) for k, x in (("logp", logp), ("entropy", entropy)) if k in want}
            if "value" in want:
                out["value"] = by_unit(self.value(context), real_BT)
        if "next_value" in want:
            out["next_value"] = self.value(self.context(batch.extras["next_obs"][:, 0]))
        return out

    def save(self, folder: str | Path) -> None:
        """`model.safetensors` and `config.json` into `folder`."""
        from fovea.policies.control import write

        write(folder, self)

    def set_reference(self) -> None:
        """Freeze a copy of the current weights for variant "reference"."""
        self.reference = []
        self.reference = [copy.deepcopy(self).requires_grad_(False)]


class FlowVLA(ChunkFlow):
    """Small networks for pictures, proprioception and words, and a velocity under what they make of them."""

    def __init__(self, spaces: Any, network: Any):
        super().__init__(spaces, network, spaces.actions)
        width, shape = network.width, spaces.obs_shape
        given = self.parts or (Part("obs", shape, "uint8" if len(shape) == 3 else "float32"),)
        self.eyes = nn.ModuleDict({p.name: trunk(p.shape, width, nn.ReLU) for p in given if p.kind == "uint8" and len(p.shape) == 3})
        self.feelings = nn.ModuleDict({p.name: nn.Linear(math.prod(p.shape), width) for p in given if p.kind == "float32"})
        self.words = nn.EmbeddingBag(VOCABULARY, width, mode="sum", padding_idx=0) if any(p.name == TOLD for p in given) else None
        inputs = width * (len(self.eyes) + len(self.feelings) + (self.words is not None))
        self.join = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))
        self.enter = nn.Linear(self.dim + 2 * FREQUENCIES + width, width)
        self.expert = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.leave = nn.Linear(width, self.dim)
        self.noise = nn.Sequential(nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, self.dim))
        self.critic = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.critic[-1].weight)  # type: ignore[arg-type]
        self.tune(network)

    def tune(self, network: Any) -> None:
        super().tune(network)
        for module in (self.eyes, self.feelings, self.join, *([self.words] if self.words is not None else [])):
            module.requires_grad_(not network.frozen)

    def context(self, obs: Tensor) -> Tensor:
        seen = unpack(self.parts, obs) if self.parts else {"obs": obs}
        found = [eye((seen[n].float() / 255 - 0.5).movedim(-1, -3)) for n, eye in self.eyes.items()]
        found += [feel(seen[n].float().flatten(1)) for n, feel in self.feelings.items()]
        if self.words is not None:
            found.append(self.words(torch.tensor([numbered(bytes(row)) for row in seen[TOLD].numpy()])))
        return self.join(torch.cat(found, -1))

    def features(self, x_NA: Tensor, t_N: Tensor, context: Tensor) -> Tensor:
        angle = t_N[:, None] * (2.0 ** torch.arange(FREQUENCIES)) * math.pi
        return self.expert(self.enter(torch.cat([x_NA, angle.sin(), angle.cos(), context], -1)))

    def velocity(self, features: Tensor) -> Tensor:
        return self.leave(features)

    def spread(self, features: Tensor) -> Tensor:
        return self.noise(features)

    def value(self, context: Tensor) -> Tensor:
        return self.critic(context.detach())[..., 0]


@lru_cache(maxsize=4096)
def numbered(told: bytes, most: int = 16) -> tuple[int, ...]:
    """The words of an instruction in bytes as numbers from 1 on, and 0 behind them; further ones than `most` are left out."""
    words = re.findall(r"\w+", told.rstrip(b"\0").decode(errors="ignore").lower())[:most]
    found = [1 + zlib.crc32(w.encode()) % (VOCABULARY - 1) for w in words]
    return (*found, *[0] * (most - len(found)))
