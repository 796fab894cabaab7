"""The clock of chosen units: an episode's rows, in order, as one gapless sequence.

An episode may own several rows (its history was trimmed) and its rows may contain units that the environment inserted. Returns and GAE
look along the episode, so they are computed on (N, L) sequences that hold only what the policy chose, then put back on the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class EpisodeClock:
    """Where each chosen unit of a (B, T) batch lies in its episode.

    Attributes:
      mask_BT: bool, units that the policy chose.
      sequence_BT: which of the N episodes a unit belongs to (long).
      position_BT: its place among that episode's chosen units, from 0 (long; meaningless where masked).
      mask_NL: bool, places that hold a unit.
      last_row_N: the batch row with which each episode ends.
      episode_N: index of each episode in the batch's episode tables.
    """

    mask_BT: Tensor
    sequence_BT: Tensor
    position_BT: Tensor
    mask_NL: Tensor
    last_row_N: Tensor
    episode_N: Tensor

    @classmethod
    def of(cls, mask_BT: Tensor, episode_B: Tensor) -> EpisodeClock:
        """From a batch whose rows of one episode are in order of time."""
        chosen_BT = mask_BT > 0
        episode_N, sequence_B = episode_B.unique(return_inverse=True)
        count_B = chosen_BT.sum(1)
        start_B = torch.zeros_like(count_B)
        total_N = count_B.new_zeros(len(episode_N))
        last_row_N = torch.zeros_like(total_N)
        for b, n in enumerate(sequence_B.tolist()):
            start_B[b] = total_N[n]
            total_N[n] += count_B[b]
            last_row_N[n] = b
        position_BT = start_B[:, None] + chosen_BT.cumsum(1) - 1
        mask_NL = torch.arange(max(1, int(total_N.max())), device=mask_BT.device) < total_N[:, None]
        return cls(chosen_BT, sequence_B[:, None].expand_as(chosen_BT), position_BT, mask_NL, last_row_N, episode_N)

    def pack(self, x_BT: Tensor) -> Tensor:
        """(B, T) -> (N, L), zero where an episode has ended."""
        out_NL = x_BT.new_zeros(self.mask_NL.shape)
        out_NL[self.sequence_BT[self.mask_BT], self.position_BT[self.mask_BT]] = x_BT[self.mask_BT]
        return out_NL

    def unpack(self, x_NL: Tensor) -> Tensor:
        """(N, L) -> (B, T), zero at masked units."""
        out_BT = x_NL.new_zeros(self.mask_BT.shape)
        out_BT[self.mask_BT] = x_NL[self.sequence_BT[self.mask_BT], self.position_BT[self.mask_BT]]
        return out_BT

    def at_end(self, x_N: Tensor) -> Tensor:
        """(N,) -> (N, L): a value on the last unit of each episode."""
        out_NL = x_N.new_zeros(self.mask_NL.shape)
        last_N = self.mask_NL.sum(1) - 1
        has_N = last_N >= 0
        out_NL[has_N.nonzero()[:, 0], last_N[has_N]] = x_N[has_N]
        return out_NL


def turn_starts(turn_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T) bool: the first chosen unit of each turn of each row; turns do not fall along a row."""
    chosen_BT = mask_BT > 0
    latest_BT = torch.where(chosen_BT, turn_BT, -1).cummax(1).values
    return chosen_BT & (turn_BT > F.pad(latest_BT[:, :-1], (1, 0), value=-1))


def turn_sums(x_BT: Tensor, turn_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum of `x_BT` over the chosen units of each turn of a row, on each of them (B, T); 0 at masked units."""
    x_BT = torch.where(mask_BT > 0, x_BT, 0)
    sum_BK = x_BT.new_zeros(len(x_BT), int(turn_BT.max()) + 1).scatter_add(1, turn_BT, x_BT)
    return torch.where(mask_BT > 0, sum_BK.gather(1, turn_BT), 0)
