"""Every family's prompts and pixels are those of its stock processor, as `tests/fixtures/processors/make.py` recorded them."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from pathlib import Path

import pytest
import torch

from fovea.policies.families import FAMILIES
from fovea.policies.pictures import anyres_tokens
from fovea.policies.processor import Processor
from fovea.types import user
from fovea.video import Video
from tests.policies import family_folders as folders

STOCK = json.loads((Path(__file__).parents[1] / "fixtures" / "processors" / "stock.json").read_text())


@functools.cache
def processor(family: str) -> Processor:
    with tempfile.TemporaryDirectory() as folder:
        return Processor(Path(folder), folders.build(family, Path(folder)))


def check_pixels(x: torch.Tensor, stock: dict) -> None:
    """Equal bytes; the sampled values say how far apart they are when not."""
    assert x.numel() == torch.Size(stock["shape"]).numel() and x.shape[-1] == stock["shape"][-1]
    flat = x.contiguous().flatten()
    at = torch.linspace(0, len(flat) - 1, 16).long()
    torch.testing.assert_close(flat[at], torch.tensor(stock["values"]), atol=1e-6, rtol=0)
    assert hashlib.sha256(flat.numpy().tobytes()).hexdigest() == stock["sha256"]


def whole(pictures, family: str) -> torch.Tensor:
    """The pixels of a prompt as one tensor; a still image is two equal frames in the Qwen families."""
    pixels = torch.cat([p.pixels for p in pictures])
    return pixels.view(len(pixels), 3, 1, -1).expand(-1, -1, 2, -1).reshape(len(pixels), -1) if "qwen" in family else pixels


@pytest.mark.parametrize("case", folders.CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_pixels_are_those_of_the_stock_processor(family, case):
    stock = STOCK["families"][family]["pictures"][case]
    prompt = processor(family).encode(*folders.said(folders.CASES[case])).data
    ids = iter(stock["ids"])
    assert prompt.ids.tolist() == [i for i, n in zip(ids, ids) for _ in range(n)]
    check_pixels(whole(prompt.pictures, family), stock["pixels"])


@pytest.mark.parametrize(("family", "case"), [(f, c) for f, family in FAMILIES.items() if family.clip for c in folders.clips(f)])
def test_clips_are_those_of_the_stock_processor(family, case):
    if "file" in case:
        pytest.importorskip("av", reason="reading video files needs the extra `video`")
    stock = STOCK["families"][family]["clips"][case]
    p, seen = processor(family), {}

    def rope_index(ids, **facts):
        seen.update(facts)
        return torch.zeros(3, 1, ids.shape[1], dtype=torch.long), torch.zeros(1)

    p.rope_index = rope_index if "kinds" in stock else None
    prompt = p.encode(*folders.said(folders.clips(family)[case])).data
    p.rope_index = None
    ids = iter(stock["ids"])
    assert prompt.ids.tolist() == [i for i, n in zip(ids, ids) for _ in range(n)]
    stills, moving = ([x for x in prompt.pictures if (x.seconds is None) == still] for still in (True, False))
    if "pixel_values_videos" in stock:
        check_pixels(torch.cat([x.pixels for x in moving]), stock["pixel_values_videos"])
        if stills:
            check_pixels(whole(stills, family), stock["pixel_values"])
    else:
        check_pixels(torch.cat([x.pixels for x in prompt.pictures]), stock["pixel_values"])
    if "kinds" in stock:
        kinds = iter(stock["kinds"])
        assert seen["mm_token_type_ids"][0].tolist() == [i for i, n in zip(kinds, kinds) for _ in range(n)]
        assert seen["video_grid_thw"].tolist() == stock["video_grid_thw"]
        assert (seen["image_grid_thw"] is None) == (not stills) and (
            not stills or seen["image_grid_thw"].tolist() == stock["image_grid_thw"]
        )
    if "second_per_grid_ts" in stock:
        torch.testing.assert_close(seen["second_per_grid_ts"], torch.tensor(stock["second_per_grid_ts"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_without_its_processor_is_refused_when_it_is_loaded(family, tmp_path):
    image_token = folders.build(family, tmp_path)
    fields = [tmp_path / "processor_config.json"] * bool(FAMILIES[family].needs and family != "paligemma")
    for file in (*fields, tmp_path / "preprocessor_config.json"):
        kept = file.read_text()
        file.unlink()
        with pytest.raises((ValueError, FileNotFoundError), match=rf"{file.name}: found no such file, expected"):
            Processor(tmp_path, image_token)
        file.write_text(kept)
    for file in fields:
        file.write_text("{}")
        with pytest.raises(ValueError, match=f"found no field {FAMILIES[family].needs[0]!r}"):
            Processor(tmp_path, image_token)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_says_where_each_pictures_tokens_stand(family):
    prompt = processor(family).encode(*folders.said(folders.CASES["two, one with alpha"])).data
    assert prompt.places.tolist() == (prompt.ids == processor(family).image_token_id).nonzero()[:, 0].tolist()
    assert len(prompt.places) == sum(p.tokens for p in prompt.pictures)
    assert [p.size for p in prompt.pictures] == [(500, 300), (48, 64)]
    assert prompt.positions.tolist() == [list(range(len(prompt.ids)))] * 3 and prompt.next_position == len(prompt.ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_may_not_emit_what_stands_for_pictures(family):
    p = processor(family)
    prompt = p.encode(*folders.said(folders.CASES["wide"])).data
    assert set(prompt.ids[prompt.places].tolist()) == {p.image_token_id} <= set(p.never_ids)
    assert p.tokenizer.unk_token_id not in p.never_ids and p.tokenizer.eos_token_id not in p.never_ids


def test_pictures_on_their_own_and_in_company_are_kept_apart():
    p, image = processor("llava_onevision"), folders.picture(750, 380)
    alone, company = p.picture(image), p.picture(image, alone=False)
    assert len(alone.patches) == 3 and alone.grid == (1, 1, 2)
    assert len(company.patches) == 1 and company.tokens == 730
    assert p.picture(image) is alone and p.picture(image, alone=False) is company


def test_tokens_of_a_picture_in_tiles_by_hand():
    """400 x 200 on two tiles of 4 tokens side by side: no padding, 4 rows of 8 tokens and a line break each."""
    assert anyres_tokens((400, 200), (1, 1, 2), 4, 9) == 4 * 9
    # 400 x 100 fills 8 x 2 of the 8 x 4
    assert anyres_tokens((400, 100), (1, 1, 2), 4, 9) == 2 * 9
    # no more than one tile's worth: sqrt(32 / 16) = 1.41, so 4 x 8 becomes 2 x 5
    assert anyres_tokens((400, 200), (1, 1, 2), 4, 1) == 2 * 6


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "internvl"])
def test_a_saved_processor_encodes_as_before(tmp_path, family):
    image = folders.build(family, tmp_path / "a")
    first = Processor(tmp_path / "a", image)
    (tmp_path / "b").mkdir()
    first.save(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text((tmp_path / "a" / "config.json").read_text())
    said = folders.said(folders.CASES["small gray"])
    a, b = first.encode(*said).data, Processor(tmp_path / "b", image).encode(*said).data
    assert a.ids.tolist() == b.ids.tolist() and torch.equal(a.pictures[0].pixels, b.pictures[0].pixels)


def test_a_clip_for_a_family_that_takes_none_is_named():
    clip = Video(tuple(folders.moving(2, 30, 30)))
    with pytest.raises(ValueError, match=r"images\[0\] is a clip; llava takes none.*qwen2_vl"):
        processor("llava").encode(user("What?", 1), [clip])


def test_images_and_clips_in_another_order_than_the_parts_are_named():
    clip = Video(tuple(folders.moving(2, 30, 30)))
    with pytest.raises(ValueError, match=r"images\[0\] is a clip but the message has '<\|image_pad\|>' in its place"):
        processor("qwen2_vl").encode(user("What?", 1, 1), [clip, folders.picture(30, 30)])


def test_what_is_taken_of_a_clip_is_part_of_its_key():
    frames = tuple(folders.moving(4, 30, 30))
    p = processor("smolvlm")
    first = p.encode(user("What?", 0, 1), [Video(frames, fps=2.0)])
    assert p.encode(user("What?", 0, 1), [Video(frames, fps=2.0)]) is first
    assert p.encode(user("What?", 0, 1), [Video(frames, fps=1.0)]).key != first.key
    assert p.encode(user("What?", 0, 1), [Video(frames[:3], fps=2.0)]).key != first.key
