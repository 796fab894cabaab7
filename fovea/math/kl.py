"""Estimators of KL(π_θ ‖ π_ref) from the log-probabilities of sampled actions, in nats (Schulman's note "Approximating KL divergence").

With actions drawn from π_θ, k1 and k3 are unbiased in value; of the gradients only k2's is that of the KL.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def k1(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """log π_θ − log π_ref: unbiased, of either sign. Its gradient has mean zero, so it belongs in the reward."""
    return logp - logp_ref


def k2(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """½ (log π_θ − log π_ref)²: biased in value, unbiased in gradient."""
    return 0.5 * (logp - logp_ref) ** 2


def k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """e^d − d − 1 with d = log π_ref − log π_θ: unbiased and never negative. d is clamped to ±20, the result to 10."""
    d = (logp_ref - logp).clamp(-20.0, 20.0)
    return (d.exp() - d - 1).clamp(-10.0, 10.0)


def k3_straight_through(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """The value of k3 with the gradient of k2 (verl's "k3+")."""
    square = k2(logp, logp_ref)
    return square + (k3(logp, logp_ref) - square).detach()


KL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3, "k3+": k3_straight_through}
