import json
import random
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from fovea.report import page
from fovea.report.charts import Series, chart, smooth, thin, value_text
from fovea.report.page import _overlays, by_importance, render
from fovea.report.run import RunFolder
from fovea.types import Episode, Group, Score, Task, Turn, user
from tests.report import fake_run

VOID = {"meta", "input", "br", "img", "hr", "link"}
LOOSE = {"td", "tr"}


class Page(HTMLParser):
    """Every element with its attributes, all text, and whether each tag was closed."""

    def __init__(self, markup):
        super().__init__()
        self.tags, self.open, self.text, self.unbalanced = [], [], [], []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID | LOOSE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in LOOSE:
            return
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        self.text.append(data)

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def classed(self, name):
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]


@pytest.fixture(scope="module")
def markup(finished):
    return (finished.path / "report.html").read_text()


def test_the_page_is_well_formed(markup):
    shown = Page(markup)
    assert not shown.unbalanced and not shown.open
    ids = [attrs["id"] for _, attrs in shown.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))


def test_nothing_is_fetched(markup):
    shown = Page(markup)
    assert not shown.named("link") and not shown.named("img") and all("src" not in s for s in shown.named("script"))
    targets = [a.get("href") or a.get("src") for _, a in shown.tags if a.get("href") or a.get("src")]
    assert targets and all(t.startswith(("#", "data:image/")) for t in targets)
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"data:image/[^\"]+", "", markup))
    assert "default-src 'none'" in markup


def test_every_reference_to_a_picture_is_there(markup):
    shown = Page(markup)
    used = {a["href"] for a in shown.named("use")}
    assert used and used == {"#" + a["id"] for a in shown.named("symbol")}


def test_every_chart_has_its_data(markup):
    shown = Page(markup)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', markup).group(1))
    charts = [a["data-chart"] for a in shown.classed("chart")]
    assert set(charts) == set(data) and {"accuracy", "reward", "length", "entropy", "kl", "grad", "clip", "groups", "time"} <= set(charts)
    assert sum(c.startswith("source-") for c in charts) == len(fake_run.FAMILIES)
    for chart_data in data.values():
        assert all(len(s["x"]) == len(s["y"]) for s in chart_data["series"])


def test_it_shows_the_logged_steps_and_every_answer(finished, markup):
    shown = Page(markup)
    assert [a["data-step"] for a in shown.classed("pane")] == ["1", "4", "8"] and len(shown.classed("on")) == 2
    records = [r for r in finished.read_groups() if r["split"] == "train"]
    assert len(shown.classed("answer")) == sum(len(r["episodes"]) for r in records) == 3 * 4 * 3
    tokens = [a for a in shown.classed("text")]
    assert len(tokens) == 36 and shown.classed("p9") and shown.classed("a8") and shown.classed("a0")
    assert "95 % interval" in markup and len(shown.classed("card")) == 8


def test_the_same_folder_gives_the_same_page(finished, markup):
    assert render(finished) == markup


EVIL = "</script></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'><b onmouseover=x>&amp;"


def evil_group():
    task = Task(EVIL, EVIL, user(EVIL), (Image.new("RGB", (8, 8)),), answer=EVIL, verifier="exact", params={EVIL: EVIL})
    words = fake_run.Words()
    episode = fake_run.episode(fake_run.worlds.make("find", 1), random.Random(0), 1.0, words, EVIL)
    words.pieces[0] = EVIL
    episode.task, episode.stop, episode.error, episode.role = task, EVIL, EVIL, "sample"
    episode.turns = [Turn(EVIL), Turn(f"<answer>{EVIL}</answer>")]
    episode.score = Score(1.0, {EVIL: 0.5}, correct=True)
    other = Episode(EVIL, task, EVIL, turns=[Turn(EVIL)], stop=EVIL, score=Score.failed(EVIL))
    return Group(task, [episode, other]), words


def test_no_text_becomes_markup(tmp_path):
    group, words = evil_group()
    run = RunFolder(tmp_path, tensorboard=False)
    run.describe({"name": EVIL, "model": EVIL, "method": {"type": EVIL}, EVIL: {EVIL: EVIL}}, ["fovea", EVIL])
    for step in (1, 2):
        run.log(
            step, {f"accuracy/{EVIL}": 0.5, "accuracy/other": 0.5, f"reward/{EVIL}": 0.5, "reward/x": 0.1, "reward/mean": 0.5, EVIL: 1.0}
        )
        run.log_groups(step, [group], words, force=True)
        run.log_groups(step, [group], words, split="eval")
    markup = render(run)
    shown = Page(markup)
    assert not shown.unbalanced and not shown.open
    assert len(shown.named("script")) == 2 and not shown.named("img") and len(shown.named("style")) == 1
    assert not [a for _, attrs in shown.tags for a in attrs if a.startswith("on")]
    # title, name, question, answers, tokens, parts, reasons, settings: shown as they are
    assert sum(EVIL in t for t in shown.text) > 15
    rows = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', markup).group(1))
    assert rows


def test_an_empty_folder(tmp_path):
    shown = Page(render(RunFolder(tmp_path / "fresh", tensorboard=False)))
    assert not shown.unbalanced and "No step was logged yet." in shown.text and "fresh" in shown.text


def test_a_run_of_one_step_without_evaluation(tmp_path):
    run = RunFolder(tmp_path, tensorboard=False)
    run.log(1, {"reward/mean": 0.5, "time/generate_s": 1.0, "policy/entropy": float("nan")})
    shown = Page(render(run))
    assert not shown.unbalanced and [a["data-chart"] for a in shown.classed("chart")] == ["reward", "time"]


def test_an_evaluation_alone_shows_its_answers(tmp_path):
    words = fake_run.Words()
    run = RunFolder(tmp_path, tensorboard=False)
    run.log_groups(0, fake_run.groups_at(0, 1, words, tasks=4, group_size=1, split="heldout"), words, split="eval")
    assert len(Page(render(run)).classed("answer")) == 4


def test_a_lost_picture_is_said(tmp_path):
    run = RunFolder(tmp_path, tensorboard=False)
    group, words = evil_group()
    run.log_groups(1, [group], words)
    next((tmp_path / "rollouts" / "images").iterdir()).write_bytes(b"no picture")
    assert "is missing" in render(run)


def test_the_size_is_bounded_and_the_ends_stay(tmp_path, monkeypatch):
    assert page.BUDGET <= 5_000_000
    monkeypatch.setattr(page, "BUDGET", 300_000)
    rng = random.Random(0)
    run = RunFolder(tmp_path, tensorboard=False)
    for step in range(1, 16):
        noise = Image.frombytes("RGB", (200, 200), rng.randbytes(200 * 200 * 3))
        task = Task(str(step), "noise", user("?"), (noise,))
        run.log(step, {"reward/mean": 1.0})
        run.log_groups(step, [Group(task, [Episode("e", task, turns=[Turn("x")], score=Score(1.0))])], force=True)
    markup = render(run)
    steps = [int(a["data-step"]) for a in Page(markup).classed("pane")]
    assert 200_000 < len(markup) < 400_000
    assert steps[0] == 1 and steps[-1] == 15 and 2 < len(steps) < 15


def place_record(answer, text, verifier="box_iou", **params):
    episode = {"text": text, "correct": True, "score": 1.0}
    return {"verifier": verifier, "params": params, "images": [{"width": 200, "height": 100}], "answer": answer, "episodes": [episode]}


def test_places_are_drawn_in_pixels():
    record = place_record([10, 20, 30, 40], "I see <answer>11 21 31 41</answer>")
    shapes = _overlays(record, record["episodes"])[0]
    assert 'd="M10 20H30V40H10Z"' in shapes and 'd="M11 21H31V41H11Z"' in shapes and 'data-episode="0"' in shapes
    record = place_record([10, 20, 30, 40], "<answer>500 500 1000 1000</answer>", scale=1000)
    assert 'd="M100 50H200V100H100Z"' in _overlays(record, record["episodes"])[0]
    record = place_record([10, 20, 30, 40], "<answer>0.5 0.25</answer>", verifier="point_in_box", scale=1)
    assert 'd="M100 25h0"' in _overlays(record, record["episodes"])[0]


def test_places_that_cannot_be_drawn_are_left_out():
    record = place_record([10, 20, 30, 40], "no idea")
    assert "said" not in _overlays(record, record["episodes"])[0]
    record = place_record("ten", "<answer>1 2 3 4</answer>", image=7)
    assert _overlays(record, record["episodes"]) == {}
    record = place_record([1, 2, 3, 4], "<answer>1 2 3 4</answer>", verifier="exact")
    assert _overlays(record, record["episodes"]) == {}


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 40])
def test_importance_starts_at_the_ends(n):
    order = by_importance(n)
    assert sorted(order) == list(range(n)) and order[:2] == [n - 1, 0][: min(n, 2)]


def test_importance_halves():
    assert by_importance(9) == [8, 0, 4, 2, 6, 1, 3, 5, 7]


def test_thinning_keeps_means_and_the_last_step():
    s = thin(Series("s", "c0", list(range(1, 1001)), [float(x % 2) for x in range(1000)]), limit=100)
    assert len(s.x) == 100 and s.x[0] == 10 and s.x[-1] == 1000 and set(s.y) == {0.5}


def test_smoothing_keeps_a_constant_and_the_length():
    points = [(float(x), 2.0) for x in range(100)]
    assert smooth(points) == points
    ramp = smooth([(float(x), float(x)) for x in range(100)])
    assert ramp[50] == (50.0, 50.0) and ramp[0][1] == 2.5


@pytest.mark.parametrize("ys", [[0.0, 1.0], [3.0, 3.0], [0.0, 0.0], [-2.0, 5.0], [0, 48000], [1e-5, 4e-5], [0.7312, 0.7398]])
def test_axes_hold_the_values(ys):
    made = chart("k", "t", [Series("s", "c0", [0, 1], ys)])
    labels = re.findall(r'<span style="bottom:[^"]+">([^<]+)</span>', made.markup)
    numbers = [float(t.rstrip("k")) * (1000 if t.endswith("k") else 1) for t in labels]
    assert numbers == sorted(numbers) and len(set(labels)) == len(labels)
    assert numbers[0] <= min(ys) and numbers[-1] >= max(ys) and 2 <= len(labels) <= 7


def test_one_wild_value_does_not_flatten_a_long_curve():
    ys = [1.0 + (i % 10) / 10 for i in range(300)]
    ys[150] = 1e6
    made = chart("k", "t", [Series("s", "c0", list(range(300)), ys)])
    assert "1000k" not in made.markup and "2.0" in made.markup


def test_rounding_noise_is_drawn_as_zero():
    made = chart("k", "t", [Series("s", "c0", [0, 1, 2], [-5e-9, 3e-9, 0.0])])
    assert "e-0" not in made.markup and "<b>0</b>" in made.markup


def test_paths_are_shown_by_their_last_name(tmp_path):
    run = RunFolder(tmp_path, tensorboard=False)
    run.describe({"model": "/home/me/models/base", "data": "worlds:count"}, ["fovea", "train"])
    shown = Page(render(run).partition("</header>")[0])
    assert "base" in shown.text and "worlds:count" in shown.text and not [t for t in shown.text if "/home/me" in t]


def test_a_chart_without_values_is_left_out():
    assert chart("k", "t", [Series("s", "c0", [1, 2], [float("nan")] * 2)]) is None and chart("k", "t", []) is None


def test_values_in_words():
    assert [value_text(y) for y in (0.0, 0.12345, 812.4, 45678.0, 3e-7, float("nan"))] == ["0", "0.1235", "812.4", "45,678", "3.0e-07", "–"]
    assert value_text(0.8766, percent=True) == "87.7%"
