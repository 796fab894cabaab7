"""What a recipe would do, before it does it: resolved fields, batch arithmetic, and an estimate of memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fovea.recipe import Recipe

GiB = 1024**3


@dataclass(frozen=True)
class Memory:
    """Bytes by purpose; see `estimate` for the formulas."""

    weights: int
    gradients: int
    moments: int
    reference: int
    activations: int
    logits: int
    cache: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def arithmetic(recipe: Recipe) -> str:
    """The batch sizes in one sentence."""
    episodes = recipe.tasks_per_step * recipe.group_size
    updates = recipe.updates_per_rollout * recipe.epochs_per_rollout
    rows = -(-episodes // recipe.updates_per_rollout)
    return (
        f"{recipe.tasks_per_step} tasks x {recipe.group_size} answers = {episodes} episodes per step, "
        f"{updates} optimizer step{'s' * (updates != 1)} each on {rows} episodes in micro-batches of {min(recipe.micro_batch, rows)} rows; "
        f"at most {recipe.sampling.max_new_tokens} new tokens per turn; {recipe.steps} steps, {recipe.steps * updates} optimizer steps"
    )


def plan(recipe: Recipe) -> str:
    """Text for ``fovea train --dry-run``."""
    lines = [
        "recipe",
        *(f"  {k} = {json.dumps(v)}" for k, v in recipe.to_json().items()),
        "",
        "batch",
        f"  {arithmetic(recipe)}",
        "",
        "memory",
    ]
    config = model_config(recipe)
    if config is None:
        return "\n".join([*lines, f"  no estimate: {recipe.model!r} is not a local checkpoint folder"])
    count = parameters(config)
    memory = estimate(recipe, config, count)
    rows = [f"  {name:12} {value / GiB:8.3f} GiB" for name, value in vars(memory).items()]
    head = (
        f"  {sum(count.values()) / 1e6:.1f} M parameters, {sum(v for k, v in count.items() if k not in recipe.freeze) / 1e6:.1f} M trained"
    )
    return "\n".join([*lines, head, *rows, f"  {'total':12} {memory.total / GiB:8.3f} GiB, beside the program itself (about 0.5 GiB)"])


def model_config(recipe: Recipe) -> Any:
    """The checkpoint's transformers config, or None when the model is not on this disk."""
    from fovea.policies.tiny_vlm import BASE_DIR

    folder = BASE_DIR if recipe.model == "tiny" else Path(recipe.model)
    if not (folder / "config.json").is_file():
        return None
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def parameters(config: Any) -> dict[str, int]:
    """Parameter counts by part (language, tower, projector), from the architecture on the meta device: no weights are read."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    count = {"language": 0, "tower": 0, "projector": 0}
    for name, p in model.named_parameters():
        part = "projector" if "merger" in name or "projector" in name else "tower" if "visual" in name or "vision" in name else "language"
        count[part] += p.numel()
    return count


def estimate(recipe: Recipe, config: Any, count: dict[str, int]) -> Memory:
    """Peak bytes of one step.

    Weights and gradients in the recipe's dtype, AdamW's two moments in float32. Activations: about 16 h + 6 i values per token and layer
    (h hidden, i intermediate size), one layer's worth with gradient checkpointing. Logits: three float32 copies of (rows, new tokens, V).
    Cache: keys and values of the rollout. The prompt is assumed to be 256 tokens and to be held once per group.
    """
    size = 2 if recipe.dtype == "bfloat16" else 4
    text = config.get_text_config()
    trained = sum(v for k, v in count.items() if k not in recipe.freeze)
    everything = sum(count.values())
    new, prompt = recipe.sampling.max_new_tokens, 256
    rows = min(recipe.micro_batch, recipe.tasks_per_step * recipe.group_size)
    tokens = rows * new + -(-rows // recipe.group_size) * prompt
    layers = 1 if recipe.gradient_checkpointing else text.num_hidden_layers
    heads = getattr(text, "num_key_value_heads", text.num_attention_heads)
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    held = recipe.tasks_per_step * (recipe.group_size * new + prompt)
    needs = recipe.method.needs
    reference = everything * size if any(n.startswith("reference/") for n in needs.before | needs.loss) else 0
    return Memory(
        weights=everything * size,
        gradients=trained * size,
        moments=trained * 8,
        reference=reference,
        activations=tokens * layers * (16 * text.hidden_size + 6 * text.intermediate_size) * size,
        logits=3 * rows * new * text.vocab_size * 4,
        cache=held * text.num_hidden_layers * 2 * heads * head * size,
    )
