"""LoRA (Hu et al., 2021): low-rank adapters beside frozen weights, y = W x + (alpha / rank) B A x, with peft's layers and file format.

Only A and B are trained and saved. The reference policy is the same model with its adapters switched off. Left out: dropout, because its
masks would depend on `micro_batch` and the policy that is trained would not be the one that sampled; DoRA; adapters on embeddings, the
language-model head, the projector or the patch embedding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WHOLE = r"(?!.*(language_model|text_model)\.).*"
"""Names of the layers that `nf4` leaves as they are: all outside the decoder."""
PREFIX = "base_model.model."
"""What peft's files put before the names of the model that was wrapped."""


@dataclass(frozen=True)
class LoRA:
    """Which layers get an adapter, and of what size.

    Attributes:
      rank: rows of A; 0 trains the weights themselves, without adapters.
      alpha: an adapter's output is multiplied by alpha / rank.
      targets: names of the linear layers, such as q_proj; without any, every linear layer of `where`.
      where: "language" (the decoder's layers), "tower" (the vision encoder's) or "both".
      nf4: hold the decoder's frozen matrices in 4 bits (QLoRA, Dettmers et al., 2023), by bitsandbytes; each is unpacked when it is used.
    """

    rank: int = 0
    alpha: float = 32.0
    targets: tuple[str, ...] = ()
    where: Literal["language", "tower", "both"] = "language"
    nf4: bool = False

    def __post_init__(self) -> None:
        if self.rank < 0 or self.alpha <= 0 or self.where not in ("language", "tower", "both"):
            raise ValueError(
                f"lora: rank = {self.rank}, alpha = {self.alpha}, where = {self.where!r}; "
                "expected rank >= 0, alpha > 0 and where one of language, tower, both"
            )
        if self.nf4 and not self.rank:
            raise ValueError("lora: nf4 without adapters (rank = 0); weights in 4 bits cannot be trained themselves, expected rank > 0")

    @property
    def parts(self) -> tuple[str, ...]:
        return ("language", "tower") if self.where == "both" else (self.where,)


def attach(model: Any, spec: LoRA, base: str, seed: int) -> None:
    """Freeze the checkpoint's weights and put adapters beside those that `spec` names. B starts at zero, so no number changes.

    Args:
      model: the policy's `Model` (`vlm`, `text`, `visual`).
      base: name or folder of the checkpoint, for the adapter's files.
      seed: addresses the random start of A.
    Raises:
      ValueError: a target that no layer has, with the names that were found.
      ImportError: peft is not installed.
    """
    chosen = _choose(model, spec)
    config = _peft().LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=chosen, base_model_name_or_path=base)
    _inject(model, config, seed)


def restore(model: Any, folder: Path, base: str) -> None:
    """Attach the adapters that `folder` holds, in peft's format.

    Raises:
      ValueError: an adapter of another kind, on layers that cannot have one here, or of another model; named.
    """
    found = json.loads((folder / CONFIG).read_text())
    if found.get("peft_type") != "LORA" or found.get("use_dora") or found.get("lora_bias") or found.get("modules_to_save"):
        raise ValueError(
            f"{folder / CONFIG}: found peft_type {found.get('peft_type')!r}, use_dora {found.get('use_dora')}, lora_bias "
            f"{found.get('lora_bias')}, modules_to_save {found.get('modules_to_save')}; expected plain LoRA adapters"
        )
    peft = _peft()
    config = peft.LoraConfig.from_pretrained(str(folder))
    config.lora_dropout, config.inference_mode, config.base_model_name_or_path = 0.0, False, base
    _inject(model, config, seed=0)
    _load_weights(model, folder)


def save(model: Any, folder: Path) -> None:
    """An adapter folder that ``peft.PeftModel.from_pretrained(base, folder)`` loads."""
    from safetensors.torch import save_file

    config = model.vlm.peft_config["default"].to_dict() | {"inference_mode": True}
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, default=str))
    save_file({n: p.detach().cpu().contiguous() for n, p in _by_file_name(model)}, folder / WEIGHTS, metadata={"format": "pt"})


def save_merged(model: Any, folder: Path) -> None:
    """The whole model with W + (alpha / rank) B A for W, as `save_pretrained` would have written it without adapters."""
    packed = {n: m for n, m in model.vlm.named_modules() if hasattr(getattr(m, "weight", None), "quant_state")}
    extra = tuple(f"{n}.weight." for n in packed)
    state = {n: x for n, x in model.vlm.state_dict().items() if ".lora_" not in n and not n.startswith(extra)}
    state |= {f"{n}.weight": _unpacked(m.weight).detach() for n, m in packed.items()}
    plain = {n.replace(".base_layer.", "."): x for n, x in state.items()}
    changed = {f"{n}.weight": weight_of(m).detach() for n, m in adapted(model.vlm)}
    with _unquantized(model.vlm):
        model.vlm.save_pretrained(folder, state_dict=plain | changed)


def weight_of(linear: Any) -> Any:
    """(O, I) matrix that a linear layer multiplies by, its adapter included."""
    import torch

    if not is_adapted(linear):
        return _unpacked(linear.weight)
    weight = _unpacked(linear.get_base_layer().weight)
    precise = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(precise) + linear.get_delta_weight("default").to(precise)).to(weight.dtype)


def packing(dtype: str) -> Any:
    """What `from_pretrained` needs to pack a decoder's matrices into 4-bit NormalFloat.

    Raises:
      ImportError: bitsandbytes is not installed.
    """
    import torch
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401
    except ImportError as e:
        raise ImportError(f"lora.nf4 needs bitsandbytes ({e}); install it with: pip install 'fovea-rl[gpu]'") from e
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        llm_int8_skip_modules=[WHOLE],
    )


def is_adapted(module: Any) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "get_base_layer")


def adapted(module: Any) -> list[tuple[str, Any]]:
    """Name and layer of every adapter inside `module`."""
    return [(n, m) for n, m in module.named_modules() if is_adapted(m)]


@contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """While entered, the model computes without its adapters."""
    for layer in model.adapters:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in model.adapters:
            layer.enable_adapters(True)


def base_of(folder: Path) -> str | None:
    """The checkpoint that an adapter folder belongs to, or None if `folder` holds no adapter."""
    file = folder / CONFIG
    return str(json.loads(file.read_text()).get("base_model_name_or_path") or "") if file.is_file() else None


def linears(model: Any, part: str) -> dict[str, str]:
    """Full name -> last name of the linear layers of a part that can have an adapter."""
    from torch import nn

    root = model.text if part == "language" else model.visual
    prefix = next(n for n, m in model.vlm.named_modules() if m is root)
    names = [n for n, m in root.named_modules() if isinstance(m, nn.Linear)]
    return {f"{prefix}.{n}": n.rsplit(".", 1)[-1] for n in names if not any(x in n for x in ("merger", "projector", "patch_embed"))}


def _choose(model: Any, spec: LoRA) -> list[str]:
    found = {full: last for part in spec.parts for full, last in linears(model, part).items()}
    unknown = set(spec.targets) - set(found.values())
    if unknown or not found:
        raise ValueError(
            f"lora.targets: no linear layer of {' or '.join(spec.parts)} is called {', '.join(sorted(unknown))}; "
            f"found: {', '.join(sorted(set(found.values())))}"
        )
    return [full for full, last in found.items() if not spec.targets or last in spec.targets]


def _inject(model: Any, config: Any, seed: int) -> None:
    import torch

    can = {full for part in ("language", "tower") for full in linears(model, part)}
    model.vlm.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _peft().inject_adapter_in_model(config, model.vlm)
    if strange := [n for n, _ in adapted(model.vlm) if n not in can]:
        raise ValueError(f"adapters: found one on {strange[0]}; expected linear layers of the decoder or of the vision tower")
    precise = torch.promote_types(model.vlm.dtype, torch.float32)
    for name, p in model.vlm.named_parameters():
        if ".lora_" in name:
            p.data = p.data.to(precise)
    model.list_parameters()


def _load_weights(model: Any, folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    saved, mine = load_file(folder / WEIGHTS), dict(_by_file_name(model))
    if set(saved) != set(mine):
        odd = sorted(set(saved) ^ set(mine))
        raise ValueError(
            f"{folder / WEIGHTS}: found {len(saved)} tensors, expected {len(mine)} for this model; on one side only: {', '.join(odd[:3])}"
        )
    with torch.no_grad():
        for name, p in mine.items():
            if p.shape != saved[name].shape:
                raise ValueError(
                    f"{folder / WEIGHTS}: {name} has shape {tuple(saved[name].shape)}, expected {tuple(p.shape)} (is it the adapter of "
                    "another checkpoint?)"
                )
            p.copy_(saved[name])


def _by_file_name(model: Any) -> Iterator[tuple[str, Any]]:
    for name, p in model.vlm.named_parameters():
        if ".lora_" in name:
            yield PREFIX + name.replace(".default.", "."), p


def _unpacked(weight: Any) -> Any:
    if not hasattr(weight, "quant_state"):
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


@contextmanager
def _unquantized(vlm: Any) -> Iterator[None]:
    """While entered, the model describes itself as one with whole weights."""
    held = vlm.config.__dict__.pop("quantization_config", None), getattr(vlm, "hf_quantizer", None)
    if held[1] is not None:
        vlm.hf_quantizer = None
    try:
        yield
    finally:
        if held[0] is not None:
            vlm.config.quantization_config = held[0]
            vlm.hf_quantizer = held[1]


def _peft() -> Any:
    try:
        import peft
    except ImportError as e:
        raise ImportError(f"adapters need peft ({e}); install it with: pip install 'fovea-rl[lora]'") from e
    return peft
