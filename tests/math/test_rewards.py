import pytest
import torch

from fovea.math import rewards
from fovea.math.advantages import grpo


@pytest.mark.parametrize(
    "length, limit, cache, want",
    [
        (1536, 2048, 512, 0),
        (1792, 2048, 512, -0.5),
        (2048, 2048, 512, -1),
        (3000, 2048, 512, -1),
        (18432, 20480, 4096, -0.5),
        (1, 2048, 512, 0),
    ],
)
def test_worked_numbers_of_the_overlong_penalty(length, limit, cache, want):
    assert rewards.overlong_penalty(torch.tensor([length]), limit, cache).item() == pytest.approx(want)
    assert rewards.overlong_penalty(torch.tensor([length]), limit, cache, factor=0.5).item() == pytest.approx(want / 2)


PARTS = {"format": torch.tensor([1.0, 0, 1, 1]), "answer": torch.tensor([100.0, 0, float("nan"), 100])}
GROUP, OK = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.bool)


def test_weighted_sum_counts_a_missing_part_as_zero():
    assert rewards.weighted_sum(PARTS, {"format": 2.0, "answer": 0.1}).tolist() == pytest.approx([12, 0, 2, 12])


def test_each_part_is_normalised_over_the_episodes_that_have_it():
    got = rewards.normalised_parts(PARTS, {"format": 1.0, "answer": 0.5}, GROUP, OK)
    format_adv = grpo(PARTS["format"], GROUP, OK)
    answer_adv = grpo(PARTS["answer"], GROUP, torch.tensor([True, True, False, True]))
    assert torch.allclose(got, format_adv + 0.5 * answer_adv)
    assert answer_adv[2] == 0
    rescaled = {"format": PARTS["format"], "answer": PARTS["answer"] / 100}
    assert torch.allclose(rewards.normalised_parts(rescaled, {"format": 1.0, "answer": 0.5}, GROUP, OK), got, atol=1e-4)


def test_an_unknown_part_is_named():
    with pytest.raises(ValueError, match=r"reward part 'fromat' is not known.*did you mean 'format'"):
        rewards.normalised_parts(PARTS, {"fromat": 1.0}, GROUP, OK)


def test_scales():
    score = torch.tensor([1.0, 0, 0, 0])
    assert rewards.group_advantage(score, GROUP, OK, "none").tolist() == [0.75, -0.25, -0.25, -0.25]
    assert rewards.group_advantage(score, GROUP, OK, "group").tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    with pytest.raises(ValueError, match="scale 'groups' is not known"):
        rewards.group_advantage(score, GROUP, OK, "groups")
