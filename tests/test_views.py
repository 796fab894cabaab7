"""Other pictures for the same prompt: the patch mask, and the second reading of an answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fovea.batch import collate
from fovea.policies.hf_vlm import HFVLM
from fovea.trainer.offline import given_episode
from fovea.trainer.update import evaluate_all, evaluate_with_gradient, seen
from fovea.types import Context, Group, Score, Task, user
from fovea.video import Video
from fovea.views import PatchMask, generator

torch.set_num_threads(1)


def noise(seed, size=(56, 42)):
    return Image.fromarray(np.random.default_rng(seed).integers(1, 255, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(28, 28), (56, 42), (30, 17), (5, 5)])
def test_blocks_are_black_or_as_they_were_also_at_ragged_borders(size):
    image = noise(1, size)
    before, after = np.array(image), np.array(PatchMask(0.5)(image, generator(("a", 3))))
    for y in range(0, size[1], 14):
        for x in range(0, size[0], 14):
            block, was = after[y : y + 14, x : x + 14], before[y : y + 14, x : x + 14]
            assert (block == was).all() or (block == 0).all()


def test_a_picture_of_28_pixels_has_four_blocks_each_with_its_own_draw():
    blocks = np.array([np.array(PatchMask(0.6)(noise(1, (28, 28)), generator((i,))))[::14, ::14, 0] == 0 for i in range(2000)])
    assert blocks.shape == (2000, 2, 2)
    assert np.allclose(blocks.mean(0), 0.6, atol=0.05)
    pair = np.corrcoef(blocks.reshape(2000, 4).T)
    assert np.abs(pair[~np.eye(4, dtype=bool)]).max() < 0.08


def test_probability_nought_and_one():
    assert np.array_equal(PatchMask(0.0)(noise(2), generator((0,))), np.array(noise(2)))
    assert not np.array(PatchMask(1.0)(noise(2), generator((0,)))).any()


@pytest.mark.parametrize("options", [{"probability": 1.5}, {"probability": -0.1}, {"patch": 0}, {"per": "token"}])
def test_impossible_masks_are_refused(options):
    with pytest.raises(ValueError, match="PatchMask"):
        PatchMask(**options)


def test_draws_follow_the_address_and_nothing_else():
    first = generator(("key", 3, 0)).random(4)
    assert np.array_equal(first, generator(("key", 3, 0)).random(4))
    for other in (("key", 4, 0), ("kez", 3, 0), ("key", 3, 1), ("key", 3)):
        assert not np.array_equal(first, generator(other).random(4))


@pytest.fixture(scope="module")
def policy():
    return HFVLM.load("tiny", dtype="float64")


@pytest.fixture(scope="module")
def batch(policy):
    """Two prompts with a picture and one without, three answers each."""
    groups = []
    for n, pictures in enumerate([(noise(1),), (noise(2), noise(3)), ()]):
        task = Task(f"t{n}", "t", user("How many circles are there?", len(pictures)), pictures)
        prefix = policy.encode(task.prompt, task.images)
        episodes = [
            given_episode(policy, task, prefix, text, "sample", Context()) for text in ("<answer>1</answer>", "none", "two circles")
        ]
        groups.append(Group(task, [replace(e, score=Score(float(i))) for i, e in enumerate(episodes)]))
    return collate(groups, Context(step=4))


def masked(policy, batch, view, micro_batch=9):
    return evaluate_all(policy, batch, frozenset({"masked/logp"}), micro_batch, views={"masked": view})["masked/logp"]


def test_a_mask_that_covers_nothing_changes_no_number(policy, batch):
    with torch.no_grad():
        plain = policy.evaluate(batch, {"logp"})["logp"]
        same = masked(policy, batch, PatchMask(0.0))
    assert torch.equal(same[:6], plain[:6])


def test_prompts_without_pictures_have_no_masked_reading(policy, batch):
    with torch.no_grad():
        found = masked(policy, batch, PatchMask(0.6))
    assert found[:6].isfinite().all()
    assert found[6:].isnan().all()


@pytest.mark.parametrize("per", ["prompt", "response"])
def test_the_masked_reading_is_that_of_the_masked_pictures_however_it_is_cut(policy, batch, per):
    view = PatchMask(0.6, per=per)
    with torch.no_grad():
        found = masked(policy, batch, view)
        for size in (1, 2, 4):
            assert torch.allclose(masked(policy, batch, view, size)[:6], found[:6], atol=1e-12, rtol=0)
        for b in range(6):
            prefix, address = batch.prefixes[batch.prefix_B[b]], (b,) if per == "response" else ()
            images = [view(x, generator((prefix.key, 4, *address, i))) for i, x in enumerate(prefix.data.images)]
            by_hand = replace(
                batch.rows(torch.tensor([b])), prefixes=[policy.encode(user("How many circles are there?", len(images)), images)]
            )
            by_hand.prefix_B = torch.tensor([0])
            T = int(batch.length_B[b])
            assert torch.allclose(policy.evaluate(by_hand, {"logp"})["logp"][0], found[b, :T], atol=1e-10, rtol=0)


def test_a_group_shares_its_masked_prompt_unless_every_answer_has_its_own(policy, batch):
    shared, blind = seen(policy, batch, PatchMask(0.6))
    assert shared.prefix_B.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert blind.tolist() == [False] * 6 + [True] * 3
    apart, _ = seen(policy, batch, PatchMask(0.6, per="response"))
    assert len({p.key for p in apart.prefixes[:6]}) == 6


def test_another_step_draws_another_mask(policy, batch):
    keys = [[p.key for p in seen(policy, replace(batch, context=Context(step=s)), PatchMask(0.6))[0].prefixes[:2]] for s in (4, 5, 4)]
    assert keys[0] == keys[2]
    assert not set(keys[0]) & set(keys[1])


def test_a_view_has_the_gradient_of_the_present_weights(policy, batch):
    out = evaluate_with_gradient(policy, batch, frozenset({"logp", "masked/logp"}), {"masked": PatchMask(0.6)})
    out["masked/logp"][:6].sum().backward()
    weights = list(policy.parameters())
    assert any(p.grad is not None and p.grad.any() for p in weights)
    assert all(p.grad is None or p.grad.isfinite().all() for p in weights)
    for p in weights:
        p.grad = None


def test_masked_pictures_crowd_no_cache(policy, batch):
    held = len(policy.processor._pictures), len(policy.processor._prompts)
    with torch.no_grad():
        masked(policy, batch, PatchMask(0.6))
    assert (len(policy.processor._pictures), len(policy.processor._prompts)) == held


def test_a_clip_and_a_picture_of_another_size_are_refused(policy):
    prefix = policy.encode(user("What?"), (noise(1),))
    with pytest.raises(ValueError, match=r"image 0 of the prompt is \(5, 5\) pixels now; expected \(56, 42\)"):
        policy.redraw(prefix, lambda i, image: image.resize((5, 5)))
    shown = replace(prefix, data=replace(prefix.data, images=(Video((noise(1), noise(2))),)))
    with pytest.raises(ValueError, match="image 0 of the prompt is a clip"):
        policy.redraw(shown, lambda i, image: image)
