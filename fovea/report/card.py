"""The model card of a run: what was trained from what, how, and what was measured. Nothing stands in it that was not measured.

Paths of the machine and anything that looks like an access token are left out: of a path only its last part is shown.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from fovea import __version__
from fovea.files import read_jsonl

PICTURE = "curve.png"
TOKEN = re.compile(r"hf_\w{8,}")


def model_card(repo: str, run: Path | None, step: int | None, license: str = "", base: str = "", adapter: bool = False) -> str:
    """README.md of a pushed model.

    Args:
      repo: where it goes, OWNER/NAME.
      run: the run folder that the weights come from, or None for weights of unknown history.
      step: the optimizer step of the weights.
      license: an identifier such as "apache-2.0"; empty takes that of the tiny model, or leaves the field out and says so.
      base: hub id of the base model, where it has one.
      adapter: the repository holds adapters only.
    """
    config: dict[str, Any] = json.loads(_text(run, "config.json") or "{}")
    method = str((config.get("method") or {}).get("type", "")) if config else ""
    license = license or ("apache-2.0" if config.get("model") == "tiny" else "")
    head = {
        "license": license,
        "base_model": base,
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["fovea", "reinforcement-learning", *([method.lower()] if method else [])],
    }
    yaml = [f"{key}: {json.dumps(value)}" for key, value in head.items() if value]
    parts = ["---", *yaml, "---", "", f"# {repo.partition('/')[2]}", "", _summary(config, method, step, base, adapter)]
    parts += ["", "" if license else "Its publisher has stated no licence; the terms of the base model and of the data hold.\n"]
    if config and run is not None:
        parts += [_measured(config, read_jsonl(run / "metrics.jsonl"), step), _data(config), _recipe(run, config), _surroundings(run)]
    else:
        parts += ["## Measured", "", "Nothing: these weights came without the folder of the run that made them.", ""]
    return "\n".join([*parts, _use(repo, adapter)])


def with_picture(card: str) -> str:
    """The card with the run's curve, which lies beside it as `PICTURE`."""
    return card.replace("## Measured\n", f"## Measured\n\n![measured against steps]({PICTURE})\n", 1)


def picture_metric(run: Path) -> str | None:
    """What the curve shows: held-out accuracy if it was measured twice, else the training reward; None where neither was."""
    rows = read_jsonl(run / "metrics.jsonl")
    seen = (m for m in ("eval/accuracy", "reward/mean") if sum(math.isfinite(_number(r, m)) for r in rows) > 1)
    return next(seen, None)


def scrub(value: Any) -> Any:
    """`value` without directories of the machine and without access tokens, nested values included."""
    if isinstance(value, str):
        return TOKEN.sub("***", _short(value))
    if isinstance(value, Mapping):
        return {k: scrub(v) for k, v in value.items()}
    return [scrub(v) for v in value] if isinstance(value, list | tuple) else value


# -- parts ----------------------------------------------------------------------------------------------------------------------


def _summary(config: Mapping[str, Any], method: str, step: int | None, base: str, adapter: bool) -> str:
    what = "LoRA adapters for a vision-language model" if adapter else "A vision-language model"
    made = f"Fovea {__version__}"
    if not config:
        return f"{what}, uploaded by {made}" + (f", from {base}." if base else ".")
    named = "the tiny model that ships with Fovea" if config.get("model") == "tiny" else f"`{scrub(str(config.get('model')))}`"
    at = f", after {step} step{'s' * (step != 1)}" if step is not None else ""
    return f"{what}, trained from {f'`{base}`' if base else named} with {method or 'Fovea'}{at}, by {made}."


def _measured(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], step: int | None) -> str:
    found = [r for r in rows if math.isfinite(_number(r, "eval/accuracy"))]
    first = next((r for r in found if r["step"] == 0), {})
    ours = next((r for r in found if r["step"] == step), {})
    lines = ["## Measured", ""]
    if not found:
        return "\n".join([*lines, "No held-out accuracy was measured in this run.", ""])
    how = "greedy answers" if not config.get("eval_temperature") else f"answers sampled at temperature {config['eval_temperature']}"
    lines += [f"Accuracy on held-out tasks, {how}.", ""]
    if not ours:
        at = ", ".join(str(r["step"]) for r in found)
        lines += [f"These weights are of step {step}, at which nothing was measured; evaluations were made at step {at}.", ""]
    sources = sorted({k for r in (first, ours) for k in r if k.startswith("eval/accuracy/")})
    names = {"eval/accuracy": "mean over sources", **{k: k.removeprefix("eval/accuracy/") for k in sources}}
    table = [("", "before training", "these weights"), ("---",) * 3]
    table += [(name, _show(first, key), _show(ours, key)) for key, name in names.items()]
    table += [("95 % interval of all answers pooled", _interval(first), _interval(ours)), ("answers", _count(first), _count(ours))]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in table), ""])


def _data(config: Mapping[str, Any]) -> str:
    def name(value: Any) -> str:
        return f"`{scrub(value if isinstance(value, str) else json.dumps(value))}`"

    heldout = name(config["heldout"]) if config.get("heldout") else "the part of the same data that training never saw"
    lines = [f"Trained on {name(config.get('data'))}; measured on {heldout}."]
    if config.get("reward"):
        lines.append(f"Rewarded by {name(config['reward'])} instead of the tasks' own verifiers.")
    return "\n".join(["## Data", "", *lines, ""])


def _recipe(run: Path, config: Mapping[str, Any]) -> str:
    commands = [shlex.join(scrub(shlex.split(line))) for line in _text(run, "command.txt").splitlines()]
    recipe = json.dumps(scrub(config), indent=1, ensure_ascii=False)
    return "\n".join(
        ["## Recipe", "", "```bash", *commands, "```", "", "Every field as it was resolved:", "", "```json", recipe, "```", ""]
    )


def _surroundings(run: Path) -> str:
    env: dict[str, Any] = json.loads(_text(run, "env.json") or "{}")
    versions = [f"{name} {version}" for name, version in {"python": env.get("python"), **(env.get("versions") or {})}.items() if version]
    machine = [str(env[k]) + (" cores" if k == "cores" else "") for k in ("processor", "cores", "device") if env.get(k)]
    return "\n".join(["## Made with", "", f"{', '.join(versions)}; {', '.join(machine)}.", ""]) if env else ""


def _use(repo: str, adapter: bool) -> str:
    if adapter:
        code = ["from peft import PeftModel", "", f'model = PeftModel.from_pretrained(base_model, "{repo}")']
    else:
        code = [
            "import fovea",
            "from huggingface_hub import snapshot_download",
            "",
            f'policy = fovea.load_policy(snapshot_download("{repo}"))',
            'print(policy.predict(picture, "What is in the picture?"))',
        ]
    said = [] if adapter else ["The folder is an ordinary checkpoint, so transformers' `from_pretrained` loads it, too.", ""]
    return "\n".join(["## Use", "", *said, "```python", *code, "```", ""])


# -- values ---------------------------------------------------------------------------------------------------------------------


def _number(row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    return math.nan if value is None else float(value)


def _show(row: Mapping[str, Any], key: str) -> str:
    return f"{_number(row, key):.3f}" if math.isfinite(_number(row, key)) else "not measured"


def _interval(row: Mapping[str, Any]) -> str:
    low, high = _number(row, "eval/accuracy_low"), _number(row, "eval/accuracy_high")
    return f"{low:.3f} to {high:.3f}" if math.isfinite(low) and math.isfinite(high) else "not measured"


def _count(row: Mapping[str, Any]) -> str:
    return f"{_number(row, 'eval/n'):.0f}" if math.isfinite(_number(row, "eval/n")) else "none"


def _short(text: str) -> str:
    """An absolute path, also behind "--option=", by its last part; any other text as it is."""
    option, eq, value = text.partition("=") if text.startswith("--") else ("", "", text)
    absolute = value.startswith(("/", "~")) or PureWindowsPath(value).is_absolute()
    return option + eq + (PureWindowsPath(value).name if absolute else value)


def _text(run: Path | None, name: str) -> str:
    file = run / name if run else None
    return file.read_text(encoding="utf-8") if file and file.is_file() else ""
