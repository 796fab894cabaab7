"""Claims and finished runs made by hand."""

from dataclasses import replace

from fovea.ledger import Claim
from fovea.ledger.measures import Finished
from fovea.recipe import Recipe

TINY = Recipe(name="mine", data="worlds:count", steps=4)
CLAIM = Claim(
    says="More is more.",
    arms={"more": {"group_size": 16}, "less": {"group_size": 4}, "random": {"reward": "random"}, "start": {"steps": 0}},
    method="more",
    baseline="less",
    control="random",
    control_against="start",
    margin=0.25,
    control_margin=0.1,
    tuning="none",
    seeds=2,
    tasks=4,
)


def run(correct, lengths=(), entropy=(), accuracy=(0.5,)):
    """A finished run whose held-out answers are right or wrong as in `correct`."""
    lengths = lengths or [10] * len(correct)
    answers = [
        {"task": f"t{i}", "source": "count", "correct": float(c), "length": n, "cut": False, "parts": {"half": c / 2}}
        for i, (c, n) in enumerate(zip(correct, lengths))
    ]
    steps = max(len(entropy), len(accuracy))
    rows = [{"step": float(i + 1)} for i in range(steps)]
    for i, x in enumerate(entropy):
        rows[i]["policy/entropy"] = x
    for i, x in enumerate(accuracy):
        rows[i]["accuracy/mean"] = x
    return Finished(rows, answers)


def results(more=((1, 1, 1, 0), (1, 1, 0, 1)), less=((0, 1, 0, 0), (0, 0, 0, 1)), random=((0, 1, 0, 0),) * 2, start=((0, 1, 0, 0),) * 2):
    arms = {"more": more, "less": less, "random": random, "start": start}
    return {a: {s: run(c) for s, c in enumerate(seeds)} for a, seeds in arms.items() if seeds}


def claim(**changes):
    return replace(CLAIM, **changes)
