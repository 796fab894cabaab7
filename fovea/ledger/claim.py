"""A claim: what a system should bring, against what, measured how, by how much; written before it is run."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fovea import starts
from fovea.ledger.measures import Accuracy, Finished
from fovea.systems import module_name

if TYPE_CHECKING:
    from fovea.recipe import Recipe

Metric = Callable[[Finished], Mapping[str, float] | float]
OWN_KEYS = ("recipe", "seconds_of")  # of an arm, beside the fields of a recipe
TEXT = ("says", "notes", "curve")  # fields of a claim that change no result and no verdict


@dataclass(frozen=True)
class Claim:
    """What should come out when a system is compared with its baseline.

    An arm is a set of changes to the recipe `tiny` in the claim's file, named as in `Recipe.replace`: ``{"method": "rloo",
    "method__beta": 0.01}``. Two keys more: ``"recipe"`` starts from another recipe by name; ``"seconds_of"`` names an arm whose training
    seconds, seed by seed, are this arm's time limit (equal compute).

    Attributes:
      says: the claim in one sentence.
      arms: name -> changes. Method, baseline, negative control, and whatever ablations are worth a look.
      method, baseline: the two arms of the claim; the effect is method less baseline.
      control: the arm that must not bring the effect. control_against: the arm it is compared with; "" is the baseline.
      metric: from a finished run to one number per held-out task, or to one number.
      direction: "more" or "less": which way the method should differ, or, for "as good as", which way is better.
      test: "better": the effect must reach `margin`; "as good as": the method may be worse by less than `margin`.
      margin: in the metric's unit, above 0. control_margin: what the control must stay below; 0 is the same.
      condition: (metric, arm, lowest value): what must hold on average for the claim to have been tested at all.
      seeds: evaluation seeds 0 to seeds − 1; tuning uses others, from 100 on.
      tasks: held-out tasks each finished run answers, at `temperature` (0 is greedy).
      max_unscored: share of a run's held-out answers that may fail to be scored; above it there is no verdict.
      measured: changes to the recipe while it answers them. Before these, every arm gets the data and reward of `tiny`, so that all arms
        answer the same tasks and are judged alike; its program, environment and sampling stay its own.
      examine: called with the finished policy and the recipe that it is measured by; the numbers that it gives are `Finished.found`, by
        name, and stand in the row beside the metric.
      tuning: what was tried before, the same for every arm: settings and seeds.
      minutes: the time budget of one arm and seed.
      curve: the column of metrics.jsonl that the plot shows over training.
      notes: what was tried, kept with rows that fell short.
    """

    says: str
    arms: Mapping[str, Mapping[str, Any]]
    method: str
    baseline: str
    control: str
    margin: float
    tuning: str
    control_against: str = ""
    control_margin: float = 0.0
    metric: Metric = field(default_factory=Accuracy)
    direction: Literal["more", "less"] = "more"
    test: Literal["better", "as good as"] = "better"
    condition: tuple[Metric, str, float] | None = None
    seeds: int = 5
    tasks: int = 600
    temperature: float = 0.0
    max_unscored: float = 0.01
    measured: Mapping[str, Any] = field(default_factory=dict)
    examine: Callable[[Any, Recipe], Mapping[str, float]] | None = None
    minutes: float = 3.0
    curve: str = "accuracy/mean"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        named = {"method": self.method, "baseline": self.baseline, "control": self.control, "control_against": self.against}
        named |= {f"seconds_of of {a}": c["seconds_of"] for a, c in self.arms.items() if "seconds_of" in c}
        named |= {"condition": self.condition[1]} if self.condition else {}
        problems = [f"{k} is {v!r}, expected one of the arms {', '.join(self.arms)}" for k, v in named.items() if v not in self.arms]
        problems += [f"arm {a!r}: expected a name of letters, digits and _" for a in self.arms if not re.fullmatch(r"[A-Za-z0-9_]+", a)]
        problems += [
            f"arm {a!r} takes the seconds of an arm that itself waits for another"
            for a, c in self.arms.items()
            if "seconds_of" in self.arms.get(c.get("seconds_of", ""), {})
        ]
        problems += ["method and baseline are the same arm"] if self.method == self.baseline else []
        problems += [] if self.margin > 0 else [f"margin is {self.margin}, expected a number above 0"]
        problems += [] if self.control_margin >= 0 else [f"control_margin is {self.control_margin}, expected 0 or more"]
        problems += [] if 0 <= self.max_unscored < 1 else [f"max_unscored is {self.max_unscored}, expected a fraction below 1"]
        problems += [] if self.seeds >= 1 and self.tasks >= 1 else ["expected at least one seed and one held-out task"]
        if problems:
            raise ValueError("claim: " + "; ".join(problems))

    @property
    def against(self) -> str:
        return self.control_against or self.baseline

    @property
    def sign(self) -> int:
        return 1 if self.direction == "more" else -1


def read(slug: str) -> tuple[Recipe, Claim, Path]:
    """The recipe `tiny`, the claim and the file of a system.

    Args:
      slug: the name of a file in fovea/recipes, or a path to a Python file that has `tiny` and `CLAIM`.
    Raises:
      ValueError: no such system, or it has no claim (yet).
    """
    if slug.endswith(".py"):
        from fovea.checks import load_object

        return load_object(f"{slug}:tiny"), load_object(f"{slug}:CLAIM"), Path(slug).resolve()
    from fovea import recipes

    recipe = recipes.get(slug)
    module = importlib.import_module(f"fovea.recipes.{module_name(slug)}")
    if not hasattr(module, "CLAIM"):
        raise ValueError(f"{slug} claims nothing yet; expected CLAIM in {module.__file__}. With a claim: {', '.join(claimed())}")
    return recipe, module.CLAIM, Path(str(module.__file__))


def claimed() -> list[str]:
    """The slugs of all recipe files with a claim."""
    from fovea import recipes

    return [s for s in recipes.slugs() if hasattr(importlib.import_module(f"fovea.recipes.{module_name(s)}"), "CLAIM")]


# -- arms and hashes ------------------------------------------------------------------------------------------------------------


def arm_recipe(tiny: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe of an arm; `changes` as in `Claim`.

    Raises:
      ValueError: a name that is no field, with the nearest one.
    """
    from fovea import recipes

    base = recipes.get(changes["recipe"]) if "recipe" in changes else tiny
    return base.replace(**{k: v for k, v in changes.items() if k not in OWN_KEYS})


def measured_recipe(tiny: Recipe, claim: Claim, run: Recipe) -> Recipe:
    """How a finished run of an arm answers the held-out tasks."""
    return run.replace(**{"data": tiny.data, "heldout": tiny.heldout, "reward": tiny.reward, **claim.measured})


def settings(recipe: Recipe) -> dict[str, Any]:
    """What decides a run's numbers: every field that is not its type's default, seed left out.

    Only what differs from the defaults counts, so that a new field of a recipe or method does not make old rows stale.
    """
    from fovea.recipe import RUNNING, Recipe, plain

    def differs(thing: Any, default: Any) -> dict[str, Any]:
        return {f.name: getattr(thing, f.name) for f in fields(thing) if getattr(thing, f.name) != getattr(default, f.name)}

    found = {k: v for k, v in differs(recipe, Recipe()).items() if k not in RUNNING | {"seed", "method", "sampling"}}
    method = recipe.method
    found["method"] = {"type": type(method).__name__, **differs(method, type(method)())}
    if (start := starts.recipe(recipe.model)) is not None:
        found["start"] = {"seed": start.seed, **settings(start)}
    return plain({**found, "sampling": differs(recipe.sampling, type(recipe.sampling)())})


def arms_hash(tiny: Recipe, claim: Claim) -> str:
    """Hash of all that a row depends on: every arm's settings, the metric, the rule of the verdict."""
    from fovea.recipe import plain

    absent = {"arms"} if claim.examine else {"arms", "examine"}
    rest = {f.name: plain(getattr(claim, f.name)) for f in fields(claim) if f.name not in (*TEXT, *absent)}
    arms = {a: {**settings(arm_recipe(tiny, c)), **{k: c[k] for k in OWN_KEYS[1:] if k in c}} for a, c in claim.arms.items()}
    rest["measured"] = settings(measured_recipe(tiny, claim, tiny))
    return digest({**rest, "arms": arms})


def digest(value: Any) -> str:
    """Sixteen hexadecimal digits over plain JSON."""
    text = json.dumps(value, sort_keys=True)
    # modules of users' files carry a number that changes from process to process
    text = re.sub(r"\bfovea_user_(\w+)_\d+:", r"\1:", text)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
