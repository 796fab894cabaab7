import pytest

from fovea.ledger import Accuracy, Claim, Last, Length, Part
from fovea.ledger.claim import arm_recipe, arms_hash, claimed, digest, measured_recipe, read, settings
from fovea.ledger.runs import plan, run_key
from fovea.recipe import Recipe
from tests.ledger.claims import CLAIM, TINY, claim, run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "mor"}, "method is 'mor', expected one of the arms more, less"),
        ({"control_against": "stat"}, "control_against is 'stat'"),
        ({"baseline": "more"}, "method and baseline are the same arm"),
        ({"margin": 0.0}, "margin is 0.0, expected a number above 0"),
        ({"control_margin": -1.0}, "control_margin is -1.0"),
        ({"seeds": 0}, "at least one seed"),
        ({"condition": (Accuracy(), "none", 0.5)}, "condition is 'none'"),
        ({"arms": {**CLAIM.arms, "a b": {}}}, "arm 'a b'"),
        ({"arms": {**CLAIM.arms, "sft": {"seconds_of": "grpo"}}}, "seconds_of of sft is 'grpo'"),
        ({"arms": {**CLAIM.arms, "a": {"seconds_of": "b"}, "b": {"seconds_of": "more"}}}, "itself waits for another"),
    ],
)
def test_impossible_claims_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        claim(**change)


def test_an_arm_is_the_recipe_with_its_changes():
    recipe = arm_recipe(TINY, {"method": "rloo", "method__beta": 0.1, "seconds_of": "more"})
    assert (type(recipe.method).__name__, recipe.method.beta, recipe.data) == ("RLOO", 0.1, "worlds:count")
    assert type(arm_recipe(TINY, {"recipe": "sft", "steps": 7}).method).__name__ == "SFT"
    with pytest.raises(ValueError, match="did you mean 'group_size'"):
        arm_recipe(TINY, {"grop_size": 2})


def test_every_arm_is_measured_alike():
    arm = arm_recipe(TINY, {"reward": "random", "data": "worlds:odd", "program": "mine.py:two"})
    asked = measured_recipe(TINY, claim(), arm)
    assert (asked.reward, asked.data, asked.program) == (None, "worlds:count", "mine.py:two")
    assert measured_recipe(TINY, claim(measured={"reward": "exact"}), arm).reward == "exact"


def test_settings_are_what_differs_from_the_defaults():
    assert settings(Recipe(seed=3, threads=2, name="x")) == {"method": {"type": "GRPO"}, "sampling": {}}
    found = settings(TINY.replace(method__beta=0.0, sampling__top_p=0.9))
    assert found == {"data": "worlds:count", "steps": 4, "method": {"type": "GRPO", "beta": 0.0}, "sampling": {"top_p": 0.9}}


@pytest.mark.parametrize(
    "change",
    [
        {"margin": 0.2},
        {"direction": "less"},
        {"test": "as good as"},
        {"metric": Length()},
        {"metric": Length(of="wrong")},
        {"seeds": 5},
        {"control": "start"},
        {"tuning": "ten trials"},
        {"measured": {"reward": "exact"}},
        {"condition": (Last("policy/entropy"), "less", 0.5)},
        {"arms": {**CLAIM.arms, "less": {"group_size": 5}}},
        {"arms": {**CLAIM.arms, "sft": {"recipe": "sft"}}},
        {"arms": {**CLAIM.arms, "random": {"reward": "random", "seconds_of": "more"}}},
    ],
)
def test_the_hash_follows_everything_that_decides(change):
    assert arms_hash(TINY, claim(**change)) != arms_hash(TINY, CLAIM)


@pytest.mark.parametrize("change", [{"says": "x"}, {"notes": ("tried more",)}, {"curve": "reward/mean"}])
def test_the_hash_leaves_words_out(change):
    assert arms_hash(TINY, claim(**change)) == arms_hash(TINY, CLAIM)


def test_the_hash_follows_the_recipe_that_arms_change():
    assert arms_hash(TINY.replace(learning_rate=1e-5), CLAIM) != arms_hash(TINY, CLAIM)
    assert arms_hash(TINY.replace(seed=9, log_every=1), CLAIM) == arms_hash(TINY, CLAIM)


def test_runs_have_keys_of_their_own_and_shared_arms_run_once(tmp_path):
    keys = {(a, s): run_key(TINY, CLAIM, a, s) for a in CLAIM.arms for s in (0, 1)}
    assert len(set(keys.values())) == 8
    assert run_key(TINY, claim(margin=0.9, metric=Length()), "more", 0) == keys["more", 0]  # what is asked of a run later does not matter
    assert run_key(TINY, claim(tasks=5), "more", 0) != keys["more", 0] != run_key(TINY, CLAIM, "more", 0, quick=True)
    there = tmp_path / "other" / f"baseline-0-{keys['less', 0]}"
    there.mkdir(parents=True)
    (there / "result.json").write_text("{}")
    folders = {(j.arm, j.seed): j.folder for j in plan("mine", TINY, CLAIM, CLAIM.arms, (0, 1), False, tmp_path)}
    assert folders["less", 0] == there
    assert folders["less", 1] == tmp_path / "mine" / f"less-1-{keys['less', 1]}"


def test_an_arm_of_equal_seconds_depends_on_the_other():
    with_limit = claim(arms={**CLAIM.arms, "sft": {"recipe": "sft", "seconds_of": "more"}})
    other = claim(arms={**with_limit.arms, "more": {"group_size": 2}})
    assert run_key(TINY, with_limit, "sft", 0) != run_key(TINY, other, "sft", 0)


FILE = """
from fovea.ledger import Claim
from fovea.recipe import Recipe

def reward(answer, task):
    return 1.0

tiny = Recipe(name="mine", reward=reward)
CLAIM = Claim(says="s", arms={"a": {}, "b": {"steps": 0}}, method="a", baseline="b", control="b", margin=0.1, tuning="none")
"""


def test_a_file_of_ones_own_has_the_same_hash_in_every_process(tmp_path):
    (tmp_path / "my_claim.py").write_text(FILE)
    tiny, found, file = read(str(tmp_path / "my_claim.py"))
    assert file == tmp_path / "my_claim.py"
    before = arms_hash(tiny, found)
    tiny.reward.__module__ = "fovea_user_my_claim_123"  # the number depends on the process
    assert arms_hash(tiny, found) == before
    tiny.reward.__module__ = "fovea_user_other_123"
    assert arms_hash(tiny, found) != before
    assert digest("fovea_user_a_1:f") == digest("fovea_user_a_22:f") != digest("fovea_user_b_1:f")


def test_a_system_without_a_claim_is_named():
    with pytest.raises(ValueError, match=r"rloo claims nothing yet; expected CLAIM in .*rloo.py"):
        read("rloo")
    with pytest.raises(ValueError, match="no recipe 'grop', did you mean 'grpo'"):
        read("grop")


def test_the_claims_there_are():
    assert {"grpo", "dapo", "dr_grpo", "clip_higher"} <= set(claimed())
    for slug in claimed():
        tiny, found, _ = read(slug)
        assert isinstance(found, Claim) and found.seeds >= 5
        for changes in found.arms.values():
            arm_recipe(tiny, changes)


def test_measures_by_hand():
    found = run([1, 0, 0.2], lengths=[4, 6, 8], entropy=[4.0, 2.0, 1.0])
    assert Accuracy()(found) == {"t0": 1, "t1": 0, "t2": 0.2}
    assert Accuracy(sources=("other",))(found) == {}
    assert Length()(found) == {"t0": 4, "t1": 6, "t2": 8}
    assert Length(of="wrong")(found) == {"t1": 6, "t2": 8}
    assert Length(of="right")(found) == {"t0": 4}
    assert Part("half")(found) == {"t0": 0.5, "t1": 0, "t2": 0.1}
    with pytest.raises(ValueError, match="no held-out answer has the part 'whole'; their parts are half"):
        Part("whole")(found)
    with pytest.raises(ValueError, match="has the part 'half'; their parts are none"):
        Part("half", sources=("other",))(found)
    assert Last("policy/entropy", steps=2)(found) == 1.5
    with pytest.raises(ValueError, match="no step of the run has 'policy/kl'; its metrics are policy/entropy, step"):
        found.column("policy/kl")
    with pytest.raises(ValueError, match="expected all, wrong or right"):
        Length(of="bad")
