"""Every built-in part keeps its contract; every broken one fails with the rule that it breaks."""

import copy
import dataclasses
import itertools
import random as python_random
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image

from fovea import methods, sandbox
from fovea.batch import Needs
from fovea.checks import (
    ContractError,
    check,
    check_environment,
    check_gate,
    check_method,
    check_sampler,
    check_source,
    check_verifier,
    load_object,
    probe_tasks,
)
from fovea.envs.answer import Answer
from fovea.envs.zoom import Look, Zoom
from fovea.methods.sac import SAC
from fovea.tasks.gates import AccuracyRange, All, DynamicSampling
from fovea.tasks.samplers import Mixture, Sequential, Shuffled
from fovea.tasks.worlds import World
from fovea.types import Action, Observation, Score, Task, user
from fovea.verifiers import VERIFIERS


def breaks(rule, call, *args, said="", **kwargs):
    with pytest.raises(ContractError) as broken:
        call(*args, **kwargs)
    assert f"rule {rule}:" in str(broken.value), str(broken.value)
    assert said in str(broken.value), str(broken.value)


# -- verifiers ------------------------------------------------------------------------------------------------------------------

WORD, NUMBER, LETTER, BOX, ITEMS, COUNTS, BOXES, ORDER = probe_tasks()
GOLD = {"choice": LETTER, "number": NUMBER, "box_iou": BOX, "point_in_box": BOX, "set": ITEMS, "count": COUNTS}
GOLD |= {"detection": BOXES, "criterion": BOXES, "boxes": BOXES, "permutation": ORDER}
PARAMS = {
    "length": {"unit": "chars", "max": 9},
    "cosine_length": {"unit": "chars"},
    "weighted": {"parts": {"right": (1.0, "exact"), "form": (0.1, "format")}},
}


@pytest.mark.parametrize("name", [n for n in VERIFIERS if n not in ("math", "program")])
def test_built_in_verifiers(name):
    task = dataclasses.replace(GOLD.get(name, WORD), verifier=name, params=PARAMS.get(name, {}))
    assert len(check_verifier(name, task)) == 10


@pytest.mark.skipif(bool(sandbox.problem()), reason=sandbox.problem() or "-")
def test_the_program_verifier():
    gold = f"\n```python\nprint({WORD.answer!r})\n```\n"
    task = dataclasses.replace(WORD, verifier="program", meta={"gold": gold})
    assert len(check_verifier("program", task, seconds=60)) == 10


def test_the_math_verifier():
    pytest.importorskip("math_verify")
    task = dataclasses.replace(WORD, verifier="math", params={"timeout_s": 60})
    assert len(check_verifier("math", task, seconds=60)) == 10


def test_plain_functions_sync_and_async():
    async def later(answer, task):
        return 0.5

    assert len(check(lambda answer, task: answer == "4")) == 10
    assert len(check(later)) == 10


class Judge:
    """A verifier from a function of the group."""

    def __init__(self, score, scope="episode"):
        self.score, self.scope = (lambda group, context: score(group)), scope


def each(f):
    return Judge(lambda group: [f(e) for e in group.episodes])


def test_a_verifier_of_the_wrong_shape():
    breaks(1, check_verifier, "numbr", said="did you mean 'number'")
    breaks(1, check_verifier, lambda completions: 1.0, said="f(answer, task)")
    breaks(2, check_verifier, Judge(lambda g: [Score(1.0) for _ in g.episodes], scope="batch"), said="'batch'")


def test_a_verifier_that_returns_something_else():
    breaks(3, check_verifier, Judge(lambda g: Score(1.0)), said="got Score")
    breaks(3, check_verifier, Judge(lambda g: [Score(1.0)]), said="got 1 scores for 5 episodes")
    breaks(3, check_verifier, each(lambda e: 1.0), said="1.0 (float)")
    breaks(3, check_verifier, Judge(lambda g: 1 / 0), said="ZeroDivisionError")


def test_a_verifier_with_scores_that_are_not_finite():
    breaks(4, check_verifier, each(lambda e: Score(float("nan"))), said="got nan for")
    breaks(4, check_verifier, each(lambda e: Score(1.0, {"a": float("inf")})), said="got inf in part 'a'")
    breaks(4, check_verifier, lambda answer, task: float("nan"), said="scores must be finite floats")


def test_a_verifier_that_fails_without_a_reason():
    breaks(5, check_verifier, each(lambda e: Score(0.0, ok=False)), said="without a reason")
    breaks(5, check_verifier, each(lambda e: Score(1.0, correct=1)), said="correct=1")


def test_a_verifier_that_scores_nothing():
    breaks(6, check_verifier, lambda answer, task: task.meta["label"], said="KeyError: 'label'")


def test_a_verifier_that_is_not_reproducible_or_writes_to_its_input():
    breaks(7, check_verifier, lambda answer, task: python_random.random(), said="and then")

    def writes(e):
        e.stop = "judged"
        return Score(1.0)

    breaks(7, check_verifier, each(writes), said="changed")


def test_an_episode_verifier_that_looks_at_the_group():
    def rank(group):
        order = sorted(e.text for e in group.episodes)
        return [Score(float(order.index(e.text))) for e in group.episodes]

    breaks(8, check_verifier, Judge(rank), said="alone")
    assert len(check_verifier(Judge(rank, scope="group"))) == 9


def test_a_verifier_that_raises_on_odd_text():
    breaks(9, check_verifier, each(lambda e: Score(float(len(e.text.split()[0])))), said="IndexError")


def test_a_verifier_that_is_slow_on_long_text():
    def quadratic(answer, task):
        return float(sum(answer[:i].count("x") for i in range(0, len(answer), 4)))

    breaks(10, check_verifier, quadratic, said="took", seconds=0.05)


# -- environments ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("environment", "rules"), [(Answer, 4), (Zoom, 5), (Look, 5)])  # one that demonstrates has a rule more
def test_built_in_environments(environment, rules):
    assert len(check(environment)) == rules


class Counter:
    """Three steps; each part can be broken."""

    def __init__(self, **broken):
        self.broken, self.n = broken, 0

    def reset(self, task, seed):
        self.n = 0
        return self.broken.get("first", Observation(messages=task.prompt))

    def step(self, action):
        self.n += 1
        seen = Observation(messages=user(str(self.broken.get("see", lambda: self.n)()), images=0))
        result = (seen, self.broken.get("reward", 0.0), self.broken.get("done", self.n % 3 == 0), False, self.broken.get("info", {}))
        return result[: self.broken.get("values", 5)]


def test_environments_that_break_a_rule():
    assert len(check_environment(lambda: Counter())) == 4
    breaks(1, check_environment, lambda: object(), said="got object")
    breaks(2, check_environment, lambda: Counter(first="hello"), said="reset returned str")
    breaks(2, check_environment, lambda: Counter(values=4), said="expected five values")
    breaks(2, check_environment, lambda: Counter(reward=float("nan")), said="reward nan")
    breaks(2, check_environment, lambda: Counter(done=1), said="terminated=1")
    breaks(2, check_environment, lambda: Counter(info=None), said="NoneType")
    breaks(3, check_environment, lambda: Counter(see=python_random.random), said="differs: observation")


def test_an_environment_whose_reset_leaves_state():
    class Stale(Counter):
        def reset(self, task, seed):
            return Observation(messages=user(str(self.n), images=0))

    breaks(4, check_environment, Stale, said="state is left over")
    assert len(check_environment(Counter, actions=[Action("a"), Action("b")])) == 4


# -- sources --------------------------------------------------------------------------------------------------------------------


def test_built_in_worlds():
    assert len(check_source(World(), count=30)) == 6
    assert len(check(World(split="heldout"))) == 6


def task_of(i=0, **changes):
    parts = {"id": f"t{i}", "source": "s", "prompt": user("?"), "images": (Image.new("RGB", (4, 4)),), "answer": "cat"}
    return Task(**{**parts, **changes})


def test_sources_that_break_a_rule():
    assert len(check_source([task_of(0), task_of(1)])) == 7
    breaks(1, check_source, [], said="empty")
    breaks(1, check_source, [{"question": "?"}], said="source[0] is {'question'")
    breaks(3, check_source, [task_of(1), task_of(1)], said="id 't1' belongs to source[0] and source[1]")
    breaks(4, check_source, [task_of(prompt="?")], said="has prompt '?'")
    breaks(4, check_source, [task_of(prompt=({"role": "user", "content": "?"},))], said="has message")
    breaks(5, check_source, [task_of(images=())], said="1 placeholder(s) and 0 image(s)")
    breaks(5, check_source, [task_of(images=(Image.new("L", (4, 4)),))], said="['L']")
    breaks(6, check_source, [task_of(verifier="exat")], said="did you mean 'exact'")
    breaks(6, check_source, [task_of(verifier="number")], said="holds no number")
    breaks(6, check_source, [task_of(answer="3", verifier="number", meta={"gold": "4"})], said="judged wrong")


def test_a_source_that_changes_or_has_no_end():
    class Moving:
        n = 0

        def __getitem__(self, i):
            self.n += 1
            return task_of(self.n)

    class Endless:
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return task_of(i)

    breaks(2, check_source, Moving(), said="changed")
    breaks(7, check_source, Endless(), said="although len(source) is 2")


# -- samplers and gates ---------------------------------------------------------------------------------------------------------


def test_built_in_samplers_and_gates():
    source = [task_of(i) for i in range(7)]
    for sampler in (Sequential(source), Shuffled(source), Shuffled(World()), Mixture([(source, 1), (World(), 2)])):
        assert len(check(sampler)) == 6
    for gate in (All(), DynamicSampling(), AccuracyRange(0.2, 0.8)):
        assert len(check(gate)) == 2


class Restless:
    """Shuffled, with something broken."""

    def __init__(self, **broken):
        self.inner, self.broken = Shuffled([task_of(i) for i in range(7)]), broken

    def next(self, context):
        return self.broken.get("next", lambda: self.inner.next(context))()

    def observe(self, groups):
        return self.broken.get("observe", len)(groups)

    def state_dict(self):
        return self.broken.get("state", self.inner.state_dict)()

    def load_state_dict(self, state):
        self.inner.load_state_dict({"position": 0, **state})


def test_samplers_that_break_a_rule():
    assert len(check_sampler(Restless())) == 6
    breaks(1, check_sampler, object(), said="lacks next, observe")
    breaks(2, check_sampler, Restless(state=lambda: {"order": {1, 2}}), said="JSON")
    breaks(3, check_sampler, Restless(next=lambda: "task"), said="'task'")
    breaks(4, check_sampler, Restless(next=lambda: task_of(python_random.random())), said="draw 0")
    breaks(5, check_sampler, Restless(state=dict), said="differ")
    breaks(6, check_sampler, Restless(observe=lambda groups: [g.episodes[0].score.value for g in groups]), said="IndexError")


def test_gates_that_break_a_rule():
    class Gate:
        def __init__(self, admit):
            self.admit = admit

    breaks(1, check_gate, Gate(lambda g: len(g.samples)), said="(int)")
    breaks(1, check_gate, Gate(lambda g: sum(e.score.value for e in g.samples) / len(g.samples) > 0), said="ZeroDivisionError")
    breaks(2, check_gate, Gate(lambda g: bool(g.episodes and g.episodes.pop())), said="two calls differ")


# -- methods --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", methods.METHODS)
def test_built_in_methods(name):
    method = methods.get(name)()
    assert len(check(method)) == (5 if method.needs.data == "replay" else 8)


def broken_sac(**parts):
    """SAC with something broken."""
    return type("Mine", (), {**{k: getattr(SAC, k) for k in ("needs", "init", "update")}, **vars(SAC()), **parts})()


def test_the_rules_of_methods_that_learn_from_a_replay():
    keys = itertools.count()

    def noisy(self, state, batch):
        return SAC.update(self, state, dataclasses.replace(batch, key=1000 * next(keys)))

    def nan(self, state, batch):
        state, metrics = SAC.update(self, state, batch)
        return state, {**metrics, "loss/mine": torch.tensor(float("nan"))}

    breaks(1, check_method, broken_sac(needs=Needs(data="replay", policy="nobody")), said="nobody")
    breaks(2, check_method, broken_sac(init=lambda self, policy, adam: SAC().init(copy.deepcopy(policy), adam)), said="very object")
    breaks(3, check_method, broken_sac(update=nan), said="loss/mine")
    breaks(4, check_method, broken_sac(update=noisy), said="again")


@dataclasses.dataclass
class Pull:
    """REINFORCE in five lines, with something broken."""

    broken: dict = dataclasses.field(default_factory=dict)
    calls: int = 0

    @property
    def needs(self):
        return self.broken.get("needs", Needs())

    def credit(self, batch):
        return self.broken.get("credit", lambda b: b.per_row(b.score_E) * b.mask_BT)(batch)

    def loss(self, out, batch):
        self.calls += "count" in self.broken
        loss = self.broken.get("loss", lambda o, b: -(o["logp"] * b.adv_BT * b.mask_BT).sum() / b.totals.tokens)(out, batch)
        return loss, self.broken.get("metrics", lambda o, b: {})(out, batch)


def test_methods_that_break_a_rule():
    assert len(check_method(Pull())) == 8
    for rule, said, broken in (
        (1, "dict", {"needs": {"loss": ["logp"]}}),
        (1, "unknown streams ['logprob']", {"needs": Needs(loss=frozenset({"logprob"}))}),
        (1, 'expected "row" or "group"', {"needs": Needs(unit="batch")}),
        (2, "expected (9, ", {"credit": lambda b: b.score_E}),
        (2, "NaN", {"credit": lambda b: b.mask_BT / 0}),
        (2, "not declared in needs.before", {"credit": lambda b: b.stored["reference/logp"]}),
        (3, "two calls", {"credit": lambda b: torch.rand(b.mask_BT.shape, dtype=torch.float64)}),
        (4, "not declared in needs.loss", {"loss": lambda o, b: o["entropy"].sum()}),
        (4, "carries no gradient", {"loss": lambda o, b: o["logp"].detach().sum()}),
        (4, "carry a gradient", {"metrics": lambda o, b: {"a": o["logp"].sum()}}),
        (4, "not finite scalars", {"metrics": lambda o, b: {"a": float("nan")}}),
        (5, "did not choose", {"loss": lambda o, b: -o["logp"].sum() / b.totals.tokens}),
        (5, "zero everywhere", {"loss": lambda o, b: 0 * o["logp"].sum()}),
        (6, "change at masked units", {"loss": lambda o, b: (o["logp"] * b.mask_BT).sum() + o["logp"].detach().sum()}),
        (7, "divide by batch.totals", {"loss": lambda o, b: -(o["logp"] * b.mask_BT).sum() / b.mask_BT.sum()}),
        (7, "metrics a do not add up", {"metrics": lambda o, b: {"a": torch.tensor(1.0)}}),
        (8, "it was", {"count": True}),
    ):
        breaks(rule, check_method, Pull(broken), said=said)


# -- policies -------------------------------------------------------------------------------------------------------------------


def test_a_policy_without_its_parts():
    class Mute:
        encode = prefill = None

    with pytest.raises(ContractError, match=r"Policy rule 1: .*lacks encode_append, decode_text"):
        check(Mute())


# -- by shape and by address ----------------------------------------------------------------------------------------------------


def test_a_thing_without_a_shape():
    with pytest.raises(ContractError, match="has the shape of no part"):
        check(3)


def test_objects_are_loaded_from_files(tmp_path):
    (tmp_path / "helper.py").write_text("FACTOR = 2")
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
            from dataclasses import dataclass
            from helper import FACTOR

            @dataclass
            class Box:
                side: int = FACTOR

            def reward(answer, task):
                return float(len(answer) * FACTOR)
        """)
    )
    reward = load_object(f"{tmp_path}/mine.py:reward")
    assert reward("abc", None) == 6.0
    assert load_object(f"{tmp_path}/mine.py:reward") is reward
    assert load_object(f"{tmp_path}/mine.py:Box")().side == 2
    assert load_object("fovea.checks:check") is check
    with pytest.raises(ValueError, match="has no 'rewrd'; did you mean 'reward'"):
        load_object(f"{tmp_path}/mine.py:rewrd")
    with pytest.raises(FileNotFoundError, match=r"did you mean mine\.py"):
        load_object(f"{tmp_path}/mime.py:reward")
    with pytest.raises(ValueError, match=r"FILE\.py:NAME"):
        load_object("mine.py")


@pytest.fixture(scope="module")
def small_policy(tmp_path_factory):
    """A random Qwen2.5-VL of a few layers."""
    from fovea.policies.hf_vlm import HFVLM

    path = Path(__file__).parents[1] / "policies/tiny_checkpoints.py"
    return HFVLM.load(load_object(f"{path}:build")(tmp_path_factory.mktemp("vlm"), "qwen2_5_vl"))


def test_the_language_policy(small_policy):
    assert len(check(small_policy)) == 6


def test_policies_that_break_a_rule(small_policy, monkeypatch):
    evaluate, encode = small_policy.evaluate, small_policy.encode

    def shifted(batch, want, variant="policy"):
        return {k: v - 0.1 for k, v in evaluate(batch, want, variant).items()}

    def one_key(messages, images):
        return dataclasses.replace(encode(messages, images), key="same")

    with monkeypatch.context() as patch:
        patch.setattr(small_policy, "evaluate", shifted)
        breaks(5, check, small_policy, said="differ by up to 0.1 nats")
    with monkeypatch.context() as patch:
        patch.setattr(small_policy, "encode", one_key)
        breaks(2, check, small_policy, said="share one key")
