"""Backgrounds that never rest: sums of sinusoids over a picture, each phase a first-order autoregression of its own."""

from __future__ import annotations

import numpy as np


class Drift:
    """`count` textures over pictures of (height, width), in `channels` colours.

        φ' = ρ φ + √(1 − ρ²) σ ε          picture = Σ_j c_j sin(k_j · x + φ_j) / √count

    Args:
      seed: which textures: wave vectors k of 1 to 4 waves across the picture, colours c of length 1.
      keep: ρ. spread: σ in radians.

    Attributes:
      count: how many phases there are.
    """

    def __init__(self, height: int, width: int, channels: int = 3, count: int = 8, seed: int = 0, keep: float = 0.9, spread: float = 2.0):
        rng = np.random.default_rng([seed, 0xD21F7])
        turn, waves = rng.uniform(0, np.pi, count), rng.uniform(1, 4, count)
        y, x = np.mgrid[:height, :width] / max(height, width)
        angle_PHW = 2 * np.pi * waves[:, None, None] * (np.cos(turn)[:, None, None] * x + np.sin(turn)[:, None, None] * y)
        colour_PC = rng.normal(size=(count, channels))
        colour_PC /= np.linalg.norm(colour_PC, axis=1, keepdims=True) * np.sqrt(count)
        # sin(a + φ) = sin a cos φ + cos a sin φ: a frame is one product
        waves_2PHW = np.stack([np.sin(angle_PHW), np.cos(angle_PHW)])
        self.basis = (waves_2PHW[..., None] * colour_PC[:, None, None]).reshape(2 * count, -1).astype(np.float32)
        self.count, self.shape, self.keep, self.spread = count, (height, width, channels), keep, spread

    def begin(self, rng: np.random.Generator) -> np.ndarray:
        """Phases (P,) of a first picture."""
        return self.spread * rng.standard_normal(self.count)

    def go_on(self, phase_P: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.keep * phase_P + np.sqrt(1 - self.keep**2) * self.spread * rng.standard_normal(self.count)

    def draw(self, phase_P: np.ndarray) -> np.ndarray:
        """(H, W, C) float32 of standard deviation about 1 / √(2 C), within ±√P; leading axes of the phases are kept."""
        turned = np.concatenate([np.cos(phase_P), np.sin(phase_P)], -1).astype(np.float32)
        return (turned @ self.basis).reshape(*phase_P.shape[:-1], *self.shape)
