"""Tree search over a teacher's steps: its numbers, its chains, their conversion into turns, and the marks it is used for."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from fovea.envs.zoom import Look
from fovea.tasks.marks import AGAIN, KINDS, LOOKS, Marks, once, scene, where
from fovea.tasks.search import Chain, Node, Rollout, Search, chains, in_turns, tree, ucb
from fovea.tasks.worlds.families import SHAPES
from fovea.types import Action, Context, Episode, Group, Turn
from fovea.verifiers import resolve
from fovea.verifiers.parse import cited_points


def test_ucb_has_the_codes_plus_ones():
    assert ucb(0.5, 8, 2, 2.0) == pytest.approx(0.5 + 2 * math.sqrt(math.log(9) / 3)) == pytest.approx(2.2116, abs=1e-4)
    assert ucb(0.5, 8, 2, 2.0) != pytest.approx(0.5 + 2 * math.sqrt(math.log(8) / 2), abs=0.1)  # the textbook's 2.5393


def test_backing_up_keeps_a_running_mean():
    node = Node()
    for reward in (1.0, 0.0):
        node.back_up(reward)
    assert (node.visits, node.value) == (2, 0.5)


def scripted(*script):
    """A teacher that says these one after the other; it keeps what it was asked."""
    asked, left = [], list(script)

    def continue_(steps, n, final):
        asked.append((steps, n, final))
        return [left.pop(0) for _ in range(n)]

    return continue_, asked


def right(answer):
    return float(answer == "yes")


def test_a_simulation_expands_rolls_out_and_backs_up():
    search = Search(simulations=1, children=2, rollouts=2, max_depth=4, rollout_steps=2)
    continue_, asked = scripted("a (1, 1)", "b <answer>A. yes</answer>", "c <answer>no</answer>", "d (2, 2)", "<answer>yes</answer>")
    root = tree(continue_, right, search)
    left, answer = root.children
    assert asked == [((), 2, False), (("a (1, 1)",), 1, False), (("a (1, 1)",), 1, False), (("a (1, 1)", "d (2, 2)"), 1, True)]
    assert [r.steps for r in left.rollouts] == [("a (1, 1)", "c "), ("a (1, 1)", "d (2, 2)")] and answer.terminal
    assert (root.visits, left.visits, answer.visits) == (3, 2, 1) and (left.value, answer.value) == (0.5, 1.0)
    assert answer.rollouts == [Rollout(("b ",), "yes", 1.0)] and root.value == pytest.approx(2 / 3)


def test_a_simulation_that_ends_at_an_answer_backs_it_up_once_more():
    continue_, asked = scripted("<answer>yes</answer>", "<answer>no</answer>")
    root = tree(continue_, right, Search(simulations=4, children=2))
    assert len(asked) == 1 and root.visits == 2 + 3 and [c.visits for c in root.children] == [4, 1] and root.value == pytest.approx(0.8)


def test_a_child_that_points_where_its_path_was_is_thrown_away_and_nothing_is_added_where_all_do():
    search = Search(simulations=2, children=1, rollouts=1)
    continue_, asked = scripted("a (1, 1)", "<answer>yes</answer>", "again (1,1)")
    root = tree(continue_, right, search)
    assert len(asked) == 3 and root.children[0].children == [] and root.visits == 1


def test_the_deepest_step_must_answer_and_a_teacher_that_does_not_is_wrong():
    continue_, asked = scripted("a (1, 1)", "b (2, 2)")
    root = tree(continue_, right, Search(simulations=1, children=1, rollouts=1, max_depth=2))
    assert asked == [((), 1, False), (("a (1, 1)",), 1, True)]
    assert root.children[0].rollouts[0].answer == "" and root.value == 0.0


@pytest.mark.parametrize("field", ["simulations", "children", "rollouts", "max_depth", "rollout_steps"])
def test_a_search_of_nothing_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} = 0; expected at least 1"):
        Search(**{field: 0})


RIGHT = (0.004, 0.02, 0.1, 0.4, 1.0)
"""How often a guess is right behind so many good steps in a row."""


def bandit(rng):
    """A teacher in a tree of four turns, each good or bad with equal chance, whose one good leaf is always right."""

    def one(steps, final):
        good = next((k for k, s in enumerate(steps) if s.startswith("(0")), len(steps))
        if final or len(steps) == 4:
            return f"<answer>{'yes' if rng.random() < RIGHT[good] else 'no'}</answer>"
        return f"({int(rng.random() < 0.5)}, {len(steps)})"

    return lambda steps, n, final: [one(steps, final) for _ in range(n)]


def test_a_tree_finds_the_right_leaf_more_often_than_as_many_rollouts_of_one_step():
    tree_finds = one_step_finds = 0
    for seed in range(60):
        teacher = bandit(random.Random(seed))
        tree_finds += any(r.reward for node in tree(teacher, right, Search()).all() for r in node.rollouts)
        one_step_finds += any("yes" in teacher(teacher((), 1, False), 1, True)[0] for _ in range(8 * 3 * 2))
    assert tree_finds > 45 and one_step_finds < 35


# -- chains ---------------------------------------------------------------------------------------------------------------------


def test_chains_are_the_right_rollouts_and_the_wrong_ones_that_are_corrected_each_once():
    a, b = (Node(("x (1, 1)",), rollouts=list(r)) for r in ((), ()))
    wrong, good = Rollout(("x (1, 1)", "<think>y (2, 2)</think>"), "no", 0.0), Rollout(("x (1, 1)", "z (3, 3)"), "yes", 1.0)
    a.rollouts, b.rollouts = [wrong, good, good, Rollout(("lost",), "", 0.0)], [wrong]
    found = chains(Node(children=[a, b]), again="No!")
    assert found == [
        Chain("x (1, 1)\nz (3, 3)", "yes"),
        Chain("x (1, 1)\ny (2, 2)\nNo! x (1, 1)\nz (3, 3)", "yes", corrected=True),
    ]
    assert found[0].text == "<think>x (1, 1)\nz (3, 3)</think><answer>yes</answer>"
    assert len(chains(Node(children=[a, b]), most=1)) == 1


def test_a_chain_becomes_turns_with_a_look_for_every_new_place():
    chain = Chain("First a cup (1, 2), then more. And a lid at (3, 4)\nNo! The cup (1, 2) is empty. A spoon (5, 6)! So it is.", "yes")
    assert in_turns(chain, last="so") == (
        "<think>First a cup (1, 2), then more.</think><tool_call>[1, 2]</tool_call>",
        "<think>And a lid at (3, 4)</think><tool_call>[3, 4]</tool_call>",
        "<think>No! The cup (1, 2) is empty. A spoon (5, 6)!</think><tool_call>[5, 6]</tool_call>",
        "<think>so</think><answer>yes</answer>",
    )
    named = in_turns(chain, tool="crop", limit=1)
    assert len(named) == 2 and named[0].endswith('<tool_call>{"name": "crop", "arguments": {"coordinate": [1, 2]}}</tool_call>')


def test_the_first_look_may_come_later_and_nothing_is_lost():
    chain = Chain("a (1, 1). b (2, 2). c (3, 3).", "yes")
    rng = np.random.default_rng(0)
    made = [in_turns(chain, moved=0.5, rng=rng) for _ in range(200)]
    plain = in_turns(chain)
    assert 70 < sum(m != plain for m in made) < 130
    assert {m[0] for m in made if m != plain} == {plain[1]} and all(sorted(m) == sorted(plain) and m[-1] == plain[-1] for m in made)
    assert in_turns(Chain("a (1, 1).", "yes"), moved=1.0, rng=rng)[0].endswith("[1, 1]</tool_call>")


# -- marks ----------------------------------------------------------------------------------------------------------------------


def test_marks_are_their_seeds_and_their_splits_share_no_scene():
    a, b = Marks()[3], Marks()[3]
    assert (a.id, a.answer, a.images[0].tobytes()) == (b.id, b.answer, b.images[0].tobytes())
    assert Marks(seed=1)[3].images[0].tobytes() != a.images[0].tobytes() and Marks().heldout()[3].id == "marks/heldout/0/3"
    assert [Marks(k)[3].answer for k in KINDS] == [a.answer] * len(KINDS)


def test_whoever_sees_no_mark_is_right_in_one_of_five():
    asked = [Marks()[i] for i in range(500)]
    answers = [t.answer for t in asked]
    assert len(set(answers)) == 5 and all(0.14 < answers.count(a) / 500 < 0.26 for a in set(answers))


def test_what_the_searcher_says_earns_the_full_score_and_half_of_it_is_corrected():
    corrected = 0
    for i in range(40):
        turns = Marks("turns")[i]
        said = [t for t in turns.meta["turns"]]
        looks = [c for t in said[:-1] for c in t.split("<find>")[1:]]
        assert 1 <= len(looks) <= LOOKS and f"[{turns.meta['at'][0]}, {turns.meta['at'][1]}]</find>" in looks
        one = Marks("grounded")[i]
        (score,) = resolve(one, "grounded").score(Group(one, [Episode("e", one, turns=[Turn(one.meta["response"])])]), Context())
        assert score.value == 1.0
        corrected += AGAIN in one.meta["response"]
        plain = Marks("plain")[i].meta["response"]
        assert not cited_points(plain) and plain.endswith(f"<answer>{one.answer}</answer>")
    assert 8 < corrected < 32


def test_a_square_is_where_its_point_is_and_its_mark_is_seen_in_a_crop_alone():
    task = Marks()[0]
    x, y = task.meta["at"]
    paper = task.images[0].getpixel((0, 0))
    assert task.images[0].size == (512, 512) and task.images[0].getpixel((8 * (x + 4), 8 * y)) != paper
    marks = {}
    for name in SHAPES:  # the same scene with another mark: few pixels of the picture as shown differ, and by little
        scene = marks_scene(name)
        env = Look(looks=2, side=64, offset=3, crop=64)
        shown = env.reset(replace(task, images=(scene.paint(),)), 0).images[0]
        px, py = where(scene.asked)
        crop = env.step(Action(f"<tool_call>[{px}, {py}]</tool_call>"))[0].images[0]
        marks[name] = [np.asarray(image, np.int64) for image in (shown, crop)]
    for name in SHAPES[1:]:
        seen, near = (np.abs(a - b).max(-1) > 24 for a, b in zip(marks["circle"], marks[name], strict=True))
        assert seen.sum() <= 9 < near.sum() / 3


def test_every_other_task_of_practice_is_what_a_crop_shows():
    whole, part = (Marks("practice")[i] for i in (2, 3))
    assert whole.meta == Marks("turns")[2].meta and whole.images[0].size == (512, 512)
    env = Look(looks=2, side=64, offset=3, crop=64)
    env.reset(Marks()[3], 0)
    x, y = part.meta["at"]
    seen = env.step(Action(f"<tool_call>[{x}, {y}]</tool_call>"))[0].images[0]
    assert part.images[0].resize((64, 64), 3).tobytes() == seen.tobytes() == env.reset(part, 0).images[0].tobytes()
    assert part.meta["turns"] == (f"<think>the answer is</think><answer>{part.answer}</answer>",)


def marks_scene(mark):
    drawn = scene(np.random.default_rng(1))
    asked = replace(drawn.asked, shape=mark)
    return replace(drawn, asked=asked, squares=tuple(asked if t.cell == asked.cell else t for t in drawn.squares))


def test_a_correction_does_not_say_again_what_was_said():
    assert once("a (1, 1).\nb (2, 2).\nno. a (1, 1).\nc (3, 3).") == "a (1, 1).\nb (2, 2).\nno. c (3, 3)."
    assert once("a (1, 1).\nb (2, 2).\nno. a (1, 1).") == "a (1, 1).\nb (2, 2).\nno. a (1, 1)."
    assert once("a (1, 1).\nb (2, 2).") == "a (1, 1).\nb (2, 2)."


def test_chains_that_there_are_not_are_named():
    with pytest.raises(ValueError, match="no chains 'turn'; there are: turns, practice, grounded, plain"):
        Marks.named("turn", "train", 0)
    with pytest.raises(IndexError, match="found -1"):
        Marks()[-1]
