"""Environment steps per second of MiniWoB++ with four browsers against one, and against what two cores allow.

    python benchmarks/speed/browsers.py                  measures and writes benchmarks/speed/browsers.json

A step is a reset or a click after which the episode goes on: both end with a screenshot. Policies are left out: all replies click where
nothing is. The bound is measured first: as many processes as there are cores (--cores), each on a core of its own, all at once, with one
browser each and then with two (one alone waits for its frames); the better of both is what the cores can do without anything in common.
Then this process plays with one browser and with four, on all of these cores, in turn (--rounds). Goal: four browsers reach 0.8 of the
bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from fovea.envs.browser import browsers
from fovea.envs.miniwob import MiniWob
from fovea.files import write_json
from fovea.report.run import surroundings
from fovea.types import Action, Task

PAGES = ("click-test-2", "click-button", "click-dialog", "click-tab", "click-color")
TURNS = 5
GATE = "FOVEA_BENCH_GATE"  # set for the processes of the bound


async def play(limit: int, seconds: float) -> tuple[int, float]:
    """(steps and resets, seconds) of `limit` browsers, each of which has seen every page before the clock starts."""
    done, ends = 0, 0.0

    async def player(i: int) -> None:
        nonlocal done
        env = MiniWob(view="area", max_turns=TURNS, browsers=limit)
        for n, page in enumerate(PAGES):
            await env.reset(Task("warm", page, (), meta={"what": page}), n)
        started.release()
        await ready.wait()
        episode = 0
        while time.perf_counter() < ends:
            page = PAGES[(i + episode) % len(PAGES)]
            await env.reset(Task("t", page, (), meta={"what": page}), episode)
            done, episode = done + 1, episode + 1
            for _ in range(TURNS - 1):
                if time.perf_counter() >= ends:
                    break
                _, _, terminated, _, _ = await env.step(Action("click(1,159)"))
                done += 1
                if terminated:
                    break
        env.close()

    ready, started = asyncio.Event(), asyncio.Semaphore(0)
    players = [asyncio.ensure_future(player(i)) for i in range(limit)]
    for _ in players:
        await started.acquire()
    wait_for_others()
    begun = time.perf_counter()
    ends = begun + seconds
    ready.set()
    await asyncio.gather(*players)
    return done, time.perf_counter() - begun


def wait_for_others() -> None:
    """As one of several processes: say that its pages are there, and wait until all are."""
    if os.environ.get(GATE):
        print("ready", flush=True)
        sys.stdin.readline()


def apart(cores: list[int], seconds: float, limit: int) -> float:
    """Steps per second of one process with `limit` browsers on each core, all at once."""
    command = [sys.executable, __file__, "--alone", str(limit), "--seconds", str(seconds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": {**os.environ, GATE: "1"}}
    made = [subprocess.Popen(["taskset", "-c", str(core), *command], **pipes) for core in cores]
    for p in made:
        assert p.stdout is not None and p.stdout.readline() == "ready\n"
    for p in made:
        assert p.stdin is not None
        p.stdin.write("go\n")
        p.stdin.flush()
    return sum(json.loads(p.communicate()[0])["steps_per_s"] for p in made)


def rate(limit: int, seconds: float) -> float:
    done, took = asyncio.run(play(limit, seconds))
    return done / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=sorted(os.sched_getaffinity(0))[:2])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--alone", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps({"steps_per_s": rate(options.alone, options.seconds)}))
        return
    os.sched_setaffinity(0, options.cores)
    rows = []
    for _ in range(options.rounds):
        bound = max(apart(options.cores, options.seconds, limit) for limit in (1, 2))
        row = {"bound": bound, "one": rate(1, options.seconds), "four": rate(4, options.seconds)}
        rows.append({k: round(v, 2) for k, v in row.items()})
        print(rows[-1], flush=True)
    middle = {k: statistics.median(r[k] for r in rows) for k in rows[0]}
    found = {
        "steps_per_s": middle,
        "four_of_bound": round(middle["four"] / middle["bound"], 3),
        "four_of_one": round(middle["four"] / middle["one"], 3),
        "goal": "four_of_bound >= 0.8",
        "rounds": rows,
        "seconds": options.seconds,
        "pages": PAGES,
        "lost": browsers(4).counts["broken"] + browsers(1).counts["broken"],
        "command": ["python", *sys.argv],
        **surroundings(),
    }
    write_json(options.out, found)
    print(json.dumps({k: found[k] for k in ("steps_per_s", "four_of_bound", "four_of_one")}))


if __name__ == "__main__":
    main()
