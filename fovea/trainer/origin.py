"""What decides a run's numbers but lies in no checkpoint: its data, weights that are not trained, user code, versions.

Data and weights are hashed when a run starts, and a run goes on only with the same ones. The rest is remembered, and a change is said.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import torch

from fovea.recipe import Recipe

PACKAGES = ("fovea-rl", "torch", "transformers", "tokenizers", "numpy", "pillow")
CODE = ("reward", "environment", "program")


def hashes(policy: Any, source: Any, heldout: Any) -> dict[str, str]:
    """SHA-256 by name ("data", "heldout", "base") of what can be hashed.

    A source is hashed by its own `digest()`; procedural tasks need none, because the recipe says all about them.
    """
    found = {name: s.digest() for name, s in (("data", source), ("heldout", heldout)) if hasattr(s, "digest")}
    base = base_digest(policy)
    return found | ({"base": base} if base else {})


def base_digest(policy: Any) -> str:
    """SHA-256 of the weights that a run needs and no checkpoint holds: the reference's, or those under adapters; "" when there are none."""
    model = getattr(policy, "reference", None)
    model = policy.model if model is None and getattr(getattr(policy, "model", None), "adapters", None) else model
    model = next(iter(model), None) if isinstance(model, list) else model
    if model is None:
        return ""
    total = hashlib.sha256()
    for name, p in sorted(getattr(model, "vlm", model).named_parameters()):
        if not p.requires_grad:
            total.update(f"{name} {tuple(p.shape)} {p.dtype} ".encode())
            total.update(p.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def surroundings(recipe: Recipe, processes: int) -> dict[str, Any]:
    """Versions, threads and user code, by name."""
    from fovea.report.run import version

    code = {f"the code of `{f}`": _file_digest(p) for f in CODE if isinstance(p := getattr(recipe, f), str) and ".py:" in p}
    versions = {name: v for name in PACKAGES if (v := version(name))}
    here = {"python": platform.python_version(), "threads": torch.get_num_threads(), "processes": processes, "device": recipe.device}
    return versions | here | {"processor": torch.backends.cpu.get_cpu_capability()} | code


def _file_digest(part: str) -> str:
    file = Path(part.rpartition(":")[0]).expanduser()
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else "not there"


class Watch:
    """Says, once for each file, that a data file has been replaced while the run goes on.

    The rows that were read at the start stay in memory, so nothing of this run changes; only going on after an interruption needs the old
    file back.
    """

    def __init__(self, *sources: Any):
        named = [f for s in sources for f in getattr(s, "files", ()) if isinstance(f, Path) and f.is_file()]
        self.files = {f: (_stamp(f), _sha(f)) for f in named}

    def __call__(self) -> str:
        said = []
        for file, (stamp, sha) in list(self.files.items()):
            now = _stamp(file)
            if now == stamp:
                continue
            if _sha(file) == sha:
                self.files[file] = now, sha
                continue
            del self.files[file]
            said.append(
                f"{file} has been replaced since the run began. The run keeps the rows that it read; "
                "to go on after an interruption, put the old file back"
            )
        return "; ".join(said)


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(file)  # noqa: PTH116 - one call for both
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _sha(file: Path) -> str:
    try:
        with file.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError:
        return ""
