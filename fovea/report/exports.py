"""Evaluations in the files of lmms-eval and VLMEvalKit, so that their viewers, comparisons and judges read ours.

Formats as of lmms-eval 0.7 (`docs/getting-started/commands.md`, `lmms_eval/loggers/evaluation_tracker.py`) and VLMEvalKit of August 2026
(`vlmeval/smp/file.py`, `vlmeval/dataset/__init__.py`). Read back by the tools' own code: `load_baseline` of lmms-eval 0.7.3,
`CustomMCQDataset` and `CustomVQADataset` of VLMEvalKit at commit e8e78f05. Left out: token counts and wall times, which an evaluation here
does not keep.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fovea import __version__
from fovea.files import write_text
from fovea.types import Group, Task
from fovea.verifiers.parse import extract_answer, parse_choice
from fovea.video import Video, still

if TYPE_CHECKING:
    from PIL.Image import Image

    from fovea.trainer.evaluation import Evaluation


def export(form: str, result: Evaluation, folder: str | Path, model: str, settings: Mapping[str, Any] | None = None) -> list[Path]:
    """Write `result` in the files of another evaluation tool; returns them.

    Args:
      form: a key of `FORMATS`.
      folder: gets a folder for the model, and in it files named by the time of the export.
      model: name or path of what was evaluated; its last two parts are kept.
      settings: how it was evaluated (temperature, samples, ...), for the record.
    Raises:
      ValueError: an unknown format; nothing was evaluated; several answers per task for a format that holds one.
    """
    if form not in FORMATS:
        raise ValueError(f"export: found format {form!r}, expected one of {', '.join(FORMATS)}")
    sources: dict[str, list[Group]] = {}
    for group in result.groups:
        sources.setdefault(group.task.source, []).append(group)
    if not sources:
        raise ValueError("export: the evaluation holds no answers; expected at least one held-out task")
    names = {source: re.sub(r"[^\w.-]+", "_", f"fovea_{source}") for source in sources}
    tasks = {names[source]: groups for source, groups in sources.items()}
    if len(tasks) < len(sources):
        raise ValueError(
            f"export: sources {', '.join(map(repr, sources))} differ only in characters that no file name can hold; rename one"
        )
    return FORMATS[form](
        tasks, Path(folder), re.sub(r'["<>:|\\?*\[\]]+', "_", "/".join(Path(model).parts[-2:]).strip("/.")), settings or {}
    )


# -- lmms-eval ------------------------------------------------------------------------------------------------------------------


def lmms_eval(tasks: Mapping[str, Sequence[Group]], folder: Path, model: str, settings: Mapping[str, Any]) -> list[Path]:
    """``MODEL/TIME_results.json`` and, per source, ``MODEL/TIME_samples_TASK.jsonl``, as ``--log_samples`` writes them."""
    folder = folder / model.replace("/", "__")
    folder.mkdir(parents=True, exist_ok=True)
    at = time.strftime("%Y%m%d_%H%M%S")
    samples = {task: [_sample(i, group) for i, group in enumerate(groups)] for task, groups in tasks.items()}
    scores = {task: [s["score"] for s in rows if "score" in s] for task, rows in samples.items()}
    content = {
        "results": {task: _aggregate(task, found, len(samples[task])) for task, found in scores.items()},
        "group_subtasks": {task: [] for task in tasks},
        "configs": {task: {"task": task, "metric_list": [{"metric": "score", "aggregation": "mean"}]} for task in tasks},
        "versions": dict.fromkeys(tasks, __version__),
        "n-shot": dict.fromkeys(tasks, 0),
        "higher_is_better": {task: {"score": True} for task in tasks},
        "n-samples": {task: {"original": len(rows), "effective": len(scores[task])} for task, rows in samples.items()},
        "config": {"model": "fovea", "model_args": f"pretrained={model}", "batch_sizes": [], "gen_kwargs": dict(settings)},
        "date": at,
        "task_hashes": {task: _sha("".join(f"sample_{i}{s['doc_hash']}" for i, s in enumerate(rows))) for task, rows in samples.items()},
        "model_source": "fovea",
        "model_name": model,
        "model_name_sanitized": folder.name,
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": None,
        "chat_template": None,
        "chat_template_sha": None,
    }
    files = {folder / f"{at}_results.json": json.dumps(content, indent=2, ensure_ascii=False)}
    for task, rows in samples.items():
        files[folder / f"{at}_samples_{task}.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return _write(files)


def _sample(index: int, group: Group) -> dict[str, Any]:
    """One line: `resps` is what was said, `filtered_resps` what was judged.

    Where no answer could be scored there is no `score`, and nothing judged either: lmms-eval makes up for a missing score by comparing the
    first judged answer with the target.
    """
    said = [e.text for e in group.episodes]
    scores = _scores(group)
    judged = [extract_answer(text) or "" for text in said] if scores else []
    task = group.task
    return {
        "doc_id": index,
        "target": _text(task.answer),
        **({"resps": said} if said != judged else {}),
        "filtered_resps": judged,
        "doc_hash": _sha(json.dumps([task.id, _question(task), _text(task.answer), *(_sha(still(i).tobytes()) for i in task.images)])),
        **({"score": statistics.fmean(scores)} if scores else {}),
        "input": _question(task),
    }


def _aggregate(task: str, scores: Sequence[float], rows: int) -> dict[str, Any]:
    """Mean over the scored tasks and its standard error, s / sqrt(n)."""
    error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else "N/A"
    mean = statistics.fmean(scores) if scores else "N/A"
    return {"alias": task, "score,none": mean, "samples": rows, "score_stderr,none": error}


# -- VLMEvalKit -----------------------------------------------------------------------------------------------------------------


def vlmevalkit(tasks: Mapping[str, Sequence[Group]], folder: Path, model: str, settings: Mapping[str, Any]) -> list[Path]:
    """Per source a prediction table ``MODEL/TTIME/MODEL_TASK.tsv`` and the questions ``LMUData/TASK.tsv`` with their pictures.

    Tasks of the verifier `choice` whose options are known get the columns A, B, ...: those VLMEvalKit can score by itself.
    """
    several = next((g for groups in tasks.values() for g in groups if len(g.episodes) != 1), None)
    if several is not None:
        raise ValueError(
            f"export: task {several.task.id} has {len(several.episodes)} answers, expected one: VLMEvalKit holds one per question"
        )
    model = model.replace("/", "__")
    run = folder / model / f"T{time.strftime('%Y%m%d-%H%M%S')}"
    files = {}
    for task, groups in tasks.items():
        rows = [{"index": i, **_columns(group.task)} for i, group in enumerate(groups)]
        pictures = [{"image": _pictures(group.task.images)} for group in groups]
        said = [_said(group.episodes[0].text) for group in groups]
        files[folder / "LMUData" / f"{task}.tsv"] = _tsv([a | b for a, b in zip(rows, pictures, strict=True)])
        files[run / f"{model}_{task}.tsv"] = _tsv([a | b for a, b in zip(rows, said, strict=True)])
    return _write(files)


def _columns(task: Task) -> dict[str, Any]:
    options = [str(o) for o in task.params.get("options", ())] if task.verifier == "choice" else []
    letters = {chr(ord("A") + n): option for n, option in enumerate(options)}
    right = (list(letters)[task.answer] if isinstance(task.answer, int) else parse_choice(str(task.answer), options)) if options else None
    return {"id": task.id, "question": _question(task), "answer": right or _text(task.answer), **letters}


def _said(text: str) -> dict[str, str]:
    """The answer as it was judged, without the tags that VLMEvalKit's exact matching would stumble over; then the whole text beside it."""
    judged = extract_answer(text) or text
    return {"prediction": judged, **({"thinking": text} if judged != text else {})}


def _pictures(images: Sequence[Image | Video]) -> str:
    """Base64 PNG, of a clip its first frame; several as a list in one cell."""
    coded = []
    for image in images:
        still(image).convert("RGB").save(file := io.BytesIO(), format="PNG")
        coded.append(base64.b64encode(file.getvalue()).decode())
    return coded[0] if len(coded) == 1 else json.dumps(coded) if coded else ""


def _tsv(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out := io.StringIO(), columns, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


FORMATS: dict[str, Callable[[Mapping[str, Sequence[Group]], Path, str, Mapping[str, Any]], list[Path]]] = {
    "lmms-eval": lmms_eval,
    "vlmevalkit": vlmevalkit,
}


# -- both -----------------------------------------------------------------------------------------------------------------------


def _scores(group: Group) -> list[float]:
    from fovea.trainer.evaluation import outcome

    return [outcome(e) for e in group.episodes if e.score is not None and e.score.ok]


def _question(task: Task) -> str:
    """The text of the prompt, message by message."""
    parts = [p for m in task.prompt for p in ([m["content"]] if isinstance(m["content"], str) else m["content"])]
    return "\n".join(p if isinstance(p, str) else str(p["text"]) for p in parts if isinstance(p, str) or p.get("type") == "text")


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, default=str)


def _sha(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _write(files: Mapping[Path, str]) -> list[Path]:
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    return list(files)
