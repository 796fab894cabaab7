"""Tables of your own: every layout, lazy images, splits by content, and all problems told together."""

import base64
import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fovea.tasks.load import BadRows, guess_verifier, load
from fovea.types import user
from fovea.video import Video
from tests.policies.family_folders import CLIP_FILE

ROOT = Path(__file__).resolve().parents[2]


def picture(seed=0, size=(20, 10), mode="RGB", format="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(4):
        (tmp_path / f"images/{i}.png").write_bytes(picture(i))
    return tmp_path


def write(folder, rows, name="table.jsonl"):
    (folder / name).write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    return folder / name


ROW = {"image": "images/0.png", "question": "How many?", "answer": 3}


# -- layouts --------------------------------------------------------------------------------------------------------------------


def test_a_folder_with_json_lines(folder):
    write(folder, [ROW, {**ROW, "image": "1.png", "answer": "yes", "level": 2}])
    source = load(folder)
    first, second = source
    assert len(source) == 2
    assert first.prompt == user("How many?")
    assert first.images[0].size == (20, 10) and first.images[0].mode == "RGB"
    assert (first.answer, first.verifier) == (3, "number")
    assert (second.answer, second.verifier) == ("yes", "exact")
    assert second.meta == {"file": "table.jsonl", "row": 2, "level": 2}
    assert first.id == "table.jsonl:1" and first.source == folder.name
    assert "prompt <- 'question', image <- 'image', answer <- 'answer'" in source.describe()
    assert "number for 1 rows, exact for 1 rows" in source.describe()


def test_csv_and_tsv_with_quotes_and_a_byte_order_mark(folder):
    (folder / "t.csv").write_bytes(b'\xef\xbb\xbfquestion,label,file_name\n"how, many?",4,images/0.png\n')
    (folder / "t.tsv").write_text("question\tlabel\tfile_name\nhow many?\t5\timages/0.png\n")
    assert [t.prompt[0]["content"][1]["text"] for t in load(folder / "t.csv")] == ["how, many?"]
    assert [(t.answer, t.verifier) for t in load(folder / "t.tsv")] == [("5", "number")]


def test_a_json_list(folder):
    (folder / "t.json").write_text(json.dumps([ROW, ROW]))
    assert len(load(folder / "t.json")) == 2


def test_trl_layout(folder):
    row = {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}],
        "images": ["images/0.png", "images/1.png"],
        "solution": "<answer> a cat </answer>",
    }
    task = load(write(folder, [row]))[0]
    assert task.prompt == (
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is it?"}]},
    )
    assert task.answer == "a cat" and len(task.images) == 2


def test_easyr1_layout_puts_images_where_the_marks_are(folder):
    row = {"problem": "Compare <image> with <image>: same?", "answer": "no", "images": ["0.png", "1.png"]}
    task = load(write(folder, [row]))[0]
    kinds = [p.get("text", "IMAGE") for p in task.prompt[0]["content"]]
    assert kinds == ["Compare ", "IMAGE", " with ", "IMAGE", ": same?"]
    assert task.images[0].tobytes() != task.images[1].tobytes()


def test_verl_layout(folder):
    row = {
        "data_source": "geo3k",
        "prompt": [{"role": "user", "content": "<image>\nFind x."}],
        "images": [{"bytes": None, "path": "images/0.png"}],
        "reward_model": {"style": "rule", "ground_truth": "12"},
        "extra_info": {"index": 5},
    }
    source = load(write(folder, [row]))
    task = source[0]
    assert source.unused == ["extra_info"]
    assert (task.source, task.answer, task.verifier) == ("geo3k", "12", "number")
    assert task.prompt[0]["content"] == [{"type": "image"}, {"type": "text", "text": "Find x."}]
    assert "answer <- 'reward_model.ground_truth'" in source.describe()


def test_parquet_keeps_embedded_images_on_disk_until_they_are_needed(folder):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [[{"bytes": picture(i, (30, 20)), "path": None}] for i in range(5)]
    table = pa.table({"problem": [f"<image> {i}?" for i in range(5)], "answer": list("abcde"), "images": images})
    pq.write_table(table, folder / "t.parquet", row_group_size=2)
    source = load(folder / "t.parquet")
    assert [t.answer for t in source] == list("abcde")
    assert source[4].images[0].size == (30, 20)
    expected = Image.open(io.BytesIO(picture(3, (30, 20)))).convert("RGB")
    assert source[3].images[0].tobytes() == expected.tobytes()
    assert not any(isinstance(v, bytes) for item in source.items for v in item.row.values.values())


def test_a_saved_datasets_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"question": ["a?", "b?"], "answer": [1, 2], "image": [Image.open(io.BytesIO(picture(i))) for i in range(2)]}
    features = datasets.Features({"question": datasets.Value("string"), "answer": datasets.Value("int64"), "image": datasets.Image()})
    part = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": part, "test": part.select([1])}).save_to_disk(str(tmp_path / "d"))
    assert [t.answer for t in load(tmp_path / "d", split="train")] == [1, 2]
    heldout = load(tmp_path / "d", split="heldout")
    assert [t.answer for t in heldout] == [2]
    assert heldout[0].images[0].size == (20, 10)


def test_data_uris_and_several_ways_to_name_images(folder):
    uri = "data:image/png;base64," + base64.b64encode(picture(1)).decode()
    rows = [{**ROW, "image": uri}, {**ROW, "image": {"path": "images/1.png"}}, {**ROW, "image": [{"image": "1.png"}]}]
    images = [t.images[0].tobytes() for t in load(write(folder, rows))]
    assert images[0] == images[1] == images[2]


def test_transparency_lies_on_white_and_grey_becomes_rgb(folder):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(folder / "clear.png")
    Image.new("L", (4, 4), 7).save(folder / "grey.png")
    source = load(write(folder, [{**ROW, "image": "clear.png"}, {**ROW, "image": "grey.png"}]))
    assert source[0].images[0].getpixel((0, 0)) == (255, 255, 255)
    assert source[1].images[0].getpixel((0, 0)) == (7, 7, 7)


def test_questions_without_images(tmp_path):
    task = load(write(tmp_path, [{"question": "1 + 1?", "answer": 2}]))[0]
    assert task.images == () and task.prompt == user("1 + 1?", images=0)


def test_options_become_a_choice(folder):
    row = {**ROW, "options": ["red", "blue"], "answer": "B"}
    task = load(write(folder, [row]))[0]
    assert task.verifier == "choice" and task.params == {"options": ["red", "blue"]}
    assert task.prompt[0]["content"][-1]["text"] == "\nA. red\nB. blue"


def test_rows_may_name_their_verifier(folder):
    row = {**ROW, "verifier": "number", "params": {"tolerance": 1}}
    task = load(write(folder, [row]))[0]
    assert (task.verifier, task.params) == ("number", {"tolerance": 1})


def test_columns_verifier_source_and_instruction_can_be_said(folder):
    def mine(answer, task):
        return 1.0

    rows = [{"q": "How?", "meta": {"gt": "x"}, "image": "0.png", "question": "not this"}]
    source = load(
        write(folder, rows), columns={"prompt": "q", "answer": "meta.gt"}, verifier=mine, source="zoo", instruction="Answer in one word."
    )
    task = source[0]
    assert (task.answer, task.verifier, task.source) == ("x", mine, "zoo")
    assert [p.get("text") for p in task.prompt[0]["content"]] == [None, "How?", "\nAnswer in one word."]


@pytest.mark.parametrize(
    ("answer", "verifier"),
    [
        (3, "number"),
        ("3.5", "number"),
        ("1,200", "number"),
        ("-4", "number"),
        ("25%", "number"),
        ("007", "exact"),
        ("3 cats", "exact"),
        ("", "exact"),
        (".", "exact"),
        ([1, 2, 30, 40], "box_iou"),
        ("[1, 2, 30, 40]", "box_iou"),
        ([30, 40, 1, 2], "exact"),
        (["a", "b"], "exact"),
        ({"cat": 2}, "count"),
        (True, "exact"),
    ],
)
def test_guesses(answer, verifier):
    assert guess_verifier(answer, has_options=False, has_images=True)[0] == verifier


def test_leading_zeros_make_every_answer_of_a_table_text(folder):
    source = load(write(folder, [{**ROW, "answer": "07"}, {**ROW, "answer": "12"}]))
    assert [t.verifier for t in source] == ["exact", "exact"]


# -- splits ---------------------------------------------------------------------------------------------------------------------


def test_files_named_after_splits_decide(folder):
    write(folder, [ROW], "train.jsonl")
    write(folder, [{**ROW, "answer": 4}], "test.jsonl")
    assert [t.answer for t in load(folder, split="train")] == [3]
    assert [t.answer for t in load(folder, split="heldout")] == [4]
    assert len(load(folder)) == 2


def test_a_split_by_content_keeps_rows_of_one_image_together(folder):
    for i in range(40):
        (folder / f"images/{i}.png").write_bytes(picture(i))
        (folder / f"images/copy{i}.png").write_bytes(picture(i))
    rows = [{**ROW, "image": f"images/{c}{i}.png", "question": f"{c}{i}?"} for i in range(40) for c in ("", "copy")]
    write(folder, rows)
    parts = {split: load(folder, split=split, heldout=0.3) for split in ("train", "heldout")}
    shown = {split: {t.images[0].tobytes() for t in part} for split, part in parts.items()}
    assert not shown["train"] & shown["heldout"]
    assert len(parts["train"]) + len(parts["heldout"]) == 80
    assert 8 <= len(parts["heldout"]) <= 40
    assert "by content (30% held out)" in parts["train"].describe()


# -- bad rows -------------------------------------------------------------------------------------------------------------------


def broken(folder):
    """One row per kind of problem, behind a good one: (row, field, what the message must say)."""
    whole = (folder / "images/0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.jpg").write_bytes(picture(format="JPEG")[:-100])
    (folder / "text.png").write_text("hello")
    (folder / "empty.png").write_bytes(b"")
    Image.new("1", (12_000, 9_000)).save(folder / "bomb.png")
    Image.new("RGB", (4, 4)).save(folder.parent / "outside.png")
    cases = [
        ({}, None, ""),
        ({"image": "images/99.png"}, "image", "no such file"),
        ({"image": "cut.png"}, "image", "cut short"),
        ({"image": "cut.jpg"}, "image", "cut short"),
        ({"image": "text.png"}, "image", "not an image"),
        ({"image": "empty.png"}, "image", "an empty file"),
        ({"image": "bomb.png"}, "image", "12000 x 9000 = 108 megapixels"),
        ({"image": "../outside.png"}, "image", "outside the data folder"),
        ({"image": "/etc/passwd"}, "image", "outside the data folder"),
        ({"image": "images"}, "image", "a folder"),
        ({"image": "http://x.org/y.png"}, "image", "not fetched"),
        ({"image": 7}, "image", "7 (int)"),
        ({"image": None}, "image", "nothing"),
        ({"question": " "}, "question", "empty"),
        ({"question": ["a"]}, "question", "['a'] (list)"),
        ({"question": "<image> and <image>"}, "question", "2 image placeholder(s) and 1 image(s)"),
        ({"answer": ""}, "answer", "empty"),
        ({"answer": None}, "answer", "nothing"),
        ({"answer": float("nan")}, "answer", "nan"),
        ({"answer": "<answer></answer>"}, "answer", "an empty answer tag"),
        ({"verifier": "numbr"}, "verifier", "did you mean 'number'"),
        ({"verifier": "number", "answer": "cat"}, "answer", "holds no number"),
        ({"verifier": "number", "params": "{"}, "params", "a JSON object"),
        ({"verifier": "number", "params": {"tol": 1}}, "verifier", "takes no parameter 'tol'"),
        ({"answer": ..., "anwser": 3}, "anwser", "an unknown column 'answer', which this row lacks"),
        ({"image": ..., "imges": "images/0.png"}, "imges", "an unknown column 'image', which this row lacks"),
    ]
    rows = [{**ROW, "verifier": "", "params": None, **change} for change, _, _ in cases]
    rows = [{k: v for k, v in row.items() if v is not ...} for row in rows]
    lines = [json.dumps(r) for r in rows]
    (folder / "t.jsonl").write_text("\n".join([*lines, "{broken", "[1]"]))
    expected = [(i + 1, name, said) for i, (_, name, said) in enumerate(cases) if name]
    return [*expected, (len(cases) + 1, "(line)", "{broken"), (len(cases) + 2, "(line)", "a JSON list")]


def test_all_bad_rows_are_told_together_with_row_field_found_and_expected(folder):
    expected = broken(folder)
    with pytest.raises(BadRows) as stopped:
        load(folder / "t.jsonl")
    told = stopped.value.bad
    assert [(b.row, b.field) for b in told] == [(row, name) for row, name, _ in expected]
    for bad, (_, _, said) in zip(told, expected, strict=True):
        assert said in f"{bad.found} {bad.expected}"
        assert bad.file == "t.jsonl" and bad.expected
    assert f"{len(expected)} of {len(expected) + 1} rows" in str(stopped.value)
    assert str(folder.parent) not in str(stopped.value).split("\n", 1)[1]


def test_bad_rows_can_be_skipped_counted_and_listed(folder):
    expected = broken(folder)
    with pytest.warns(UserWarning, match=f"{len(expected)} of {len(expected) + 1} rows"):
        source = load(folder / "t.jsonl", on_bad_row="skip")
    assert [t.answer for t in source] == [3]
    assert len(source.skipped) == len(expected)
    assert f"{len(expected)} problems skipped" in source.describe()


def test_the_pixel_limit_is_a_choice(folder):
    Image.new("1", (12_000, 9_000)).save(folder / "bomb.png")
    rows = [{**ROW, "image": "bomb.png"}]
    assert len(load(write(folder, rows), max_pixels=200_000_000)) == 1
    with pytest.raises(BadRows, match="at most 0 megapixels"):
        load(write(folder, [ROW]), max_pixels=100)


def damage(file):
    """Spoil the pixels in the middle of a PNG; header and end stay as they are."""
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 20] = bytes(20)
    file.write_bytes(raw)


def test_full_checks_find_what_headers_do_not_show(folder):
    damage(folder / "images/0.png")
    write(folder, [ROW, {**ROW, "image": "1.png"}])
    assert len(load(folder)) == 2
    with pytest.raises(BadRows, match="damaged or cut short"):
        load(folder, check_images="full")


def test_damage_found_late_names_the_row_or_gives_way_to_the_next(folder):
    damage(folder / "images/0.png")
    write(folder, [ROW, {**ROW, "image": "1.png", "answer": 5}])
    with pytest.raises(BadRows, match=r"table.jsonl, row 1, field 'image'"):
        load(folder)[0]
    source = load(folder, on_bad_row="skip")
    with pytest.warns(UserWarning, match="row 1"):
        assert source[0].answer == 5
    assert len(source.skipped) == 1


def test_ids_are_used_once(folder):
    with pytest.raises(BadRows, match="'a', used before"):
        load(write(folder, [{**ROW, "id": "a"}, {**ROW, "id": "a"}]))


def test_csv_rows_of_another_length(folder):
    (folder / "t.csv").write_text("question,answer,image\nq,1,images/0.png\nq,2\n")
    with pytest.raises(BadRows, match="row 3, field '\\(line\\)': found 2 cells; expected 3 cells"):
        load(folder / "t.csv")


def test_text_that_is_no_utf8(folder):
    (folder / "t.csv").write_bytes("question,answer,image\ncaf\u00e9,1,images/0.png\n".encode("latin-1"))
    with pytest.raises(BadRows, match="row 2, field '\\(text\\)': found byte 0xe9"):
        load(folder / "t.csv")


# -- wrong calls ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"columns": {"prompt": "qestion"}}, ValueError, "no column 'qestion' for field 'prompt' (did you mean 'question'?)"),
        ({"columns": {"promt": "question"}}, ValueError, "no field is called 'promt'"),
        ({"split": "test"}, ValueError, "expected one of 'train', 'heldout', None"),
        ({"on_bad_row": "ignore"}, ValueError, "expected one of 'stop', 'skip'"),
        ({"verifier": "numbr"}, ValueError, "did you mean 'number'"),
        ({"images": "nowhere"}, FileNotFoundError, "images='nowhere' is no folder"),
    ],
)
def test_wrong_arguments_are_named(folder, change, error, said):
    with pytest.raises(error) as stopped:
        load(write(folder, [ROW]), **change)
    assert said in str(stopped.value)


def test_tables_without_the_needed_columns_list_what_they_have(folder):
    (folder / "t.csv").write_text("foo,bar\n1,2\n")
    with pytest.raises(ValueError, match="no column that could be the prompt; columns: foo, bar"):
        load(folder / "t.csv")


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("imgae", "images/0.png", "found a picture under a name that is not known; did you mean 'image'?; expected one of images, image,"),
        ("photo", "images/0.png", "found a picture under a name that is not known; expected one of images, image,"),
        ("photo", {"bytes": None, "path": "images/0.png"}, "columns={'image': 'photo'}, or {'image': None}"),
        ("choises", ["a", "b"], "did you mean 'choices'?"),
        ("Verifer", "number", "did you mean 'verifier'?"),
    ],
)
def test_a_column_that_seems_to_be_a_field_is_not_passed_over(folder, column, value, said):
    plain = {"question": "How many?", "answer": 3}
    with pytest.raises(ValueError) as stopped:
        load(write(folder, [plain, {**plain, column: value}]))
    assert f"table.jsonl, row 2, field {column!r}" in str(stopped.value) and said in str(stopped.value)


def test_a_misspelt_answer_is_suggested(folder):
    with pytest.raises(ValueError, match=r"row 1, field 'anwser': .* did you mean 'answer'\?"):
        load(write(folder, [{"image": "images/0.png", "question": "How many?", "anwser": 3}]))


def test_what_no_field_uses_is_said_and_kept(folder):
    source = load(write(folder, [{**ROW, "images_count": 1, "answer_type": "number", "style": {"a": 1}}]))
    assert source.unused == ["images_count", "answer_type", "style"]
    assert "unused     'images_count', 'answer_type', 'style'" in source.describe()
    assert source[0].meta == {"file": "table.jsonl", "row": 1, "images_count": 1, "answer_type": "number"}


def test_a_field_can_be_said_to_have_no_column(folder):
    source = load(write(folder, [{"question": "How many?", "answer": 3, "imgae": "images/0.png"}]), columns={"image": None})
    assert source[0].images == () and source.unused == ["imgae"]


def test_columns_may_have_capital_letters(folder):
    (folder / "t.csv").write_text("Question,Answer,Image\nq?,1,images/0.png\n")
    task = load(folder / "t.csv")[0]
    assert task.answer == "1" and len(task.images) == 1


def test_missing_and_empty_places(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no table; found nothing"):
        load(tmp_path)
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(ValueError, match="no usable row"):
        load(tmp_path / "t.csv")


@pytest.mark.parametrize(("module", "extra", "name"), [("pyarrow.parquet", "data", "t.parquet"), ("datasets", "hub", "d")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, module, extra, name):
    monkeypatch.setitem(sys.modules, module, None)
    if extra == "data":
        (tmp_path / name).write_bytes(b"PAR1")
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    with pytest.raises(ModuleNotFoundError, match=rf"fovea-rl\[{extra}\]"):
        load(tmp_path / name)


# -- the digits example ---------------------------------------------------------------------------------------------------------


def test_the_digits_example_reads_as_it_is(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(sys, "argv", ["digits.py", str(tmp_path), "--count", "60"])
    runpy.run_path(str(ROOT / "examples/digits.py"), run_name="__main__")
    train, heldout = load(tmp_path, split="train"), load(tmp_path, split="heldout")
    assert (len(train), len(heldout)) == (48, 12)
    for task in (*train, *heldout):
        assert task.images[0].size == (64, 64)
        assert len(task.answer) == 2 and task.answer.isdigit()

    def halves(source):
        return {t.images[0].crop((x, 0, x + 30, 32)).tobytes() for t in source for x in (0, 34)}

    assert not halves(train) & halves(heldout)


# -- clips ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clips(folder):
    pytest.importorskip("av", reason="reading video files needs the extra `video`")
    (folder / "fall.mp4").write_bytes(CLIP_FILE.read_bytes())
    return folder


def test_a_column_of_clips(clips):
    rows = [
        {"video": "fall.mp4", "question": "What falls?", "answer": "a square"},
        {"video": {"path": "fall.mp4", "fps": 2}, "question": "<video>Which way?", "answer": "down"},
        {"video": [{"path": "fall.mp4", "frames": 4}], "image": "0.png", "question": "<video>then <image>", "answer": "yes"},
        {"video": ["fall.mp4", "fall.mp4"], "image": "1.png", "question": "Which?", "answer": "no"},
    ]
    write(clips, rows)
    first, second, third, fourth = source = load(clips)
    assert first.images == (Video(clips / "fall.mp4"),) and first.prompt == user("What falls?", images=0, videos=1)
    assert second.images == (Video(clips / "fall.mp4", fps=2),)
    assert [p["type"] for p in third.prompt[0]["content"]] == ["video", "text", "image"]
    assert third.images[0] == Video(clips / "fall.mp4", frames=4) and third.images[1].size == (20, 10)
    assert fourth.prompt == user("Which?", images=1, videos=2) and fourth.images[2] == Video(clips / "fall.mp4")
    assert "1 in 3 rows, 2 in 1 rows" in source.describe() and source.columns["video"] == "video"
    assert {t.id for s in ("train", "heldout") for t in load(clips, split=s, heldout=0.5)} == {t.id for t in source}


def test_a_mark_of_clips_is_text_where_there_is_no_such_column(folder):
    write(folder, [{**ROW, "question": "What does <video> do in HTML?"}])
    assert load(folder)[0].prompt == user("What does <video> do in HTML?")


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("gone.mp4", "'gone.mp4', no such file a clip file under"),
        ("images/0.txt", "'images/0.txt', no video that can be read"),
        ("http://a.b/c.mp4", "an address"),
        ("../x.mp4", "outside the data folder"),
        ({"path": "fall.mp4", "fps": 0}, "fps=0"),
        ({"path": "fall.mp4", "fps": "2"}, "fps='2'"),
        ({"path": "fall.mp4", "frames": 2.5}, "frames=2.5"),
        (json.loads("[" * 12 + '"fall.mp4"' + "]" * 12), "at most 8"),
        ({"path": "fall.mp4", "fps": 1, "frames": 2}, "both fps=1 and frames=2"),
        ({"path": "fall.mp4", "speed": 2}, '"fps" or "frames"'),
        (7, "7 (int)"),
        ("", "nothing a path"),
    ],
)
def test_a_bad_clip_is_told_with_file_row_and_field(clips, cell, said):
    (clips / "images/0.txt").write_text("no clip at all")
    good = {"film": "fall.mp4", "question": "What?", "answer": "a"}
    file = write(clips, [good, {**good, "film": cell}])
    with pytest.raises(BadRows) as stopped:
        load(file, columns={"video": "film"})
    (bad,) = stopped.value.bad
    assert (bad.file, bad.row, bad.field) == ("table.jsonl", 2, "film")
    assert said in f"{bad.found} {bad.expected}".replace("'", "'")


def test_a_clip_under_a_name_that_is_not_known_is_told(clips):
    file = write(clips, [{"movie": "fall.mp4", "question": "What falls?", "answer": "a"}])
    with pytest.raises(
        ValueError, match=r"a clip under a name that is not known; expected one of videos, video.*columns=\{'video': 'movie'\}"
    ):
        load(file)


def test_places_and_clips_are_counted_by_kind(clips):
    file = write(clips, [{"video": "fall.mp4", "question": "<video><video>Same?", "answer": "a"}])
    with pytest.raises(BadRows, match=r"2 video placeholder\(s\) and 1 video\(s\); expected one placeholder for each video"):
        load(file)
