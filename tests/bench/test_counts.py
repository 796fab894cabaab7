"""Work per step is counted, not timed: each picture and each prompt is computed once where other trainers compute it once per sample."""

import pytest

from fovea.bench import ours
from fovea.bench.workload import TASKS_PER_STEP, Cell

CELL = Cell(64, 6, 4)
PICTURES = TASKS_PER_STEP  # every task has a picture of its own


def one_step(checkpoint, **changes):
    """Counts of a second step (the first may fill caches) and the prompt lengths of its tasks."""
    trainer = ours.Trainer(ours.recipe(checkpoint, CELL, **changes))
    trainer(ours.tasks(0, CELL.image_tokens))
    before = dict(trainer.policy.counts)
    tasks = ours.tasks(1, CELL.image_tokens)
    trainer(tasks)
    done = {name: n - before[name] for name, n in trainer.policy.counts.items()}
    return done, [trainer.policy.encode(t.prompt, t.images).length for t in tasks]


@pytest.mark.parametrize("micro_batch", [CELL.group_size, TASKS_PER_STEP * CELL.group_size])
def test_each_picture_and_prompt_is_computed_once_per_pass(checkpoint, micro_batch):
    done, lengths = one_step(checkpoint, micro_batch=micro_batch)
    assert done["preprocessed"] == PICTURES
    assert done["vision_encodings"] <= 2 * PICTURES  # once to sample, once with gradient
    assert done["prefix_tokens_update"] == sum(lengths)


def test_a_frozen_tower_sees_each_picture_once(checkpoint):
    done, lengths = one_step(checkpoint, freeze=("tower", "projector"))
    assert done["preprocessed"] == PICTURES
    assert done["vision_encodings"] <= PICTURES
    assert done["prefix_tokens_update"] == sum(lengths)


def test_the_same_picture_in_two_tasks_is_computed_once(checkpoint):
    trainer = ours.Trainer(ours.recipe(checkpoint, CELL, micro_batch=TASKS_PER_STEP * CELL.group_size))
    first, *others = ours.tasks(0, CELL.image_tokens)
    twice = [first, *others[1:], type(first)("again", first.source, first.prompt, first.images, first.answer)]
    trainer(twice)
    counts = trainer.policy.counts
    assert counts["preprocessed"] == PICTURES - 1
    assert counts["vision_encodings"] <= 2 * (PICTURES - 1)
