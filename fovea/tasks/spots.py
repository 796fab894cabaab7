"""Spots: numbered prompts, each with a place of its own where a denoiser learns to put its points, and another where they earn more.

    "spots"        400 prompts; "spots:8" has 8

The reward −0.2 w_c ‖x − target_c‖² + b_c differs from prompt to prompt in weight (lognormal, σ 0.7) and offset (normal, σ 3): what a method
without statistics of every prompt must not take for merit. `meta["response"]` is a point at the prompt's own place, for pretraining.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fovea.policies.denoiser import Canvas
from fovea.tasks.endless import Endless
from fovea.types import Task, user
from fovea.verifiers.drawn import nearness

PROMPTS = 400
SPREAD = 0.3  # standard deviation of a prompt's own points
WORLD = 20240211  # the prompts are the same for every seed, as a start is trained on them once


@dataclass(frozen=True)
class Spots(Endless):
    """See the file's head. Training draws prompts at random, held-out tasks take them in turn.

    Attributes:
      prompts: how many there are.
    """

    prompts: int = PROMPTS

    @classmethod
    def named(cls, what: str, split: str, seed: int) -> Spots:
        """
        Raises:
          ValueError: not a number of prompts.
        """
        if what and not (what.isdecimal() and int(what)):
            raise ValueError(f"data 'spots:{what}'; expected the number of prompts, such as 'spots:{PROMPTS}'")
        return cls(int(what or PROMPTS), split=split, seed=seed)

    @property
    def canvas(self) -> Canvas:
        return Canvas((2,), self.prompts)

    def deal(self, i: int) -> Task:
        rng = self.rng(i)
        c = int(rng.integers(self.prompts)) if self.split == "train" else i % self.prompts
        own = np.random.Generator(np.random.Philox(np.random.SeedSequence([WORLD, self.prompts, c])))
        centre, aside = own.uniform(-1.5, 1.5, 2), own.normal(0.0, 0.8, 2)
        weight, bias = round(0.2 * float(own.lognormal(0.0, 0.7)), 6), round(float(own.normal(0.0, 3.0)), 6)
        said = " ".join(f"{x:.4f}" for x in rng.normal(centre, SPREAD))
        name = f"spots/{self.split}/{self.seed}/{i}"
        target = [round(float(x), 4) for x in centre + aside]
        return Task(
            name,
            "spots",
            user(f"spot {c}", images=0),
            answer=target,
            verifier=nearness(weight=weight, bias=bias),
            meta={"response": said, "weight": weight, "bias": bias},
        )
