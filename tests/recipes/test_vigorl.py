"""ViGoRL as recipes: forms, arms, credit, and steps of the tiny model in episodes with looks."""

import dataclasses

import pytest
import torch

import fovea
from fovea import recipes
from fovea.api import build_policy
from fovea.envs.resolve import environment
from fovea.envs.zoom import Look
from fovea.ledger.claim import arm_recipe
from fovea.ledger.runs import run_key
from fovea.methods.grpo import GRPO
from fovea.recipes import vigorl, vigorl_diversity
from fovea.rollout.engine import Engine
from fovea.rollout.sampling import Sampling
from fovea.rollout.teacher import Teacher, taught
from fovea.tasks.load import load
from fovea.tasks.marks import Marks
from fovea.tasks.search import Search
from fovea.trainer.update import prepare
from fovea.types import Context, Group, Score, Task, user
from fovea.verifiers import resolve
from tests.rollout.fake_policy import FakePolicy, scripted

torch.set_num_threads(1)


def test_the_forms_differ_in_size_and_in_the_crop_only():
    tiny, real, warm = (recipes.get(n) for n in ("vigorl", "vigorl:real", "vigorl:warm"))
    assert tiny.method == real.method == vigorl.single.method and tiny.freeze == real.freeze == ("tower",)
    assert tiny.model == "vigorl:warm" and warm.model == "tiny" and warm.method.needs.data == "responses"
    assert tiny.sampling.stop == ("</find>", "</answer>") and real.sampling.stop == ("</tool_call>", "</answer>")
    assert tiny.group_size == real.group_size
    ours, theirs = (environment(r.environment)() for r in (tiny, real))
    assert (ours.looks, theirs.looks) == (4, 4)
    assert Marks()[0].verifier == real.reward and Marks()[0].params == {"call": ours.call, "seen": ours.seen}


def test_the_papers_numbers_stand_in_the_full_size_forms():
    real, gui, single, first = vigorl.real, vigorl.gui, vigorl.single, vigorl.first
    assert (real.method.beta, real.method.kl, real.method.kl_in, real.method.ddof, real.method.std_eps) == (0.01, "k3", "loss", 1, 1e-6)
    assert (real.group_size, single.group_size, real.tasks_per_step, real.updates_per_rollout) == (8, 5, 128, 2)
    assert (real.learning_rate, real.weight_decay, real.warmup_steps / real.steps, real.max_grad_norm) == (1e-6, 0.01, 0.05, 0.2)
    assert (single.warmup_steps, single.max_grad_norm, single.sampling.max_new_tokens, real.sampling.max_new_tokens) == (0, 1.0, 2048, 1024)
    assert (real.sampling.temperature, real.sampling.top_p, real.eval_temperature) == (1.0, 0.99, 0.5)
    search, screen = (environment(r.environment)() for r in (real, gui))
    assert (search.offset, search.crop, search.dot, search.tool) == (182, 672, False, "search_coordinate")
    assert (screen.offset, screen.crop, screen.dot) == (50, 384, True)
    assert (first.tasks_per_step, first.learning_rate, first.weight_decay) == (32, 1e-6, 0.01)


@pytest.mark.parametrize("module", [vigorl, vigorl_diversity])
def test_every_arm_is_a_run_of_its_own_on_as_many_episodes(module):
    tiny, claim = module.tiny.replace(model="tiny"), module.CLAIM
    arms = {a: arm_recipe(tiny, c).replace(model="tiny") for a, c in claim.arms.items()}
    assert {(r.tasks_per_step, r.group_size) for r in arms.values()} == {(tiny.tasks_per_step, tiny.group_size)}
    keys = {run_key(tiny, dataclasses.replace(claim, arms={**claim.arms, a: {**c, "model": "tiny"}}), a, 0) for a, c in claim.arms.items()}
    assert len(keys) == len(claim.arms)


def judged(arm, task, *texts):
    """The score of an arm's reward for these turns, played in the arm's environment."""
    recipe = arm_recipe(vigorl.tiny, vigorl.CLAIM.arms[arm])
    make = environment(recipe.environment) if recipe.environment else None
    task = dataclasses.replace(task, meta={**task.meta, "turns": texts, "response": texts[0]})
    (group,) = Engine(FakePolicy(), environment=make).rollout([task], 0, Sampling(max_new_tokens=99), members=("gold",))
    assert not group.episodes[0].error
    return resolve(task, recipe.reward).score(Group(task, group.episodes), Context())[0]


def test_what_the_arms_pay():
    task = Marks()[0]
    call, end = "<think>it ({0}, {0}).</think><find>[{0}, {0}]</find>", f"<think>so</think><answer>{task.answer}</answer>"
    once, twice = (call.format(12), end), (call.format(12), call.format(52), end)
    assert [judged("multi", task, *t).value for t in (once, twice)] == pytest.approx([1.0, 1.08])
    assert [judged("no_diversity", task, *t).value for t in (once, twice)] == [1.0, 1.0]
    assert judged("multi", task, *twice).parts["distinct"] == 2 and judged("multi", task, *(call.format(12),) * 4, end).value == 1.0
    assert [judged(arm, task, end).value for arm in ("single", "plain")] == [0.5, 1.0]
    assert judged("single", task, end.replace("so", "at (1, 2)")).value == 1.0


# -- credit and loss ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy():
    return build_policy(vigorl.tiny.replace(model="tiny"))


def played(policy, tasks, looks=4):
    engine = Engine(policy, environment=lambda: Look(looks=looks, side=64, offset=4, crop=64))
    return engine.rollout(tasks, 0, Sampling(max_new_tokens=80), Context(), members=("gold",))


def test_advantages_are_the_cards(policy):
    texts = ("<think>a</think><answer>star</answer>",)
    task = dataclasses.replace(Marks()[0], meta={"turns": texts})
    for scores, expected in (([1, 0.5, 0.5, 0], [1.2247, 0, 0, -1.2247]), ([1, 1, 1, 1], [0, 0, 0, 0])):
        episodes = [played(policy, [task])[0].episodes[0] for _ in scores]
        for e, s in zip(episodes, scores, strict=True):
            e.score = Score(s)
        batch = prepare(policy, GRPO(beta=0.0), [Group(task, episodes)], Context(), 8)
        assert batch.adv_BT[:, 0].tolist() == pytest.approx(expected, abs=1e-4)


def test_what_the_environment_says_gets_no_gradient(policy):
    outside = ("<think>a (500, 500).</think><tool_call>[500, 500]</tool_call>", "<think>so</think><answer>star</answer>")
    inside = ("<think>a (12, 12).</think><tool_call>[12, 12]</tool_call>", "<think>so</think><answer>star</answer>")
    tasks = [dataclasses.replace(Marks()[0], id=str(i), meta={"turns": t}) for i, t in enumerate((outside, inside))]
    (words,), (forced,) = (g.episodes for g in played(policy, tasks, looks=1))
    words.score, forced.score = Score(1.0), Score(0.0)
    batch = prepare(policy, GRPO(beta=0.0), [Group(tasks[0], [words, forced])], Context(), 8)
    batch.totals = batch.count(99)
    logp = batch.logp_old_BT.clone().requires_grad_()
    GRPO(beta=0.0).loss({"logp": logp}, batch)[0].backward()
    chosen = batch.mask_BT > 0
    assert (logp.grad[~chosen] == 0).all() and (logp.grad[chosen] != 0).all()
    said = policy.decode_text(batch.actions_BT[0][~chosen[0]].tolist())
    assert "This box is not inside the picture" in said  # masked in the row; a crop and a forced thought are the next row's prompt
    assert [policy.decode_text(s.actions.tolist()) for s in forced.segments] == [inside[0], "star</answer>"]
    assert "<think>the answer is</think><answer>" in policy.decode_text(policy.prompt_ids(forced.segments[1].prefix))


@pytest.mark.parametrize("arm", ["multi", "single"])
def test_two_steps(arm, tmp_path):
    recipe = arm_recipe(vigorl.tiny, vigorl.CLAIM.arms[arm]).replace(model="tiny", steps=2, tasks_per_step=2, group_size=2, eval_tasks=0)
    rows = fovea.train(recipe.replace(sampling__max_new_tokens=8), out=tmp_path / "run", quiet=True).metrics
    assert len(rows) == 2 and rows[-1]["reward/accuracy"] >= 0


def test_a_step_of_the_start(tmp_path):
    rows = fovea.train(vigorl.warm.replace(steps=1, tasks_per_step=3), out=tmp_path / "run", quiet=True).metrics
    assert rows[0]["batch/rows"] > 3 and rows[0]["length/episodes"] == 3


# -- a policy as the teacher ----------------------------------------------------------------------------------------------------

ASKED = Task("q", "own", user("Where?", images=0), answer="left", verifier="grounded")


def speaker(lines):
    """A policy that says what `lines` has for the end of what it is shown."""
    script = {}

    def logits(sequence):
        raw = bytes(t for t in sequence if t < 256).decode()
        shown, said = raw.rsplit("|", 1)
        tail = next(k for k in lines if shown.endswith(k))
        script[f"{tail}|"] = lines[tail]
        return scripted({"": lines[tail]})([ord("|"), *said.encode()])

    return FakePolicy(logits)


def test_a_teacher_goes_on_behind_the_steps_so_far():
    lines = {"<think>": "a (1, 2)\nmore", "a (1, 2)\n": "b (3, 4)</think>", "</think><answer>": "left</answer>"}
    teacher = Teacher(Engine(speaker(lines)), ASKED, Sampling(max_new_tokens=40, temperature=0.0))
    assert teacher((), 2, False) == ["a (1, 2)"] * 2
    assert teacher(("a (1, 2)",), 1, False) == ["b (3, 4)<answer>left</answer>"]
    assert teacher(("a (1, 2)",), 1, True) == ["<answer>left</answer>"]


def test_chains_of_a_teacher_are_read_back_from_a_file(tmp_path):
    import json

    lines = {"<think>": "a (1, 2).\n", "a (1, 2).\n": "b (3, 4).</think>", "</think><answer>": "left</answer>"}
    search = Search(simulations=1, children=1, rollouts=1)
    (made,) = taught(Engine(speaker(lines)), [ASKED], search, moved=0.0)
    assert made.meta["response"] == "<think>a (1, 2).\nb (3, 4).</think><answer>left</answer>"
    assert [t.rpartition("<")[0][-11:] for t in made.meta["turns"][:2]] == ["call>[1, 2]", "call>[3, 4]"]
    row = {"question": "Where?", "answer": made.answer, "turns": made.meta["turns"], "response": made.meta["response"]}
    (tmp_path / "chains.jsonl").write_text(json.dumps(row) + "\n")
    again = load(tmp_path / "chains.jsonl")[0]
    assert again.meta["turns"] == list(made.meta["turns"]) and again.meta["response"] == made.meta["response"]
    assert list(taught(Engine(speaker({**lines, "</think><answer>": "right</answer>"})), [ASKED], search)) == []
