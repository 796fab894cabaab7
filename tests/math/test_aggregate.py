import pytest
import torch

from fovea.batch import Totals
from fovea.math.aggregate import MODES, aggregate

MASK = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 1]])
LOSS = torch.tensor([[-1.0, -1, 7, float("nan")], [1, 1, 1, 1]])
TOTALS = Totals(tokens=6, rows=2, groups=1, max_tokens=8)


@pytest.mark.parametrize(
    "mode, want",
    [("seq-mean-token-mean", 0), ("token-mean", 1 / 3), ("dr_grpo", 0.125), ("seq-mean-token-sum-norm", 0.25), ("seq-mean-token-sum", 1.0)],
)
def test_worked_numbers(mode, want):
    assert aggregate(LOSS, MASK, TOTALS, mode).item() == pytest.approx(want, abs=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_parts_add_up_and_padding_and_order_change_nothing(mode):
    g = torch.Generator().manual_seed(0)
    x, mask = torch.randn(7, 9, generator=g, dtype=torch.float64), (torch.rand(7, 9, generator=g) > 0.4).double()
    mask[3] = 0
    totals = Totals(float(mask.sum()), float((mask.sum(1) > 0).sum()), 1, 9)
    whole = aggregate(x, mask, totals, mode)
    assert torch.allclose(sum(aggregate(x[i : i + 2], mask[i : i + 2], totals, mode) for i in range(0, 7, 2)), whole, atol=1e-14)
    order = torch.randperm(7, generator=g)
    assert torch.allclose(aggregate(x[order], mask[order], totals, mode), whole, atol=1e-14)
    wide = torch.nn.functional.pad(x, (0, 3), value=99.0), torch.nn.functional.pad(mask, (0, 3))
    assert torch.allclose(aggregate(*wide, totals, mode), whole, atol=1e-14)


@pytest.mark.parametrize("mode", MODES)
def test_matches_a_plain_loop(mode):
    g = torch.Generator().manual_seed(1)
    x, mask = torch.randn(5, 6, generator=g, dtype=torch.float64), (torch.rand(5, 6, generator=g) > 0.4).double()
    mask[:, 0] = 1
    rows = [[float(x[i, j]) for j in range(6) if mask[i, j]] for i in range(5)]
    tokens = sum(map(len, rows))
    want = {
        "seq-mean-token-mean": sum(sum(r) / len(r) for r in rows) / 5,
        "token-mean": sum(map(sum, rows)) / tokens,
        "seq-mean-token-sum": sum(map(sum, rows)) / 5,
        "dr_grpo": sum(map(sum, rows)) / (5 * 11),
        "seq-mean-token-sum-norm": sum(map(sum, rows)) / 11,
        "turn-mean-token-mean": sum(sum(r) / len(r) for r in rows) / 5,
    }[mode]
    assert aggregate(x, mask, Totals(tokens, 5, 1, 11, turns=5), mode).item() == pytest.approx(want, abs=1e-12)


def test_turns_weigh_alike_in_rows_of_several():
    turn = torch.tensor([[0, 1, 1, 1], [0, 0, 2, 2]])
    mask = torch.tensor([[1.0, 1, 0, 1], [1, 1, 1, 1]])
    x = torch.tensor([[3.0, 1, float("nan"), 5], [2, 4, 0, 1]])
    totals = Totals(tokens=7, rows=2, groups=1, max_tokens=8, turns=4)
    assert aggregate(x, mask, totals, "turn-mean-token-mean", turn).item() == pytest.approx((3 + 3 + 3 + 0.5) / 4)


def test_no_gradient_comes_from_masked_units_even_when_they_are_not_finite():
    x = LOSS.clone().requires_grad_()
    aggregate(x, MASK, TOTALS, "token-mean").backward()
    assert torch.equal(x.grad, MASK / 6)


def test_an_unknown_mode_names_the_nearest():
    with pytest.raises(ValueError, match=r"'token_mean' is not known.*did you mean 'token-mean'"):
        aggregate(LOSS, MASK, TOTALS, "token_mean")
