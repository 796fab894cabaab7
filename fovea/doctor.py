"""What is installed, what is missing, and the exact extra that brings it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from typing import Any

from fovea import sandbox, support
from fovea.envs.browser import program
from fovea.policies.families import FAMILIES

PARTS: tuple[tuple[str, str, str], ...] = (
    ("torch", "", "tensors and training"),
    ("transformers", "", "model families"),
    ("safetensors", "", "weights on disk"),
    ("PIL", "", "images"),
    ("math_verify", "math", "mathematical answers"),
    ("pyarrow", "data", "Parquet files"),
    ("datasets", "hub", "Hugging Face datasets"),
    ("tensorboard", "tensorboard", "reading TensorBoard events"),
    ("wandb", "wandb", "`--sinks wandb`"),
    ("trackio", "trackio", "`--sinks trackio`"),
    ("mlflow", "mlflow", "`--sinks mlflow`"),
    ("matplotlib", "plots", "figures"),
    ("gymnasium", "envs", "simulators"),
    ("miniwob", "browser", "`--environment miniwob:TASK`: its pages"),
    ("playwright", "browser", "`--environment miniwob:TASK`: drives Chromium"),
    ("av", "video", "video files"),
    ("skimage", "photos", "`--data photos`"),
    ("peft", "lora", "adapters (LoRA)"),
    ("bitsandbytes", "gpu", "8-bit and paged optimizers, QLoRA"),
    ("diffusers", "diffusers", "`--model diffusers:NAME`"),
    ("ray", "ray", "`--engine ray`: many machines"),
    ("trl", "bench", "the peer in `fovea bench step --vs trl`"),
)
PROTECTION = (
    "no pickle and no remote code; images and rows have size limits; servers bind to this machine and ask for a token",
    "your own files (--reward FILE.py:NAME, environments, sources, recipes) and installed packages run with all your rights",
)
MINIMUM = {"torch": (2, 9), "transformers": (5, 20)}


def examine() -> dict[str, Any]:
    """Everything as plain data; ``ok`` is False when a part of the core cannot be loaded. Parts are imported, not only looked for."""
    parts = [_part(*p) for p in PARTS]
    return {
        "ok": all(p["version"] for p in parts if not p["extra"]),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "device": _device(),
        "parts": parts,
        "torchvision": _torchvision(),
        "browser": browser(),
        "base_model": _base_model(),
        "processors": _processors(),
        "support": support.read(),
        "sandbox": sandbox.problem(),
        "protection": PROTECTION,
    }


def browser() -> str:
    """The program of an installed Chromium or Chrome, or ""."""
    return program()


def render(found: dict[str, Any]) -> str:
    """The examination for people."""
    lines = [f"Python {found['python']} on {found['system']}, {found['cores']} cores, {found['device']}", ""]
    for p in found["parts"]:
        if p["version"]:
            lines.append(f"  ok       {p['name']:14} {p['version']:14} {p['use']}" + (f"   {p['problem']}" if p["problem"] else ""))
        else:
            fix = f"pip install 'fovea-rl[{p['extra']}]'" if p["extra"] else "pip install fovea-rl"
            lines.append(f"  missing  {p['name']:14} {'':14} {p['use']}: {fix}   ({p['problem']})")
    lines += [
        "",
        f"  browser  {found['browser'] or 'none; `make system` brings Chromium (Debian: chromium), for `miniwob` and tests of pages'}",
        f"  torchvision  {found['torchvision']}",
        f"  tiny base model  {found['base_model']}",
        f"  pictures of  {', '.join(found['processors']) or 'no family'}",
        f"  clips of  {', '.join(k for k, clips in found['processors'].items() if clips) or 'no family'}",
        f"  programs of a model  {_sandbox(found['sandbox'])}",
        f"  protected      {found['protection'][0]}",
        f"  not protected  {found['protection'][1]}",
        "",
        *_support(found["support"]),
        "",
        "Everything the core needs is there." if found["ok"] else "The core cannot run: see the lines marked missing.",
    ]
    return "\n".join(lines)


def _sandbox(problem: str) -> str:
    return (
        problem + "; verifiers that run programs are refused"
        if problem
        else "isolated: namespaces, limits, filtered system calls, no network"
    )


def _support(found: support.Table) -> list[str]:
    width = max(map(len, support.FAMILIES))
    rows = [("", *support.FEATURES), *((family, *row.values()) for family, row in found.items())]
    return [f"  {name:{width}}  " + "  ".join(f"{cell:13}" for cell in cells).rstrip() for name, *cells in rows]


def _part(name: str, extra: str, use: str) -> dict[str, str]:
    row = {"name": name, "extra": extra, "use": use, "version": "", "problem": ""}
    try:
        module = importlib.import_module(name)
    except Exception as e:  # an installed package may fail to load in many ways; each is worth showing
        return {**row, "problem": f"{type(e).__name__}: {e}"}
    row["version"] = str(getattr(module, "__version__", None) or _installed(name))
    least = MINIMUM.get(name)
    if least and tuple(int(x) for x in row["version"].split("+")[0].split(".")[:2]) < least:
        row["problem"] = f"older than {least[0]}.{least[1]}, which is the oldest that is supported"
    return row


def _installed(name: str) -> str:
    for distribution in importlib.metadata.packages_distributions().get(name, [name]):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _device() -> str:
    try:
        import torch
    except ImportError:
        return "no torch"
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} GPU ({torch.cuda.get_device_name(0)})"
    return f"no GPU; torch uses {torch.get_num_threads()} CPU threads"


def _torchvision() -> str:
    try:
        found = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return "absent, which is fine: fovea does not use it"
    return f"{found} is installed; fovea does not use it, and its wheels can replace torch by another build"


def _processors() -> dict[str, bool]:
    """Families whose prompts can be encoded, and whether clips may be in them."""
    try:
        import fovea.policies.processor  # noqa: F401
    except ImportError:
        return {}
    return {name: family.clip is not None for name, family in FAMILIES.items()}


def _base_model() -> str:
    from fovea.policies.tiny_vlm import BASE_DIR

    return "present" if (BASE_DIR / "model.safetensors").is_file() else f"missing from {BASE_DIR}"
