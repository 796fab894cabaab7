"""Writes the generated parts of README.md and docs/: figures from the benchmark files, tables from the code and its tests.

    python docs/generate.py           rewrite what is out of date
    python docs/generate.py --check   change nothing; exit 1 and name the files that are out of date

A generated part stands between ``<!-- name -->`` and ``<!-- /name -->``. A benchmark file that is missing shows as "not measured yet".
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fovea.bench import workload

ROOT = Path(__file__).resolve().parents[1]
MAIN_JOB, DIGITS, SPEED = "benchmarks/quality/main_job.json", "benchmarks/quality/digits.json", "benchmarks/speed/step_vs_trl.json"
SUPPORT, LEDGER = "benchmarks/support.json", "benchmarks/ledger"
ESTIMATE, BF16 = "benchmarks/memory/estimate.json", "benchmarks/quality/bf16.json"
RESUME, OVERHEAD, FUZZ = (f"benchmarks/reliability/{name}.json" for name in ("resume", "overhead", "fuzz"))
Row = tuple[str, str, str, str]
NOT_YET = "not measured yet"

# (image tokens, new tokens) at 8 answers per prompt -> the ratio to TRL's CPU seconds that must be reached
HEADLINE = {(256, 32): 6.0, (1024, 32): 8.0, (256, 128): 3.5, (64, 256): 1.3}
MEMORY = {(256, 32): 5.0, (1024, 32): 7.0}
SECONDS = 300


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when something is out of date")
    check = parser.parse_args(argv).check
    stale = [name for name, text in pages(ROOT).items() if (ROOT / name).read_text(encoding="utf-8") != text]
    for name in stale:
        if not check:
            (ROOT / name).write_text(pages(ROOT)[name], encoding="utf-8")
        print(f"{name}: {'out of date; run python docs/generate.py' if check else 'written'}")
    return int(check and bool(stale))


def pages(root: Path) -> dict[str, str]:
    """Every page with generated parts, as it should be."""
    parts: dict[str, dict[str, Callable[[], str]]] = {
        "README.md": {"figures": lambda: figures(root), "systems": lambda: systems(root), "support": lambda: support(root)},
        "docs/memory.md": {"memory": lambda: memory_table(root)},
        "docs/methods.md": {"methods": method_pages},
        "docs/recipes.md": {"fields": recipe_fields},
        "docs/reliability.md": {"measured": lambda: reliability(root)},
        "docs/verifiers.md": {"verifiers": verifier_table},
        "docs/data.md": {"columns": column_table, "worlds": world_table},
        "docs/metrics.md": {"metrics": metric_table},
        "docs/systems.md": {
            "states": lambda: states(root),
            "taxonomy": taxonomy,
            "table": lambda: registry_table(root),
            "claims": lambda: claims(root),
            "records": records,
        },
    }
    return {
        page: fill((root / page).read_text(encoding="utf-8"), {name: make() for name, make in made.items()}, page)
        for page, made in parts.items()
    }


def fill(text: str, parts: Mapping[str, str], page: str = "page") -> str:
    """`text` with every named part replaced.

    Raises:
      ValueError: a part whose two markers are not there exactly once.
    """
    for name, body in parts.items():
        pattern = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
        found = len(pattern.findall(text))
        if found != 1:
            raise ValueError(f"{page}: found {found} parts between <!-- {name} --> and <!-- /{name} -->, expected one")
        text = pattern.sub(lambda _, name=name, body=body: f"<!-- {name} -->\n{body.strip()}\n<!-- /{name} -->", text)
    return text


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def cell(x: Any) -> str:
        return str(x).replace("|", "\\|").replace("\n", " ")

    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(cell, row)) + " |" for row in lines)


# -- figures --------------------------------------------------------------------------------------------------------------------


PEER_SETTINGS = {"group": "one group per forward pass", "batch": "the whole batch in one forward pass"}


def read(root: Path, name: str) -> dict[str, Any] | None:
    file = root / name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def figures(root: Path) -> str:
    main_job, digits, bf16, speed = (read(root, name) for name in (MAIN_JOB, DIGITS, BF16, SPEED))
    rows = [*quality_rows(main_job, digits), *bf16_rows(bf16), *speed_rows(speed), *other_rows(root)]
    out = ["Every number comes from a script in `benchmarks/` and was measured on the machine named below the tables.", ""]
    out += [table(("what", "must reach", "measured", ""), rows)]
    if main_job and "families" in main_job:
        out += ["", "Main job by family, held-out accuracy (RL: mean over seeds):", "", family_table(main_job)]
    if main_job and main_job.get("controls"):
        out += ["", "The same base, tasks, seeds and compute with something else in place of the reward:", "", control_table(main_job)]
    if speed and speed.get("cells"):
        out += ["", "CPU seconds of one optimizer step, 4 prompts, one thread, Fovea and TRL alternating in one process:", ""]
        out += [speed_table(speed)]
        if how := PEER_SETTINGS.get(speed.get("peer", {}).get("micro_batch", "")):
            out += ["", f"TRL runs with {how}, the faster of its two settings here; its times and its memory are of that one."]
    notes = [origin(name, found) for name, found in ((MAIN_JOB, main_job), (DIGITS, digits), (BF16, bf16), (SPEED, speed)) if found]
    return "\n".join([*out, *(["", *notes] if notes else [])])


def other_rows(root: Path) -> list[Row]:
    """What is measured of servers, memory, reliability, the page and the systems; a file that is not there gives no row."""
    rows: list[Row] = []

    def file(name: str, what: str, need: str, say: Callable[[dict[str, Any]], tuple[str, bool]]) -> None:
        if found := read(root, f"benchmarks/{name}.json"):
            said, held = say(found)
            rows.append((f"{what} ([file](benchmarks/{name}.json))", need, said, met(held)))

    def estimate(d: dict[str, Any]) -> tuple[str, bool]:
        errors = [abs(c["error"]) for c in d["cases"].values()]
        return f"{sum(e <= d['limit'] for e in errors)} of {len(errors)} cases, worst {max(errors):.1%}", max(errors) <= d["limit"]

    def costs(d: dict[str, Any]) -> tuple[str, bool]:
        systems = {n: s for n, s in d["systems"].items() if n != "grpo-again"}
        said = ", ".join(f"`{n}` {s['ratio']:.2f} (at most {s['most']:g})" for n, s in systems.items())
        return said, all(s["ratio"] <= s["most"] for s in systems.values())

    def judged_per_s(d: dict[str, Any]) -> tuple[str, bool]:
        found = d["verifiers"]
        said = ", ".join(f"`{n}` {v['answers_per_s']:,.0f} (at least {v['goal']:,})" for n, v in found.items())
        return said, all(v["answers_per_s"] >= v["goal"] for v in found.values())

    def fuzzed(d: dict[str, Any]) -> tuple[str, bool]:
        families = d["families"].values()
        crashes, fewest = sum(f["crashes"] for f in families), min(f["inputs"] for f in families)
        return f"{crashes} crashes in {len(d['families'])} families of at least {fewest:,} inputs", not crashes and fewest >= 10_000

    def beside_peer(d: dict[str, Any]) -> tuple[str, bool]:
        said = ", ".join(f"{n} {s['ratio']:.2f}" for n, s in d["steps"].items())
        return f"{said}; {d['peer']}", all(s["ratio"] >= s["least"] for s in d["steps"].values())

    def frame(d: dict[str, Any]) -> tuple[str, bool]:
        return f"{d['replay']['over_the_frame']:.3f} frames", d["replay"]["over_the_frame"] <= d["replay"]["most"]

    def shared_browsers(d: dict[str, Any]) -> tuple[str, bool]:
        found = d["steps_per_s"]
        said = f"{d['four_of_bound']:.2f} ({found['four']:.1f} of {found['bound']:.1f} steps/s; one browser {found['one']:.1f})"
        return said, d["four_of_bound"] >= 0.8

    def services(d: dict[str, Any]) -> tuple[str, bool]:
        return f"{d['busy_ratio']:.1f}× and {d['episodes_ratio']:.1f}×", d["busy_ratio"] >= 2.5 and d["episodes_ratio"] >= 1.5

    def met_photographs(d: dict[str, Any]) -> tuple[str, bool]:
        said = ", ".join(f"`{n}` {r['reward_first']:.2f} → {r['reward_last']:.2f}" for n, r in d["runs"].items())
        return f"reward of the first and last 20 steps: {said}", all(not r["unscored"] for r in d["runs"].values())

    file("quality/photographs", "eight perception systems, 200 steps each on photographs", "every answer scored", met_photographs)
    file("speed/off_policy", "SAC on pictures: steps/s over those of Stable-Baselines3", "≥ 1.3", beside_peer)
    file("speed/off_policy", "what a transition of 84 × 84 × 3 takes in the replay", "≤ 1.1 frames", frame)
    file("speed/browsers", "MiniWoB++ with four browsers over what the cores can do", "≥ .80", shared_browsers)
    file("speed/dart", "services over loop: how busy 16 desks are, and episodes trained per second", "≥ 2.5× and ≥ 1.5×", services)
    file(
        "speed/remote",
        "tokens/s of an engine behind HTTP over the local one, one core for both",
        "≥ .90",
        lambda d: (f"{d['ratio']:.2f} (median of {d['rounds']} rounds)", d["ratio"] >= 0.9),
    )
    file("memory/estimate", "memory estimate of `--dry-run` against the measured peak", "within 15 %", estimate)
    file("speed/methods", "CPU time of a step over one of GRPO, 256 + 32", "see there", costs)
    file("speed/verifiers", "answers with 20 boxes judged in a second of one core", "see there", judged_per_s)
    file(
        "reliability/resume",
        "runs killed at random instants that go on and end equal, bit by bit",
        "100 of 100 kills",
        lambda d: (f"{d['equal']} of {d['kills']}, {d['runs_equal']} of {d['runs']} runs", d["equal"] == d["kills"] >= 100),
    )
    file("reliability/fuzz", "mutated and generated input for every reader, parser and verifier", "no crash, ≥ 10,000 each", fuzzed)
    file(
        "reliability/overhead",
        "share of a run's time for logging, rollouts and checkpoints",
        "< 5 %",
        lambda d: (f"{d['fraction']:.1%}", d["fraction"] < 0.05),
    )
    file(
        "speed/view",
        "first paint of a run with 10,000 episodes in Chromium",
        "< 2 s",
        lambda d: (f"{d['median']['fovea view']['first_paint_ms'] / 1000:.2f} s", d["median"]["fovea view"]["first_paint_ms"] < 2000),
    )
    return rows


def gain(found: dict[str, Any] | None) -> str:
    """ "0.41 -> 0.92, gain +0.51 (seeds +0.50 to +0.53), 200 to 210 s of training, 5 seeds"."""
    if not found or not found.get("after"):
        return NOT_YET
    before, after, seconds = found["before"], found["after"], found["train_seconds"]
    gains = [a - b for a, b in zip(after, before, strict=True)]
    spread = f" (seeds {min(gains):+.3f} to {max(gains):+.3f})" if len(gains) > 1 else ""
    return (
        f"{statistics.fmean(before):.3f} → {statistics.fmean(after):.3f}, gain {statistics.fmean(gains):+.3f}{spread}; "
        f"{min(seconds):.0f} to {max(seconds):.0f} s of training, {len(after)} seed{'s' * (len(after) != 1)}"
    )


def met(*held: bool | None) -> str:
    """Whether a figure is what it must be: every condition holds; None was not measured."""
    return "**not met**" if False in held else "" if None in held else "met"


def quality_rows(main_job: dict[str, Any] | None, digits: dict[str, Any] | None) -> list[Row]:
    families = f", mean of {len(main_job['families'])} families" if main_job and "families" in main_job else ""

    def reached(found: dict[str, Any] | None, need: float) -> str:
        if not found or not found.get("after"):
            return ""
        gained = statistics.fmean(found["after"]) - statistics.fmean(found["before"])
        late = sum(s > SECONDS for s in found["train_seconds"])
        return f"gain met, time **not met** by {late} of {len(found['after'])} seeds" if gained >= need and late else met(gained >= need)

    return [
        (f"main job: held-out accuracy, greedy{families}", f"+.30, at most {SECONDS} s", gain(main_job), reached(main_job, 0.3)),
        (
            "two handwritten digits from a JSONL file: held-out accuracy, greedy",
            f"+.25, at most {SECONDS} s",
            gain(digits),
            reached(digits, 0.25),
        ),
    ]


def bf16_rows(found: dict[str, Any] | None) -> list[Row]:
    what = "log-probs in bfloat16 against the plain repeated computation in bfloat16, mean difference"
    if not found:
        return [(what, "≤ 0.02 nats", NOT_YET, "")]
    mean, largest = (max(c[f"logp_{how}"] for c in found["cases"]) for how in ("mean", "max"))
    return [
        (
            what,
            f"≤ {found['limit']:g} nats",
            f"{mean:.4f} at most in {len(found['cases'])} cases, largest {largest:.3f}",
            met(found["within"]),
        )
    ]


def speed_rows(speed: dict[str, Any] | None) -> list[Row]:
    cells = {(c["image_tokens"], c["new_tokens"], c["group_size"]): c for c in (speed or {}).get("cells", [])}

    def ratio(at: tuple[int, int], need: float) -> tuple[str, str]:
        found = cells.get((*at, 8), {}).get("ratio")
        return (NOT_YET, "") if found is None else (f"{found:.2f}×", met(found >= need))

    def memory(at: tuple[int, int], need: float) -> tuple[str, str]:
        cell = cells.get((*at, 8)) or {}
        ours, peer = cell.get("mem_ours_mb"), cell.get("mem_peer_mb")
        said = f"1/{peer / ours:.1f} ({ours:.0f} MB against {peer:.0f} MB)" if ours and peer else NOT_YET
        return said, met(peer / ours >= need) if ours and peer else ""

    def number(key: str, most: float) -> tuple[str, str]:
        value = (speed or {}).get(key)
        return (NOT_YET, "") if value is None else (f"{value:.2f}×", met(value <= most))

    ratios = [c["ratio"] for c in cells.values() if c.get("ratio") is not None]
    exact = (speed or {}).get("exact")
    planned = len(workload.cells("all"))
    measured = f"all {planned}" if len(ratios) >= planned else f"{len(ratios)} of {planned}"
    lowest = f"{min(ratios):.1f}× in {measured} cells" if ratios else NOT_YET
    # what is lowest so far may still be undercut
    above = met(min(ratios) >= 1, len(ratios) >= planned or None) if ratios else ""
    return [
        (
            "log-probs and gradients equal the plain repeated computation (float32)",
            "yes, or no time counts",
            NOT_YET if exact is None else "yes" if exact else "no",
            met(exact),
        ),
        *(
            (f"TRL's CPU time over ours, {i} image + {n} new tokens, G=8", f"≥ {need:g}×", *ratio((i, n), need))
            for (i, n), need in HEADLINE.items()
        ),
        (
            "the same, lowest of all sizes and group sizes",
            "≥ 1×",
            lowest,
            above,
        ),
        *(
            (f"peak memory over base, ours over TRL's, {i} + {n}", f"≤ 1/{need:g}", *memory((i, n), need))
            for (i, n), need in MEMORY.items()
        ),
        ("our step at G=16 over our step at G=4, 1024 + 32", "≤ 1.5×", *number("g16_over_g4", 1.5)),
        ("our step over its arithmetic at the machine's matrix-product rate, 256 + 32", "≤ 1.8×", *number("physics_ratio", 1.8)),
    ]


def family_table(main_job: dict[str, Any]) -> str:
    passed = main_job.get("base_pass_at_8", {})
    rows = []
    for name, f in main_job["families"].items():
        after = {how: [r[how] for r in f["rl"]] for how in ("greedy", "sampled")}
        means = [f"{statistics.fmean(x):.3f}" if x else NOT_YET for x in after.values()]
        rows.append((name, f"{f['base']['greedy']:.3f}", means[0], f"{f['base']['sampled']:.3f}", means[1], share(passed.get(name))))
    return table(("family", "base greedy", "RL greedy", "base sampled", "RL sampled", "base pass@8"), rows)


def share(x: float | None) -> str:
    return NOT_YET if x is None else f"{x:.3f}"


def control_table(main_job: dict[str, Any]) -> str:
    says = {
        "format": "reward for a well-formed answer only",
        "random": "a coin flip as reward",
        "sft": "supervised finetuning, as many seconds",
    }
    arms = {"the base": [statistics.fmean(main_job["before"])], "RL, the default recipe": main_job["after"]}
    arms |= {says.get(a, a): c["greedy"] for a, c in main_job["controls"].items()}
    rows = [(a, f"{statistics.fmean(x):.3f}", f"{min(x):.3f} to {max(x):.3f}" if len(x) > 1 else "") for a, x in arms.items() if x]
    return table(("arm", "held-out accuracy, greedy", "lowest to highest seed"), rows)


def speed_table(speed: dict[str, Any]) -> str:
    rows = []
    for c in sorted(speed["cells"], key=lambda c: (c["image_tokens"], c["new_tokens"], c["group_size"])):
        peer, ratio = c.get("cpu_s_peer"), c.get("ratio")
        rows.append(
            (
                c["image_tokens"],
                c["new_tokens"],
                c["group_size"],
                f"{c['cpu_s_ours']:.2f}",
                NOT_YET if peer is None else f"{peer:.2f}",
                NOT_YET if ratio is None else f"{ratio:.1f}×",
            )
        )
    return table(("image tokens", "new tokens", "G", "Fovea", "TRL", "ratio"), rows)


def memory_table(root: Path) -> str:
    found = read(root, ESTIMATE)
    if not found:
        return NOT_YET
    rows = [(name, *(f"{c[k]:.0f}" for k in ("estimate_mb", "measured_mb")), f"{c['error']:+.1%}") for name, c in found["cases"].items()]
    said = f"{found['what']} Peak of resident memory over base, in MB; the estimate is that of `--dry-run`."
    return "\n".join([said, "", table(("", "estimate", "measured", "error"), rows), "", origin(f"../{ESTIMATE}", found)])


def origin(name: str, found: dict[str, Any]) -> str:
    hardware = found.get("hardware", "unknown hardware")
    if isinstance(hardware, Mapping):
        hardware = ", ".join(f"{v}" if k in ("cpu", "processor") else f"{k} {v}" for k, v in hardware.items())
    versions = found.get("versions") or {}
    using = "; " + ", ".join(f"{k} {v}" for k, v in versions.items()) if versions else ""
    return f"* [{Path(name).stem}]({name}): `{found.get('command', '')}`, commit {str(found.get('commit', ''))[:10]}, {hardware}{using}."


# -- systems --------------------------------------------------------------------------------------------------------------------

CHANGES = {
    "grpo": "an answer's baseline is the mean of its group; the difference is divided by the group's spread",
    "dr_grpo": "no division by the spread, nor by the answer's own length",
    "dapo": "a higher upper clip, mean over tokens, groups that agree are drawn again, overlong answers are shaped or filtered",
    "gspo": "one length-normalised importance ratio for the whole answer",
    "cispo": "the importance weight is clipped, no gradient is ever zeroed",
    "rloo": "the baseline is the mean of the other answers; no ratio, no clip",
    "remax": "the baseline is the greedy answer to the same task",
    "reinforce_pp": "returns normalised over the whole batch; one answer per task is enough; also with a group baseline",
    "ppo": "a value head as baseline, GAE over tokens, dual clip",
    "rl4vlm": "a turn is one action whose thought counts less (λ); a critic by turn",
    "sac": "a replay, twin critics, entropy by a learned temperature",
    "td3": "a replay, twin critics, a delayed deterministic policy",
    "dqn": "a replay, values of discrete actions, a slow copy",
    "dreamer": "a world model that draws what it sees; actor and critic learn in its imagination",
    "repo_align": "a trained encoder learns a new look of the world, without rewards; dynamics and policy stay",
    "hg-dagger": "imitates demonstrations and corrections",
    "ddpo": "PPO's loss on denoising steps, with statistics of the prompt where there are enough of its samples",
    "sft": "imitates given answers, no rollouts",
    "dpo": "learns from pairs of answers, no rollouts, tied to a reference",
}
LEARNERS = {"vision_language": "a small vision-language model", "pixel": "a pixel policy", "denoiser": "a denoiser"}


def systems(root: Path) -> str:
    """Our objectives, with what is shown about each by tests and benchmark files; the published systems, with their state."""
    from fovea.ledger.rows import system_state
    from fovea.methods import METHODS
    from fovea.systems import STATES, load

    rows, shown = ledger_rows(root), evidence(root)
    known, lines = load(), []
    for name in (n for n in METHODS if n not in {s.slug for s in known}):
        title, _, rest = header(name)[0].partition(" — ")
        paper = re.search(r"arXiv \d{4}\.\d{5}", rest or title)
        said = shown[name] or "written, not yet tested"
        lines.append((f"`{name}`", paper[0] if paper else "", CHANGES[name], said, judged(rows.get(name))))
    out = [table(("method", "paper", "what it changes", "what is shown by tests", "claim, measured"), lines), ""]
    ours = [(f"`{n}`", "", r["claim"], judged(r)) for n, r in rows.items() if n not in METHODS and n not in {s.slug for s in known}]
    begun = ours + [
        (f"`{s.slug}`", f"arXiv {s.paper}", s.essence, judged(rows.get(s.slug))) for s in known if system_state(s, rows) != "planned"
    ]
    counts = {state: sum(system_state(s, rows) == state for s in known) for state in STATES}
    said = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    out += [f"{len(known)} published systems are registered ([docs/systems.md](docs/systems.md)): {said}.", ""]
    return "\n".join([*out, table(("system", "paper", "what it is", "claim, measured"), begun)])


def evidence(root: Path) -> dict[str, str]:
    """Method -> what tests and the benchmark of the main job show about it; empty where there is nothing."""
    from fovea.methods import METHODS

    learns, worked, main_job = learning_tests(root), worked_numbers(root), read(root, MAIN_JOB)
    out = {}
    for name in METHODS:
        shown = ["worked numbers"] if name in worked else []
        if learns.get(name):
            shown.append("learns: " + ", ".join(learns[name]))
        if name == "grpo" and main_job and main_job.get("after"):
            shown.append(f"main job {statistics.fmean(main_job['before']):.2f} → {statistics.fmean(main_job['after']):.2f}")
        out[name] = "; ".join(shown)
    return out


def ledger_rows(root: Path) -> dict[str, dict[str, Any]]:
    from fovea.ledger.rows import read_all

    return read_all([root / LEDGER])


def judged(row: dict[str, Any] | None) -> str:
    """ "reproduced: +0.310 [+0.280, +0.340]" of a row, and whether it is the control that failed."""
    from fovea.ledger.rows import outcome

    if row is None:
        return ""
    failed = f"; the control `{row['controlled']['arm']}` fails: {outcome(row['controlled'])}" if row["control"] == "fails" else ""
    return f"{row['verdict']}: {outcome(row)}{failed}"


def states(root: Path) -> str:
    from fovea.ledger.rows import system_state
    from fovea.systems import STATES, load

    rows = ledger_rows(root)
    return table(("state", "systems"), [(state, sum(system_state(s, rows) == state for s in load())) for state in STATES])


def taxonomy() -> str:
    from fovea.systems import load, missing, tree

    rows = [(f"`{r['name']}`", r["summary"], r["primary"], r["any"]) for r in tree(load())]
    gaps = [f"{', '.join(f'`{c}`' for c in sorted(missing(load(), v)))} (version {v})" for v in (2, 1)]
    return table(("code", "category", "primary", "any tag"), rows) + f"\n\nNo system has {' and '.join(gaps)}."


def registry_table(root: Path) -> str:
    from fovea.ledger.rows import system_state
    from fovea.systems import load

    rows = ledger_rows(root)
    return table(
        ("#", "system", "paper", "what it is", "tags", "state", "effect"),
        [
            (
                s.number,
                f"`{s.slug}`",
                f"{s.title} ({s.year}), [{s.paper}](https://arxiv.org/abs/{s.paper})",
                s.essence + ("" if s.rl else " (no reinforcement learning)"),
                " ".join(s.tags),
                system_state(s, rows),
                judged(rows.get(s.slug)),
            )
            for s in load()
        ],
    )


def claims(root: Path) -> str:
    """Every claim with its arms, and its row where it was measured."""
    from fovea.ledger.claim import claimed

    return "\n".join(f"### {slug}\n\n{claim(root, slug)}\n" for slug in claimed())


def claim(root: Path, slug: str) -> str:
    """One claim as of a page in docs/."""
    from fovea.ledger.claim import read as read_claim
    from fovea.ledger.reproduce import metric_name

    _, said, _ = read_claim(slug)
    than = f"as good as `{said.baseline}` within" if said.test == "as good as" else f"{said.direction} than `{said.baseline}` by at least"
    out = [said.says, ""]
    out += [f"Expected: {metric_name(said)} of `{said.method}` {than} {said.margin:g}, {said.seeds} seeds. Tuning: {said.tuning}.", ""]
    row = ledger_rows(root).get(slug)
    if row is None:
        return "\n".join([*out, f"Not measured yet: `fovea reproduce {slug}`."])
    arms = [(f"`{a}`", ", ".join(f"{v:.3f}" for v in x["values"]), outcome_of(x, a, row)) for a, x in row["arms"].items()]
    out += [table(("arm", "every seed", f"less `{row['baseline']}`, 95 %"), arms), ""]
    out += [f"Control {row['control']}; effect {outcome_of(row)}: **{row['verdict']}**. {len(row['trials'])} counted.", ""]
    out += [*(f"* {note}" for note in row["notes"]), origin(f"../{LEDGER}/{slug}.json", row)]
    if (root / f"docs/images/ledger/{slug}.svg").is_file():
        out += ["", f"![{slug}: every arm over training and at its end](images/ledger/{slug}.svg)"]
    return "\n".join(out)


def outcome_of(row: Mapping[str, Any], name: str = "", whole: Mapping[str, Any] | None = None) -> str:
    from fovea.ledger.rows import outcome

    return "" if whole and name == whole["baseline"] else outcome(row)


def records() -> str:
    from fovea.systems import load, to_table

    return to_table(load())


def learning_tests(root: Path) -> dict[str, list[str]]:
    """Method -> what it is shown to train, read from the parameters of the tests in tests/learns (control arms left out)."""
    from fovea.methods import METHODS

    out: dict[str, list[str]] = {}
    for file in sorted((root / "tests" / "learns").glob("test_*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        named = {
            node.targets[0].id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Tuple)
        }
        for test in (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")):
            kind = next((text for key, text in LEARNERS.items() if key in test.name), None)
            if kind is None:
                continue
            for node in (n for mark in test.decorator_list for n in _cases(mark, named)):
                if isinstance(node, ast.Constant) and node.value in METHODS and kind not in out.setdefault(str(node.value), []):
                    out[str(node.value)].append(kind)
    return out


def _cases(mark: ast.expr, named: Mapping[str, ast.Tuple]) -> list[ast.AST]:
    """The constants in a decorator, names of module-level tuples resolved; a tuple that ends in True is a control arm."""
    found: list[ast.AST] = []
    stack: list[ast.AST] = [mark]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Tuple) and node.elts and isinstance(node.elts[-1], ast.Constant) and node.elts[-1].value is True:
            continue
        found.append(node)
        stack += [named[node.id]] if isinstance(node, ast.Name) and node.id in named else list(ast.iter_child_nodes(node))
    return found


def worked_numbers(root: Path) -> set[str]:
    """Methods that tests in tests/methods make and compare with numbers: the tests of defaults and of refused values do not count."""
    from fovea.methods import METHODS

    made: set[str] = set()
    for file in sorted((root / "tests" / "methods").glob("test_*.py")):
        for part in ast.parse(file.read_text(encoding="utf-8")).body:
            if not re.search("default|refused", getattr(part, "name", "")):
                made |= {n.func.id for n in ast.walk(part) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    return {name for name, place in METHODS.items() if place.rpartition(":")[2] in made}


def support(root: Path) -> str:
    """Families by features, from the file that the tests write."""
    from fovea.policies.families import FAMILIES
    from fovea.support import FEATURES, read

    found = read([root / SUPPORT])
    return table(("family", *FEATURES.values()), [(family.title, *found[name].values()) for name, family in FAMILIES.items()])


# -- tables from the code -------------------------------------------------------------------------------------------------------


def header(name: str) -> list[str]:
    """The lines of a method file's docstring."""
    from fovea.methods import METHODS

    return inspect.cleandoc(importlib.import_module(METHODS[name].partition(":")[0]).__doc__ or "").split("\n")


def method_pages() -> str:
    from fovea import methods

    out = []
    for name in methods.METHODS:
        first, *rest = header(name)
        title, text = f"{first.partition(' — ')[0].partition(' (')[0]}: `{name}`", "\n".join(rest).strip()
        defaults = ", ".join(f"{f.name} {getattr(methods.get(name)(), f.name)!r}" for f in fields(methods.get(name)))
        out += [f"### {title}", "", "```text", first, "", text, "```", "", f"Fields and defaults: {defaults}.", ""]
    return "\n".join(out)


def reliability(root: Path) -> str:
    """What the sweep of kills, the cost of the books and the bad input came to."""
    lines = []
    if (root / RESUME).is_file():
        r = json.loads((root / RESUME).read_text(encoding="utf-8"))
        counts = [", ".join(f"{name} {n}" for name, n in r[key].items()) for key in ("by_signal", "by_phase")]
        lines += [
            f"**{r['equal']} of {r['kills']} kills** of {r['steps']}-step runs ended equal ({r['runs']} runs, each killed several times; "
            f"{counts[0]}; during {counts[1]}).",
            f"`{r['command']}`, commit {r['commit'][:10]}, {r['hardware']['cpu']}.",
        ]
    if (root / OVERHEAD).is_file():
        o = json.loads((root / OVERHEAD).read_text(encoding="utf-8"))
        parts = ", ".join(f"{name} {part['fraction']:.2%}" for name, part in o["parts"].items())
        lines += [
            "",
            f"Logging, rollouts, checkpoints and the report take **{o['fraction']:.1%}** of a run of the default recipe ({parts}).",
            f"`{o['command']}`, commit {o['commit'][:10]}, {o['hardware']['cpu']}.",
        ]
    if (root / FUZZ).is_file():
        f = json.loads((root / FUZZ).read_text(encoding="utf-8"))
        readers = f["families"].values()
        covered = [r["branch_coverage"] for r in readers if "branch_coverage" in r]
        lines += [
            "",
            f"**{sum(r['crashes'] for r in readers)} crashes in {sum(r['inputs'] for r in readers):,} inputs**, generated or damaged, to "
            f"{len(readers)} families of readers ({', '.join(f['families'])}); branches covered: {min(covered):.0%} to {max(covered):.0%}.",
            f"`{f['command']}`, each family at the commit in its entry, {f['hardware']}.",
        ]
    return "\n".join(lines).strip() or NOT_YET


def recipe_fields() -> str:
    from fovea.recipe import Recipe

    default = Recipe().to_json()
    text = inspect.cleandoc(Recipe.__doc__ or "").split("Attributes:")[1]
    rows = []
    for names, says in re.findall(r"^\s+([a-z_, ]+): (.+(?:\n {4,}.+)*)", text, re.MULTILINE):
        for name in names.split(", "):
            value = default[name] if not isinstance(default[name], dict) else f"{default[name]['type']}()"
            rows.append((f"`{name}`", f"`{json.dumps(value, ensure_ascii=False)}`", " ".join(says.split())))
    missing = {f.name for f in fields(Recipe)} - {row[0].strip("`") for row in rows}
    if missing:
        raise ValueError(f"fovea.recipe.Recipe: no line in the docstring for {', '.join(sorted(missing))}")
    return table(("field", "default", "meaning"), rows)


def verifier_table() -> str:
    from fovea.verifiers import VERIFIERS

    rows = []
    for name, factory in VERIFIERS.items():
        given = ", ".join(
            p.name + ("" if p.default is p.empty else f"={p.default!r}") for p in inspect.signature(factory).parameters.values()
        )
        rows.append((f"`{name}`", f"`{given}`" if given else "", first_sentences(factory)))
    return table(("name", "parameters", "verdict"), rows)


def first_sentences(thing: Any) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join(inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0].split())


def column_table() -> str:
    from fovea.tasks.load import GUESSES

    return table(("field", "column names that are taken for it, the first that is there"), [(f, ", ".join(g)) for f, g in GUESSES.items()])


def world_table() -> str:
    from fovea.tasks.worlds import FAMILIES

    return table(("family", "question"), [(f"`{f.name}`", f.doc) for f in FAMILIES.values()])


def metric_table() -> str:
    from fovea.report.metrics import GLOSSARY

    families: dict[str, list[tuple[str, str]]] = {}
    for name, text in GLOSSARY.items():
        families.setdefault(name.partition("/")[0], []).append((f"`{name}`", text))
    return "\n\n".join(f"## {family}\n\n{table(('metric', 'meaning'), rows)}" for family, rows in families.items())


if __name__ == "__main__":
    sys.exit(main())
