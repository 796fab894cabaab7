"""Recipes of people who take over: arms differ by what they say, held-out episodes are the policy's own, the real ones build."""

import pytest

from fovea import api, recipes
from fovea.ledger.claim import arm_recipe, read


@pytest.mark.parametrize("slug", ["hil-serl", "rlif"])
def test_arms_and_real_recipes_build_and_nobody_helps_where_it_counts(slug):
    tiny, claim, _ = read(slug)
    arms = {a: arm_recipe(tiny, changes) for a, changes in claim.arms.items()}
    assert arms[claim.method] == tiny and arms[claim.control].method == tiny.method
    assert arms["hg_dagger"].data == tiny.data and arms["hg_dagger"].replay.share == 1.0
    for recipe in (*arms.values(), recipes.get(f"{slug}:real")):
        _, heldout = api.build_sources(recipe)
        assert heldout.around == () and heldout.kwargs == recipe.data.kwargs
        assert type(recipe.data.around[-1]).__name__ in ("Astray", "ByValue", "ByTurns"), "who watches is the outermost"
    real = recipes.get(f"{slug}:real")
    assert type(real.method) is type(tiny.method) and real.data.make == tiny.data.make and real.replay.share == tiny.replay.share


def test_the_control_of_hil_serl_has_neither_demonstrations_nor_corrections():
    tiny, claim, _ = read("hil-serl")
    alone = arm_recipe(tiny, claim.arms["alone"])
    assert alone.replay.demonstrations == 0 == alone.replay.share and alone.data.around[-1].chance == 0
    assert alone.data.around[0] == tiny.data.around[0], "the learned reward stays"
