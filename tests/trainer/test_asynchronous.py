"""The books of runs whose episodes go on while weights change: nothing is lost, nothing trains twice, also when the process is killed."""

import asyncio
import json
import os
import signal
import threading
from types import SimpleNamespace

import pytest
import torch

import fovea
from fovea import api
from fovea.rollout.engine import Engine
from fovea.rollout.services import Services, running
from fovea.tasks.curation import Curation, Curator
from fovea.tasks.desk import Jobs
from fovea.tasks.samplers import Shuffled
from fovea.trainer import checkpoint as ckpt
from fovea.trainer.asynchronous import Asynchronous, DataManager, made_by
from fovea.trainer.on_policy import NothingToTrain
from fovea.types import Context, Score, Segment, Turn
from tests.trainer.tabular import Numbers, Tabular

RECIPE = fovea.Recipe(tasks_per_step=2, group_size=2, services=Services(workers=1), max_resample=3)


LOOP = asyncio.new_event_loop()  # of the manager's queues, as the services' thread has one


class Judge:
    """Right is the first episode of every group, or what `right` says."""

    def __init__(self, right=lambda e: e.id.endswith("/0")):
        self.right = right

    def score(self, groups, context=None):
        for e in groups[0].episodes:
            right = bool(self.right(e))
            e.score = Score(float(right), correct=right)


def manager(recipe=RECIPE, right=None):
    curator = Curator(recipe.curation, recipe.group_size)
    made = DataManager(recipe, Shuffled(Numbers(40), seed=1), curator, Judge(right) if right else Judge())
    made.published.append(0)
    return made


def plays(job, version=0):
    """The job's episode, as if it had been played with these weights."""
    n = torch.ones(2, dtype=torch.long)
    job.episode.segments.append(Segment(None, n, n.bool(), n.float(), n * 0, n * version))
    job.episode.turns.append(Turn("x"))
    return job


async def play(made, episodes, version=0, patience_s=5.0):
    """That many episodes are played and judged; their jobs."""
    jobs = []
    async with running([made.judge()]) as (judge,):
        for _ in range(episodes):
            jobs.append(plays(await asyncio.wait_for(made.next(), patience_s), version))
            await made.finished(jobs[-1])
        while not made.whole.empty() or any(g.left == 0 and g.number not in made.ready for g in made.open.values()):
            assert not judge.done(), judge
            await asyncio.sleep(0.001)
    return jobs


def played(made, episodes, version=0):
    return LOOP.run_until_complete(play(made, episodes, version))


def numbers(groups):
    return [int(g.episodes[0].id.split("/")[0]) for g in groups]


def test_a_step_takes_the_oldest_groups_and_each_once():
    made = manager()
    played(made, 3)
    assert made.take(2, 99) is None  # the second group lacks an episode
    played(made, 1)
    kept, seen = made.take(2, 99)
    assert numbers(kept) == numbers(seen) == [0, 1] and made.take(2, 99) is None
    assert made.counts == {"groups_trained": 2, "episodes_trained": 4} and not made.open


def test_old_episodes_do_not_train():
    made = manager()
    played(made, 4, version=0)
    made.published += [1, 2]  # of 0, 1, 2 the two newest train
    assert made.take(1, 99) is None and made.counts == {"groups_stale": 2, "episodes_stale": 4}
    played(made, 4, version=1)
    kept, seen = made.take(2, 99)
    assert numbers(kept) == [2, 3] and numbers(seen) == [0, 1, 2, 3]
    assert made_by(kept[0].episodes[0]) == 1


def test_the_environments_rest_while_enough_waits():
    made = manager()
    played(made, 4)
    with pytest.raises(TimeoutError):
        LOOP.run_until_complete(play(made, 1, patience_s=0.1))

    async def later():
        waiting = asyncio.ensure_future(made.next())
        await asyncio.sleep(0.01)
        made.take(2, 99)
        made.wake.set()
        return await asyncio.wait_for(waiting, 5)

    assert LOOP.run_until_complete(later()).group == 2


def test_going_on_plays_open_groups_again_and_no_other():
    made = manager()
    jobs = played(made, 2)
    task_of = {j.group: j.episode.task.id for j in jobs}
    LOOP.run_until_complete(made.next())  # group 1 has begun
    jobs = played(made, 1)
    extra = [plays(LOOP.run_until_complete(made.next())) for _ in range(2)]  # group 2
    task_of |= {j.group: j.episode.task.id for j in [*jobs, *extra]}
    made.take(1, 99)  # group 0 trains; 1 and 2 are open
    state = json.loads(json.dumps(made.state_dict()))
    assert state["next"] == 1 and state["closed"] == []
    again = manager()
    again.load_state_dict(state)
    jobs = played(again, 4)
    assert [(j.group, j.episode.task.id) for j in jobs[::2]] == [(1, task_of[1]), (2, task_of[2])]
    assert again.counts == {"groups_trained": 1, "episodes_trained": 2}


def test_groups_that_closed_out_of_turn_stay_closed():
    made = manager()
    first = LOOP.run_until_complete(made.next())  # an episode of group 0 that takes long
    played(made, 3)
    assert numbers(made.take(1, 99)[0]) == [1]
    state = made.state_dict()
    assert (state["next"], state["closed"]) == (0, [1])
    again = manager()
    again.load_state_dict(json.loads(json.dumps(state)))
    jobs = played(again, 4)
    assert [j.group for j in jobs] == [0, 0, 2, 2] and jobs[0].episode.task.id == first.episode.task.id
    assert numbers(again.take(2, 99)[0]) == [0, 2]
    state = again.state_dict()
    assert (state["next"], state["closed"]) == (3, [])


def test_a_group_without_a_success_gets_a_recorded_one():
    recipe = RECIPE.replace(curation=Curation(pool="own", mixed=True), tasks_per_step=1)
    luck = iter([True, False, False, False])
    made = manager(recipe, right=lambda e: e.role == "gold" or (e.score.value if e.score else next(luck)))
    task = Numbers()[3]
    made.sampler = SimpleNamespace(next=lambda context: task, state_dict=dict)
    past = played(made, 2)[0]
    assert numbers(made.take(1, 99)[0]) == [0]
    played(made, 2)
    (again,) = played(made, 1)
    assert (again.episode.role, again.said, again.place) == ("gold", ("x",), past.place)
    kept, seen = made.take(1, 99)
    assert [e.role for e in kept[0].episodes] == ["gold", "sample"] and [e.role for e in seen[0].episodes] == ["sample", "sample"]


def test_a_recorded_success_that_cannot_be_played_again_is_told_of():
    made = manager(RECIPE.replace(curation=Curation(pool="demonstrations", mixed=True)), right=lambda e: e.role == "gold")
    made.scorer.score = lambda groups, context: [
        setattr(e, "score", Score.failed("no") if e.role == "gold" else Score(0.0, correct=False)) for e in groups[0].episodes
    ]
    played(made, 2)
    played(made, 1)
    kept, seen = made.take(1, 1)
    assert not kept and [e.role for e in seen[0].episodes] == ["sample", "sample", "gold"]


def test_groups_that_agree_are_dropped_and_counted():
    made = manager(RECIPE.replace(curation=Curation(mixed=True)), right=lambda e: True)
    played(made, 4)
    assert made.take(1, 99) is None and made.counts == {"groups_dropped": 2, "episodes_dropped": 4}
    kept, seen = made.take(1, 2)
    assert not kept and len(seen) == 2


def test_the_room_of_groups_that_cannot_train_is_filled_while_the_step_waits():
    made = manager(RECIPE.replace(curation=Curation(mixed=True)), right=lambda e: True)
    played(made, 4)  # enough waits, so every environment rests
    collector = Asynchronous(made.recipe, None, SimpleNamespace(), made, None)
    collector.loop = LOOP

    async def later():
        waiting = asyncio.ensure_future(made.next())
        await asyncio.sleep(0.01)
        assert not waiting.done() and collector._take(2) is None
        return await asyncio.wait_for(waiting, 5)

    assert LOOP.run_until_complete(later()).group == 2


# -- whole runs -------------------------------------------------------------------------------------------------------------------

RUN = dict(
    data="desk:mark,each=4",
    environment="desk",
    reward=lambda text, task: float(len(text) % 2),
    tasks_per_step=2,
    group_size=3,
    max_rows=4,
    services__workers=2,
    sampling__max_new_tokens=5,
    eval_tasks=0,
    checkpoint_every=1,
    threads=1,
    quiet=True,
)


def books(folder):
    """(step, state of the data manager) of a run's last checkpoint."""
    last = ckpt.latest(folder / "checkpoints")
    return last.step, last.state["collector"]


def test_a_killed_run_goes_on_with_its_books(tmp_path):
    child = os.fork()
    if not child:
        try:
            fovea.train("grpo", out=tmp_path, steps=6, on_step=lambda step, _: step == 3 and os.kill(os.getpid(), signal.SIGKILL), **RUN)
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    step, state = books(tmp_path)
    assert step == 2 and state["counts"]["groups_trained"] == 4
    run = fovea.train("grpo", out=tmp_path, steps=4, **RUN)
    step, after = books(tmp_path)
    assert step == 4 and after["counts"]["groups_trained"] == 8
    settled = sum(n for k, n in after["counts"].items() if k.startswith("groups_"))
    assert after["next"] + len(after["closed"]) == settled  # every group that was dealt and is not open has been counted, once
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4]
    last = run.metrics[-1]
    assert 0 < last["services/utilisation"] <= 1.01 and last["policy/staleness"] >= 0 and last["mismatch/max_nats"] >= 0
    assert not [t for t in threading.enumerate() if t.name == "fovea-services"]


def test_weights_in_eight_bits_are_weighed(tmp_path):
    run = fovea.train("grpo", out=tmp_path, steps=1, services__rounding="int8", **{**RUN, "services__workers": 1})
    assert run.metrics[0]["mismatch/max_nats"] > 1e-3
    assert api.resolve("grpo", services__workers=1).method.behaviour == "token"


def test_a_failure_of_the_services_ends_the_run(tmp_path):
    class Torn(Jobs):
        def __getitem__(self, i):
            if i != 0:
                raise OSError("the disk is gone")
            return super().__getitem__(i)

    with pytest.raises(OSError, match="the disk is gone"):
        fovea.train("grpo", out=tmp_path, steps=1, **{**RUN, "data": Torn(("mark",), 4)})


def test_nothing_to_train_is_said(tmp_path):
    with pytest.raises(NothingToTrain, match="all too easy or all too hard"):
        fovea.train("grpo", out=tmp_path, steps=1, curation__mixed=True, max_resample=2, **{**RUN, "reward": lambda text, task: 0.0})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"curation__mixed": True}, "services.workers is 0"),
        ({"services__workers": 1, "dynamic_sampling": True}, "curation.mixed"),
        ({"services__workers": -1}, "services.workers = -1"),
    ],
)
def test_recipes_refuse_what_does_not_go_together(changes, match):
    with pytest.raises(ValueError, match=match):
        api.resolve("grpo", **changes)


@pytest.mark.parametrize(("method", "engine"), [("sft", Engine(Tabular())), ("grpo", SimpleNamespace())])
def test_services_are_refused_where_nothing_asks_them(method, engine):
    with pytest.raises(ValueError, match=r"services\.workers = 1 with"):
        api.check_services(RECIPE.replace(method=method), engine)
    api.check_services(RECIPE, Engine(Tabular()))


def test_a_step_waits_for_a_stop():
    made = manager()
    collector = Asynchronous(RECIPE, None, SimpleNamespace(), made, None)
    collector.publish = lambda context: None

    def stop(done, total):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        collector.collect(Context(), stop)
