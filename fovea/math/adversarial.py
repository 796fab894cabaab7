"""Losses of a judge D that tells samples of a source from those of a target, and of whoever makes the target look like the source.

Two ways: the target is to have the source's distribution (a GAN), or only to lie in its support. Judgements are real numbers, greater for
the source; each argument is one per sample, and every loss is a mean over samples.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def conjugate(judged: Tensor) -> Tensor:
    """f*(D) = D + D²/4, the convex conjugate of the χ² divergence (Nowozin et al. 2016, arXiv 1606.00709, table 6).

    Its lowest value is −1, at D = −2.
    """
    return judged + 0.25 * judged**2


def support_judge_loss(source_N: Tensor, ratio_N: Tensor, target_M: Tensor) -> Tensor:
    """−mean τ D(source) + mean f*(D(target)): less the χ² divergence of source times τ from target (RePo, arXiv 2309.00082).

    Args:
      ratio_N: τ, how much of each source sample counts; no gradient reaches it.
    """
    return conjugate(target_M).mean() - (ratio_N.detach() * source_N).mean()


def support_loss(target_M: Tensor) -> Tensor:
    """−mean f*(D(target)): what brings the target into the support."""
    return -conjugate(target_M).mean()


def ratio_loss(ratio_N: Tensor, source_N: Tensor, dual: Tensor) -> Tensor:
    """mean τ D(source) + u (mean τ − 1): the weights of mean 1 under which the source differs least from the target.

    With them a part of the source that the target has not visited weighs little, and the target is not asked to go there.

    Args:
      source_N, dual: D(source) and u; no gradient reaches them.
    """
    return (ratio_N * source_N.detach()).mean() + dual.detach() * (ratio_N.mean() - 1)


def distribution_judge_loss(source_N: Tensor, target_M: Tensor) -> Tensor:
    """−mean log σ(D(source)) − mean log σ(−D(target)) (Goodfellow et al. 2014, arXiv 1406.2661)."""
    return softplus(-source_N).mean() + softplus(target_M).mean()


def distribution_loss(target_M: Tensor) -> Tensor:
    """−mean log σ(D(target)), whose gradient does not vanish where the judge is sure."""
    return softplus(-target_M).mean()


def steepness(judged_N: Tensor, seen_NE: Tensor) -> Tensor:
    """mean ‖∂D/∂x‖², a penalty that can be differentiated once more (Mescheder et al. 2018, arXiv 1801.04406)."""
    return torch.autograd.grad(judged_N.sum(), seen_NE, create_graph=True)[0].square().sum(-1).mean()
