"""Pieces give back what they were cut from, and every source keeps its splits apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fovea.checks import check_source
from fovea.tasks.jigsaw import Jigsaw, assemble, cut, depth_points, inverse, marked, pieces_of, scene, shuffle, terrace
from fovea.video import Video

VARIANTS = ("3x3", "2x2", "3x3-apart", "clip", "clip-apart", "depth")


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=40, deadline=None)
@given(st.integers(9, 40), st.integers(9, 40), st.integers(1, 3), st.integers(1, 3), st.randoms())
def test_pasting_with_the_answer_gives_back_the_picture_bit_by_bit(width, height, rows, columns, random):
    picture = noise(width, height)
    order = random.sample(range(rows * columns), rows * columns)
    tiles = cut(picture, rows, columns)
    assert len({t.size for t in tiles}) == 1
    shown, answer = shuffle(tiles, order)
    whole = picture.crop((0, 0, width // columns * columns, height // rows * rows))
    assert assemble(shown, answer, rows, columns).tobytes() == whole.tobytes()


def test_nothing_shuffled_is_answered_in_order_and_the_card_reads_from_places_to_labels():
    pieces = list("abcdefghi")
    assert shuffle(pieces, range(9)) == (pieces, tuple(range(1, 10)))
    shown, answer = shuffle(pieces, [3, 5, 7, 1, 6, 2, 8, 0, 4])
    assert answer == (8, 4, 6, 1, 9, 2, 5, 3, 7) and "".join(shown[k - 1] for k in answer) == "abcdefghi"


def test_a_picture_smaller_than_its_tiles_is_named():
    with pytest.raises(ValueError, match="2x5 pixels: expected at least 3x3"):
        cut(noise(2, 5), 3, 3)


def test_pieces_of_a_clip_are_equal_trimmed_and_thinned():
    assert pieces_of(range(240), 6)[0] == [2, 5, 8, 12, 15, 18, 21, 24, 27, 31, 34, 37]
    assert [p[0] for p in pieces_of(range(12), 6)] == [0, 2, 4, 6, 8, 10]
    assert pieces_of(range(60), 6, trim=0.1)[1] == list(range(11, 19))
    with pytest.raises(ValueError, match="clip of 5 frames"):
        pieces_of(range(5), 6)


@pytest.mark.parametrize("seed", range(8))
def test_points_lie_apart_in_the_picture_and_in_depth(seed):
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0, 12, (480, 640))
    points = depth_points(depth, rng)
    assert points is not None and len(points) == 6
    z = [depth[y, x] for x, y in points]
    assert all(0.1 <= d <= 10 for d in z)
    for i in range(6):
        for j in range(i):
            assert np.hypot(*np.subtract(points[i], points[j])) >= 40 and abs(z[i] - z[j]) >= 0.2
    assert depth_points(np.ones((480, 640)), rng) is None


def test_the_answer_of_a_depth_task_goes_from_near_to_far():
    picture, depth = terrace(np.random.default_rng(3), "train", 60)
    points = depth_points(depth, np.random.default_rng(0), apart=8)
    assert points is not None
    red = np.asarray(marked(picture, points, radius=4, alpha=255))
    assert all(red[y - 3, x].tolist() == [255, 0, 0] for x, y in points)
    assert depth[-1].mean() < depth[20].mean()  # the ground is nearer at the bottom


@pytest.mark.parametrize("what", VARIANTS)
def test_every_variant_is_a_source_whose_gold_answer_is_right(what):
    source = Jigsaw.named(what, "train", 0)
    check_source(source, 4)
    task = source[0]
    assert sorted(task.answer) == list(range(1, len(task.answer) + 1))
    assert {source[i].answer for i in range(6)} != {task.answer}
    assert Jigsaw.named(what, "heldout", 0)[0].images != task.images


def test_one_sheet_fills_what_the_tiny_model_sees_and_pieces_apart_are_labelled():
    assert Jigsaw("3x3")[0].images[0].size == (64, 64)
    apart = Jigsaw("3x3-apart")[0]
    assert len(apart.images) == 9 and [p.get("text") for p in apart.prompt[0]["content"]][:4:2] == ["Tile 1: ", "Tile 2: "]
    clips = Jigsaw("clip-apart")[0].images
    assert len(clips) == 6 and all(isinstance(c, Video) and len(c.source) == 6 for c in clips)


def test_the_sheet_shows_the_pieces_of_the_scene():
    task = Jigsaw("3x3")[5]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([0, 0, 5])))
    whole, sheet = np.asarray(scene(rng, "train", 60)), np.asarray(task.images[0])
    for place, label in enumerate(task.answer):
        (r, c), (v, u) = divmod(place, 3), divmod(label - 1, 3)
        assert (sheet[22 * v : 22 * v + 20, 22 * u : 22 * u + 20] == whole[20 * r : 20 * r + 20, 20 * c : 20 * c + 20]).all()


def test_asked_for_places_the_answer_is_the_other_way_round():
    labels, places = Jigsaw("3x3")[4], Jigsaw("3x3-places")[4]
    assert labels.images[0].tobytes() == places.images[0].tobytes() and inverse(labels.answer) == places.answer != labels.answer
    assert all(labels.answer[places.answer[j] - 1] == j + 1 for j in range(9))


def test_any_folder_of_pictures_will_do(tmp_path):
    for i in range(12):
        noise(120, 90, i).save(tmp_path / f"{i}.png")
        np.save(tmp_path / f"{i}.depth.npy", np.tile(np.linspace(0.5, 8, 120), (90, 1)))
    for what in ("2x2", "3x3-apart", "clip", "depth"):
        for split in ("train", "heldout"):
            check_source(Jigsaw.named(f"{what}@{tmp_path}", split, 0), 3)
    held = {t.tobytes() for i in range(20) for t in Jigsaw(f"3x3-apart@{tmp_path}", split="heldout")[i].images}
    assert not held & {t.tobytes() for i in range(20) for t in Jigsaw(f"3x3-apart@{tmp_path}")[i].images}
    with pytest.raises(ValueError, match="has sides of 252 pixels"):
        Jigsaw.named(f"9x9-apart@{tmp_path}", "train", 0)[0]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("4", "found '4', expected 2x2"),
        ("1x1", "found '1x1'"),
        ("depth-apart", "depth-apart"),
        ("3x3@/nowhere", "found no folder '/nowhere'"),
    ],
)
def test_what_is_not_there_is_named(what, says):
    with pytest.raises(ValueError, match=says):
        Jigsaw.named(what, "train", 0)
    with pytest.raises(IndexError):
        Jigsaw("3x3")[-1]


def test_a_folder_without_what_is_needed_is_named(tmp_path):
    with pytest.raises(ValueError, match="found 0 files"):
        Jigsaw.named(f"3x3@{tmp_path}", "train", 0)[0]
    for i in range(9):
        noise(64, 64).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="depth map beside it"):
        Jigsaw.named(f"depth@{tmp_path}", "train", 0)[0]
    for i in range(9):
        np.save(tmp_path / f"{i}.depth.npy", np.ones((3, 3)))
    with pytest.raises(ValueError, match=r"shape \(3, 3\), expected \(64, 64\)"):
        Jigsaw.named(f"depth@{tmp_path}", "train", 0)[0]
