"""π0 (arXiv 2410.24164): PaliGemma and an action expert that attends to it, as transformers has them, with the published names.

`model="pi0:NAME"`, a folder or a hub id. A policy that was saved has two files more: the heads that reinforcement adds (a critic on the
mean of what PaliGemma makes of pictures and words, π0.5's variant; a standard deviation for Flow-Noise) and the robot it was made for.

Of the chunk that is drawn (50 actions of 32 numbers) the first are acted on, and those count in likelihoods. What PaliGemma makes of an
observation is computed once for all steps; frozen, it has no gradient. Left out: the statistics by which a checkpoint's robot was
normalised; states and actions are taken as the robot has them.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fovea.envs.parts import unpack
from fovea.policies.flow_vla import TOLD, ChunkFlow

HEADS, ROBOT = "heads.safetensors", "policy.json"


class Pi0(ChunkFlow):
    """A π0 that acts as its robot does.

    Args:
      model: a `transformers.PI0ForConditionalGeneration`. tokenizer: its own.
      spaces, network: as of `ChunkFlow`; of the network its width means nothing.
    """

    kind = "pi0"

    def __init__(self, model: Any, tokenizer: Any, spaces: Any, network: Any):
        config = model.config
        rows, columns = config.chunk_size, config.max_action_dim
        executed, size = spaces.chunk, spaces.actions // spaces.chunk
        if executed > rows or size > columns:
            raise ValueError(f"pi0: the robot takes {executed} actions of {size} numbers; expected at most {rows} of {columns}")
        kept = (torch.arange(executed)[:, None] * columns + torch.arange(size)).flatten()
        super().__init__(spaces, network, rows * columns, kept)
        self.model, self.tokenizer, self.shape = model, tokenizer, (rows, columns)
        wide, narrow = config.vlm_config.text_config.hidden_size, config.dit_config.hidden_size
        self.heads = nn.ModuleDict(
            {
                "critic": nn.Sequential(
                    *(nn.Linear(wide, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU()),
                    *(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 1)),
                ),
                "noise": nn.Sequential(nn.Linear(narrow, 128), nn.SiLU(), nn.Linear(128, 64), nn.SiLU(), nn.Linear(64, columns)),
            }
        ).to(model.device)
        self.tune(network)

    def tune(self, network: Any) -> None:
        super().tune(network)
        self.model.model.vlm.requires_grad_(not network.frozen)

    def context(self, obs: Tensor) -> dict[str, Any]:
        """The cache of the prefix, its mask, its mean and the state."""
        seen, config, at = unpack(self.parts, obs), self.model.config, self.model.device
        side = config.vlm_config.vision_config.image_size
        cameras = [seen[p.name] for p in self.parts if len(p.shape) == 3]
        pixels = [F.interpolate(x.movedim(-1, 1).float() / 255, (side, side), mode="bilinear", antialias=True) * 2 - 1 for x in cameras]
        state = seen["state"].flatten(1)
        if state.shape[1] > config.max_state_dim:
            raise ValueError(f"pi0: a state of {state.shape[1]} numbers; expected at most {config.max_state_dim}")
        ids, mask = (x.to(at) for x in self._words(seen[TOLD], len(cameras)))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.network.frozen):
            shown = torch.stack(pixels, 1).to(at, self.model.dtype)
            embeds = self.model.model.embed_prefix(ids, shown, torch.ones(shown.shape[:2], dtype=torch.bool, device=at))
            out = self.model.model.vlm(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=mask.cumsum(-1) - 1,
                token_type_ids=torch.zeros_like(ids),
                use_cache=True,
            )
        kept = mask[..., None].to(out.last_hidden_state.dtype)
        return {
            "cache": out.past_key_values,
            "length": ids.shape[1],
            "mask": mask,
            "mean": ((out.last_hidden_state * kept).sum(1) / kept.sum(1)).float(),
            "state": F.pad(state, (0, config.max_state_dim - state.shape[1])).to(at, self.model.dtype),
        }

    def _words(self, told_NB: Tensor, cameras: int) -> tuple[Tensor, Tensor]:
        """Token ids and their mask (N, L): the places of the pictures, then the instruction."""
        vlm = self.model.config.vlm_config
        pictures = cameras * (vlm.vision_config.image_size // vlm.vision_config.patch_size) ** 2
        texts = [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in told_NB.numpy()]
        said = [self.tokenizer(f"{self.tokenizer.bos_token or ''}{t}\n", add_special_tokens=False)["input_ids"] for t in texts]
        longest = max(map(len, said))
        ids = [[vlm.image_token_id] * pictures + row + [0] * (longest - len(row)) for row in said]
        mask = [[1] * (pictures + len(row)) + [0] * (longest - len(row)) for row in said]
        return torch.tensor(ids), torch.tensor(mask)

    def features(self, x_NA: Tensor, t_N: Tensor, context: dict[str, Any]) -> Tensor:
        at, cache = self.model.device, context["cache"]
        chunk = x_NA.view(-1, *self.shape).to(at, self.model.dtype)
        embeds = self.model.embed_action_time(context["state"], chunk, t_N.to(at))
        out = self.model.model(action_embeds=embeds, attention_mask=context["mask"], past_key_values=cache)
        cache.crop(context["length"] - cache.get_seq_length())  # the next step sees the prefix alone
        return out.last_hidden_state[:, -self.shape[0] :]

    def velocity(self, features: Tensor) -> Tensor:
        return self.model.action_out_proj(features).flatten(1).float().cpu()

    def spread(self, features: Tensor) -> Tensor:
        return self.heads["noise"](features.float()).flatten(1).cpu()

    def value(self, context: dict[str, Any]) -> Tensor:
        return self.heads["critic"](context["mean"].detach())[:, 0].cpu()

    def save(self, folder: str | Path) -> None:
        """The model as transformers writes it, and the two files more."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        save_file({k: v.contiguous() for k, v in self.heads.state_dict().items()}, Path(folder, HEADS))
        told = {"spaces": asdict(self.spaces), "network": asdict(self.network)}
        Path(folder, ROBOT).write_text(json.dumps(told, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, name: str | Path, spaces: Any = None, network: Any = None, dtype: str = "float32", device: str = "cpu") -> Pi0:
        """
        Args:
          name: a folder or a hub id. spaces, network: those of a folder that `save` wrote need not be said.
        """
        from transformers import AutoTokenizer, PI0ForConditionalGeneration

        from fovea.policies import control

        told = Path(name, ROBOT)
        if told.is_file():
            found = json.loads(told.read_text(encoding="utf-8"))
            spaces, network = spaces or control.spaces_of(found["spaces"]), network or control.Flow(**control.settings_of(found["network"]))
        model: Any = PI0ForConditionalGeneration.from_pretrained(str(name), dtype=getattr(torch, dtype))
        made = cls(model.to(device).eval(), AutoTokenizer.from_pretrained(str(name)), spaces, network)
        if (heads := Path(name, HEADS)).is_file():
            made.heads.load_state_dict(load_file(heads))
        return made


def published() -> int:
    """How many parameters the published model has."""
    from transformers import PI0Config, PI0ForConditionalGeneration

    with torch.device("meta"):
        return sum(p.numel() for p in PI0ForConditionalGeneration(PI0Config()).parameters())
