import math

import pytest
import torch
from torch import nn

from fovea.math.bootstrapped import double_q, dual_loss, least, n_step, polyak
from fovea.math.squash import log_slope, squashed

F, T = False, True


def test_a_transition_by_hand():
    reward, ended = torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.tensor([[F], [T]])
    ret, follows = n_step(reward, ended, 0.97)
    target = ret + follows * least(torch.tensor([[0.5, 9.0], [0.8, 9.0]]))
    assert target.tolist() == pytest.approx([0.485, 1.0]), "HIL-SERL's card: .97 times the lesser critic, and an end is worth its reward"


def test_three_units_by_hand():
    ret, follows = n_step(torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, -1.0]]), torch.tensor([[F, F, F], [F, F, T]]), 0.5)
    assert ret.tolist() == [3.0, -0.25] and follows.tolist() == [0.125, 0.0]


def test_the_slow_network_values_what_the_other_prefers():
    value, slow = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 9.0]]), torch.tensor([[5.0, 0.5, 7.0], [1.0, 2.0, 0.4]])
    assert double_q(value, slow).tolist() == pytest.approx([0.5, 0.4])
    penalised = -0.02 + 0.97 * double_q(value[1:], slow[1:])
    assert penalised.tolist() == pytest.approx([0.368]), "the gripper's example of HIL-SERL's card"


def test_a_slow_copy_moves_by_a_share_and_takes_all_at_one():
    slow, fast = nn.Linear(1, 1), nn.Linear(1, 1)
    for p, q in zip(slow.parameters(), fast.parameters()):
        p.data.fill_(1.0)
        q.data.fill_(3.0)
    polyak(slow, fast, 0.005)
    assert [p.item() for p in slow.parameters()] == pytest.approx([1.01, 1.01])
    polyak(slow, fast, 1.0)
    assert [p.item() for p in slow.parameters()] == [3.0, 3.0] and [p.item() for p in fast.parameters()] == [3.0, 3.0]


@pytest.mark.parametrize(("entropy", "grows"), [(0.5, True), (2.0, False)])
def test_the_multiplier_grows_while_the_constraint_is_broken(entropy, grows):
    log_dual, logp = torch.tensor(math.log(0.2), requires_grad=True), torch.full((4,), -entropy, requires_grad=True)
    loss = dual_loss(log_dual, -logp - 1.0)
    assert loss.item() == pytest.approx(0.2 * (entropy - 1))
    loss.backward()
    assert log_dual.grad.item() == pytest.approx(0.2 * (entropy - 1)) and logp.grad is None
    assert (log_dual.detach() - log_dual.grad > math.log(0.2)) == grows


def test_no_gradient_where_the_constraint_is_met_exactly():
    log_dual = torch.tensor(0.0, requires_grad=True)
    dual_loss(log_dual, torch.tensor([1.0, -1.0])).backward()
    assert log_dual.grad.item() == 0.0


def test_a_squashed_gaussian_by_hand():
    action, logp = squashed(torch.tensor([[0.5]]), torch.tensor([[0.0]]), torch.tensor([[0.0]]))
    assert action.item() == pytest.approx(0.46212, abs=1e-5)
    assert logp.item() == pytest.approx(-0.918939 - math.log(1 - 0.46211716**2), abs=1e-5)  # −0.6782
    _, two = squashed(torch.tensor([[0.5, 0.5]]), torch.zeros(1, 2), torch.zeros(1, 2))
    assert two.item() == pytest.approx(2 * logp.item()), "dimensions add"


def test_the_density_of_a_squashed_gaussian_integrates_to_one():
    a = torch.linspace(-1 + 1e-6, 1 - 1e-6, 200_001, dtype=torch.float64)
    mean, log_std = torch.tensor(0.3, dtype=torch.float64), torch.tensor(-0.4, dtype=torch.float64)
    noise = (torch.atanh(a) - mean) / log_std.exp()
    action, logp = squashed(mean.expand(len(a), 1), log_std.expand(len(a), 1), noise[:, None])
    assert torch.allclose(action[:, 0], a)
    assert torch.trapezoid(logp.exp(), a).item() == pytest.approx(1.0, abs=1e-4)


def test_the_slope_is_exact_where_tanh_rounds_to_one():
    x = torch.tensor([0.0, 3.0, -3.0, 40.0])
    assert log_slope(x)[:3].tolist() == pytest.approx([0.0, *(math.log(1 - math.tanh(3) ** 2),) * 2], abs=1e-5)
    assert log_slope(x)[3].item() == pytest.approx(2 * math.log(2) - 80, abs=1e-4) and torch.isfinite(log_slope(x)).all()
