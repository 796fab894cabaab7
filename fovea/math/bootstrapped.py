"""Learning from what was predicted: targets of temporal differences, slow copies, and multipliers of constraints.

Windows are (B, L): L units of one episode that follow one another, of which only the last can end it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def n_step(reward_BL: Tensor, ended_BL: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """The rewards of a window and the weight of what follows it (Sutton 1988; L = 1 is the usual transition).

        R = Σ_{l<L} γ^l r_l,   d = γ^L (1 − ended)      for the target R + d·V(o_L)

    Args:
      reward_BL: what each unit was paid.
      ended_BL: bool, the episode terminated with the unit; a cut is no end, and its value counts.
    Returns:
      (R_B, d_B), in reward units and as a factor.
    """
    power_L = gamma ** torch.arange(reward_BL.shape[1], dtype=reward_BL.dtype, device=reward_BL.device)
    follows_B = gamma ** reward_BL.shape[1] * (~ended_BL[:, -1]).to(reward_BL.dtype)
    return (reward_BL * power_L).sum(1), follows_B


def double_q(value_BA: Tensor, slow_BA: Tensor) -> Tensor:
    """The slow network's value of the action that the other one prefers (Double DQN, van Hasselt et al. 2016, arXiv 1509.06461).

    V = Q_slow(o, argmax_a Q(o, a))
    """
    return slow_BA.gather(1, value_BA.argmax(1, keepdim=True))[:, 0]


def least(value_NB: Tensor, of_N: Tensor | None = None) -> Tensor:
    """The smallest of N critics: (N, B) -> (B,) (clipped double Q, Fujimoto et al. 2018, arXiv 1802.09477).

    Args:
      of_N: only these critics count, by number (a random few of many: REDQ, Chen et al. 2021, arXiv 2101.05982).
    """
    return (value_NB if of_N is None else value_NB[of_N]).amin(0)


@torch.no_grad()
def polyak(slow: nn.Module, fast: nn.Module, tau: float) -> None:
    """Move the weights of a slow copy towards the fast ones: θ' ← θ' + τ (θ − θ') (Lillicrap et al. 2016, arXiv 1509.02971).

    Args:
      tau: 1 copies them.
    """
    for s, f in zip(slow.parameters(), fast.parameters(), strict=True):
        s.lerp_(f, tau)


def dual_loss(log_dual: Tensor, slack_B: Tensor) -> Tensor:
    """The loss whose descent keeps a constraint E[slack] ≥ 0 by its multiplier e^x (SAC's temperature, arXiv 1812.05905, equation 18).

        J(x) = e^x · E[slack],   dJ/dx = e^x · E[slack]

    The multiplier grows while the constraint is broken and shrinks while it is kept. For an entropy of at least H̄ the slack is −log π − H̄;
    for a divergence of at most K it is K − KL. No gradient reaches the slack.
    """
    return log_dual.exp() * slack_B.detach().mean()


def multiplier_loss(log_dual: Tensor, slack_B: Tensor) -> Tensor:
    """The same with the gradient E[slack] whatever the multiplier is: J(x) = x · E[slack] (RePo, arXiv 2309.00082).

    A multiplier that begins at 1e-5 then does not wait for itself to grow. No gradient reaches the slack.
    """
    return log_dual * slack_B.detach().mean()
