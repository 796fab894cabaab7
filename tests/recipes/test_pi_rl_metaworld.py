"""π_RL on three tasks of Meta-World at once: turns, starts, pictures, and success that is told task by task."""

import gc
from dataclasses import replace

import numpy as np
import pytest

from fovea import api, recipes
from fovea.ledger.claim import arm_recipe, digest, settings
from fovea.policies.control import Flow
from fovea.recipes import pi_rl, pi_rl_metaworld

TASKS = pi_rl_metaworld.TASKS
SOURCES = [f"metaworld:{n}" for n in TASKS]


def test_the_forms_differ_from_pi_rl_in_tasks_and_in_size_only():
    tiny, real, warm = (recipes.get(f"pi_rl_metaworld{n}") for n in ("", ":real", ":warm"))
    assert tiny.method == real.method == pi_rl.tiny.method and warm.method == pi_rl.warm.method
    assert tiny.model == "pi_rl_metaworld:warm" and tiny.network == warm.network
    assert tiny.data.partition(",around=")[0].removeprefix("robot:") == warm.data.removeprefix("demos:").partition(",count=")[0]
    assert real.replace(name="", data="") == pi_rl.real.replace(name="", data="")
    assert real.data.startswith(f"robot:{pi_rl_metaworld.NAMES},")
    assert tiny.tasks_per_step % len(TASKS) == tiny.eval_tasks % len(TASKS) == pi_rl_metaworld.CLAIM.tasks % len(TASKS) == 0, "equal shares"


def test_every_arm_is_a_run_of_its_own_on_as_many_episodes():
    tiny, claim = pi_rl_metaworld.tiny, pi_rl_metaworld.CLAIM
    arms = {a: arm_recipe(tiny, c) for a, c in claim.arms.items()}
    assert len({digest(settings(r)) for r in arms.values()}) == len(arms)
    assert {r.tasks_per_step * r.group_size for a, r in arms.items() if a != "longer"} == {tiny.tasks_per_step}
    assert arms["learned"] == tiny.replace(network=Flow(width=128, noise="learned"), method__entropy_coef=0.005)
    assert arms["start"].replace(steps=tiny.steps) == tiny
    assert arms["longer"].method == pi_rl.warm.method and arms["longer"].data == pi_rl_metaworld.warm.data
    assert {r.model for r in arms.values()} == {tiny.model}


for package in ("gymnasium", "mujoco", "metaworld", "pyarrow"):
    pytest.importorskip(package)

from fovea.envs import robots  # noqa: E402
from fovea.tasks.gym import HELDOUT, Gym  # noqa: E402
from fovea.tasks.robots import Robots  # noqa: E402


@pytest.fixture(scope="module")
def pair():
    """Two copies with all three tasks."""
    source = Robots.named(pi_rl_metaworld.SMALL, "train")
    copies = source.make(), source.make()
    yield copies
    for env in copies:
        env.close()


def test_tasks_take_turns_and_no_heldout_start_is_among_those_for_training():
    train, held = Robots.named(pi_rl_metaworld.SMALL, "train", seed=5), Robots.named(pi_rl_metaworld.SMALL, "heldout", seed=5)
    first = [train[i] for i in range(300)]
    assert [t.source for t in first] == SOURCES * 100 and len({t.meta["seed"] for t in first}) == 300
    assert all(0 <= t.meta["seed"] < HELDOUT <= h.meta["seed"] for t, h in zip(first, (held[i] for i in range(300))))
    assert sorted(held[i].source for i in range(30)) == sorted(SOURCES * 10)
    assert replace(train, seed=6)[0].meta != first[0].meta and replace(train, seed=6)[0].source == SOURCES[0]
    alone = Robots.named("metaworld:reach-v3", "train", seed=5)
    assert alone[4] == Gym.__getitem__(alone, 4) and alone[4].source == "metaworld:reach-v3", "one task has the starts it always had"


def test_the_largest_seed_is_one_for_training(monkeypatch):
    monkeypatch.setattr("fovea.tasks.gym.address", lambda *parts: HELDOUT - 1)
    assert max(Robots.named(pi_rl_metaworld.SMALL, "train")[i].meta["seed"] for i in range(3)) < HELDOUT


def test_each_task_has_its_instruction_its_picture_and_its_expert(pair):
    env, source = pair[0], Robots.named(pi_rl_metaworld.SMALL, "train")
    shown = {}
    for i, name in enumerate(TASKS):
        _, info = env.reset(seed=source[i].meta["seed"])
        assert info["instruction"] == name.removesuffix("-v3").replace("-", " ") and env.body.name == name
        shown[name] = env.body.picture("topview").astype(int)
        over = False
        while not over:
            _, reward, done, cut, said = env.step(env.demonstrate())
            over = done or cut
        assert said["measures"]["success"] == float(done) == reward
    a, b, c = shown.values()
    assert min(np.abs(x - y).mean() for x, y in ((a, b), (b, c), (a, c))) > 2, "they look different"


def test_things_are_seen_where_they_stand(pair):
    """From above: x to the right, y up. The button's box is the only yellow thing."""
    env = pair[0]
    found = []
    for seed in range(0, 24, 3):
        env.reset(seed=seed)
        picture = env.body.picture("topview").astype(int)
        rows, columns = ((picture[..., 0] > 180) & (picture[..., 1] > 120) & (picture[..., 2] < 60)).nonzero()
        x, y, _ = env.body.env.model.body("box").pos
        found.append((columns.mean(), -rows.mean(), x, y))
    columns, rows, x, y = np.array(found).T
    assert np.corrcoef(columns, x)[0, 1] > 0.9 and np.corrcoef(rows, y)[0, 1] > 0.9


def test_who_draws_for_all_draws_each_copy_as_it_is(pair):
    a, b = pair
    first = [env.reset(seed=0)[0] for env in pair]
    assert (first[0] == first[1]).all() and a.body.lens is b.body.lens
    colours = b.body.env.model.geom_rgba
    seen, colours[:, 3] = colours[:, 3].copy(), 0
    before, after = (env.body.picture("topview").astype(int) for env in pair)
    colours[:, 3] = seen
    assert np.abs(before - after).mean() > 5 and (before == b.body.picture("topview")).all()


def test_a_start_is_the_same_whatever_was_played_before_and_by_whom(pair):
    a, b = pair
    for seed in (6, 7, 8):
        first = a.reset(seed=seed)[0]
        a.step(np.ones(a.action_space.shape))
        b.reset(seed=seed + 3)
        b.step(-np.ones(b.action_space.shape))
        a.reset(seed=seed + 1)
        assert (b.reset(seed=seed)[0] == first).all() and (a.reset(seed=seed)[0] == first).all()
        after = [env.step(np.linspace(-1, 1, env.action_space.shape[0]))[0] for env in pair]
        assert (after[0] == after[1]).all()


def test_simulators_are_lent_on_and_go_with_the_last_body(monkeypatch):
    made = []

    class Sim:
        class model:
            ncam = 0

        def seed(self, seed): ...
        def reset(self):
            return np.zeros(4), {}

        def close(self): ...

    monkeypatch.setattr(robots, "_simulator", lambda name: made.append(name) or (Sim(), None))
    monkeypatch.setattr(robots, "Lens", lambda model, *looks: object())
    monkeypatch.setattr(robots, "_LENSES", {})
    bodies = [robots.MetaWorld(("x", "y", "z"), 48, False) for _ in range(4)]
    for seed in range(12):
        for k, body in enumerate(bodies):
            body.reset(seed + k)
            assert body.name == "xyz"[(seed + k) % 3]
    assert len({id(b.env) for b in bodies}) == 4 and len(made) == 8, "12 without lending"
    assert bodies[0].lens is bodies[3].lens and bodies[0].lens is not bodies[1].lens and len(robots._LENSES) == 3
    closed = bodies[0].env
    bodies.pop(0).close()
    assert all(closed is not env for spare in robots._SPARE.values() for env, _ in spare), "it may be broken"
    for body in bodies:
        body.close()
    gc.collect()
    assert not {"x", "y", "z"} & set(robots._SPARE)


def test_wrong_tasks_and_limits_are_explained():
    with pytest.raises(ValueError, match="no task 'coffee' in Meta-World; there are: "):
        Robots.named("metaworld:reach-v3+coffee", "train").make()
    for limit in (0, 501):
        with pytest.raises(ValueError, match=f"limit = {limit}; expected 1 to 500 actions"):
            Robots.named(f"metaworld:reach-v3,limit={limit}", "train").make()


def test_a_small_run_learns_three_tasks_at_once_and_tells_their_success_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEA_CACHE", str(tmp_path / "cache"))
    small = {"network__width": 8, "threads": 1, "steps": 1}
    warm = pi_rl_metaworld.warm
    data = warm.data.replace("size=48", "size=24").replace("limit=90", "limit=10").replace("count=15", "count=3")
    first = api.train(warm.replace(**small, data=data, tasks_per_step=4), out=tmp_path / "warm", quiet=True)
    first.policy.save(tmp_path / "model")
    data = data.replace("demos:", "robot:").partition(",count=")[0] + ",around=limit-ends"
    recipe = pi_rl_metaworld.tiny.replace(**small, model=str(tmp_path / "model"), data=data, tasks_per_step=3, max_rows=2, eval_tasks=3)
    run = api.train(recipe.replace(updates_per_rollout=1, epochs_per_rollout=1), out=tmp_path / "run", quiet=True)
    (step,) = [m for m in run.metrics if "policy/ratio_mean" in m]
    assert step["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    assert {f"accuracy/{s}" for s in SOURCES} <= set(step) and {f"eval/return/{s}" for s in SOURCES} <= set(step)
    assert [step[f"eval/n/{s}"] for s in SOURCES] == [1.0] * 3
    assert len({e.task for e in _episodes(tmp_path / "cache/demos")}) == 3, "a demonstration of each"


def _episodes(folder):
    from fovea.tasks.lerobot import LeRobot

    (place,) = [p for p in folder.iterdir() if p.is_dir()]
    return list(LeRobot(place))
