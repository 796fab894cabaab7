"""GridHouse: rays and pictures by geometry, what is free and how far it is, commands, measures, demonstrations, seeds."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fovea.checks import check_environment, check_source
from fovea.envs.house import KINDS, House, draw_route
from fovea.envs.house.plan import DOOR, RADIUS, Plan, Thing, draw_plan
from fovea.envs.house.view import CEILING, EYE, FIELD_OF_VIEW, RGB, cast, picture
from fovea.math.paths import length
from fovea.tasks.resolve import pair
from fovea.types import Action, Task

ROOM = Plan(1, 1, ("red",), (), ())
TWO = Plan(1, 2, ("red", "blue"), ((0, 1, 2.0),), ())
TASK = Task("t", "house", (), verifier="return")


def at(*xy):
    return np.array(xy, float)


# -- geometry -----------------------------------------------------------------------------------------------------------------


def test_rays_by_hand():
    ahead = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [2, 0], [1, 1]], float)
    assert cast(ROOM, at(1, 2), ahead)[0] == pytest.approx([3, 1, 2, 2, 1.5, 2])  # in units of each direction
    assert cast(TWO, at(2, 2), ahead)[0][0] == pytest.approx(6)  # through the door
    assert cast(TWO, at(2, 2 + DOOR / 2 + 0.1), ahead)[0][0] == pytest.approx(2)  # beside it
    assert TWO.walls[cast(TWO, at(6, 1), ahead)[1][1]][:2] == (0, 4.0)


@pytest.mark.parametrize("depth", [1.5, 3.0])
def test_a_wall_fills_the_rows_that_its_height_and_distance_say(depth):
    side, pixels = 64, 32 / math.tan(FIELD_OF_VIEW / 2)
    shown = np.asarray(picture(ROOM, at(4 - depth, 2.5), 0.0, side)).astype(float)
    column = shown[:, 31]
    wall = np.abs(column / column.sum(1, keepdims=True) - RGB["red"] / RGB["red"].sum()).max(1) < 0.02
    rows = 32 + np.array([-(CEILING - EYE), EYE]) / depth * pixels
    expected = (np.arange(64) + 0.5 >= rows[0]) & (np.arange(64) + 0.5 < rows[1])
    assert (wall == expected).all() and (wall.sum() < 64 or depth == 1.5)


def test_walls_have_the_colour_of_the_room_they_are_seen_from():
    red = np.asarray(picture(TWO, at(2, 3.2), 0.0))[32, 32]
    blue = np.asarray(picture(TWO, at(6, 3.2), math.pi))[32, 32]
    assert red[0] > 1.5 * red[2] and blue[2] > 1.5 * blue[0]


def test_a_thing_hides_the_wall_and_not_what_is_nearer():
    plan = replace(TWO, things=(Thing("pillar", "green", 6.0, 2.0, 1),))
    seen = np.asarray(picture(plan, at(1, 2), 0.0))
    bare = np.asarray(picture(TWO, at(1, 2), 0.0))
    columns = np.flatnonzero((seen != bare).any((0, 2)))
    wide = 0.22 / 5 * 32 / math.tan(FIELD_OF_VIEW / 2)  # half its width in pixels
    assert columns.min() >= 32 - wide - 1 and columns.max() <= 32 + wide and len(columns) >= 2
    plan = replace(TWO, things=(Thing("pillar", "green", 6.0, 3.2, 1),))
    beside = picture(plan, at(1, 3.4), 0.0)  # the wall between the rooms is nearer
    assert beside.tobytes() == picture(TWO, at(1, 3.4), 0.0).tobytes()


def test_nobody_walks_through_walls_or_things():
    end = ROOM.walked(at(2, 2), 0.0, 5.0)
    assert 4 - RADIUS - 0.05 <= end[0] <= 4 - RADIUS and end[1] == 2
    plan = replace(ROOM, things=(Thing("box", "green", 3.0, 2.0, 0),))
    assert plan.walked(at(1, 2), 0.0, 3.0)[0] <= 3 - 0.35 - RADIUS and plan.clearance(at(3, 2))[0] == pytest.approx(-0.35)
    assert TWO.walked(at(2, 2), 0.0, 3.0) == pytest.approx([5, 2])
    stuck = ROOM.walked(at(3.95, 2), math.pi, 1.0)  # closer to the wall than allowed: it stays
    assert stuck == pytest.approx([3.95, 2])


def test_the_shortest_way_bends_at_the_door():
    assert TWO.remaining(at(2, 2), (6.0, 2.0)) == pytest.approx(4)
    closest, kept = (2 * math.hypot(2, 2 - DOOR / 2 + off - 0.6) for off in (RADIUS, 0.32))
    way = TWO.path(at(2, 0.6), (6.0, 0.6))
    assert closest - 1e-6 <= length(way) <= kept and way[0] == pytest.approx([2, 0.6]) and way[-1] == pytest.approx([6, 0.6])
    assert closest <= TWO.remaining(at(2, 0.6), (6.0, 0.6)) <= 1.1 * kept
    closed = replace(TWO, doors=())
    assert closed.remaining(at(2, 2), (6.0, 2.0)) == math.inf
    with pytest.raises(ValueError, match="no way leads"):
        closed.path(at(2, 2), (6.0, 2.0))


def test_every_house_is_connected_and_what_is_in_it_differs():
    for seed in range(12):
        plan = draw_plan(np.random.default_rng(seed))
        assert len(set(plan.colours)) == plan.rows * plan.columns
        assert len({t.name for t in plan.things}) == len(plan.things) and {t.room for t in plan.things} == set(range(len(plan.colours)))
        _, free = plan.mesh
        field = plan.field((2.0, 2.0))
        assert np.isinf(field[free]).mean() < 0.02  # a corner behind a thing at most


# -- the environment ----------------------------------------------------------------------------------------------------------


def standing(start, goal, heading=0.0, **options):
    """An environment in an empty room, by hand."""
    env = House(**options)
    env.reset(TASK, 0)
    way = np.array([start, goal], float)
    env.route = replace(env.route, plan=ROOM, start=start, heading=heading, goal=goal, path=way)
    env.at, env.heading, env.track = at(*start), heading, [at(*start)]
    return env


def test_a_stop_at_exactly_the_distance_counts_and_its_soft_reward_is_nothing():
    for reward, value in (("success", 1.0), ("soft", 0.0)):
        _, got, terminated, truncated, info = standing((0.5, 2.0), (3.5, 2.0), near=3.0, reward=reward).step(Action("stop"))
        assert (got, terminated, truncated) == (value, True, False)
        assert info["measures"]["success"] == 1 and info["measures"]["error"] == pytest.approx(3)
    assert standing((0.5, 2.0), (3.5, 2.0), near=2.99, fail=-1.0).step(Action("stop"))[1] == -1


def test_measures_of_a_detour_by_hand():
    env = standing((1.0, 1.0), (2.0, 1.0), near=0.25, stride=1.0, turn=90.0)
    for said in ("left", "forward", "right", "forward", "right", "forward"):
        _, reward, terminated, truncated, _ = env.step(Action(said))
        assert (reward, terminated, truncated) == (0, False, False)
    _, reward, terminated, _, info = env.step(Action("stop"))
    found = info["measures"]
    assert terminated and reward == 1 and found["spl"] == pytest.approx(1 / 3) and found["error"] == pytest.approx(0, abs=1e-9)
    # reference 1.0, 1.25 ... 2.0 (y = 1) against (1, 1), (1, 2), (2, 2), (2, 1)
    assert 0 < found["ndtw"] < 0.2 and found["sdtw"] == found["ndtw"] and found["legal"] == 1


@pytest.mark.parametrize(
    ("said", "commands"),
    [
        ("forward", [("forward", 1)]),
        ("<answer>Turn left 30 degrees, move forward 75cm</answer>", [("left", 2), ("forward", 3)]),
        ("right by 7.5", [("right", 0.5)]),
        ("forward 100 m", [("forward", 3)]),
        ("left left left left", [("left", 1)] * 3),
        ("stop, forward", [("stop", 1)]),
        ("2", [("right", 1)]),
        ("3", [("stop", 1)]),
        ("4", []),
        ("1 or 2", []),
        ("forwards", []),
        ("", []),
        ("<think>left", []),
        (0, [("forward", 1)]),
        (np.int64(3), [("stop", 1)]),
        (7, []),
    ],
)
def test_commands_in_words_and_numbers(said, commands):
    found = House(stride=0.25, turn=15.0).commands(said)
    assert [n for n, _ in found] == [n for n, _ in commands] and [u for _, u in found] == pytest.approx([u for _, u in commands])


def test_json_replies_are_read_behind_their_field():
    env = House(reply="json")
    assert env.commands('{"thoughts": "left or right", "action": "forward"}') == [("forward", 1.0)] and env.commands("forward") == []


def test_what_names_nothing_ends_the_walk_or_moves_at_random():
    env = House(invalid="end", fail=-1.0)
    env.reset(TASK, 0)
    _, reward, terminated, truncated, info = env.step(Action("hm"))
    assert (reward, terminated, truncated, info["legal"]) == (-1, True, False, False) and info["measures"]["success"] == 0
    poses = set()
    for seed in range(20):
        env = House(max_turns=2)
        env.reset(Task("t", "s", (), meta={"house": ("near", 5)}), seed)
        *_, over, _, info = env.step(Action("hm"))
        poses.add((*np.round(env.at, 3), round(env.heading, 3), over))
    assert len(poses) == 4  # forward, left, right, stop


def test_the_last_pictures_or_the_whole_conversation_are_shown():
    env = House(frames=2)
    counts = [len(env.reset(TASK, 1).images), *(len(env.step(Action("left"))[0].images) for _ in range(2))]
    assert counts == [1, 2, 2]
    env = House(frames=0)
    first, later = env.reset(TASK, 1), env.step(Action("left"))[0]
    assert not first.append and later.append and len(later.images) == 1 and first.images[0].tobytes() != later.images[0].tobytes()


def test_the_limit_cuts():
    env = House(max_turns=2)
    env.reset(TASK, 1)
    assert [env.step(Action("left"))[2:4] for _ in range(2)] == [(False, False), (False, True)]


@pytest.mark.parametrize("options", [{}, {"stride": 1.0, "turn": 45.0}, {"reply": "json", "stride": 0.25, "turn": 15.0, "max_turns": 150}])
def test_who_knows_the_way_arrives(options):
    for kind in KINDS:
        for seed in range(2):
            env = House(kind, **options)
            env.reset(TASK, seed)
            over = False
            while not over:
                _, reward, terminated, truncated, info = env.step(Action(env.demonstrate()))
                over = terminated or truncated
            assert reward == 1 and info["measures"]["spl"] > 0.6 and info["measures"]["legal"] == 1


def test_contracts_and_seeds():
    check_environment(House)
    train, held = pair("house:near,far", seed=3)
    check_source(train, 2)
    houses = [{source[i].meta["house"][1] for i in (0, 2, 4)} for source in (train, held)]
    assert not houses[0] & houses[1] and [train[i].source for i in range(2)] == ["near", "far"]
    frame = lambda task, seed: House().reset(task, seed).images[0].tobytes()  # noqa: E731
    assert frame(TASK, 1) == frame(TASK, 1) != frame(TASK, 2)
    assert frame(train[0], 1) == frame(train[0], 2) == train[0].images[0].tobytes()


def test_instructions_name_the_rooms_on_the_way():
    route = draw_route("far", 4)
    start, end = route.plan.room(*route.start), route.plan.room(*route.goal)
    assert route.text.startswith(f"Leave the {route.plan.colours[start]} room, go through the")
    assert f"into the {route.plan.colours[end]} room" in route.text and route.text.endswith(f"go to the {route.thing.name}.")
    assert draw_route("near", 4).text == f"Go to the {draw_route('near', 4).thing.name}."


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match=r"house: kind = 'attic', expected one of near, next, far; stride is too small"):
        House("attic", stride=0.0)
    with pytest.raises(ValueError, match="no kind attic; there are: near, next, far"):
        pair("house:attic")
