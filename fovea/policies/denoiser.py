"""A small denoising diffusion model (DDPM, Ho et al. 2020) under numbered prompts: points, or pictures of a few pixels.

The prompt is known by the last number in its text, so the model learns each prompt by heart; nothing is shared between prompts but the
network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image, fromarray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fovea.math.diffusion import Schedule
from fovea.policies.chain import GaussianChain
from fovea.policies.pixel import normals
from fovea.rollout.sampling import uniforms
from fovea.types import Prefix

KIND = "denoiser"


@dataclass(frozen=True)
class Canvas:
    """What there is to be drawn, as a source says it.

    Attributes:
      shape: (A,) of points, whose samples are said as numbers, or (H, W, 3) of pictures, whose numbers lie in [-1, 1].
      prompts: how many numbered prompts there are.
    """

    shape: tuple[int, ...]
    prompts: int


class Denoiser(GaussianChain):
    """Finds the noise in x.

    Args:
      width: hidden units. steps: S. betas: noise of the step next to the sample and of the one next to pure noise.
    """

    def __init__(self, canvas: Canvas, width: int = 128, steps: int = 10, betas: tuple[float, float] = (0.01, 0.5)):
        schedule = Schedule.linear(steps, *betas)
        super().__init__(torch.Size(canvas.shape).numel(), schedule.sigma_S)
        self.schedule = schedule
        self.canvas, self.width, self.betas = canvas, width, betas
        self.prompts, self.times = nn.Embedding(canvas.prompts, width), nn.Embedding(steps, width)
        self.enter = nn.Linear(self.dim, width)
        self.trunk = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.leave = nn.Linear(width, self.dim)
        nn.init.zeros_(self.leave.weight)

    def mean(self, x_NA: Tensor, step_N: Tensor, condition_N: Tensor) -> Tensor:
        noise = self.leave(self.trunk(self.enter(x_NA) + self.prompts(condition_N) + self.times(step_N)))
        return self.schedule.mean(x_NA, noise, step_N)

    def encode(self, prompt: Sequence[Any], images: Sequence[Any] = ()) -> Prefix:
        """
        Raises:
          ValueError: no number in the prompt, or one beyond those that the model was made for.
        """
        text = " ".join(str(part.get("text", "")) for message in prompt for part in message["content"] if isinstance(part, dict))
        numbers = re.findall(r"\d+", text)
        if not numbers or int(numbers[-1]) >= self.canvas.prompts:
            raise ValueError(
                f"prompt {text!r}; expected one that ends with a number below {self.canvas.prompts}, as the model was made for"
            )
        return Prefix(f"{KIND}/{numbers[-1]}", torch.tensor(int(numbers[-1])))

    def show(self, sample_EA: Tensor) -> list[str | Image]:
        """Samples as verifiers see them: numbers as text, or pictures."""
        if len(self.canvas.shape) == 1:
            return [" ".join(f"{x:.6g}" for x in row) for row in sample_EA.tolist()]
        pixels = ((sample_EA.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).view(-1, *self.canvas.shape)
        return [fromarray(picture.numpy()) for picture in pixels]

    def noised(self, text: str, key: int) -> dict[str, Tensor]:
        """A given sample, said as numbers, as the end of a chain of the noising process, with noise addressed by `key`.

        So the likelihood of given chains is the variational bound by which these models are pretrained.

        Raises:
          ValueError: not as many numbers as a sample has.
        """
        sample = [float(x) for x in text.split()]
        if len(sample) != self.dim:
            raise ValueError(f"a given sample of {len(sample)} numbers; expected {self.dim}, the size of {self.canvas.shape}")
        noise_SA = normals(uniforms([key] * self.steps * self.dim, range(self.steps * self.dim))).float().view(self.steps, self.dim)
        chain = self.schedule.noised(torch.tensor(sample), noise_SA)
        return {
            "actions": chain[1:],
            "logp": torch.zeros(self.steps),
            "mask": self.sigma_S > 0,
            "x": chain[:-1],
            "step": torch.arange(self.steps),
        }

    def save(self, folder: str | Path) -> None:
        """`model.safetensors` and `config.json` into `folder`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, Path(folder) / "model.safetensors")
        config = {"kind": KIND, **asdict(self.canvas), "width": self.width, "steps": self.steps, "betas": self.betas}
        Path(folder, "config.json").write_text(json.dumps(config, indent=1))

    def load_weights(self, folder: str | Path) -> None:
        """Those of a folder that `save` wrote."""
        self.load_state_dict(load_file(Path(folder) / "model.safetensors"))

    @classmethod
    def load(cls, folder: str | Path) -> Denoiser:
        config = json.loads(Path(folder, "config.json").read_text())
        canvas = Canvas(tuple(config["shape"]), config["prompts"])
        policy = cls(canvas, config["width"], config["steps"], tuple(config["betas"]))
        policy.load_weights(folder)
        return policy
