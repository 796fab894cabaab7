"""Vision-SR1: the worked numbers of its reward and of its three ways to credit it, and the grammar that closes its leak."""

import pytest
import torch

from fovea.batch import Streams, collate
from fovea.methods.grpo import GRPO
from fovea.methods.vision_sr1 import VisionSR1
from fovea.recipes.vision_sr1 import REWARD
from fovea.types import Context, Episode, Group, Score, Task, Turn, user
from fovea.verifiers import build
from fovea.verifiers.parse import description
from tests.methods.test_methods import answers

ANSWER, VISUAL = (1, 1, 0, 0), (1, 0, 1, 0)
A, B = 0.8660, 0.8660  # (1 − 0.5) / 0.5774, the std of two ones and two zeros with divisor 3


def group(answer=ANSWER, visual=VISUAL, fmt=(1, 1, 1, 1)):
    """Four answers of four units, the first two of which are the description."""
    rows = [Score(0.9 * a + 0.1 * f + v, {"answer": a, "visual": v, "format": f}) for a, v, f in zip(answer, visual, fmt, strict=True)]
    return answers(*rows, length=4, extras={"described": torch.tensor([1.0, 1.0, 0.0, 0.0])})


def credit(method, **more):
    batch = collate([group(**more)], dtype=torch.float64)
    return method.credit(batch), batch


def test_only_the_split_blames_a_bad_description_of_a_right_answer():
    adv, _ = credit(VisionSR1(alpha=0.0))
    assert adv[:, 0].tolist() == pytest.approx([B, -B, B, -B], abs=1e-4) == adv[:, 1].tolist()
    assert adv[:, 2].tolist() == pytest.approx([A, A, -A, -A], abs=1e-4) == adv[:, 3].tolist()


def test_multi_is_the_sum_of_the_channels_on_all_tokens():
    adv, _ = credit(VisionSR1(mode="multi"))
    assert adv.tolist() == [pytest.approx([x] * 4, abs=1e-3) for x in (1.732, 0, 0, -1.732)]


def test_additive_is_grpo_of_the_sum():
    batch = collate([answers(*(a + v for a, v in zip(ANSWER, VISUAL, strict=True)), length=4)], dtype=torch.float64)
    adv = VisionSR1(mode="additive").credit(batch)
    assert adv[:, 0].tolist() == pytest.approx([1.2247, 0, 0, -1.2247], abs=1e-4)
    assert torch.equal(
        adv, GRPO().credit(collate([answers(*(a + v for a, v in zip(ANSWER, VISUAL, strict=True)), length=4)], dtype=torch.float64))
    )


def test_the_swap_exchanges_the_two():
    straight, _ = credit(VisionSR1(alpha=0.0))
    swapped, _ = credit(VisionSR1(alpha=0.0, swap=True))
    assert torch.equal(swapped, straight.flip(1))


def test_equal_rewards_of_a_channel_leave_its_tokens_without_gradient():
    for more, silent in (({"visual": (1, 1, 1, 1)}, slice(0, 2)), ({"answer": (0, 0, 0, 0)}, slice(2, 4))):
        method = VisionSR1(beta=0.0)
        adv, batch = credit(method, **more)
        batch.adv_BT, batch.totals = adv, batch.count(8)
        logp = batch.logp_old_BT.clone().requires_grad_()
        method.loss(Streams({"logp": logp}), batch)[0].backward()
        moved = logp.grad != 0
        assert not moved[:, silent].any() and moved.any(1).all()


def test_the_format_counts_in_both_rewards_by_alpha():
    adv, _ = credit(VisionSR1(alpha=0.5), answer=(1, 1, 1, 1), visual=(0, 0, 0, 0), fmt=(1, 1, 0, 0))
    assert torch.equal(adv[:, 0], adv[:, 2]) and adv[:, 0].tolist() == pytest.approx([A, A, -A, -A], abs=1e-4)


def test_multi_clips_every_channel_by_itself():
    """ρ = 1.5, A = .866 and −.866: the sum is 0, but min(1.5 A, 1.3 A) + min(−1.5 A, −1.3 A) = −0.2 A."""
    method = VisionSR1(mode="multi", beta=0.0)
    adv, batch = credit(method)
    batch.adv_BT, batch.totals = adv, batch.count(8)
    shift = torch.log(torch.tensor([[1.0], [1.5], [1.0], [1.0]], dtype=torch.float64))
    loss, _ = method.loss(Streams({"logp": (batch.logp_old_BT + shift).requires_grad_()}), batch)
    assert float(loss.detach()) == pytest.approx(0.2 * A * 4 / 16, abs=1e-5)


def test_a_program_that_marks_nothing_is_named():
    with pytest.raises(ValueError, match=r"no row has the mark 'described' \(there are: none\)"):
        VisionSR1().credit(collate([answers(*(Score(1.0, {"answer": a, "visual": a, "format": 1.0}) for a in (1.0, 0.0)))]))


@pytest.mark.parametrize("given, total", [((1, 1, 1), 2.0), ((1, 1, 0), 1.0), ((0, 1, 1), 1.1), ((1, 0, 0), 0.9), ((0, 0, 0), 0.0)])
def test_the_additive_reward(given, total):
    """Of (answer, format, visual); an answer that breaks the format stands alone."""
    answer, form, visual = given
    task = Task("t", "toy", user("q", 0), answer="3")
    text = f"<think>red 3</think><answer>{3 if answer else 4}</answer>" if form else f"{3 if answer else 4}"
    e = Episode("e", task, turns=[Turn(text)], branches={"reader": [Turn(f"<answer>{3 if visual else 5}</answer>")]})
    (score,) = REWARD.of(task).score(Group(task, [e]), Context())
    assert score.value == pytest.approx(total) and score.correct == bool(answer)
    assert [score.parts[n] for n in ("answer", "format", "visual")] == list(map(float, given))


def read(branches, **meta):
    task = Task("t", "toy", user("q", 0), answer="3", meta=meta)
    e = Episode("e", task, turns=[Turn("3")], branches={name: [Turn(f"<answer>{a}</answer>")] for name, a in branches.items()})
    (score,) = build("readers").score(Group(task, [e]), Context())
    return score


def test_all_readers_must_be_right_and_where_nobody_read_nothing_is_earned():
    probes = {"left": ("How tall is the left one?", "8")}
    assert read({"reader": 3}).value == 1.0 and read({"reader": 4}).value == 0.0
    assert read({"reader": 3, "left": 8}, probes=probes).value == 1.0
    assert read({"reader": 3, "left": 7}, probes=probes).value == 0.0
    assert read({}) == Score(0.0, {"read": 0.0}, correct=False)
    assert "has no probe 'right'; its meta['probes'] has left" in read({"right": 1}, probes=probes).reason


@pytest.mark.parametrize(
    "text, said",
    [
        ("<description>two cats</description> \\boxed{2}", "two cats"),
        ("the answer is \\boxed{2}", ""),
        ("<description>two cats \\boxed{2}", ""),
        ("<description> </description>2", ""),
        ("</description>2<description>", ""),
        ("<description>two cats, so \\boxed{2} and \\boxed{\\frac{1}{2}}</description>", "two cats, so   and"),
        ("<description>cats <answer>2</answer> here</description>", "cats  here"),
        ("<description>cats <answer>2</description>", "cats"),
    ],
)
def test_nothing_but_the_description_is_passed_on(text, said):
    assert description(text) == said


@pytest.mark.parametrize(
    "text, good",
    [
        ("<description>a</description><think>b</think> so \\boxed{3}\n", 1.0),
        ("<description>a</description><think>b</think>\\boxed{\\frac{1}{2}}", 1.0),
        ("first <description>a</description><think>b</think>\\boxed{3}", 0.0),
        ("<description>a</description><think>b</think>\\boxed{3} yes", 0.0),
        ("<description>a</description>\\boxed{3}<think>b</think>", 0.0),
        ("<think>b</think><description>a</description>\\boxed{3}", 0.0),
        ("<description>a</description><think>b</think>\\boxed{}", 0.0),
        ("<description>a</description><think>b</think> 3", 0.0),
    ],
)
def test_the_full_format(text, good):
    task = Task("t", "toy", user("q", 0))
    verifier = build("format", {"tags": ("description", "think"), "box": True})
    assert verifier.score(Group(task, [Episode("e", task, turns=[Turn(text)])]), Context())[0].value == good
