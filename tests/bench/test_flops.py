"""The arithmetic floor against numbers worked by hand."""

import pytest

from fovea.bench import flops
from fovea.bench.flops import Shape
from fovea.bench.workload import SMALL

# one text layer (hidden 4, 2 heads of 2, 1 key/value head, inner 8, vocabulary 16) and two vision layers (hidden 2, inner 3), one of them
# full; 5 numbers per patch, 4 patches per token, windows of 6 patches
TOY = Shape(
    hidden=4,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=2,
    inner=8,
    vocab=16,
    v_hidden=2,
    v_layers=2,
    v_full_layers=1,
    v_inner=3,
    patch_values=5,
    merge=4,
    window=6,
)


def test_linear_and_pair_and_head_by_hand():
    # q 4x4, k 4x2, v 4x2, o 4x4 = 48 weights; gate, up, down 4x8 each = 96 weights; two operations per weight
    assert TOY.linear == 2 * (48 + 96)
    # per (query, key): 2 heads of 2 numbers, score and weighted value, two operations each
    assert TOY.pair == 16
    assert TOY.head == 2 * 4 * 16


def test_vision_by_hand():
    # 2 tokens = 8 patches. Weights per patch: 5*2 embedding + 2 layers * (4*4 + 3*2*3) = 78 -> 8 * 156 = 1248
    # attention: 4*2 per pair, 8 queries, 6 keys in the windowed and 8 in the full layer -> 8 * 8 * 14 = 896
    # merger: 8x8 and 8x4 weights on 2 tokens -> 2 * 2 * 96 = 384
    assert flops.vision(TOY, 2) == 1248 + 896 + 384


def test_prefix_and_completion_by_hand():
    assert flops.prefix(TOY, 3) == 3 * 288 + 16 * 4.5
    # 2 new tokens after 3: weights 2*(288+128); pairs 2*3 + 2 = 8
    assert flops.completion(TOY, 3, 2) == 832 + 128


def test_step_is_four_passes_and_sharing_pays_for_the_prefix_once():
    sizes = dict(tasks=3, group_size=5, image_tokens=2, text_tokens=1, new_tokens=2)
    assert flops.step(TOY, **sizes) == 4 * 3 * (2528 + 936 + 5 * 960)
    assert flops.step(TOY, **sizes, shared=False) == 4 * 3 * 5 * (2528 + 936 + 960)


def test_one_answer_per_task_shares_nothing():
    sizes = dict(tasks=1, group_size=1, image_tokens=64, text_tokens=32, new_tokens=16)
    assert flops.step(SMALL, **sizes) == flops.step(SMALL, **sizes, shared=False)


@pytest.mark.parametrize(("image_tokens", "new_tokens", "expected"), [(256, 32, 5.7), (1024, 32, 7.3), (256, 128, 3.3), (64, 512, 1.2)])
def test_repeated_over_shared_agrees_with_the_published_table(image_tokens, new_tokens, expected):
    """The table of ratios for G=8 in benchmarks/README.md."""
    sizes = dict(tasks=4, group_size=8, image_tokens=image_tokens, text_tokens=32, new_tokens=new_tokens)
    assert flops.step(SMALL, **sizes, shared=False) / flops.step(SMALL, **sizes) == pytest.approx(expected, abs=0.06)
