"""Drawing tokens: two log-probabilities for each, and randomness that is addressed instead of streamed.

The uniform number behind a token depends on its address (seed, step, task, episode, turn, token) and on nothing else, so an episode is the
same whatever it was batched with and however often the run was interrupted. An address is hashed once per turn to a 64-bit key; token i of
that turn uses the i-th output of the SplitMix64 generator (Steele, Lea & Flood, 2014) seeded with that key.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
BLOCK = 512  # vocabulary entries per partial sum of the inverse CDF
HEAD = 1024  # most likely tokens among which top-p is decided before it sorts the whole vocabulary
LEAST = 1e-6
"""Least temperature that is not greedy; logits divided by a smaller one may overflow."""


@dataclass(frozen=True)
class Sampling:
    """How actions are drawn.

    Attributes:
      temperature: divides the logits; 0 is greedy.
      top_p: smallest set of most likely tokens whose probability reaches this; 1 keeps all.
      top_k: number of most likely tokens kept; 0 keeps all.
      max_new_tokens: limit per turn.
      stop: a turn ends as soon as its text contains one of these; the tokens that completed the string stay in the turn.
      min_new_tokens: no end-of-sequence token before this many tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0

    def __post_init__(self):
        if not (self.temperature == 0 or LEAST <= self.temperature < float("inf")):
            raise ValueError(f"temperature = {self.temperature}; expected 0 (greedy) or more, a number of at least {LEAST:g}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}; expected 0 < top_p <= 1")
        if self.top_k < 0 or self.min_new_tokens < 0 or self.max_new_tokens < 1:
            raise ValueError(
                f"top_k = {self.top_k}, min_new_tokens = {self.min_new_tokens}, max_new_tokens = {self.max_new_tokens}; "
                "expected top_k >= 0, min_new_tokens >= 0 and max_new_tokens >= 1"
            )
        if isinstance(self.stop, str) or any(not s for s in self.stop):
            raise ValueError(f"stop = {self.stop!r}; expected a tuple of non-empty strings")


def address(*parts: int | str) -> int:
    """The 64-bit key of an address such as (seed, step, task id, episode, turn); parts are length-prefixed: ("a", "bc") != ("ab", "c")."""
    h = hashlib.blake2b(digest_size=8)
    for part in parts:
        raw = repr(part).encode()
        h.update(len(raw).to_bytes(4, "little") + raw)
    return int.from_bytes(h.digest(), "little")


def numbered(ids: Iterable[str]) -> list[str]:
    """Names that are parts of addresses: one that was there before has its number, "a", "b", "a#1"."""
    seen, names = Counter[str](), []
    for id in ids:
        names.append(f"{id}#{seen[id]}" if seen[id] else id)
        seen[id] += 1
    return names


def uniforms(key_R: Sequence[int] | np.ndarray, token_R: Sequence[int] | np.ndarray) -> Tensor:
    """(R,) float64 in [0, 1): output number `token_R` of the SplitMix64 generators seeded with `key_R`."""
    key, token = np.asarray(key_R, dtype=np.uint64), np.asarray(token_R, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = key + (token + np.uint64(1)) * GOLDEN
        z = (z ^ (z >> np.uint64(30))) * MIX_1
        z = (z ^ (z >> np.uint64(27))) * MIX_2
        z = z ^ (z >> np.uint64(31))
    return torch.from_numpy((z >> np.uint64(11)).astype(np.float64) * 2.0**-53)


@torch.no_grad()
def sample(
    logits_RV: Tensor,
    uniform_R: Tensor,
    sampling: Sampling,
    banned: Sequence[int] = (),
    held_R: Tensor | None = None,
    held: Sequence[int] = (),
    trained_at: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """One token per row by inverse CDF.

    Args:
      logits_RV: raw logits.
      uniform_R: float64 in [0, 1).
      banned: ids that can never be drawn and carry no probability, in training neither (image placeholders).
      held_R, held: rows (bool) in which the ids `held` cannot be drawn now (the end of sequence before `min_new_tokens`); unlike banned ids
        they keep their probability in `logp_old`, because the trainer's softmax contains them.
      trained_at: the temperature of the trainer's softmax; 0 stands for that of `sampling`, or 1 when that is greedy.
    Returns:
      token_R (long), logp_old_R: log softmax(logits without banned ids / trained_at) at the token, logp_behaviour_R: its log-probability
      after temperature, holding, top-k and top-p, 0 in greedy rows.
    """
    temperature = sampling.temperature or trained_at or 1.0
    x_RV = logits_RV / temperature if temperature != 1 else logits_RV.clone()
    x_RV = x_RV.float()
    if banned:
        x_RV[:, list(banned)] = -torch.inf
    max_R = x_RV.amax(1)
    if not torch.isfinite(max_R).all():
        row = int((~torch.isfinite(max_R)).nonzero()[0])
        raise FloatingPointError(
            f"row {row} of the logits has maximum {max_R[row].item()}; expected finite logits: the weights may have diverged"
        )
    weight_RV = torch.exp(x_RV - max_R[:, None])  # unnormalised probabilities, the largest is 1
    open_RV = weight_RV
    if held and held_R is not None and bool(held_R.any()):
        open_RV = weight_RV.clone()
        open_RV[held_R.to(open_RV.device).nonzero()[:, 0, None], torch.tensor(list(held), device=open_RV.device)] = 0.0
    if sampling.temperature and (sampling.top_k or sampling.top_p < 1):
        open_RV = truncate(open_RV, sampling.top_k, sampling.top_p)
    if sampling.temperature:
        token_R, kept_R = inverse_cdf(open_RV, uniform_R.to(open_RV.device))
    else:
        token_R, kept_R = open_RV.argmax(1), torch.ones_like(max_R, dtype=torch.float64)
    x_R = x_RV.gather(1, token_R[:, None])[:, 0].double() - max_R
    behaviour_R = x_R - kept_R.log() if sampling.temperature else torch.zeros_like(x_R)
    if sampling.temperature and trained_at not in (0.0, temperature):
        old_R = torch.log_softmax(x_RV * (temperature / trained_at), 1).gather(1, token_R[:, None])[:, 0]
    else:
        total_R = kept_R if sampling.temperature and open_RV is weight_RV else block_sums(weight_RV).sum(1)
        old_R = x_R - total_R.log()
    return token_R, old_R.float(), behaviour_R.float()


@torch.no_grad()
def logp_of(logits_RV: Tensor, token_R: Tensor, banned: Sequence[int] = (), temperature: float = 1.0) -> Tensor:
    """(R,) float32: `logp_old` of `sample` for tokens that were not drawn."""
    x_RV = (logits_RV / temperature).double()
    if banned:
        x_RV[:, list(banned)] = -torch.inf
    return torch.log_softmax(x_RV, 1).gather(1, token_R[:, None])[:, 0].float()


def block_sums(weight_RV: Tensor) -> Tensor:
    """(R, V) -> (R, ceil(V / BLOCK)) float64 sums of consecutive blocks."""
    R, V = weight_RV.shape
    pad = -V % BLOCK
    padded = torch.nn.functional.pad(weight_RV, (0, pad)) if pad else weight_RV
    return padded.view(R, -1, BLOCK).sum(2, dtype=torch.float64)


def inverse_cdf(weight_RV: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """The token whose share of the row's total weight covers `uniform_R`, and that total in float64.

    Two levels, first the block and then the token inside it: of 150,000 entries, only V / BLOCK + BLOCK need a float64 cumulative sum.
    """
    V = weight_RV.shape[1]
    cumulative_RN = block_sums(weight_RV).cumsum(1)
    total_R = cumulative_RN[:, -1]
    target_R = uniform_R * total_R
    if V <= BLOCK:
        return _inside(weight_RV.double(), target_R), total_R
    n_R = torch.searchsorted(cumulative_RN, target_R[:, None], right=True)[:, 0].clamp(max=cumulative_RN.shape[1] - 1)
    before_R = torch.where(n_R > 0, cumulative_RN.gather(1, (n_R - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    index_RJ = n_R[:, None] * BLOCK + torch.arange(BLOCK, device=weight_RV.device)
    inside_RJ = weight_RV.gather(1, index_RJ.clamp(max=V - 1)).double() * (index_RJ < V)
    return n_R * BLOCK + _inside(inside_RJ, target_R - before_R), total_R


def _inside(weight_RJ: Tensor, target_R: Tensor) -> Tensor:
    """The entry whose share of the cumulative weight covers `target_R`; the last positive one where rounding points past it."""
    cumulative_RJ = weight_RJ.cumsum(1)
    j_R = torch.searchsorted(cumulative_RJ, target_R[:, None], right=True)[:, 0]
    last_R = torch.searchsorted(cumulative_RJ, cumulative_RJ[:, -1:].contiguous())[:, 0]
    return torch.minimum(j_R, last_R)


def truncate(weight_RV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Zero all but the `top_k` largest weights, then all but the smallest head that holds `top_p` of what is left (ties: lowest ids)."""
    V = weight_RV.shape[1]
    J = min(V, top_k or (HEAD if top_p < 1 else V))
    head_RJ = weight_RV.topk(J, dim=1).values
    count_R = torch.full_like(head_RJ[:, 0], J, dtype=torch.long)
    if top_p < 1:
        total_R = head_RJ.sum(1, dtype=torch.float64) if top_k else block_sums(weight_RV).sum(1)
        count_R = within(head_RJ, top_p * total_R)
        if not top_k and J < V and bool((count_R == J).any()):  # flat rows: the head may need more than HEAD tokens
            head_RJ = weight_RV.sort(dim=1, descending=True).values
            count_R = within(head_RJ, top_p * total_R)
    threshold_R1 = head_RJ.gather(1, count_R[:, None] - 1)
    keep_RV, tied_RV = weight_RV > threshold_R1, weight_RV == threshold_R1
    room_R1 = count_R[:, None] - keep_RV.sum(1, keepdim=True)
    if bool((tied_RV.sum(1, keepdim=True) > room_R1).any()):
        tied_RV &= tied_RV.cumsum(1) <= room_R1
    return weight_RV * (keep_RV | tied_RV)


def within(head_RJ: Tensor, mass_R: Tensor) -> Tensor:
    """How many weights, largest first, it takes to reach `mass_R` (at least one)."""
    before_RJ = head_RJ.double().cumsum(1) - head_RJ.double()
    return (before_RJ < mass_R[:, None]).sum(1).clamp(min=1)
