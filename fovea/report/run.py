"""The run folder: everything a run leaves behind, in formats that any tool can read.

    config.json  command.txt  env.json      what was run, how it was called, on what
    parent.json                              of a fork: the run and step that it started from, and what changed
    metrics.jsonl                            one JSON object per step
    rollouts/step-000120.jsonl               a sample of that step's groups; eval-000120.jsonl for held-out ones
    rollouts/images/<hash>.png               each picture once
    rollouts/films/<hash>.mp4                a few held-out episodes of a simulator, from every evaluation
    events.out.tfevents...                   the numbers for TensorBoard
    report.html                              the run page

Every file is either appended to with whole lines or written aside and renamed, so a process that is killed at any moment leaves at most
one torn last line, which the next reader drops. Tokens and passwords are masked in what is written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fovea.files import fsync, plain, read_jsonl, replacing, write_json, write_text
from fovea.report.events import Events
from fovea.report.sinks import Sinks
from fovea.secrets import masked, masked_command
from fovea.types import Episode, Group, Message, Places, Segment
from fovea.video import Video, still, write_clip

if TYPE_CHECKING:
    from PIL.Image import Image

    from fovea.batch import Batch
    from fovea.envs.films import Film

PACKAGES = ("fovea-rl", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow", "rich")
WALL = "time/wall_s"
FILM_SIDE = 128
"""Films of smaller pictures are enlarged to about so many pixels."""

Units = Mapping[int, Mapping[str, list[float]]]
"""Streams of a segment by name, by `id(segment)`."""


class RunFolder:
    """Creates or opens a run folder.

    Args:
      path: the folder; made if missing. Opening changes nothing in it; the first `log` writes over a torn last line.
      rollout_every: `log_groups` writes on the first step of a run and then on every multiple of this.
      rollout_groups: how many groups it keeps of a step.
      eval_groups: how many groups it keeps of a held-out evaluation, the same ones each time.
      rollout_tokens: how many action units it keeps of a segment.
      image_side: longer pictures are stored reduced to this many pixels; their true size is recorded.
      tensorboard: write TensorBoard events, which needs no TensorBoard.
      sinks: names in `fovea.report.sinks.SINKS` that get the numbers too.
    """

    def __init__(
        self,
        path: str | Path,
        rollout_every: int = 10,
        rollout_groups: int = 4,
        eval_groups: int = 8,
        rollout_tokens: int = 400,
        image_side: int = 768,
        tensorboard: bool = True,
        sinks: Sequence[str] = (),
    ):
        self.path = Path(path)
        self.rollout_every, self.rollout_groups, self.eval_groups = max(1, rollout_every), rollout_groups, eval_groups
        self.rollout_tokens, self.image_side = rollout_tokens, image_side
        self.path.mkdir(parents=True, exist_ok=True)
        self._tensorboard = tensorboard
        self._writer: Events | None = None
        self._sinks = Sinks(sinks, self.path, lambda: json.loads((self.path / "config.json").read_text(encoding="utf-8")))
        self._tokens: dict[int, str] = {}
        self._unfilmed = False
        self._recall()

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def rollouts_path(self) -> Path:
        return self.path / "rollouts"

    @property
    def last_step(self) -> int | None:
        """The last step that was logged, or None."""
        return self._last_step

    # -- what was run ---------------------------------------------------------------------------------------------------------

    def describe(self, config: Any, command: Sequence[str] | None = None) -> None:
        """Save the resolved recipe (a dataclass or a mapping), the command line (default: this process's) and the surroundings.

        A resumed run adds its command as a further line.
        """
        write_json(self.path / "config.json", dataclasses.asdict(config) if dataclasses.is_dataclass(config) else dict(config))  # type: ignore[arg-type]
        line = masked_command(command if command is not None else called())
        with (self.path / "command.txt").open("a", encoding="utf-8") as f:
            f.write(line + "\n")
        write_json(self.path / "env.json", surroundings())

    def write_parent(self, parent: Mapping[str, Any]) -> None:
        """Record which run and step this one was started from."""
        write_json(self.path / "parent.json", dict(parent))

    # -- numbers --------------------------------------------------------------------------------------------------------------

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step. Logging a step again adds to its line; a step before the last is an error.

        Adds `time/wall_s`, the seconds of this run so far, which continues over a resume. NaN and infinity are stored as null.
        """
        if self._last_step is not None and step < self._last_step:
            raise ValueError(
                f"{self.metrics_path}: step {step} logged after step {self._last_step}; call truncate({step - 1}) when resuming"
            )
        again = step == self._last_step
        row = {**(self._last_row if again else {}), **{k: float(v) for k, v in metrics.items()}, WALL: round(self.wall_s, 3)}
        line = json.dumps({"step": step, **{k: v if math.isfinite(v) else None for k, v in row.items()}}) + "\n"
        with self.metrics_path.open("r+b" if self.metrics_path.exists() else "w+b") as f:
            f.seek(self._last_offset if again else self._end)
            self._last_offset = f.tell()
            f.write(line.encode())
            f.truncate()
            self._end = f.tell()
        self._last_step, self._last_row = step, row
        if self._tensorboard:
            self._writer = self._writer or Events(self.path, step)
            self._writer.log(step, metrics)
        self._sinks.log(step, metrics)

    @property
    def wall_s(self) -> float:
        """Seconds spent in this run so far, earlier processes included."""
        return self._wall_before + time.monotonic() - self._opened

    def read_metrics(self) -> list[dict[str, float]]:
        """One flat dict per step, `step` included, oldest first; null reads as NaN."""
        return [{k: math.nan if v is None else v for k, v in row.items()} for row in read_jsonl(self.metrics_path)]

    def sync(self) -> None:
        """Return once the metrics so far would survive a power cut."""
        for path in (self.metrics_path, self.path):
            if path.exists():
                fsync(path)

    def truncate(self, step: int) -> None:
        """Forget everything after `step`, so that a run resumed there repeats no step."""
        rows = [row for row in read_jsonl(self.metrics_path) if row["step"] <= step]
        write_text(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows), durable=True)
        for file in self.rollout_files():
            if rollout_step(file) > step:
                file.unlink()
        self._close_events()
        self._recall()

    def _recall(self) -> None:
        rows = read_jsonl(self.metrics_path)
        last = rows[-1] if rows else {}
        self._last_step: int | None = last.get("step")
        self._last_row = {k: math.nan if v is None else v for k, v in last.items() if k != "step"}
        self._last_offset, self._end = _last_line(self.metrics_path)
        self._logged_groups = any(self.rollouts_path.glob("step-*.jsonl"))
        self._wall_before, self._opened = float(self._last_row.get(WALL, 0.0)), time.monotonic()

    def _close_events(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        """Close the TensorBoard events and the sinks; the rest is always on disk."""
        self._close_events()
        self._sinks.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what the policy saw and did ------------------------------------------------------------------------------------------

    def log_groups(
        self,
        step: int,
        groups: Sequence[Group],
        policy: Any = None,
        batch: Batch | None = None,
        split: str = "train",
        force: bool = False,
        unscored: Sequence[Group] = (),
    ) -> Path | None:
        """Write a sample of a step's groups; returns the file, or None where there is nothing to keep.

        Args:
          policy: turns token ids into strings with `decode_text`; without one no token strings are written.
          batch: `collate(groups)` with `adv_BT`, for what is known of each token (`unit_streams`); its rows must be those of exactly these
            groups.
          split: "train" or "eval"; held-out groups get their own file.
          force: write whatever `rollout_every` says.
          unscored: groups of which some episode could not be scored, whole. On every step one of them is written for each reason, at most
            `rollout_groups`; and a group of `groups` that lost its unscored episodes is written as it was.
        """
        due = force or split == "eval" or not self._logged_groups or step % self.rollout_every == 0
        # a fixed choice of held-out groups lets the page show how the answer to one question changes
        chosen = spread(groups, *((self.rollout_groups, step) if split == "train" else (self.eval_groups, 0))) if due else []
        chosen = with_unscored(chosen, unscored, self.rollout_groups)
        if not chosen:
            return None
        self._logged_groups |= split == "train"
        units = unit_streams(groups, batch)
        records = [self._group_record(step, g, policy, units) for g in chosen]
        file = self.rollouts_path / f"{'step' if split == 'train' else split}-{step:06d}.jsonl"
        file.parent.mkdir(exist_ok=True)
        write_text(file, masked("".join(json.dumps(r, ensure_ascii=False, default=plain) + "\n" for r in records)))
        return file

    def rollout_files(self) -> list[Path]:
        """The files written by `log_groups`, in step order, training before held-out."""
        return sorted(self.rollouts_path.glob("*-*.jsonl"), key=lambda f: (rollout_step(f), not f.name.startswith("step")))

    def read_groups(self, files: Sequence[Path] | None = None) -> Iterator[dict[str, Any]]:
        """Logged groups of all or some files, oldest first: the records of `log_groups` with `split` added."""
        for file in self.rollout_files() if files is None else files:
            split = file.stem.rpartition("-")[0]
            yield from ({**record, "split": "train" if split == "step" else split} for record in read_jsonl(file))

    def write_report(self) -> Path:
        """Write `report.html` from what is in the folder."""
        from fovea.report.page import render
        from fovea.report.records import Reader

        file = self.path / "report.html"
        write_text(file, render([Reader(self.path)]))
        return file

    def _group_record(self, step: int, group: Group, policy: Any, units: Units) -> dict[str, Any]:
        task = group.task
        return {
            "step": step,
            "task": task.id,
            "source": task.source,
            "prompt": _messages(task.prompt),
            "images": [self._save_image(image) for image in task.images],
            "answer": task.answer,
            "verifier": task.verifier if isinstance(task.verifier, str) else type(task.verifier).__name__,
            "params": dict(task.params),
            "expected": next((_places(s.expected) for e in group.episodes if (s := e.score) and s.expected), None),
            "episodes": [self._episode_record(e, policy, units) for e in group.episodes],
        }

    def _episode_record(self, e: Episode, policy: Any, units: Units) -> dict[str, Any]:
        s = e.score
        branches = {
            name: [{"text": t.text, "stop": t.stop, "messages": _messages(t.observation.messages)} for t in turns]
            for name, turns in e.branches.items()
        }
        return {
            "id": e.id,
            "role": e.role,
            "text": e.text,
            "stop": e.stop,
            "error": e.error,
            "length": e.length,
            "score": s.value if s and s.ok and math.isfinite(s.value) else None,
            "parts": {k: v if math.isfinite(v) else None for k, v in s.parts.items()} if s else {},
            "correct": s.correct if s else None,
            "reason": s.reason if s else "never scored",
            "places": _places(s.places) if s and s.places else None,
            "turns": [
                {
                    "text": t.text,
                    "reward": t.reward,
                    "stop": t.stop,
                    "messages": _messages(t.observation.messages) if k else [],
                    "images": [self._save_image(i) for i in t.observation.images] if k else [],
                    **({"drawn": self._save_image(t.drawn)} if t.drawn is not None else {}),
                }
                for k, t in enumerate(e.turns)
            ],
            "segments": [self._segment_record(seg, policy, units.get(id(seg), {})) for seg in e.segments],
            **({"branches": branches} if branches else {}),
            **({"film": film} if e.film is not None and (film := self._save_film(e.film)) else {}),
        }

    def _segment_record(self, s: Segment, policy: Any, streams: Mapping[str, list[float]]) -> dict[str, Any]:
        keep = slice(0, self.rollout_tokens)
        record: dict[str, Any] = {
            "mask": [int(m) for m in s.mask[keep].tolist()],
            "logp": [_short(x) for x in streams.get("logp", s.logp_old.tolist())[keep]],
            "units": len(s),
        }
        if s.actions.ndim == 1 and policy is not None:
            record["tokens"] = [self._token(policy, i) for i in s.actions[keep].tolist()]
        if len(s) and int(s.turn.max()) > 0:
            record["turn"] = s.turn[keep].tolist()
        kept = {name: [_short(x) for x in values[keep]] for name, values in streams.items() if name != "logp"}
        record |= {"adv": kept.pop("adv")} if "adv" in kept else {}
        return record | ({"streams": kept} if kept else {})

    def _token(self, policy: Any, token: int) -> str:
        if token not in self._tokens:
            words = getattr(policy, "decode_text", None)  # a simulator's actions are numbers
            self._tokens[token] = words([token], skip_special=False) if words else f"{token} "
        return self._tokens[token]

    def _save_film(self, film: Film) -> dict[str, Any] | None:
        """None where there was nothing to see, or it could not be filmed, which is said once."""
        if not film.frames or self._unfilmed:
            return None
        try:
            return self._filmed(film)
        except Exception as e:  # PyAV is absent or was built without the codec, or frames differ in size
            self._unfilmed = True
            warnings.warn(f"held-out episodes are not filmed: {e}", stacklevel=2)
            return None

    def _filmed(self, film: Film) -> dict[str, Any]:
        import numpy as np

        frames = np.stack(film.frames)
        # so large that colours at half the resolution do not smear
        frames = frames.repeat(scale := -(-FILM_SIDE // max(frames.shape[1:3])), 1).repeat(scale, 2)
        file = self.rollouts_path / "films" / f"{hashlib.sha256(str(frames.shape).encode() + frames.tobytes()).hexdigest()[:16]}.mp4"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as aside:
                write_clip(aside, frames, film.fps, quality=24, every=50)
        return {"file": file.name, "width": frames.shape[2], "height": frames.shape[1], "frames": len(frames), "fps": film.fps}

    def _save_image(self, shown: Image | Video) -> dict[str, Any]:
        image = still(shown)
        digest = hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()[:16]
        file = self.rollouts_path / "images" / f"{digest}.png"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            small = image.convert("RGB")
            small.thumbnail((self.image_side, self.image_side))
            with replacing(file) as aside:
                small.save(aside, format="PNG")
        return {"file": file.name, "width": image.width, "height": image.height}


def called() -> list[str]:
    """This process's command line; code typed into an interpreter or a notebook has none to repeat."""
    program = Path(sys.argv[0]).name
    program = "fovea" if program == "__main__.py" else program
    typed = program in ("", "-c") or program.startswith("ipykernel")
    return ["python"] if typed else [program, *sys.argv[1:]]


def surroundings() -> dict[str, Any]:
    """Versions, platform, processor, threads, and the commit of the user's repository where there is one."""
    torch = sys.modules.get("torch")
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processes": int(os.environ.get("WORLD_SIZE") or 1),
        "torch_threads": torch.get_num_threads() if torch is not None else None,
        "device": torch.cuda.get_device_name() if torch is not None and cuda else "cpu",
        "versions": {name: v for name in PACKAGES if (v := version(name))},
        "commit": _git("rev-parse", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


# -- files --------------------------------------------------------------------------------------------------------------------


def rollout_step(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


def _last_line(file: Path) -> tuple[int, int]:
    """Byte offsets of the start and end of the last whole line."""
    data = file.read_bytes() if file.exists() else b""
    end = data.rfind(b"\n") + 1
    return data.rfind(b"\n", 0, max(0, end - 1)) + 1, end


# -- records ------------------------------------------------------------------------------------------------------------------


def spread(groups: Sequence[Group], n: int, step: int) -> list[Group]:
    """At most `n` groups, one source after another; which sources come first turns with the step. Deterministic."""
    by_source: dict[str, list[Group]] = {}
    for g in groups:
        by_source.setdefault(g.task.source, []).append(g)
    names = sorted(by_source)
    names = names[step % len(names) :] + names[: step % len(names)] if names else []
    rounds = max((len(v) for v in by_source.values()), default=0)
    return [by_source[s][i] for i in range(rounds) for s in names if i < len(by_source[s])][:n]


def with_unscored(chosen: Sequence[Group], unscored: Sequence[Group], n: int) -> list[Group]:
    """`chosen`, whole where they are among `unscored`, and at most `n` more of those: one for each reason that is not among them yet."""
    whole = {id(e): g for g in unscored for e in g.episodes}
    out = [next((whole[id(e)] for e in g.episodes if id(e) in whole), g) for g in chosen]
    told, more = set[str](), []
    for g in (*out, *unscored):
        reasons = {e.score.reason for e in g.episodes if e.score is not None and not e.score.ok}
        if reasons - told and not any(g is x for x in out):
            more.append(g)
        told |= reasons
    return out + more[:n]


def unit_streams(groups: Sequence[Group], batch: Batch | None) -> Units:
    """What the batch knows of each unit, by `id(segment)`; rows are in the order in which `collate` makes them.

    Returns:
      "adv", the advantage; "visual", the visual dependency log π(unit | picture) − log π(unit | masked picture), where the method asked for
      "masked/logp" or stored "visual" itself; "reference", log π_old − log π_ref, where it asked for "reference/logp"; "logp" of given
      answers, whose segments do not know it. In nats.
    """
    if batch is None or batch.adv_BT is None:
        return {}
    from fovea.batch import TRAINED_ROLES

    segments = [s for g in groups for e in g.episodes if e.role in TRAINED_ROLES for s in e.segments if len(s)]
    if len(segments) != batch.B:
        raise ValueError(
            f"log_groups: the batch has {batch.B} rows but these groups make {len(segments)}; pass the groups it was collated from"
        )
    named = {"adv": batch.adv_BT}
    for name, stream in (("visual", "masked/logp"), ("reference", "reference/logp")):
        if name in batch.stored:
            named[name] = batch.stored[name]
        elif stream in batch.stored:
            named[name] = batch.logp_old_BT - batch.stored[stream]
    out = {id(s): {name: x_BT[b, : len(s)].tolist() for name, x_BT in named.items()} for b, s in enumerate(segments)}
    for b in batch.given_B.nonzero()[:, 0].tolist():
        out[id(segments[b])]["logp"] = batch.logp_old_BT[b, : len(segments[b])].tolist()
    return out


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Chat messages with text and image placeholders only."""

    def part(p: Any) -> dict[str, Any]:
        if isinstance(p, str):
            return {"type": "text", "text": p}
        return {"type": "text", "text": str(p.get("text", ""))} if p.get("type") == "text" else {"type": p.get("type", "image")}

    return [
        {"role": m.get("role", "user"), "content": [part(p) for p in ([m["content"]] if isinstance(m["content"], str) else m["content"])]}
        for m in messages
    ]


def _places(p: Places) -> dict[str, Any]:
    at = [[_short(float(x)) for x in place] for place in p.at]
    return {"image": p.image, "at": at, "labels": list(p.labels), "hits": [bool(hit) for hit in p.hits]}


def _short(x: float) -> float | None:
    return round(x, 4) if math.isfinite(x) else None
