import pytest

from fovea import recipes
from fovea.ledger.claim import arm_recipe
from fovea.ledger.runs import run_key
from fovea.recipes.vision_r1_criterion import CLAIM, LOW, criterion, real, tiny
from fovea.types import Context, Episode, Group, Task, Turn, user
from fovea.verifiers import resolve

GOLD = [{"label": "a", "bbox_2d": [0, 0, 10, 10]}, {"label": "a", "bbox_2d": [20, 0, 30, 10]}]
SAID = "<answer>a 0 0 10 7, a 20 0 30 4</answer>"  # GIoU .7 and .4


def value(reward, step):
    task = Task("t", "ovd", user("Where?", 0), answer=GOLD, verifier="detection")
    episode = Episode("e", task, turns=[Turn(SAID)])
    return resolve(task, reward).score(Group(task, [episode]), Context(step=step, total_steps=100))[0].value


def test_the_reward_of_each_arm_over_a_run():
    by_arm = {arm: arm_recipe(tiny, c).reward for arm, c in CLAIM.arms.items() if arm != "random"}
    at = {arm: [value(reward, step) for step in (0, 49, 50, 99)] for arm, reward in by_arm.items()}
    early, late = 1 + 1 + (1 + 0.4) / 2, 1 + 0.5 + 0.7 / 2
    assert at["progressive"] == at["published"] == pytest.approx([early, early, late, late])
    assert at["fixed"] == pytest.approx([early] * 4)
    assert at["strict"] == pytest.approx([late] * 4)
    assert at["precision_only"] == pytest.approx([0.7] * 4)


def test_the_recipes_differ_in_size_only():
    assert recipes.get("vision-r1-criterion:real") is real
    assert real.reward == criterion() and tiny.reward == criterion(phases=LOW)
    assert real.method == tiny.method
    assert (real.method.beta, real.method.std_eps) == (0.04, 1e-4)
    assert real.group_size == 4
    assert len({run_key(tiny.replace(model="tiny"), CLAIM, arm, 0) for arm in CLAIM.arms}) == len(CLAIM.arms)
