"""Checkpoints that survive anything: written aside, checksummed, renamed; the newest complete one is found on restart.

    checkpoints/step-000020/model/…              Hugging Face layout, loads with from_pretrained
    checkpoints/step-000020/optimizer.safetensors
    checkpoints/step-000020/streams.safetensors  the global generators of Python, NumPy and torch
    checkpoints/step-000020/state.json           counters, sampler state, fingerprint, the SHA-256 of every file and of its own content

Only safetensors and JSON; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fovea.files import fsync
from fovea.methods.state import MethodState
from fovea.secrets import masked
from fovea.trainer.distributed import ALONE, Team, like

STATE, OPTIMIZER, STREAMS, MODEL = "state.json", "optimizer.safetensors", "streams.safetensors", "model"
SEAL = "sha256"
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


def save(
    folder: Path,
    step: int,
    policy: Any,
    optimizer: torch.optim.Optimizer | MethodState,
    state: Mapping[str, Any],
    team: Team = ALONE,
    streams: Mapping[str, torch.Tensor] | None = None,
) -> Checkpoint:
    """Write `folder/step-NNNNNN` so that it is either complete or absent, whatever happens in between.

    All processes of a team take part and its main one writes; what is written does not depend on how many there are.

    Raises:
      CheckpointError: it could not be written (a full disk, no permission); what was there before stands.
    """
    tensors = team.collect(_optimizer_tensors(optimizer))
    with team.gathered(policy):
        written = team.from_main(lambda: _write(folder, step, policy, tensors, dict(streams or {}), state))
    return Checkpoint(folder / f"step-{step:06d}", written)


def _write(folder: Path, step: int, policy: Any, moments: Any, streams: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    partial = folder / f".step-{step:06d}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        policy.save(partial / MODEL)
        save_file(moments, partial / OPTIMIZER)
        save_file(streams, partial / STREAMS)
        files = {str(p.relative_to(partial)): sha256(p) for p in sorted(partial.rglob("*")) if p.is_file()}
        content = sealed({**state, "step": step, "files": files})
        (partial / STATE).write_text(json.dumps(content, indent=1))
        for p in (*partial.rglob("*"), partial):
            fsync(p)
        _put(partial, folder / f"step-{step:06d}")
    except (OSError, SafetensorError) as e:
        there = next((p.name for p in written(folder)), "none yet")
        size = sum(p.stat().st_size for p in partial.rglob("*") if p.is_file()) if partial.is_dir() else 0
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{folder}/step-{step:06d} could not be written ({e}); {size / 1e6:,.0f} MB of it were, {_free(folder)}. Checkpoints written "
            f"before stand (newest: {there}). Make room, or lower --keep, and run the same command again: it goes on from there."
        ) from e
    return content


def _put(partial: Path, final: Path) -> None:
    """Give a complete folder its name."""
    aside = final.with_name(f".{final.name}.old")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)  # it may be the only one: it stands until the new one does
    try:
        partial.rename(final)
    except OSError:
        if aside.exists():
            aside.rename(final)
        raise
    fsync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB are free"
    except OSError:
        return "free space unknown"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` as a checkpoint holds it, with the SHA-256 of itself."""
    bare = plain({k: v for k, v in content.items() if k != SEAL})
    return {**bare, SEAL: _digest(bare)}


def plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` as a checkpoint holds it: plain JSON without secrets."""
    return json.loads(masked(json.dumps(content)))


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def written(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first, whole or damaged."""
    named = [p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit()]
    return sorted(named, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def latest(folder: Path, note: Any = print) -> Checkpoint | None:
    """The newest checkpoint whose every file is intact. Damaged ones are named and passed over."""
    replaced = sorted(folder.glob(".step-*.old"), reverse=True)  # left where a write ended between its two renames
    for path in [*written(folder), *replaced]:
        try:
            return read(path)
        except CheckpointError as e:
            note(f"checkpoint refused: {e}; the one before it is used")
    return None


def at(run: Path, step: int | None) -> Checkpoint:
    """The checkpoint of a run folder at `step`, or its newest one.

    Raises:
      CheckpointError: there is none, with the steps that there are; or it is damaged.
    """
    folder = run / "checkpoints"
    if step is not None and (folder / f"step-{step:06d}").is_dir():
        return read(folder / f"step-{step:06d}")
    last = latest(folder) if step is None else None
    if last is None:
        wanted = "a complete checkpoint" if step is None else f"a checkpoint of step {step}"
        there = ", ".join(str(step_of(p)) for p in reversed(written(folder))) or "none"
        raise CheckpointError(f"{run}: expected {wanted}; found steps: {there}")
    return last


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
        files, seal, step = dict(state["files"]), state[SEAL], state["step"]
        found = _digest({k: v for k, v in state.items() if k != SEAL})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise CheckpointError(f"{path / STATE}: found {type(e).__name__} ({e}), expected the JSON that fovea writes") from e
    if not isinstance(step, int) or step < 0 or not all(isinstance(x, str) and "\0" not in x for pair in files.items() for x in pair):
        raise CheckpointError(
            f"{path / STATE}: found step {step!r:.40} and files {files!r:.80}, expected a number and a hash for each file"
        )
    if found != seal:
        raise CheckpointError(f"{path / STATE}: found content with SHA-256 {found[:12]}…, expected {seal!s:.12}… (truncated or altered)")
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


def load_streams(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return _tensors(checkpoint.path / STREAMS)


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{file}: found {type(e).__name__} ({e}), expected safetensors") from e


def load_optimizer(checkpoint: Checkpoint, optimizer: torch.optim.Optimizer | MethodState) -> None:
    """Put the saved moments back, parameter by parameter in order; or all that a method with several optimizers keeps beside its policy."""
    saved = _tensors(checkpoint.path / OPTIMIZER)
    if isinstance(optimizer, MethodState):
        try:
            return optimizer.load_tensors(saved)
        except (ValueError, KeyError, RuntimeError) as e:
            raise CheckpointError(f"{checkpoint.path / OPTIMIZER}: {e}") from e
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
    for path in written(folder)[keep:]:
        if step_of(path) != best:
            shutil.rmtree(path)
    for leftover in (*folder.glob(".step-*.partial"), *folder.glob(".step-*.old")):
        shutil.rmtree(leftover, ignore_errors=True)


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _optimizer_tensors(optimizer: torch.optim.Optimizer | MethodState) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(optimizer, MethodState):
        yield from optimizer.tensors()
        return
    params = [p for g in optimizer.param_groups for p in g["params"]]
    for i, p in enumerate(params):
        moments = {k: v for k, v in optimizer.state.get(p, {}).items() if k in MOMENTS + QUANTIZED}
        for k, v in moments.items():
            yield f"{i}.{k}", torch.as_tensor(v)
        if moments and hasattr(optimizer, "masters"):
            yield f"{i}.master", p
