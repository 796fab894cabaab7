"""From named reward parts and lengths to one score per episode."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fovea.math.advantages import batch_std, group_center, grpo
from fovea.math.options import check

SCALES = ("group", "batch", "none")


def group_advantage(score_E: Tensor, group_E: Tensor, ok_E: Tensor, scale: str = "group", ddof: int = 1, eps: float = 1e-6) -> Tensor:
    """Centre in the group, then divide by the std of the group ("group"), of the batch ("batch") or by nothing ("none"): (E,) float64."""
    check("scale", scale, SCALES)
    if scale == "none":
        return group_center(score_E, group_E, ok_E)
    return (grpo if scale == "group" else batch_std)(score_E, group_E, ok_E, ddof, eps)


def weighted_sum(parts_E: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Σ_k w_k part_k per episode; a part that an episode does not have (NaN) counts 0."""
    return torch.stack([w * part(parts_E, name).nan_to_num(0.0) for name, w in weights.items()]).sum(0)


def normalised_parts(
    parts_E: Mapping[str, Tensor],
    weights: Mapping[str, float],
    group_E: Tensor,
    ok_E: Tensor,
    scale: str = "group",
    ddof: int = 1,
    eps: float = 1e-6,
) -> Tensor:
    """Σ_k w_k · group_advantage(part_k): each part is normalised first, so none is drowned by another's range (E,)."""
    return torch.stack(
        [
            w * group_advantage(part(parts_E, name), group_E, ok_E & part(parts_E, name).isfinite(), scale, ddof, eps)
            for name, w in weights.items()
        ]
    ).sum(0)


def part(parts_E: Mapping[str, Tensor], name: str) -> Tensor:
    """One named part (E,), NaN where an episode has none."""
    check("reward part", name, parts_E)
    return parts_E[name]


def overlong_penalty(length_E: Tensor, max_tokens: float, cache: float, factor: float = 1.0) -> Tensor:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13), in [−factor, 0].

    0 up to L_max − L_cache tokens, ((L_max − L_cache) − |y|) / L_cache up to L_max, −1 beyond; times `factor`.
    """
    return factor * ((max_tokens - cache - length_E) / cache).clamp(-1.0, 0.0)
