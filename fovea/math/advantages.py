"""Advantage estimators: how much better than expected was an episode, or a unit of one?

Episode estimators map `score_E` (E,) to an advantage (E,), constant over the units of an episode. `ok_E` (E,) bool marks the episodes
that take part; the others leave every baseline and get exactly 0, and so does a group with fewer than two members left. Statistics are
taken in float64 after subtracting the smallest score of the group, so equal scores give exactly 0 in any input type.

Unit estimators work on (N, T) rewards of N sequences; `mask_NT` marks the units the policy chose, the others are skipped.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_sums(x_E: Tensor, group_E: Tensor) -> Tensor:
    """Sum of `x_E` over each group, on every member (E,)."""
    groups, index_E = group_E.unique(return_inverse=True)
    return x_E.new_zeros(len(groups)).index_add(0, index_E, x_E)[index_E]


def group_scored(group_E: Tensor, ok_E: Tensor) -> Tensor:
    """(E,) bool: the scored episodes whose group has at least two of them."""
    return ok_E & (group_sums(ok_E.double(), group_E) >= 2)


def group_center(score_E: Tensor, group_E: Tensor, ok_E: Tensor) -> Tensor:
    """Score minus the mean of its group: A_i = r_i − mean_g r (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783).

    Args:
      score_E: episode score, any scale; NaN where unscored.
      group_E: integer id of the task each episode answered.
      ok_E: bool, True where the score counts.
    Returns:
      advantage (E,), float64, zero-mean within each group.
    """
    used_E = group_scored(group_E, ok_E)
    x_E = torch.where(ok_E, score_E.double(), torch.inf)
    groups, index_E = group_E.unique(return_inverse=True)
    low_E = x_E.new_full((len(groups),), torch.inf).scatter_reduce(0, index_E, x_E, "amin")[index_E]
    shifted_E = torch.where(used_E, x_E - low_E, 0.0)
    mean_E = group_sums(shifted_E, group_E) / group_sums(used_E.double(), group_E).clamp(min=1)
    return torch.where(used_E, shifted_E - mean_E, 0.0)


def group_std(score_E: Tensor, group_E: Tensor, ok_E: Tensor, ddof: int = 1) -> Tensor:
    """Standard deviation of each group on every member (E,), with divisor n − ddof; 0 for groups with fewer than two scored members."""
    n_E = group_sums(ok_E.double(), group_E)
    square_E = group_sums(group_center(score_E, group_E, ok_E) ** 2, group_E)
    return (square_E / (n_E - ddof).clamp(min=1)).sqrt()


def grpo(score_E: Tensor, group_E: Tensor, ok_E: Tensor, ddof: int = 1, eps: float = 1e-6) -> Tensor:
    """A_i = (r_i − mean_g r) / (std_g r + eps) (GRPO, Shao et al. 2024, arXiv 2402.03300).

    The paper writes the population std (ddof 0); TRL, verl and EasyR1 use the sample std (ddof 1). eps is 1e-6 in verl, 1e-4 in TRL.
    """
    return group_center(score_E, group_E, ok_E) / (group_std(score_E, group_E, ok_E, ddof) + eps)


def batch_std(score_E: Tensor, group_E: Tensor, ok_E: Tensor, ddof: int = 1, eps: float = 1e-6) -> Tensor:
    """A_i = (r_i − mean_g r) / (std of all scores + eps): one scale for the whole batch (TRL's ``scale_rewards="batch"``)."""
    one_group_E = torch.zeros_like(group_E)
    return group_center(score_E, group_E, ok_E) / (group_std(score_E, one_group_E, ok_E, ddof) + eps)


def rloo(score_E: Tensor, group_E: Tensor, ok_E: Tensor) -> Tensor:
    """A_i = r_i − Σ_{j≠i} r_j / (G−1) = G/(G−1) · (r_i − mean_g r) (RLOO, Ahmadian et al. 2024, arXiv 2402.14740)."""
    n_E = group_sums(ok_E.double(), group_E)
    return group_center(score_E, group_E, ok_E) * n_E / (n_E - 1).clamp(min=1)


def remax(score_E: Tensor, group_E: Tensor, ok_E: Tensor, greedy_E: Tensor) -> Tensor:
    """A_i = r_i − r(greedy answer to the same task) (ReMax, Li et al. 2023, arXiv 2310.10505).

    Args:
      greedy_E: bool, True for the baseline members. They get 0, and so does a group whose baseline is unscored.
    """
    score64_E = torch.where(ok_E, score_E.double(), 0.0)
    base_E = (ok_E & greedy_E).double()
    n_E = group_sums(base_E, group_E)
    baseline_E = group_sums(score64_E * base_E, group_E) / n_E.clamp(min=1)
    return torch.where(ok_E & ~greedy_E & (n_E > 0), score64_E - baseline_E, 0.0)


def returns_to_go(reward_NT: Tensor, mask_NT: Tensor, gamma: float = 1.0) -> Tensor:
    """R_t = Σ_{s≥t} γ^{s−t} r_s, where s and t count chosen units only (REINFORCE++, Hu 2025, arXiv 2501.03262); 0 at masked units."""
    out_NT = torch.zeros_like(reward_NT)
    ret_N = reward_NT.new_zeros(reward_NT.shape[0])
    for t in range(reward_NT.shape[1] - 1, -1, -1):
        chosen_N = mask_NT[:, t] > 0
        ret_N = torch.where(chosen_N, reward_NT[:, t] + gamma * ret_N, ret_N)
        out_NT[:, t] = torch.where(chosen_N, ret_N, 0.0)
    return out_NT


def gae(
    reward_NT: Tensor, value_NT: Tensor, mask_NT: Tensor, next_value_N: Tensor | None = None, gamma: float = 1.0, lam: float = 0.95
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438), on the clock of chosen units.

        δ_t = r_t + γ V_{t+1} − V_t        A_t = δ_t + γλ A_{t+1}

    Args:
      reward_NT: reward that follows unit t.
      value_NT: value of the state in which unit t was chosen.
      mask_NT: 1 where the policy chose the unit; t+1 is the next such unit, what lies between is skipped.
      next_value_N: value of the state after the last unit: the critic's estimate where the trajectory was cut, 0 where it terminated.
    Returns:
      advantage (N, T), 0 at masked units; the value target is advantage + value.
    """
    out_NT = torch.zeros_like(reward_NT)
    adv_N = reward_NT.new_zeros(reward_NT.shape[0])
    next_N = torch.zeros_like(adv_N) if next_value_N is None else next_value_N
    for t in range(reward_NT.shape[1] - 1, -1, -1):
        chosen_N = mask_NT[:, t] > 0
        delta_N = reward_NT[:, t] + gamma * next_N - value_NT[:, t]
        adv_N = torch.where(chosen_N, delta_N + gamma * lam * adv_N, adv_N)
        next_N = torch.where(chosen_N, value_NT[:, t], next_N)
        out_NT[:, t] = torch.where(chosen_N, adv_N, 0.0)
    return out_NT


def whiten(x_BT: Tensor, mask_BT: Tensor, ddof: int = 1, eps: float = 1e-8) -> Tensor:
    """(x − mean) / √(var + eps) over every chosen unit of the batch, var with divisor n − ddof (1 in verl and EasyR1); 0 elsewhere."""
    chosen_BT = mask_BT > 0
    x64_BT = torch.where(chosen_BT, x_BT.double(), 0.0)
    n = chosen_BT.sum().clamp(min=1)
    centred_BT = torch.where(chosen_BT, x64_BT - x64_BT.sum() / n, 0.0)
    var = (centred_BT**2).sum() / (n - ddof).clamp(min=1)
    return (centred_BT / (var + eps).sqrt()).to(x_BT.dtype)
