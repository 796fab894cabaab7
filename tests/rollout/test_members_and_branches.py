"""Members of a group that nobody drew, and conversations beside an episode."""

import asyncio

import pytest
import torch
from PIL import Image

from fovea.batch import collate
from fovea.methods.visurf import ViSurf
from fovea.rollout.denoise import DenoiseEngine
from fovea.rollout.engine import Engine
from fovea.rollout.given import answer_text, given_ids, gold_text
from fovea.rollout.programs import Described
from fovea.rollout.sampling import Sampling
from fovea.trainer.update import prepare
from fovea.types import Context, Observation, Task, user
from fovea.verifiers import Scorer
from tests.rollout.fake_policy import EOS, IMAGE, FakePolicy, random_logits, scripted

PICTURE = (Image.new("RGB", (4, 4), "red"),)


def ask(name="a", answer="7", **more):
    return Task(id=name, source="toy", prompt=user(name), images=PICTURE, answer=answer, **more)


def said(group, role):
    return [e for e in group.episodes if e.role == role]


# -- the gold member ------------------------------------------------------------------------------------------------------------


def test_the_gold_member_says_the_gold_answer_and_is_scored_like_any_other():
    with Scorer() as scorer:
        (group,) = Engine(FakePolicy()).rollout([ask()], 2, Sampling(max_new_tokens=20), members=("gold",), score=scorer)
    (label,) = said(group, "gold")
    (row,) = label.segments
    assert row.actions.tolist() == [*b"<answer>7</answer>", EOS] and bool(row.mask.all())
    assert label.text == "<answer>7</answer>" and label.stop == "eos" and label.score.value == 1.0 and label.score.correct
    assert label.id == "0/a/2" and len(group.samples) == 2 and label not in group.samples
    assert row.prefix is group.episodes[0].segments[0].prefix  # so that the prompt is computed once


def test_the_gold_member_changes_no_other():
    engine = Engine(FakePolicy())
    (plain,) = engine.rollout([ask()], 3, Sampling(max_new_tokens=30))
    (joined,) = engine.rollout([ask()], 3, Sampling(max_new_tokens=30), members=("gold",))
    assert [e.segments[0].actions.tolist() for e in plain.episodes] == [e.segments[0].actions.tolist() for e in said(joined, "sample")]


def test_a_task_without_a_gold_answer_ends_the_rollout():
    with pytest.raises(ValueError, match=r"task b: no answer and no meta\['response'\]"):
        Engine(FakePolicy()).rollout([ask(), ask("b", answer=None)], 2, members=("gold",))


def test_a_gold_answer_that_is_too_long_is_named_and_never_cut():
    (group,) = Engine(FakePolicy()).rollout([ask(answer="long " * 9)], 2, Sampling(max_new_tokens=20), members=("gold",))
    (label,) = said(group, "gold")
    assert "its gold answer has 63 tokens; expected at most max_new_tokens = 20" in label.error and not label.segments


def test_a_gold_answer_is_one_turn():
    async def twice(task, policy, env):
        await policy.act(Observation(messages=task.prompt, images=task.images))
        await policy.act(Observation(messages=user("more", 0), append=True))

    (group,) = Engine(FakePolicy(), twice).rollout([ask()], 1, Sampling(max_new_tokens=20), members=("gold",))
    assert "its gold answer is one turn, and the episode program asks for another one" in said(group, "gold")[0].error


def test_engines_without_gold_members_refuse_them_by_name():
    policy = type("Policy", (), {"draws": 1, "version": 0})()
    with pytest.raises(ValueError, match=r"members = \('gold',\); this engine makes 'greedy', not \['gold'\]"):
        DenoiseEngine(policy, lambda task: torch.zeros(1)).rollout([ask()], 2, members=("gold",))


class Fixed:
    """Log-probabilities that depend on the unit alone, and a count of the rows that were asked for."""

    def __init__(self):
        self.rows = []

    def evaluate(self, batch, want, variant="policy"):
        self.rows.append(batch.B)
        return {name: -0.001 * batch.actions_BT.float() - float(variant == "reference") for name in want}


def test_how_likely_the_gold_answer_was_is_noted_at_the_trainers_temperature():
    sampling = Sampling(max_new_tokens=20, temperature=0.5, top_k=3, min_new_tokens=20)
    groups = Engine(FakePolicy()).rollout([ask(), ask("b", answer="17")], 2, sampling, members=("gold",))
    for group in groups:
        (row,) = said(group, "gold")[0].segments
        sequence = list(row.prefix.data)
        for token, logp in zip(row.actions.tolist(), row.logp_old.tolist(), strict=True):
            logits = random_logits(sequence) / 0.5
            logits[IMAGE] = -torch.inf
            assert logp == pytest.approx(torch.log_softmax(logits, 0)[token].item(), abs=1e-5)
            sequence.append(token)
        assert torch.equal(row.logp_behaviour, row.logp_old)


def test_given_answers_are_not_counted_as_generated():
    plain, joined = Engine(FakePolicy()), Engine(FakePolicy())
    plain.rollout([ask()], 3, Sampling(max_new_tokens=30))
    joined.rollout([ask()], 3, Sampling(max_new_tokens=30), members=("gold",))
    assert joined.counts["tokens"] == plain.counts["tokens"] and joined.counts["prefixes"] == plain.counts["prefixes"] == 1


def test_where_nothing_is_drawn_given_answers_cost_no_forward_pass():
    engine = Engine(FakePolicy())
    (group,) = engine.rollout([ask()], 0, Sampling(max_new_tokens=20), members=("gold",))
    (row,) = group.episodes[0].segments
    assert row.actions.tolist() == [*b"<answer>7</answer>", EOS] and not row.logp_old.any()
    assert engine.counts["prefills"] == engine.counts["decode_steps"] == 0


@pytest.mark.parametrize("beta, remote, passes", [(0.0, False, []), (0.1, False, [6]), (0.0, True, [6]), (0.1, True, [6, 6])])
def test_the_trainer_reads_off_how_likely_answers_were_only_where_they_came_from_elsewhere(beta, remote, passes):
    with Scorer() as scorer:
        groups = Engine(FakePolicy()).rollout([ask(), ask("b")], 2, Sampling(max_new_tokens=20), members=("gold",), score=scorer)
    for segment in [s for g in groups for e in g.episodes for s in e.segments]:
        segment.remote = remote
    policy, noted = Fixed(), collate(groups)
    batch = prepare(policy, ViSurf(beta=beta), groups, Context(), micro_batch=8)
    assert policy.rows == passes and batch.given_B.tolist() == [False, False, True] * 2
    assert torch.equal(batch.logp_old_BT, -0.001 * batch.actions_BT.float() if remote else noted.logp_old_BT)
    assert torch.equal(batch.logp_behaviour_BT[batch.given_B], batch.logp_old_BT[batch.given_B])
    assert torch.equal(batch.logp_behaviour_BT[~batch.given_B], noted.logp_behaviour_BT[~batch.given_B])


@pytest.mark.parametrize(
    "answer, text",
    [
        ("red", "red"),
        (4, "4"),
        ([4, 5, 20, 18], "4 5 20 18"),
        ([{"bbox_2d": [1, 2, 3, 4], "point_2d": [2, 3]}], '[{"bbox_2d": [1, 2, 3, 4], "point_2d": [2, 3]}]'),
        ('[{"bbox_2d":[1,2,3,4]}]', '[{"bbox_2d": [1, 2, 3, 4]}]'),
        ([], "[]"),
        ("[not json", "[not json"),
    ],
)
def test_labels_are_written_in_the_style_of_the_policy(answer, text):
    assert answer_text(answer) == text
    assert gold_text(ask(answer=answer)) == f"<answer>{text}</answer>"


def test_a_given_answer_ends_as_the_chat_template_ends_a_turn():
    from fovea.api import load_policy

    policy = load_policy("tiny")
    ids = given_ids(policy, gold_text(ask(answer=[4, 5, 20, 18])))
    # what a perfect answer of the policy itself consists of: its words, and the end of a turn
    perfect = policy.encode_text("<answer>4 5 20 18</answer>")
    assert ids[:-1] == perfect and policy.decode_text(ids[-1:], skip_special=False) == "<|im_end|>"


# -- branches -------------------------------------------------------------------------------------------------------------------

DESCRIBED = {"how many?": "<think>red 3</think><answer>3</answer>", "red 3": "<answer>3</answer>"}


def test_the_reader_sees_the_description_and_no_picture():
    task = Task("a", "toy", user("how many?"), PICTURE, "3")
    policy = FakePolicy(scripted({**DESCRIBED, "how many?": DESCRIBED["how many?"], "red 3 how many?": "<answer>3</answer>"}))
    engine = Engine(policy, Described(tag="think", ask="{} {}".format))
    (group,) = engine.rollout([task], 3, Sampling(max_new_tokens=60, temperature=0.0))
    assert engine.counts["errors"] == 0, group.episodes[0].error
    for e in group.episodes:
        assert e.text == DESCRIBED["how many?"] and len(e.turns) == 1
        (turn,) = e.branches["reader"]  # exactly one answer per response
        assert turn.text == "<answer>3</answer>" and not turn.observation.images
        assert policy.flat(turn.observation.messages).count(IMAGE) == 0
        (row,) = e.segments  # the reader's units are not trained
        assert bytes(t for t in row.actions.tolist() if t < 256).decode() == e.text
        described = row.extras["described"].tolist()
        assert described == [1.0] * len("<think>red 3</think>") + [0.0] * (len(row) - len("<think>red 3</think>"))


@pytest.mark.parametrize(
    "answer",
    ["<answer>3</answer>", "<think></think><answer>3</answer>", "<think>red 3 <answer>3</answer>", "<think> <answer>3</answer></think>"],
)
def test_without_a_description_nobody_reads(answer):
    task = Task("a", "toy", user("q"), PICTURE, "3")
    (group,) = Engine(FakePolicy(scripted({"q": answer})), Described(tag="think")).rollout([task], 1, Sampling(temperature=0.0))
    (e,) = group.episodes
    assert e.text == answer and e.branches == {} and not e.segments[0].extras["described"].any()


def test_branches_run_side_by_side_with_draws_of_their_own():
    async def both(task, policy, env):
        await policy.act(Observation(messages=task.prompt, images=task.images))
        shown = Observation(messages=user("same", 0))
        await asyncio.gather(*(policy.branch(name).act(shown, max_new_tokens=8, min_new_tokens=8) for name in ("x", "y")))

    run = [Engine(FakePolicy(), both, max_rows=n).rollout([ask()], 2, Sampling(max_new_tokens=5))[0] for n in (1, 8)]
    for e, other in zip(run[0].episodes, run[1].episodes, strict=True):
        texts = {name: turns[0].text for name, turns in e.branches.items()}
        assert set(texts) == {"x", "y"} and texts["x"] != texts["y"]
        assert texts == {name: turns[0].text for name, turns in other.branches.items()}
        assert len(e.segments) == 1


def test_a_branch_is_opened_once_and_a_mark_fits_its_turn():
    async def twice(task, policy, env):
        await policy.act(Observation(messages=task.prompt, images=task.images))
        policy.branch("x"), policy.branch("x")

    async def short(task, policy, env):
        await policy.act(Observation(messages=task.prompt, images=task.images))
        policy.mark("described", [1.0])

    def error(program):
        return Engine(FakePolicy(), program).rollout([ask()], 1, Sampling(max_new_tokens=5, min_new_tokens=5))[0].episodes[0].error

    assert "branch 'x' was opened already" in error(twice)
    assert "mark 'described': 1 values for the 5 units of the last turn" in error(short)


def test_marks_of_later_turns_stand_behind_what_was_inserted():
    async def chat(task, policy, env):
        for k, text in enumerate(("a", "bb")):
            action = await policy.act(Observation(messages=user(text, 0), append=k > 0), max_new_tokens=3, min_new_tokens=3)
            if k:
                policy.mark("late", [1.0] * len(action.token_ids))

    (group,) = Engine(FakePolicy(), chat).rollout([ask()], 1)
    (row,) = group.episodes[0].segments
    assert row.extras["late"].tolist() == ((row.turn == 1) & row.mask).float().tolist()
