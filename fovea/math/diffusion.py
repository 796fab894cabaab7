"""Denoising diffusion (DDPM, Ho et al. 2020, arXiv 2006.11239): noise is added in S steps, and taken away by Gaussian steps.

    x_t = √(1−β_t) x_{t−1} + √β_t ε        ᾱ_t = Π_s (1−β_s)        x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε

Steps count as they are taken when sampling: step 0 leaves pure noise, step S−1 arrives at the sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def normal_logp(x_NA: Tensor, mean_NA: Tensor, sigma_N: Tensor) -> Tensor:
    """log N(x; mean, σ² I), summed over the dimensions: (N,), nats."""
    z = (x_NA - mean_NA) / sigma_N[:, None]
    return (-0.5 * z**2).sum(-1) - x_NA.shape[-1] * (sigma_N.log() + 0.5 * math.log(2 * math.pi))


@dataclass(frozen=True)
class Schedule:
    """The Gaussian steps from noise to a sample: mean = a_s · x̂_0 + b_s · x, standard deviation σ_s.

    Attributes:
      signal_S, noise_S: √ᾱ and √(1−ᾱ) of what step s starts from.
      to_sample_S, to_here_S: a_s and b_s. sigma_S: σ_s, 0 where a step draws nothing.
    """

    signal_S: Tensor
    noise_S: Tensor
    to_sample_S: Tensor
    to_here_S: Tensor
    sigma_S: Tensor

    @classmethod
    def of(cls, kept_S: Tensor, after_S: Tensor, large: bool = False) -> Schedule:
        """The posterior q(x_after | x, x̂_0) between ᾱ = `kept_S` and ᾱ = `after_S` (1 is the sample itself).

        large: σ² = β rather than the posterior's variance, so that the last step draws too.
        """
        kept, after = kept_S.double(), after_S.double()
        alpha = kept / after
        beta, rest = 1 - alpha, 1 - kept
        variance = beta if large else (1 - after) / rest * beta
        to_sample, to_here = after.sqrt() * beta / rest, alpha.sqrt() * (1 - after) / rest
        return cls(kept.sqrt().float(), rest.sqrt().float(), to_sample.float(), to_here.float(), variance.sqrt().float())

    @classmethod
    def linear(cls, steps: int, first: float, last: float) -> Schedule:
        """β_t from `first` (next to the sample) to `last`, every step taken, σ² = β."""
        kept = (1 - torch.linspace(first, last, steps, dtype=torch.float64)).cumprod(0)
        return cls.of(kept.flip(0), torch.cat([kept.new_ones(1), kept[:-1]]).flip(0), large=True)

    def mean(self, x_NA: Tensor, noise_NA: Tensor, step_N: Tensor) -> Tensor:
        """Where step s goes on average, given the noise ε̂ that a network finds in x: x̂_0 = (x − √(1−ᾱ) ε̂) / √ᾱ."""
        signal, noise, to_sample, to_here = (
            c.to(x_NA.device)[step_N, None] for c in (self.signal_S, self.noise_S, self.to_sample_S, self.to_here_S)
        )
        return to_sample * (x_NA - noise * noise_NA) / signal + to_here * x_NA

    def noised(self, sample_A: Tensor, noise_SA: Tensor) -> Tensor:
        """A chain that ends at a given sample, drawn from the noising process: (S + 1, A), pure noise first."""
        chain, kept = [sample_A], 1.0
        for s in reversed(range(len(self.signal_S))):
            now = float(self.signal_S[s]) ** 2
            alpha, kept = now / kept, now
            chain.append(math.sqrt(alpha) * chain[-1] + math.sqrt(1 - alpha) * noise_SA[s])
        return torch.stack(chain[::-1])
