"""Checkpoints that survive anything: written aside, checksummed, renamed; the newest complete one is found on restart.

    checkpoints/step-000020/model/…              Hugging Face layout, loads with from_pretrained
    checkpoints/step-000020/optimizer.safetensors
    checkpoints/step-000020/state.json           counters, sampler state, fingerprint and the SHA-256 of every file

Only safetensors and JSON; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fovea.trainer.distributed import ALONE, Team, like

STATE, OPTIMIZER, MODEL = "state.json", "optimizer.safetensors", "model"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
QUANTIZED = ("step", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2")
"""What bitsandbytes keeps of a parameter; the last four only where the moments have 8 bits."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message says which file, what was found and what was expected."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def model(self) -> Path:
        return self.path / MODEL


def save(folder: Path, step: int, policy: Any, optimizer: torch.optim.Optimizer, state: dict[str, Any], team: Team = ALONE) -> Checkpoint:
    """Write `folder/step-NNNNNN` so that it is either complete or absent, whatever happens in between.

    All processes of a team take part and its main one writes; what is written does not depend on how many there are.
    """
    tensors = team.collect(_optimizer_tensors(optimizer))
    with team.gathered(policy):
        return Checkpoint(folder / f"step-{step:06d}", team.from_main(lambda: _write(folder, step, policy, tensors, state)))


def _write(folder: Path, step: int, policy: Any, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:06d}"
    partial = folder / f".step-{step:06d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    policy.save(partial / MODEL)
    save_file(tensors, partial / OPTIMIZER)
    files = {str(p.relative_to(partial)): sha256(p) for p in sorted(partial.rglob("*")) if p.is_file()}
    content = {**state, "step": step, "files": files}
    (partial / STATE).write_text(json.dumps(content, indent=1))
    for p in partial.rglob("*"):
        _fsync(p)
    _fsync(partial)
    aside = folder / f".step-{step:06d}.old"
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)  # it may be the only one: it stands until the new one does
    partial.rename(final)
    _fsync(folder)
    shutil.rmtree(aside, ignore_errors=True)
    return content


def latest(folder: Path, note: Any = print) -> Checkpoint | None:
    """The newest checkpoint whose every file is intact. Damaged ones are named and passed over."""
    replaced = sorted(folder.glob(".step-*.old"), reverse=True)  # left where a write ended between its two renames
    for path in [*sorted(folder.glob("step-*"), reverse=True), *replaced]:
        try:
            return read(path)
        except CheckpointError as e:
            note(f"checkpoint refused: {e}; the one before it is used")
    return None


def find(path: Path) -> Checkpoint | None:
    """The newest checkpoint of a run folder, or the checkpoint that `path` is; None where it is neither.

    Raises:
      FileNotFoundError: a run folder without a complete checkpoint.
      CheckpointError: a missing, truncated or altered file.
    """
    if (path / "checkpoints").is_dir():
        last = latest(path / "checkpoints")
        if last is None:
            raise FileNotFoundError(f"{path}/checkpoints: no complete checkpoint; expected at least one step-NNNNNN folder")
        return last
    return read(path) if (path / STATE).is_file() else None


def read(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
      CheckpointError: a missing, truncated or altered file.
    """
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        files = dict(state["files"])
        step = state["step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise CheckpointError(f"{path / STATE}: found {type(e).__name__} ({e}), expected the JSON that fovea writes") from e
    if not isinstance(step, int) or step < 0 or not all(isinstance(x, str) and "\0" not in x for pair in files.items() for x in pair):
        raise CheckpointError(
            f"{path / STATE}: found step {step!r:.40} and files {files!r:.80}, expected a number and a hash for each file"
        )
    for name, expected in files.items():
        try:
            inside = (path / name).resolve()
            there = inside.is_file()
        except (OSError, ValueError, RuntimeError) as e:  # a name too long, half of a surrogate pair, a loop of links
            raise CheckpointError(f"{path / STATE}: file {name!r:.80} is no path ({e})") from e
        if path.resolve() not in inside.parents:
            raise CheckpointError(f"{path / STATE}: file {name!r:.80} lies outside the checkpoint")
        if not there:
            raise CheckpointError(f"{path / name}: missing; expected, because {STATE} names it")
        found = sha256(inside)
        if found != expected:
            raise CheckpointError(f"{path / name}: found SHA-256 {found[:12]}…, expected {expected[:12]}… (truncated or altered)")
    return Checkpoint(path, state)


def load_optimizer(checkpoint: Checkpoint, optimizer: torch.optim.Optimizer) -> None:
    """Put the saved moments back, parameter by parameter in order."""
    try:
        saved = load_file(checkpoint.path / OPTIMIZER)
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{checkpoint.path / OPTIMIZER}: found {type(e).__name__} ({e}), expected safetensors") from e
    params = [p for g in optimizer.param_groups for p in g["params"]]
    masters = hasattr(optimizer, "masters")
    if hasattr(optimizer, "init_state"):
        return _load_quantized(checkpoint.path / OPTIMIZER, saved, optimizer)
    # a weight that no step gave a gradient (a tower that saw no picture) has no moments yet
    held = [i for i in range(len(params)) if f"{i}.step" in saved]
    expected = {f"{i}.{k}" for i in held for k in (*MOMENTS, *(("master",) if masters else ()))}
    if set(saved) != expected:
        odd = sorted(set(saved) ^ expected)
        raise CheckpointError(
            f"{checkpoint.path / OPTIMIZER}: found {len(saved)} tensors, expected {len(expected)}, first difference {odd[0]!r} "
            f"(is `freeze` the same, and the optimizer's kind?)"
        )
    for i, p in enumerate(params):
        if f"{i}.step" not in saved:
            continue
        state = {k: saved[f"{i}.{k}"] for k in MOMENTS}
        if state["exp_avg"].shape != p.shape:
            raise CheckpointError(
                f"{checkpoint.path / OPTIMIZER}: tensor {i} has shape {tuple(state['exp_avg'].shape)}, expected {tuple(p.shape)}"
            )
        optimizer.state[p] = {k: like(v, p) if k != "step" else v for k, v in state.items()}
        if masters:
            p.data.copy_(like(saved[f"{i}.master"], p))


def _load_quantized(file: Path, saved: dict[str, torch.Tensor], optimizer: Any) -> None:
    """As `load_optimizer`, into the buffers that bitsandbytes makes itself (paged ones among them)."""
    at = 0
    for g, group in enumerate(optimizer.param_groups):
        for i, p in enumerate(group["params"]):
            mine = {k: saved[f"{at}.{k}"] for k in (*QUANTIZED, "master") if f"{at}.{k}" in saved}
            at += 1
            if not mine:
                continue
            optimizer.init_state(group, p, g, i)
            state = optimizer.state[p]
            for k, home in state.items():
                found = mine.get(k)
                if found is None or (k != "step" and found.shape != home.shape):
                    raise CheckpointError(
                        f"{file}: {k} of parameter {at - 1} is {'missing' if found is None else tuple(found.shape)}, expected {home.shape}"
                    )
                if k == "step":
                    state[k] = int(found)
                else:
                    home.copy_(found)
            if "master" in mine:
                p.data.copy_(mine["master"])


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    paths = sorted(folder.glob("step-*"))
    for path in paths[:-keep]:
        if best is None or path.name != f"step-{best:06d}":
            shutil.rmtree(path)
    for leftover in (*folder.glob(".step-*.partial"), *folder.glob(".step-*.old")):
        shutil.rmtree(leftover, ignore_errors=True)


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    params = [p for g in optimizer.param_groups for p in g["params"]]
    for i, p in enumerate(params):
        moments = {k: v for k, v in optimizer.state.get(p, {}).items() if k in MOMENTS + QUANTIZED}
        for k, v in moments.items():
            yield f"{i}.{k}", torch.as_tensor(v)
        if moments and hasattr(optimizer, "masters"):
            yield f"{i}.master", p


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
