"""Films of held-out episodes: what is in them, where they are kept, and that a browser plays them."""

import base64
import builtins
import json

import gymnasium as gym
import numpy as np
import pytest

from fovea.envs.films import FRAMES, SIDE, Film, moment, small
from fovea.envs.insertion import Insertion
from fovea.envs.parts import Part, pack
from fovea.envs.pixels import Reach
from fovea.envs.stack import Stacked
from fovea.policies.control import Random
from fovea.report.page import render
from fovea.report.records import Reader
from fovea.report.run import RunFolder
from fovea.rollout.sampling import Sampling
from fovea.rollout.vector import VectorEngine
from fovea.tasks.gym import Gym
from tests.report.test_view import get, served

SCENE = Gym("fovea/Insertion-v0", {"limit": 6}, split="heldout")


def grey(n, size=4):
    return np.full((size, size, 3), n, np.uint8)


def rolled(scene=SCENE, filmed=2, tasks=3, copies=2):
    envs = scene.vector(copies)
    engine = VectorEngine(Random(scene.spaces(envs)), envs, filmed=filmed)
    return engine.rollout([scene[i] for i in range(tasks)], 1, Sampling())


# -- what is in them ------------------------------------------------------------------------------------------------------------------


def test_a_long_film_keeps_its_time():
    film = Film(fps=20.0)
    for n in range(FRAMES + 1):
        film.add(grey(n % 256))
    assert len(film.frames) == FRAMES // 2 + 1 and film.fps == 10.0
    assert [f[0, 0, 0] for f in film.frames[:3]] == [0, 2, 4]
    film.add(grey(1))
    film.add(grey(2))
    assert len(film.frames) == FRAMES // 2 + 2, "from then on every second one"
    assert small(np.zeros((2 * SIDE, SIDE, 3), np.uint8)).shape == (SIDE, SIDE // 2, 3)


def test_a_moment_is_what_the_policy_saw_or_what_is_rendered():
    env = Insertion()
    obs, _ = env.reset(seed=0)
    assert (moment(env, obs) == obs).all()
    stacked = Stacked(Insertion(), 3)
    stacked.reset(seed=0)
    after = stacked.step(np.array([1.0, 0]))[0]
    assert (moment(stacked, after) == stacked.unwrapped.render()).all() and not (after[..., :3] == after[..., 6:]).all()
    two = np.concatenate([grey(1), grey(2)], -1)
    assert moment(env, two)[0, :, 0].tolist() == [1] * 4 + [2] * 4, "two cameras"
    assert moment(env, grey(5)[..., :1])[0, 0].tolist() == [5, 5, 5], "shades"
    env.parts = (Part("top", (4, 4, 3), "uint8"), Part("low", (2, 3, 3), "uint8"), Part("state", (1,)))
    row = pack(env.parts, {"top": grey(3), "low": np.full((2, 3, 3), 9), "state": [0]})
    assert moment(env, row)[:, :, 0].tolist() == [[3, 3, 3, 3, 9, 9, 9]] * 2 + [[3, 3, 3, 3, 0, 0, 0]] * 2
    numbers = Insertion(see="numbers")
    obs, _ = numbers.reset(seed=0)
    assert (moment(numbers, obs) == numbers.render()).all()
    numbers.render_mode = None
    assert moment(numbers, obs) is None


def test_the_first_episodes_are_filmed_and_nothing_else_changes():
    groups, plain = rolled(), rolled(filmed=0)
    films = [g.episodes[0].film for g in groups]
    assert films[2] is None and all(g.episodes[0].film is None for g in plain)
    for g, other, film in zip(groups, plain, films[:2]):
        (s,), (t,) = g.episodes[0].segments, other.episodes[0].segments
        assert np.array_equal(np.stack(film.frames), np.concatenate([s.extras["obs"], s.extras["next_obs"]])), "T + 1 moments"
        assert np.array_equal(s.actions, t.actions) and s.reward == t.reward


def test_a_simulator_that_cannot_be_drawn_costs_the_film_alone(monkeypatch):
    def broken(self):
        raise RuntimeError("no display")

    scene = Gym("fovea/Insertion-v0", {"limit": 3, "see": "numbers"}, split="heldout")
    monkeypatch.setattr(Insertion, "render", broken)
    with pytest.warns(UserWarning, match="are not filmed: RuntimeError: no display") as said:
        groups = rolled(scene)
    assert (
        sum("not filmed" in str(w.message) for w in said) == 1
        and all(g.episodes[0].stop == "cut" for g in groups)
        and not groups[0].episodes[0].film.frames
    )


def test_what_sees_numbers_is_made_to_render_where_it_can():
    assert Gym("CartPole-v1").shown().kwargs == {"render_mode": "rgb_array"} == Gym("CartPole-v1").shown().shown().kwargs
    assert Gym(Reach).shown().kwargs == {} == Gym("fovea/Reach-v0").shown().kwargs, "it has no such argument"
    assert Gym("fovea/PointMass-v0", {"render_mode": "rgb_array"}).shown().kwargs == {"render_mode": "rgb_array"}
    assert gym.spec("CartPole-v1").kwargs == {}


def test_ids_of_a_module_that_registers_them_render_too(tmp_path, monkeypatch):
    (tmp_path / "far_away.py").write_text(
        "import gymnasium\ngymnasium.register('FarAway-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert Gym("far_away:FarAway-v0").shown().kwargs == {"render_mode": "rgb_array"}
    gym.registry.pop("FarAway-v0")


# -- where they are kept ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("av", reason="films need the extra `video`")
    out = RunFolder(tmp_path)
    out.describe({"name": "filmed"}, ["fovea"])
    for step in (0, 1):
        out.log(step, {"eval/return": 0.0})
        out.log_groups(step, rolled(tasks=2 + step), split="eval")
    return out


def test_films_lie_beside_the_run_in_its_records_and_in_its_page(folder):
    from fovea.video import probe, read_frames

    record = json.loads((folder.rollouts_path / "eval-000000.jsonl").read_text().splitlines()[0])
    film = record["episodes"][0]["film"]
    assert {k: film[k] for k in ("width", "height", "frames", "fps")} == {"width": 128, "height": 128, "frames": 7, "fps": 10.0}
    file = folder.rollouts_path / "films" / film["file"]
    found = probe(file)
    assert (found.total, found.fps, found.size) == (7, 10.0, (128, 128))
    meant = rolled()[0].episodes[0].film.frames[0].repeat(4, 0).repeat(4, 1)
    assert np.abs(np.asarray(read_frames(file, [0])[0], float) - meant).mean() < 8, "enlarged, a pixel to four"
    page = render([Reader(folder.path)])
    assert base64.b64encode(file.read_bytes()).decode() in page and "media-src data:" in page
    with served([folder.path]) as (_, port):
        status, headers, body = get(port, f"/film?run=0&name={film['file']}")
        assert (status, headers["Content-Type"], body) == (200, "video/mp4", file.read_bytes())
        assert get(port, "/film?run=0&name=../../config.json")[0] == 404 == get(port, "/film?run=0&name=0.mp4")[0]
        assert get(port, f"/film?run=0&name={film['file']}", token="")[0] == 401
        assert "media-src 'self'" in dict(get(port, "/")[1])["Content-Security-Policy"].replace('"', "")


def test_frames_that_make_no_film_end_no_run(tmp_path):
    groups = rolled()
    film = next(e.film for g in groups for e in g.episodes if e.film is not None)
    film.frames.append(np.zeros((3, 5, 3), np.uint8))
    with pytest.warns(UserWarning, match="held-out episodes are not filmed: all input arrays must have the same shape"):
        RunFolder(tmp_path).log_groups(0, groups, split="eval")


def test_without_pyav_a_run_goes_on_and_says_so_once(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    out = RunFolder(tmp_path)
    with pytest.warns(UserWarning, match=r"held-out episodes are not filmed: .*fovea-rl\[video\]") as said:
        for step in (0, 1):
            out.log_groups(step, rolled(), split="eval")
    assert (
        sum("not filmed" in str(w.message) for w in said) == 1
        and "film" not in json.loads((tmp_path / "rollouts/eval-000001.jsonl").read_text().splitlines()[0])["episodes"][0]
    )
    assert not list(tmp_path.rglob("*.mp4*"))


def test_a_browser_plays_them(folder, tab):
    file = folder.write_report()
    tab.goto(file.as_uri())
    tab.wait_for_selector("html[data-painted]", state="attached")
    tab.eval_on_selector("#heldout", "e => e.scrollIntoView()")  # cards are drawn when they are seen
    tab.wait_for_selector("#heldout .film video", state="attached")
    tab.wait_for_function("() => [...document.querySelectorAll('.film video')].some((v) => v.readyState >= 2)")
    played = tab.evaluate("() => [...document.querySelectorAll('.film video')].map((v) => [v.videoWidth, v.muted, v.loop, v.controls])")
    assert played and all(p == [128, True, True, True] for p in played)
    assert tab.inner_text("#heldout .film figcaption") == "no success, return 0, 6 steps, cut off"


def test_a_film_that_is_gone_is_said_to_be(folder, tab):
    for film in (folder.rollouts_path / "films").iterdir():
        film.unlink()
    tab.goto(folder.write_report().as_uri())
    tab.wait_for_selector("html[data-painted]", state="attached")
    tab.eval_on_selector("#heldout", "e => e.scrollIntoView()")
    tab.wait_for_selector("#heldout .film .missing", state="attached")
    assert "is not in this file" in tab.inner_text("#heldout .film .missing")
