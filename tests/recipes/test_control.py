"""Recipes of simulators: their arms build, and the control differs from the method by looking ahead alone."""

import pytest

from fovea import recipes
from fovea.ledger.claim import arm_recipe, read
from fovea.ledger.measures import Finished
from fovea.trainer.off_policy import spare

CLAIMED = ("sac", "dqn", "ppo_control")


@pytest.mark.parametrize("slug", CLAIMED)
def test_the_control_looks_one_step_ahead_and_is_otherwise_the_method(slug):
    tiny, claim, _ = read(slug)
    arms = {a: arm_recipe(tiny, changes) for a, changes in claim.arms.items()}
    assert arms["myopic"].method.gamma == 0 and arms["myopic"].replace(method=tiny.method) == tiny == arms[slug]
    assert arms["start"].steps == 0 and arms["start"].replace(steps=tiny.steps) == tiny
    assert claim.metric(Finished([], [{"task": "a", "correct": -3.5}])) == {"a": -3.5}


@pytest.mark.parametrize("slug", ("sac", "td3", "dqn"))
def test_the_frames_to_spare_are_few_beside_those_that_are_kept(slug):
    recipe = recipes.get(slug)
    units = recipe.max_rows * recipe.horizon
    assert recipe.replay.start < recipe.steps * units / 4, "most of the run learns"
    assert spare(recipe.replace(checkpoint_every=1)) * recipe.max_rows < 0.1 * recipe.replay.size
