"""Photographs of installed packages: every family is a sound source, and no photograph is on both sides."""

import numpy as np
import pytest

from fovea.checks import check_source
from fovea.tasks import photos
from fovea.tasks.photos import FAMILIES, SCENES, SIDE, TEXTURES, Photos

pytest.importorskip("skimage")
pytest.importorskip("sklearn")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_family_is_a_source_whose_gold_answer_is_right(family, split):
    check_source(Photos.named(family, split, 0), 4)


def test_no_photograph_and_no_face_is_on_both_sides():
    names = [n for split in ("train", "heldout") for n in (*SCENES[split], *TEXTURES[split])]
    assert len(set(names)) == len(names) and all(photos.photograph(n).mode == "RGB" for n in names)
    for train, held in zip(photos.patches("train"), photos.patches("heldout")):
        assert (len(train), len(held)) == (80, 20)
        assert not {x.tobytes() for x in train} & {x.tobytes() for x in held}


def test_families_are_dealt_in_turn_and_seeds_differ():
    dealt = Photos.named("jigsaw,faces", "train", 1)
    assert [dealt[i].source for i in range(4)] == ["photo_jigsaw", "photo_faces"] * 2
    assert dealt[0].images[0].tobytes() != Photos.named("jigsaw", "train", 2)[0].images[0].tobytes()


def test_what_is_pasted_lies_in_its_box_and_has_its_colour():
    task = Photos.named("find", "train", 0)[3]
    hue = task.prompt[0]["content"][1]["text"].split("the ")[1].split()[0]
    x, y = (task.answer[0] + task.answer[2]) // 2, (task.answer[1] + task.answer[3]) // 2
    middle = np.asarray(task.images[0], float)[y - 1 : y + 2, x - 1 : x + 2].mean((0, 1))
    palette = photos.draw.PALETTE
    angle = {c: np.dot(middle, rgb) / np.linalg.norm(middle) / np.linalg.norm(rgb) for c, rgb in palette.items()}
    assert max(angle, key=angle.__getitem__) == hue
    assert task.images[0].size == (SIDE, SIDE)


def test_an_unknown_family_and_a_missing_package_are_named(monkeypatch):
    with pytest.raises(ValueError, match="photos: no family cats; there are: jigsaw"):
        Photos.named("cats", "train", 0)
    with pytest.raises(IndexError):
        Photos()[-1]
    monkeypatch.setattr(photos, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"fovea-rl\[photos\]"):
        Photos.named("jigsaw", "train", 0)
