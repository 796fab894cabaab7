"""How soon `fovea view` and `report.html` show a run with 10,000 logged answers, and how fast its browser reacts, in Chromium.

    python benchmarks/speed/view.py                      measures and writes benchmarks/speed/view.json

Every round starts a new server on a run it has not read and a new browser profile. The run is made up: real pictures of the procedural
tasks, invented answers and numbers. Times are the page's own, from the start of the navigation; on a busy machine they hold the waiting,
too. `page_cpu_ms` (the page's main thread until the first answers stand there) and `server_cpu_ms` (the whole process, Python's start
among it) hold none.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fovea import doctor
from fovea.files import write_json
from fovea.report.run import RunFolder, surroundings
from fovea.report.view import save
from fovea.tasks import worlds

REACTION = """async (act) => {
  const choice = document.querySelector("[data-filter=verdict]"), began = performance.now();
  if (act === "filter") {
    choice.value = choice.value ? "" : "wrong";
    choice.dispatchEvent(new Event("change"));
  } else document.dispatchEvent(new KeyboardEvent("keydown", {key: "k", bubbles: true}));
  return performance.now() - began;
}"""


def make(folder: Path, files: int = 250, groups: int = 5, group_size: int = 8, tokens: int = 40, steps: int = 2500) -> int:
    """Write the run; returns the number of answers."""
    rng, run = random.Random(0), RunFolder(folder, tensorboard=False)
    run.describe({"name": "ten thousand", "steps": steps}, ["fovea", "train"])
    names = [f"{family}/n{i}" for family in ("policy", "optim", "batch", "value", "length") for i in range(8)]
    rows = []
    for step in range(1, steps + 1):
        row = {"step": step, "reward/mean": rng.random(), "accuracy/mean": rng.random(), "time/wall_s": float(step)}
        rows.append(json.dumps(row | {name: rng.random() for name in names}) + "\n")
    run.metrics_path.write_text("".join(rows))
    pictures = [worlds.make(family, i) for i in range(20) for family in list(worlds.FAMILIES)[:5]]
    stored = [[run._save_image(image) for image in task.images] for task in pictures]
    for file in range(files):
        step = (file + 1) * steps // files
        lines = []
        for g in range(groups):
            task, images = pictures[(file * groups + g) % len(pictures)], stored[(file * groups + g) % len(pictures)]
            episodes = [episode(rng, tokens) for _ in range(group_size)]
            record = {
                "step": step,
                "task": f"{task.id}/{file}",
                "source": task.source,
                "images": images,
                "answer": task.answer,
                "params": {},
            }
            record |= {"prompt": [{"role": "user", "content": [{"type": "text", "text": "What is in the picture?"}]}], "verifier": "exact"}
            lines.append(json.dumps({**record, "episodes": episodes}) + "\n")
        (run.rollouts_path / f"step-{step:06d}.jsonl").write_text("".join(lines))
    return files * groups * group_size


def episode(rng: random.Random, tokens: int) -> dict[str, Any]:
    right = rng.random() < 0.6
    said = [f"w{rng.randrange(999)} " for _ in range(tokens)]
    segment = {
        "tokens": said,
        "mask": [1] * tokens,
        "logp": [round(-rng.random(), 4) for _ in said],
        "adv": [0.5] * tokens,
        "units": tokens,
    }
    out = {"id": "e", "role": "sample", "text": "".join(said), "stop": "eos", "error": "", "length": tokens, "score": float(right)}
    return out | {"parts": {"correct": float(right)}, "correct": right, "reason": "", "turns": [], "segments": [segment]}


def look(driver: Any, address: str) -> dict[str, float]:
    """Times in milliseconds of one opening of the page."""
    browser = driver.chromium.launch(executable_path=doctor.browser(), args=["--no-sandbox", "--disable-gpu"])
    try:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(address)
        page.wait_for_selector("html[data-indexed]", state="attached")
        page.wait_for_selector(".answer", state="attached")
        shown = page.evaluate("performance.now()")
        spent = {m["name"]: m["value"] for m in devtools.send("Performance.getMetrics")["metrics"]}
        return {
            "first_paint_ms": page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"),
            "curves_ms": float(page.evaluate("document.documentElement.dataset.painted")),
            "answers_ms": shown,
            "page_cpu_ms": 1000 * spent["TaskDuration"],
            "answers": float(page.inner_text("#rollouts > .count b").replace(",", "")),
            "filter_ms": statistics.median(page.evaluate(REACTION, "filter") for _ in range(9)),
            "next_ms": statistics.median(page.evaluate(REACTION, "next") for _ in range(9)),
        }
    finally:
        browser.close()


def served(driver: Any, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "fovea", "view", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        seen = look(driver, server.stdout.readline().split()[-1])
        ticks = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return seen | {"server_cpu_ms": 1000 * sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")}
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        folder = Path(name) / "run"
        episodes = make(folder)
        began = time.perf_counter()
        file = save([folder], folder / "report.html")
        written_s = time.perf_counter() - began
        rows: dict[str, list[dict[str, float]]] = {"fovea view": [], "report.html": []}
        for _ in range(options.rounds):
            rows["fovea view"].append(served(driver, folder))
            rows["report.html"].append(look(driver, file.as_uri()))
        size = file.stat().st_size
        megabytes = sum(f.stat().st_size for f in folder.rglob("*.jsonl")) / 1e6
    found = {
        "episodes": episodes,
        "log_mb": round(megabytes, 1),
        "rounds": options.rounds,
        "median": {form: {k: round(statistics.median(r[k] for r in seen), 1) for k in seen[0]} for form, seen in rows.items()},
        "worst": {form: {k: round(max(r[k] for r in seen), 1) for k in seen[0]} for form, seen in rows.items()},
        "report": {"bytes": size, "write_s": round(written_s, 2)},
        "goal": {"fovea view": {"first_paint_ms": 2000}},
        "load": os.getloadavg()[0],
        "command": "python benchmarks/speed/view.py",
        "hardware": {k: surroundings()[k] for k in ("processor", "cores")},
        "commit": surroundings()["commit"],
    }
    write_json(Path(options.out), found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
