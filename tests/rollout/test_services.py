"""Rollout-wise scheduling by hand, workers that take new weights while the others serve, and what the books say of it."""

import asyncio
import contextlib
from itertools import pairwise

import pytest
import torch

from fovea.rollout.engine import Engine
from fovea.rollout.sampling import Sampling
from fovea.rollout.services import Cluster, Job, Question, RolloutService, Services, Weights, Worker, eight_bits, keep_busy, running
from fovea.types import Episode, Observation, Task, user
from tests.rollout.simulated import simulated
from tests.trainer.tabular import Tabular

DURATIONS = (1, 1, 1, 9, 1, 1, 1, 9)


async def makespan(durations, places, barrier=0):
    """Seconds until all are done, with a barrier after every so many."""
    clock = asyncio.get_running_loop()
    for start in range(0, len(durations), barrier or len(durations)):
        part = iter(durations[start : start + (barrier or len(durations))])
        over, left = asyncio.Event(), len(durations[start : start + (barrier or len(durations))])

        async def following(part=part):
            if (seconds := next(part, None)) is None:
                await asyncio.Event().wait()
            return seconds

        async def work(seconds, over=over):
            nonlocal left
            await asyncio.sleep(seconds)
            left -= 1
            if left == 0:
                over.set()

        async with running([keep_busy(places, following, work)]):
            await over.wait()
    return clock.time()


def test_rollout_wise_scheduling_takes_14_seconds_where_barriers_take_20():
    assert simulated(makespan(DURATIONS, 2))[0] == pytest.approx(14)
    assert simulated(makespan(DURATIONS, 2, barrier=4))[0] == pytest.approx(20)


def test_an_error_ends_what_keeps_busy():
    async def following():
        return 0

    async def work(_):
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk"):
        simulated(keep_busy(3, following, work))


class Slow:
    """Five turns, each of which takes a second of the environment's."""

    def reset(self, task, seed):
        self.turns = 0
        return Observation(messages=task.prompt)

    async def step(self, action):
        await asyncio.sleep(1.0)
        self.turns += 1
        return Observation(messages=user(f"turn {self.turns}", images=0)), 1.0, self.turns == 5, False, {}


class Endless:
    """Jobs without end; what has ended is kept."""

    def __init__(self, group_size=2):
        self.count, self.over, self.group_size = 0, [], group_size

    async def next(self):
        group, member = divmod(self.count, self.group_size)
        self.count += 1
        task = Task(f"t{group}", "slow", user("begin", images=0), verifier="return")
        return Job(Episode(f"{group}/{member}", task), group, (0, group, member))

    async def finished(self, job):
        self.over.append(job)


def twin(version=0):
    policy = Tabular()
    policy.version = version
    return policy


def weights(version, level):
    return Weights(version, {"logits_TV": torch.full((3, 6), float(level))})


async def played(environments=3, workers=2, seconds=40.5, publish=(3.5, 11.5, 23.5)):
    """(jobs that ended, workers): the weights change at these seconds."""
    jobs, made = Endless(), [Worker(twin(), Sampling(max_new_tokens=2)) for _ in range(workers)]
    service = RolloutService(made)
    cluster = Cluster(Engine(twin(), environment=Slow, max_rows=environments), Sampling(max_new_tokens=2), service, jobs)

    async def trainer():
        for version, at in enumerate(publish, 1):
            await asyncio.sleep(at - asyncio.get_running_loop().time())
            service.publish(weights(version, version))
        await asyncio.Event().wait()

    async with running([cluster.run(), service.sync(), trainer(), *(w.serve() for w in made)]):
        await asyncio.sleep(seconds)
    return jobs, made, cluster


def test_no_episode_is_lost_when_weights_change_and_versions_rise():
    jobs, workers, cluster = simulated(played())[0]
    assert len(jobs.over) == 24  # three places, an episode takes five seconds, forty seconds
    assert len({id(j.episode) for j in jobs.over}) == 24 and not any(j.episode.error for j in jobs.over)
    for job in jobs.over:
        versions = torch.cat([s.version for s in job.episode.segments]).tolist()
        assert versions == sorted(versions) and len(job.episode.turns) == 5
        assert all(s.remote for s in job.episode.segments)
    mixed = [j for j in jobs.over if len({int(s.version[0]) for s in j.episode.segments}) > 1]
    assert len(mixed) == 9  # the three episodes under way at each of the three changes
    for worker in workers:
        assert worker.versions == [0, 0, 1, 2, 3][-len(worker.versions) :] and all(a <= b for a, b in pairwise(worker.versions))
    assert cluster.played_s == pytest.approx(3 * 40.5)  # three places, none of which ever rests


def test_a_token_has_the_log_probability_of_the_weights_it_names():
    jobs, *_ = simulated(played())[0]
    for job in jobs.over:
        for s in job.episode.segments:
            logits_TV = Tabular().logits_TV if int(s.version[0]) == 0 else torch.zeros(3, 6)
            logp_T = torch.log_softmax(logits_TV, -1)[torch.arange(len(s)), s.actions]
            assert torch.allclose(s.logp_old, logp_T.detach(), atol=1e-6) and torch.equal(s.logp_behaviour, s.logp_old)


def test_questions_wait_for_new_weights_and_one_worker_renews_at_a_time():
    async def work():
        first, second = (Worker(twin(), Sampling(max_new_tokens=3)) for _ in range(2))
        service, log = RolloutService([first, second]), []
        for name, worker in (("first", first), ("second", second)):

            async def renew(w, name=name, old=worker.renew):
                log.append(f"{name} begins")
                await old(w)
                log.append(f"{name} has it")

            worker.renew = renew
        async with running([service.sync(), first.serve(), second.serve()]):
            prefix = twin().encode(user("a", images=0), ())
            asked = [asyncio.ensure_future(service.answer(Question(prefix, (), Sampling(max_new_tokens=3), 3, k))) for k in range(8)]
            await asyncio.sleep(0)
            assert service.load == [4, 4]  # by load
            service.publish(weights(7, 0))
            answers = await asyncio.gather(*asked)
            while len(log) < 4:
                await asyncio.sleep(0)
            late = await service.answer(Question(prefix, (), Sampling(max_new_tokens=3), 3, 99))
        return log, answers, late

    (log, answers, late), _ = simulated(work())
    assert log == ["first begins", "first has it", "second begins", "second has it"]
    assert {a.version for a in answers} <= {0, 7} and late.version == 7


def test_a_worker_rounds_to_eight_bits():
    x = torch.tensor([[1.27, 0.004, -0.5], [0.0, 0.0, 0.0]])
    assert torch.allclose(eight_bits(x), torch.tensor([[1.27, 0.0, -0.5], [0.0, 0.0, 0.0]]), atol=1e-6)
    worker = Worker(twin(), Sampling(), rounding="int8")
    worker.take(Weights(3, {"logits_TV": torch.tensor([[1.27, 0.004, -0.5, 0, 0, 0]] * 3)}))
    assert worker.policy.logits_TV[0, 1] == 0 and worker.policy.version == 3


def test_the_length_cap_cuts_an_episode():
    class Once(Endless):
        async def next(self):
            if self.count:
                await asyncio.Event().wait()
            job = await super().next()
            return Job(job.episode, job.group, job.place, turns=3)

    async def work():
        jobs, worker = Once(), Worker(twin(), Sampling(max_new_tokens=2))
        service = RolloutService([worker])
        cluster = Cluster(Engine(twin(), environment=Slow, max_rows=1), Sampling(max_new_tokens=2), service, jobs)
        async with running([cluster.run(), worker.serve()]):
            await asyncio.sleep(20)
        return jobs.over[0].episode

    episode, _ = simulated(work())
    assert len(episode.turns) == 3 and episode.stop == "cut" and episode.segments[-1].bootstrap


@pytest.mark.parametrize("wrong", [{"workers": -1}, {"newest": 0}, {"rounding": "int3"}])
def test_services_refuse_what_cannot_be(wrong):
    with pytest.raises(ValueError, match=f"services.{next(iter(wrong))}"):
        Services(**wrong)


def coupled_and_decoupled(environments, episodes, seed):
    """Utilisation with a barrier after every `environments` episodes, and without."""
    seconds = torch.empty(episodes).log_normal_(0.0, 1.0, generator=torch.Generator().manual_seed(seed)).tolist()
    total = sum(seconds)
    out = []
    for barrier in (environments, 0):
        with contextlib.suppress(asyncio.CancelledError):
            out.append(total / (environments * simulated(makespan(seconds, environments, barrier))[0]))
    return out


def test_heavy_tails_leave_environments_idle_at_barriers():
    coupled, decoupled = coupled_and_decoupled(32, 960, seed=1)
    assert decoupled >= 2 * coupled and decoupled > 0.85
