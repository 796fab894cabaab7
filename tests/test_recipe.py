"""What decides a run stands in its recipe's fingerprint."""

from fovea.recipe import Recipe, completed, plain
from fovea.rollout.sampling import Sampling
from fovea.verifiers import build


def test_verifiers_made_with_other_numbers_are_other_rewards():
    made = [("number", {"tolerance": 1}), ("number", {"tolerance": 2}), ("detection", {"reward": "map"}), ("detection", {"reward": "ap50"})]
    first, again = ([Recipe(reward=build(*spec)).fingerprint() for spec in made] for _ in range(2))
    assert len(set(first)) == len(made)
    assert first == again


def test_functions_without_surroundings_appear_by_name_and_recursive_ones_end():
    def plainly(answer, task):
        return 1.0

    def counted(n):
        return 0 if n == 0 else counted(n - 1)

    name = f"{__name__}:{test_functions_without_surroundings_appear_by_name_and_recursive_ones_end.__qualname__}"
    assert plain(plainly) == f"{name}.<locals>.plainly"
    assert plain(counted) == f"{name}.<locals>.counted"


def test_an_empty_cell_is_no_error():
    def uses():
        return later

    assert plain(uses) == plain(uses)
    later = 3
    assert plain(uses)["later"] == later


def test_what_was_written_before_a_field_existed_had_its_default():
    recipe = Recipe(sampling=Sampling(temperature=0.5))
    now = {"type": "Recipe", **recipe.to_json()}
    then = {k: v for k, v in now.items() if k != "curation"}
    then["sampling"] = {k: v for k, v in now["sampling"].items() if k != "top_p"}
    then["replay"] = {k: v for k, v in now["replay"].items() if k != "share"}
    assert completed(then, recipe) == now
    assert completed(then, recipe.replace(sampling__top_p=0.9))["sampling"]["top_p"] == 1.0
    assert completed({**then, "gone": 1}, recipe) == {**now, "gone": 1}
    assert completed({**then, "sampling": {"type": "Other"}}, recipe)["sampling"] == {"type": "Other"}
