"""The plain repeated computation: one ordinary transformers forward per row, the yardstick for everything that shares prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from fovea.batch import Batch, collate
from fovea.policies.hf_vlm import HFVLM
from fovea.policies.pictures import Picture
from fovea.types import Episode, Group, Prefix, Score, Segment, Task, user
from fovea.video import Video


def batch_of(prompts: Sequence[tuple[Prefix, Sequence[Sequence[int]]]], masks: dict[tuple[int, int], list[int]] | None = None) -> Batch:
    """One group per prompt, one row per answer; `masks[(n, g)]` lists the units that the environment inserted."""
    groups = []
    for n, (prefix, answers) in enumerate(prompts):
        task = Task(str(n), "test", user("", 0))
        episodes = []
        for g, answer in enumerate(answers):
            T = len(answer)
            mask = torch.ones(T, dtype=torch.bool)
            mask[(masks or {}).get((n, g), [])] = False
            zeros = torch.zeros(T, dtype=torch.long)
            segment = Segment(prefix, torch.tensor(answer), mask, torch.zeros(T), zeros, zeros)
            episodes.append(Episode(f"{n}.{g}", task, segments=[segment], score=Score(0.0)))
        groups.append(Group(task, episodes))
    return collate(groups)


class Plain:
    """The checkpoint as transformers loads it, given prompts in the policy's encoding but pictures in its own."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32):
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
        self.family: str = self.model.config.model_type
        self.images = AutoImageProcessor.from_pretrained(folder, backend="pil")

    def logits(self, prefix: Prefix, images: Sequence[Image.Image | Video], answer: Sequence[int]) -> Tensor:
        """(T, V) float logits before each token of the answer."""
        ids = torch.cat([prefix.data.ids, torch.tensor(answer, dtype=torch.long)])[None]
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        stills = [x for x in images if not isinstance(x, Video)]
        if stills:
            inputs |= self._pictures(stills)
        for clip in (p for p in prefix.data.pictures if p.seconds is not None):
            inputs |= self._clip(clip, inputs.get("pixel_values"))
        if self.family.startswith("qwen"):
            config = self.model.config
            inputs["mm_token_type_ids"] = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        if self.family == "paligemma":
            inputs["token_type_ids"] = (torch.arange(ids.shape[1]) >= prefix.length).long()[None]
        out = self.model(**inputs).logits[0, prefix.length - 1 : -1]
        return out.to(torch.promote_types(out.dtype, torch.float32))

    def _pictures(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """What the family's own image processor makes of the images of one prompt."""
        options = {"internvl": {"crop_to_patches": True}}.get(self.family, {})
        inputs = dict(self.images(images=[list(images)], return_tensors="pt", **options))
        if self.family == "llava_onevision":
            inputs["batch_num_images"] = torch.tensor([len(images)])
        return inputs

    def _clip(self, clip: Picture, stills: Tensor | None) -> dict[str, Any]:
        """The policy's frames of the only clip of a prompt, which comes last, as the family takes them."""
        if self.family.startswith("qwen"):
            seconds = {"second_per_grid_ts": torch.tensor([clip.seconds])} if self.family == "qwen2_5_vl" else {}
            return {"pixel_values_videos": clip.pixels, "video_grid_thw": torch.tensor([clip.grid]), **seconds}
        if self.family == "llava_onevision":
            return {"pixel_values_videos": clip.pixels[None]}
        frames = clip.pixels[None] if self.family == "smolvlm" else clip.pixels
        whole = frames if stills is None else torch.cat([stills, frames], frames.ndim - 4)
        return {"pixel_values": whole, **({"pixel_attention_mask": None} if self.family == "smolvlm" else {})}

    def streams(self, batch: Batch, images: Sequence[Sequence[Image.Image | Video]], policy: HFVLM) -> dict[str, Tensor]:
        """`logp` and `entropy` (B, T) of the batch, one forward per row."""
        logps, entropies = [], []
        T = batch.actions_BT.shape[1]
        for b in range(batch.B):
            n, length = int(batch.prefix_B[b]), int(batch.length_B[b])
            actions = batch.actions_BT[b, :length]
            z = self.logits(batch.prefixes[n], images[n], actions.tolist()) / policy.temperature
            z = z.index_fill(-1, torch.tensor(policy.banned_ids), float("-inf"))
            p = z.log_softmax(-1)
            entropy = -(p.exp() * p.masked_fill(p.isinf(), 0)).sum(-1)
            pad = (0, T - length)
            logps.append(torch.nn.functional.pad(p.gather(-1, actions[:, None])[:, 0], pad))
            entropies.append(torch.nn.functional.pad(entropy, pad))
        mask = batch.mask_BT
        return {"logp": torch.stack(logps) * mask, "entropy": torch.stack(entropies) * mask}

    def gradients(self) -> dict[str, Tensor]:
        return gradients(self.model)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def gradient_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest ‖Δg‖ / max(‖g‖, 1e-3 of the global norm) over the parameter tensors."""
    assert set(found) == set(expected), sorted(set(found) ^ set(expected))
    everything = torch.stack([g.norm() for g in expected.values()]).norm()
    return max(float((found[n] - g).norm() / g.norm().clamp_min(1e-3 * everything)) for n, g in expected.items())
