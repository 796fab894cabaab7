"""The recipes of Visual Jigsaw build, and differ by size where the method is concerned."""

import dataclasses

import pytest

from fovea import recipes
from fovea.ledger.claim import arm_recipe, arms_hash, measured_recipe, read
from fovea.tasks.jigsaw import Variant
from fovea.types import Context, Episode, Group, Task, Turn, user


def test_tiny_and_real_differ_by_size_and_by_how_pieces_are_shown():
    tiny, real = recipes.get("visual-jigsaw"), recipes.get("visual-jigsaw:real")
    assert dataclasses.asdict(tiny.method) == dataclasses.asdict(real.method)
    assert (real.group_size, real.tasks_per_step, real.learning_rate, real.steps, real.method.beta) == (16, 256, 1e-6, 1000, 0.0)
    small, large = (Variant.read(r.data.removeprefix("jigsaw:").partition("@")[0]) for r in (tiny, real))
    assert (small.kind, small.rows, small.columns) == (large.kind, large.rows, large.columns) == ("tiles", 3, 3) and large.apart
    others = [recipes.get(f"visual-jigsaw:{name}") for name in ("video", "depth")]
    assert [(r.tasks_per_step, r.steps) for r in others] == [(128, 1000), (128, 800)]
    assert all(Variant.read(r.data.removeprefix("jigsaw:").partition("@")[0]).pieces == 6 for r in others)


@pytest.mark.parametrize("slug", ["visual-jigsaw", "visual_jigsaw_transfer", "v-triune"])
def test_every_arm_of_the_claim_is_a_recipe_of_its_own(slug):
    tiny, claim, _ = read(slug)
    arms = {name: arm_recipe(tiny, changes) for name, changes in claim.arms.items()}
    assert len({r.fingerprint() + str(r.steps) for r in arms.values()}) == len(arms)
    assert measured_recipe(tiny, claim, arms[claim.method]).reward is None
    assert arms_hash(tiny, claim) == arms_hash(tiny, claim) and claim.tuning


def test_the_binary_arm_pays_nothing_for_an_order_that_is_right_in_part():
    tiny, claim, _ = read("visual-jigsaw")
    task = Task("t", "test", user("?", images=0), answer=tuple(range(1, 10)), verifier="permutation", params={"tags": ("answer",)})
    group = Group(
        task,
        [Episode(str(i), task, turns=[Turn(f"<answer>{a}</answer>")]) for i, a in enumerate(("1 2 3 4 5 6 7 9 8", "1 2 3 4 5 6 7 8 9"))],
    )
    binary = arm_recipe(tiny, claim.arms[claim.baseline]).reward
    assert [s.value for s in binary.score(group, Context())] == pytest.approx([0.2, 1.2])
