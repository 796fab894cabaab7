"""Workers and environments that go: what is asked again, what begins anew, and what is said of the rest."""

import asyncio
import itertools
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fovea import api
from fovea.policies.lora import LoRA, adapted, weight_of
from fovea.rollout.engine import TRIES, Engine, Lost
from fovea.rollout.rayed import Crew, Ray, RayEngine, WorkerFailed
from fovea.rollout.rayed.actors import heard, told
from fovea.rollout.rayed.cluster import connect
from fovea.rollout.rayed.crew import FarEnvironment, FarWorker, files, published
from fovea.rollout.remote import Remote
from fovea.rollout.sampling import Sampling
from fovea.rollout.services import Answer, Question, RolloutService, Weights, Worker, running
from fovea.trainer import wire
from fovea.types import Action, Context, Episode, Group, Observation, Task, user
from tests.rollout.simulated import simulated
from tests.trainer.tabular import Tabular

QUESTION = Question(Tabular().encode(user("a", images=0), ()), (), Sampling(), 3, 0)


class Mortal:
    """A worker that is gone at its first questions, and comes back with what it is given."""

    def __init__(self, deaths: int, version: int | None = 0):
        self.deaths, self.version, self.renewals = deaths, version, []

    async def answer(self, question):
        if self.version is None:
            raise Lost("gone")
        if self.deaths:
            self.deaths -= 1
            self.version = None
            raise Lost("gone")
        await asyncio.sleep(1)
        return Answer((1,), (0.0,), (0.0,), self.version, "eos")

    async def renew(self, weights):
        await asyncio.sleep(10)
        self.version = weights.version
        self.renewals.append(weights.version)


async def asked(service, count=1, seconds=60):
    async with running([service.sync()]), asyncio.timeout(seconds):
        answers = await asyncio.gather(*(service.answer(QUESTION) for _ in range(count)))
        await asyncio.sleep(20)
    return answers


def test_a_question_goes_elsewhere_and_the_worker_comes_back():
    workers = [Mortal(deaths=1, version=3), Mortal(deaths=0, version=3)]
    service = RolloutService(workers)
    service.publish(Weights(3, {}))
    answers, now = simulated(asked(service, count=2))
    assert [a.version for a in answers] == [3, 3] and service.again == 1 and service.load == [0, 0]
    assert workers[0].renewals == [3] and not workers[1].renewals
    assert now < 25  # nobody waited for the ten seconds of the new worker


def test_a_question_waits_where_everybody_has_gone():
    service = RolloutService([Mortal(deaths=1)])
    service.publish(Weights(0, {}))
    (answer,), _ = simulated(asked(service))
    assert answer.version == 0 and service.again == 1


def test_a_question_that_nobody_survives_is_given_up():
    service = RolloutService([Mortal(deaths=99), Mortal(deaths=99)])
    service.publish(Weights(0, {}))
    with pytest.raises(Lost):
        simulated(asked(service))
    assert service.again == TRIES - 1


def test_strict_services_ask_nobody_with_older_weights():
    workers = [Mortal(0, version=None), Mortal(0, version=1)]
    service = RolloutService(workers, strict=True)
    service.publish(Weights(2, {}))
    answers, now = simulated(asked(service, count=4))
    assert {a.version for a in answers} == {2} and [w.renewals for w in workers] == [[2], [2]]
    assert now == pytest.approx(31)  # both took them at once: ten seconds, not twenty


class FakeCrew:
    """Actors that end at each call of `deadly`, but for every `lives`-th one."""

    def __init__(self, deadly="", lives=0, workers=1):
        self.deadly, self.lives, self.calls, self.counts = deadly, lives, 0, Counter()
        self.workers = [FarWorker(self) for _ in range(workers)]

    def responder(self):
        return SimpleNamespace(**{what: SimpleNamespace(remote=lambda *given, what=what: what) for what in ("answer", "renew")})

    def published(self, policy):
        return {}

    def prompt(self, question):
        return None

    def kill(self, actor):
        pass

    async def stored(self, weights):
        return None

    async def reach(self, call):
        await asyncio.sleep(1)
        if call == self.deadly:
            self.calls += 1
            if not self.lives or self.calls % self.lives:
                raise Lost("out of memory")
        return {"ids": (1,), "logp_old": (0.0,), "logp_behaviour": (0.0,), "version": 0, "stop": "eos"}


ENDED = f"a rollout worker has ended {TRIES} times without an answer, the last time: out of memory"


def in_turns(crew, count):
    """The episodes of a rollout whose turns the crew draws."""
    policy = Tabular()
    policy.device = torch.device("cpu")
    engine = RayEngine(policy, Ray(), Sampling())
    engine._crew = crew
    task = Task("t", "s", user("a", images=0), answer="1")
    group = Group(task, [Episode(id=f"0/t/{i}", task=task) for i in range(count)])

    async def driven():
        async with asyncio.timeout(60):
            await engine.begin([group], Sampling(max_new_tokens=2), Context(), None, None, 0).drive()

    simulated(driven())
    return group.episodes


@pytest.mark.parametrize(("deadly", "count"), [("renew", 1), ("renew", 3), ("answer", 1), ("answer", 3)])
def test_in_turns_a_worker_that_goes_again_and_again_ends_the_run(deadly, count):
    crew = FakeCrew(deadly)
    with pytest.raises(WorkerFailed, match=ENDED):
        in_turns(crew, count)
    assert crew.counts["workers_lost"] == TRIES


@pytest.mark.parametrize(("deadly", "count"), [("renew", 1), ("answer", 1), ("answer", 7)])
def test_services_end_with_a_worker_that_goes_again_and_again(deadly, count):
    async def ended():
        questions = [service.answer(QUESTION) for _ in range(count)]
        async with running([service.sync(), *questions]) as (sync, *_), asyncio.timeout(60):
            await sync

    crew = FakeCrew(deadly)
    service = RolloutService(crew.workers)
    service.publish(Weights(0, {}))
    with pytest.raises(WorkerFailed, match=ENDED):
        simulated(ended())
    assert crew.counts["workers_lost"] == TRIES


def test_losses_with_answers_between_them_end_nothing():
    crew = FakeCrew("answer", lives=TRIES)
    episodes = in_turns(crew, 1) + in_turns(crew, 1)
    assert not any(e.error for e in episodes) and crew.counts["workers_lost"] == 2 * (TRIES - 1)


def test_who_is_waited_for_is_said_once(caplog):
    class Homeless(FakeCrew):
        """Actors that find no place for two minutes and a half."""

        async def reach(self, call):
            await asyncio.sleep(150)
            return await super().reach(call)

    crew = Homeless(workers=2)
    crew.hand = lambda: SimpleNamespace(load=0, actor=SimpleNamespace(reset=SimpleNamespace(remote=lambda *given: "reset")))
    crew.numbers = itertools.count()

    async def waits():
        await crew.workers[1].renew(Weights(4, {}))
        await FarEnvironment(crew).reset(Task("t7", "s", ()), 0)

    simulated(waits())
    assert [r.message.partition(";")[0] for r in caplog.records] == [
        "since 60 s a run waits for rollout worker 2 of 2 to take version 4 of the weights",
        "since 60 s a run waits for an environment worker to begin task 't7'",
    ]
    caplog.clear()
    simulated(FakeCrew().workers[0].renew(Weights(4, {})))
    assert not caplog.records


class Fragile:
    """Three turns; `deaths` environments are gone at their second turn."""

    deaths = 0

    def reset(self, task, seed):
        self.turns = 0
        return Observation(messages=user(f"{seed}", images=0))

    def step(self, action):
        self.turns += 1
        if self.turns == 2 and Fragile.deaths:
            Fragile.deaths -= 1
            raise Lost("the machine is gone")
        return Observation(messages=user(f"{self.turns} {action.value}", images=0)), 1.0, self.turns == 3, False, {}


def rolled(deaths):
    Fragile.deaths = deaths
    engine = Engine(Tabular(), environment=Fragile)
    task = Task("t", "s", user("a", images=0), verifier="return")
    (group,) = engine.rollout([task], 2, Sampling(max_new_tokens=2))
    return group.episodes, engine.counts


def test_an_episode_without_its_environment_begins_anew_and_is_the_same():
    calm, _ = rolled(deaths=0)
    struck, counts = rolled(deaths=2)
    assert counts["again"] == 2 and counts["episodes"] == 2 and not counts["errors"]
    for a, b in zip(calm, struck, strict=True):
        assert a.id == b.id and len(b.segments) == 3 and [t.text for t in a.turns] == [t.text for t in b.turns]
        assert all(x.actions.tolist() == y.actions.tolist() and x.reward == y.reward for x, y in zip(a.segments, b.segments, strict=True))


def test_an_episode_that_loses_every_environment_says_so():
    episodes, counts = rolled(deaths=2 * TRIES)
    assert [e.error for e in episodes] == ["Lost: the machine is gone"] * 2 and counts["errors"] == 2 and counts["episodes"] == 2
    assert not any(e.score is None or e.score.ok for e in episodes)


def test_tasks_and_actions_travel_as_bytes():
    task = Task("t", "s", user("a", images=0), answer=3, meta={"start": (1, 2), "goal": np.float32(0.5)})
    sent = wire.unpack(wire.pack([task, Action("x", (1, 2), (-0.5, -1.0))]))
    assert sent == [task, Action("x", (1, 2), (-0.5, -1.0))]
    with pytest.raises(TypeError, match="a function cannot be sent"):
        wire.pack(Task("t", "s", (), meta={"f": rolled}))


def test_what_is_raised_in_a_worker_is_told_with_its_line():
    async def fails():
        raise ValueError("no such job")

    with pytest.raises(WorkerFailed, match=r"ValueError: no such job \(.*test_lost.py:\d+ on "):
        heard(asyncio.run(told(fails)))


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"environments": -1}, {"gpus": -0.5}])
def test_placements_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=f"engine.{next(iter(wrong))} = "):
        Ray(**wrong)


def test_a_recipe_says_where_it_runs_and_means_the_same():
    recipe = api.resolve("grpo", engine="ray", engine__workers=3)
    assert recipe.engine == Ray(workers=3) and recipe.method == api.resolve("grpo").method
    assert recipe.fingerprint() == api.resolve("grpo").fingerprint()  # a run may go on elsewhere
    assert api.resolve("grpo", engine="ray", services__workers=2).method.behaviour == "token"


def test_ray_that_is_absent_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'fovea-rl\[ray\]'"):
        connect(Ray())


def fake_ray(*machines):
    """A package that is connected to these machines by `init`; `up` says whether it is."""
    fake = SimpleNamespace(up=False, is_initialized=lambda: fake.up)
    fake.init = lambda **options: vars(fake).update(up=True)
    fake.shutdown = lambda: vars(fake).update(up=False)
    fake.nodes = lambda: [{"Alive": True, "Resources": m} for m in machines] + [{"Alive": False, "Resources": {}}]
    return fake


MACHINES = {"CPU": 8.0}, {"CPU": 2.0, "GPU": 2.0, "simulators": 1.0}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"gpus": 4}, r"engine.gpus = 4 for each of 1 rollout workers; the cluster has GPU 2 \(at most 2 on one machine\); expected"),
        ({"gpus": 0.9, "workers": 3}, r"engine.gpus = 0.9 for each of 3 rollout workers; the cluster has GPU 2 "),
        ({"on": "fast"}, r"engine.on = 'fast' for each of 1 rollout workers; the cluster has fast 0 \(at most 0 "),
        ({"cpus": 10}, r"engine.cpus = 10 for each of 1 rollout workers; the cluster has CPU 10 \(at most 8 "),
        ({"cpus": 4, "gpus": 1}, r"engine.cpus = 4 for .*engine.gpus = 1 for each .* CPU 10 \(at most 8 on one machine\), GPU 2 "),
        (
            {"environments": 2, "environments_on": "simulators"},
            r"engine.environments_on = 'simulators' for each of 2 environment workers; ",
        ),
        ({"workers": 5, "environments": 6}, r"engine.cpus = 1.0 for each of 5 .*engine.environment_cpus = 1.0 for each of 6 .* CPU 10 "),
    ],
)
@pytest.mark.parametrize("up", [False, True])
def test_placements_that_no_machine_has_are_refused(monkeypatch, asked, words, up):
    fake = fake_ray(*MACHINES)
    fake.up = up
    monkeypatch.setitem(sys.modules, "ray", fake)
    with pytest.raises(ValueError, match=words):
        connect(Ray(address="auto", **asked))
    assert fake.up == up  # a connection that was not there is not left behind


@pytest.mark.parametrize(
    "asked",
    [
        {"gpus": 0.5, "cpus": 0.5, "workers": 4, "environments": 8},
        {"cpus": 0.1, "workers": 90, "environments_on": "simulators", "environments": 1},
        {"cpus": 0, "workers": 99},
    ],
)
def test_placements_that_fit_are_taken(monkeypatch, asked):
    fake = fake_ray(*MACHINES)
    monkeypatch.setitem(sys.modules, "ray", fake)
    assert connect(Ray(address="auto", **asked)) == (fake, True) and fake.up


def test_environments_in_workers_have_names(monkeypatch):
    with pytest.raises(ValueError, match="every worker makes its own"):
        Crew(Ray(environments=1), None, Sampling(), Fragile)


def test_services_take_their_answers_from_here_or_from_actors():
    recipe = api.resolve("grpo", services__workers=1)
    api.check_services(recipe.replace(engine=Ray()), Engine(Tabular()))
    with pytest.raises(ValueError, match="engine='ray'"):
        api.check_services(recipe.replace(engine=Remote("http://127.0.0.1:1")), Engine(Tabular()))


def test_adapters_travel_folded_into_what_they_change(tmp_path):
    pytest.importorskip("peft")
    policy = api.load_policy("tiny", lora=LoRA(rank=2), seed=1)
    for name, content in files(policy).items():
        (tmp_path / name).write_bytes(content.tobytes())
    far = Worker(api.load_policy(tmp_path), Sampling())
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.01
    sent = wire.unpack(wire.pack(published(policy)))
    far.take(Weights(1, sent))
    own = dict(far.policy.named_parameters())
    changed = {f"vlm.{n}.weight": weight_of(layer) for n, layer in adapted(policy.model.vlm)}
    assert sent.keys() == changed.keys() and all(torch.equal(own[n], x) for n, x in changed.items())
    prefix = policy.encode(user("how many?", images=0))
    logits = [p.prefill([p.encode(user("how many?", images=0))], [[[]]], 2)[1] for p in (policy, far.policy)]
    assert prefix.key == far.policy.encode(user("how many?", images=0)).key and torch.allclose(*logits, atol=1e-4)
