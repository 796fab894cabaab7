"""The recipes of V-Triune build, and the arms of its claim change the threshold of boxes alone."""

import dataclasses

from fovea import recipes
from fovea.ledger.claim import arm_recipe, read
from fovea.tasks.triune import KINDS, Triune
from fovea.types import Context, Episode, Group, Turn


def test_tiny_has_all_eight_kinds_and_real_the_papers_sizes():
    tiny, real = recipes.get("v-triune"), recipes.get("v-triune:real")
    assert tiny.data == "triune" and len(KINDS) == 8
    assert dataclasses.asdict(tiny.method) == dataclasses.asdict(real.method)
    assert (real.tasks_per_step, real.group_size, real.learning_rate, real.freeze) == (1024, 8, 1e-6, ("tower", "projector"))
    assert (real.method.beta, real.method.eps_lo, real.method.eps_hi, real.method.aggregation) == (0.0, 0.2, 0.28, "token-mean")
    assert real.verifier_processes > 0


def test_arms_differ_in_what_a_box_must_reach():
    tiny, claim, _ = read("v-triune")
    task = Triune(("grounding",))[0]
    x1, y1, x2, y2 = task.answer
    group = Group(task, [Episode("e", task, turns=[Turn(f"<answer>{x1} {y1} {x2} {y2 - 5}</answer>")])])  # IoU about 0.62

    def paid(arm, step):
        return arm_recipe(tiny, claim.arms[arm]).reward["grounding"].score(group, Context(step, 120))[0].parts["accuracy"]

    assert [paid("dynamic", step) for step in (0, 20, 40)] == [1.0, 1.0, 0.0]
    assert [paid(arm, 50) for arm in ("loose", "middle", "strict")] == [1.0, 1.0, 0.0]
