"""Stable Diffusion as a policy (extra `diffusers`): the U-Net is trained, text encoder and decoder of pictures stay as they are.

Latents are drawn by the DDPM sampler in S steps, under classifier-free guidance, ε̂ = ε̂(∅) + g (ε̂(c) − ε̂(∅)), which is the same for the
policy, its reference and what sampled. The last step draws nothing, so nobody chose it. Chains are kept in float32 whatever the weights
are, because differences of squared norms would lose everything in 16 bits.

A checkpoint holds the U-Net in its library's layout (``unet/``) and names the rest. The tokenizer cuts prompts that are longer than the
text encoder reads.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image, fromarray
from torch import Tensor

from fovea.math.diffusion import Schedule
from fovea.policies.chain import GaussianChain
from fovea.types import Prefix

STEPS, GUIDANCE = 50, 5.0


def parts() -> Any:
    """The library.

    Raises:
      ImportError: it is not installed; with the extra that brings it.
    """
    try:
        import diffusers
    except ImportError as e:
        raise ImportError(f"model 'diffusers:NAME' needs the package diffusers ({e}); expected `pip install 'fovea-rl[diffusers]'`") from e
    return diffusers


class Pipeline(GaussianChain):
    """See the file's head.

    Args:
      unet, vae, text_encoder, tokenizer: of a Stable Diffusion checkpoint, or what has their interface.
      scheduler: whose `config` says how noise was added (`diffusers.DDPMScheduler`).
      base: where they came from. steps: S. guidance: g; 1 is none.
    """

    time_S: Tensor

    def __init__(
        self,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        base: str,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
    ):
        self.check(scheduler.config)
        scheduler.set_timesteps(steps)
        times = [int(t) for t in scheduler.timesteps]
        kept, stride = scheduler.alphas_cumprod, scheduler.config.num_train_timesteps // steps
        after = torch.stack([kept[t - stride] if t >= stride else kept.new_ones(()) for t in times])
        schedule = Schedule.of(kept[times], after)
        side = unet.config.sample_size
        super().__init__(unet.config.in_channels * side * side, schedule.sigma_S)
        self.unet, self.schedule, self.guidance, self.base = unet, schedule, guidance, base
        self.register_buffer("time_S", torch.tensor(times), persistent=False)
        self.latent = (unet.config.in_channels, side, side)
        self.rest = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "scheduler": scheduler}  # no submodules: not trained
        self.units_per_forward = 1
        self.to(next(unet.parameters()).device)

    @staticmethod
    def check(config: Any) -> None:
        """
        Raises:
          ValueError: a checkpoint whose U-Net predicts something else than the noise.
        """
        if config.prediction_type != "epsilon":
            raise ValueError(
                f"the scheduler's prediction_type is {config.prediction_type!r}; expected 'epsilon', as in Stable Diffusion 1.x"
            )

    def mean(self, x_NA: Tensor, step_N: Tensor, condition_N: Tensor) -> Tensor:
        """condition_N: (N, 2, L, D) encoded prompts, the empty one first."""
        x = x_NA.view(-1, *self.latent).to(self.unet.dtype)
        time_N, text_N2 = self.time_S[step_N], condition_N.to(self.unet.dtype)
        if self.guidance == 1:
            noise = self.unet(x, time_N, encoder_hidden_states=text_N2[:, 1]).sample
        else:
            both = self.unet(
                torch.cat([x, x]), torch.cat([time_N, time_N]), encoder_hidden_states=torch.cat([text_N2[:, 0], text_N2[:, 1]])
            )
            empty, asked = both.sample.float().chunk(2)
            noise = empty + self.guidance * (asked - empty)
        return self.schedule.mean(x_NA, noise.float().flatten(1), step_N)

    @torch.no_grad()
    def encode(self, prompt: Sequence[Any], images: Sequence[Any] = ()) -> Prefix:
        text = " ".join(str(part.get("text", "")) for message in prompt for part in message["content"] if isinstance(part, dict)).strip()
        tokenizer, encoder = self.rest["tokenizer"], self.rest["text_encoder"]
        ids = tokenizer(
            ["", text], padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids
        return Prefix(f"diffusers/{text}", encoder(ids.to(self.sigma_S.device))[0].float().cpu())

    @torch.no_grad()
    def show(self, sample_EA: Tensor) -> list[Image]:
        """One picture at a time: decoding takes more memory than a step."""
        vae = self.rest["vae"]
        latents = (sample_EA.view(-1, *self.latent) / vae.config.scaling_factor).to(self.sigma_S.device, vae.dtype)
        decoded = (vae.decode(latent[None]).sample[0].float() for latent in latents)
        pixels = (((x / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu() for x in decoded)
        return [fromarray(x.numpy()) for x in pixels]

    def set_reference(self) -> None:
        """A frozen copy of the U-Net; the rest is shared."""
        rest, self.rest, self.reference = self.rest, {}, []
        twin = copy.deepcopy(self).requires_grad_(False)
        self.rest = rest
        self.reference = [twin]

    def save(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.unet.save_pretrained(Path(folder) / "unet", safe_serialization=True)
        config = {"kind": "diffusers", "base": self.base, "steps": self.steps, "guidance": self.guidance}
        Path(folder, "config.json").write_text(json.dumps(config, indent=1))

    def load_weights(self, folder: str | Path) -> None:
        """The U-Net of a folder that `save` wrote."""
        found = parts().UNet2DConditionModel.from_pretrained(Path(folder) / "unet", use_safetensors=True)
        self.unet.load_state_dict(found.state_dict())

    @classmethod
    def load(cls, model: str, dtype: str = "float32", device: str = "cpu", gradient_checkpointing: bool = False, **_: Any) -> Pipeline:
        """ "diffusers:NAME" with a folder or hub id of a Stable Diffusion 1.x checkpoint, or a folder that `save` wrote."""
        library = parts()
        from transformers import CLIPTextModel, CLIPTokenizer

        saved = None if model.startswith("diffusers:") else json.loads(Path(model, "config.json").read_text(encoding="utf-8"))
        base = saved["base"] if saved else model.partition(":")[2]
        asked = {"torch_dtype": getattr(torch, dtype), "use_safetensors": True}
        text: Any = CLIPTextModel
        unet, vae, encoder = (
            kind.from_pretrained(place, subfolder=name, **asked).to(device)
            for kind, place, name in (
                (library.UNet2DConditionModel, model if saved else base, "unet"),
                (library.AutoencoderKL, base, "vae"),
                (text, base, "text_encoder"),
            )
        )
        tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
        scheduler = library.DDPMScheduler.from_pretrained(base, subfolder="scheduler")
        sizes = {"steps": saved["steps"], "guidance": saved["guidance"]} if saved else {}
        policy = cls(unet, vae.requires_grad_(False), encoder.requires_grad_(False), tokenizer, scheduler, base, **sizes)
        policy.gradient_checkpointing = gradient_checkpointing
        return policy
