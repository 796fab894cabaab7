"""The memory estimate: tensors are counted while they live, and the parts are what the recipe says."""

import pytest
import torch

from fovea import plan
from fovea.bench import ours
from fovea.methods.grpo import GRPO
from fovea.policies.hf_vlm import HFVLM
from fovea.policies.lora import LoRA
from fovea.recipe import Recipe
from fovea.rollout.sampling import Sampling
from fovea.trace import META, Live, parameters_without_data, trace, without_data

SMALL = Recipe(
    data="worlds:count", method=GRPO(beta=0.0), tasks_per_step=2, group_size=2, sampling=Sampling(max_new_tokens=8), steps=5, micro_batch=4
)


def test_a_tensor_counts_once_and_as_long_as_it_lives():
    with Live() as live:
        a = torch.zeros(1000, device=META)
        b = a.view(10, 100)
        b.add_(1)
        assert live.now == 4000
        c = a * 2
        assert live.now == 8000
        del a
        assert live.now == 8000, "a view keeps it"
        del b, c
        d = torch.zeros(10, device=META)
        assert (live.now, live.peak) == (40, 8000)
        del d


def test_a_view_of_a_weight_is_no_new_memory():
    weight = torch.nn.Parameter(torch.empty(100, 100, device=META))
    with Live() as live, torch.no_grad():
        views = weight.t(), weight[:50], weight.detach()
        assert live.now == 0
        weight.mul_(2)
        copy = weight.t().contiguous()
        assert live.now == live.peak == copy.nbytes == 4 * 100 * 100, views


def test_what_autograd_keeps_counts_until_the_backward_pass():
    weight = torch.nn.Parameter(torch.empty(100, 100, device=META))
    with Live() as live:
        out = torch.tanh(torch.zeros(50, 100, device=META) @ weight).sum()
        assert live.now == 2 * 50 * 100 * 4 + 4, "the product's input and tanh's output, and the sum"
        out.backward()
        del out
        assert live.now == weight.grad.nbytes
    assert live.peak >= 3 * 50 * 100 * 4


def test_parameters_have_no_data_and_buffers_do():
    with parameters_without_data():
        layer = torch.nn.BatchNorm1d(3)
    assert layer.weight.is_meta
    assert layer.weight.requires_grad
    assert layer.running_mean.tolist() == [0, 0, 0]
    assert not torch.nn.Linear(1, 1).weight.is_meta


@pytest.fixture(scope="module")
def full():
    return plan.estimate(SMALL)[0]


def test_standing_parts_are_those_of_the_checkpoint(full):
    real = HFVLM.load("tiny")
    count = sum(p.numel() for p in real.parameters())
    buffers = sum(b.nbytes for b in real.model.buffers())
    assert (full.weights, full.gradients, full.moments, full.reference) == (4 * count + buffers, 4 * count, 8 * count, 0)
    phases = max(full.generate, full.gradients + full.update)
    assert full.total == full.weights + full.moments + full.pictures + phases + full.allocator


def test_copies_that_answer_are_among_the_weights(full):
    count = full.gradients // 4
    served = plan.estimate(SMALL.replace(services__workers=2, services__rounding="bfloat16"))[0]
    assert served.weights == full.weights + 2 * 2 * count + 4 * count, "two of two bytes, and what was published last"
    assert (served.gradients, served.moments, served.reference) == (full.gradients, full.moments, 0)


def test_adapters_need_neither_gradients_nor_a_reference_of_the_weights(full):
    small, policy, _ = plan.estimate(SMALL.replace(lora=LoRA(rank=2), method__beta=0.1))
    count = sum(p.numel() for p in policy.parameters())
    assert (small.gradients, small.moments, small.reference) == (4 * count, 8 * count, 0)
    assert full.weights < small.weights < 1.1 * full.weights
    assert small.prepare > 0
    copied = plan.estimate(SMALL.replace(method__beta=0.1))[0]
    assert copied.reference == copied.weights


def test_what_saves_memory_lowers_the_estimate(full):
    long = SMALL.replace(group_size=8, micro_batch=16, sampling__max_new_tokens=48)
    whole, checkpointed = (plan.estimate(long.replace(gradient_checkpointing=on))[0] for on in (False, True))
    fewer = plan.estimate(long.replace(micro_batch=4))[0]
    frozen = plan.estimate(SMALL.replace(freeze=("tower",)))[0]
    assert checkpointed.update < 0.6 * whole.update
    assert fewer.update < 0.7 * whole.update, "the graphs of pictures wait for all of the micro-batches"
    assert frozen.update < full.update
    assert frozen.gradients < full.gradients
    low = plan.estimate(SMALL.replace(dtype="bfloat16"))[0]
    assert low.weights < 0.6 * full.weights
    assert low.moments == full.moments * 3 // 2, "float32 masters beside two moments"


def test_each_of_several_processes_has_its_share(full):
    policy = without_data(SMALL)
    task = plan.assumed()[0]
    prefix = policy.encode(task.prompt, task.images)
    wide = SMALL.replace(tasks_per_step=8, micro_batch=32)
    one, two, parts = (trace(r, policy, prefix, 8, 100, n) for r, n in ((wide, 1), (wide, 2), (wide.replace(parallel="fsdp"), 2)))
    assert two.update < 0.7 * one.update and two.generate < one.generate
    assert (two.weights, two.gradients, two.moments) == (one.weights, one.gradients, one.moments)
    assert (parts.weights, parts.gradients, parts.moments) == (one.weights // 2, one.gradients // 2, one.moments // 2)
    assert parts.generate == two.generate + one.weights // 2 and two.update < parts.update < two.update + one.weights


def test_the_plan_reads_no_weights_and_says_what_it_assumed(monkeypatch, tmp_path):
    import transformers

    def read(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(transformers.Qwen2_5_VLForConditionalGeneration, "from_pretrained", read)
    text, lacks = plan.plan(SMALL)
    assert "trained; prompts of" in text
    assert "answers of 8" in text
    assert "total" in text and not lacks


def test_the_estimate_is_near_what_a_policy_holds_after_an_update(full):
    """Counted on real tensors: gradients and moments after one step are those of the estimate."""
    trainer = ours.Trainer(ours.recipe("tiny", ours.Cell(64, 8, 2), tasks_per_step=1))
    trainer(ours.tasks(0, 64)[:1])
    state = [x for s in trainer.optimizer.state.values() for x in s.values()]
    assert sum(x.nbytes for x in state if x.ndim) == full.moments
    assert trainer.policy._fused is None, "weights fused for decoding do not outlive the rollout"
