import json
import random
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from fovea.report import page
from fovea.report.page import ASSETS, by_importance, dumped, policy, render, shell
from fovea.report.records import Reader
from fovea.report.run import RunFolder
from fovea.types import Episode, Group, Score, Task, Turn, user
from tests.report import fake_run

VOID = {"meta", "input", "br", "img", "hr", "link"}


class Page(HTMLParser):
    """Every element with its attributes, and whether each tag was closed."""

    def __init__(self, markup):
        super().__init__()
        self.tags, self.open, self.unbalanced = [], [], []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def data_of(markup):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', markup, re.S).group(1))


@pytest.fixture(scope="module")
def markup(finished):
    return (finished.path / "report.html").read_text()


def test_the_page_is_well_formed_and_fetches_nothing(markup):
    shown = Page(markup)
    assert not shown.unbalanced and not shown.open
    assert {t for t, _ in shown.tags} == {"html", "head", "meta", "link", "title", "style", "body", "noscript", "main", "script"}
    assert not [a for _, attrs in shown.tags for a in attrs if a in ("src", "style") or a.startswith("on")]
    assert [link["href"].partition(";")[0] for link in shown.named("link")] == ["data:image/svg+xml"]
    assert all(uri.startswith("data:image/") for uri in data_of(markup)["images"].values())


def test_only_the_scripts_of_the_page_may_run():
    for images in ("data:", "'self'"):
        rules = dict(r.split(" ", 1) for r in policy(images).split("; "))
        assert rules["default-src"] == "'none'" and rules["img-src"].split()[0] == images and "unsafe" not in policy(images)
        assert rules["script-src"].count("sha256-") == 2 and rules["style-src"].count("sha256-") == 1
    assert "connect-src" not in policy("data:") and "connect-src 'self'" in policy("'self'")


def test_the_library_in_the_page_keeps_its_licence():
    assert (
        "MIT" in (ASSETS / "uplot" / "LICENSE").read_text()
        and "https://github.com/leeoniya/uPlot" in (ASSETS / "uplot" / "uPlot.iife.min.js").read_text()[:200]
    )


def test_it_holds_the_numbers_the_answers_and_their_pictures(finished, markup):
    data = data_of(markup)
    (run,) = data["runs"]
    axis, values = run["metrics"]["series"]["eval/accuracy"]
    assert run["metrics"]["axes"][axis] == [0, 4, 8] and len(values) == 3
    logged = list(finished.read_groups())
    assert run["logged"] == {"groups": len(logged), "episodes": sum(len(r["episodes"]) for r in logged)}
    assert len(data["records"]) == len(logged) == sum(map(len, run["index"].values()))
    assert {i["file"] for r in logged for i in r["images"]} == set(data["images"])


def test_the_served_form_holds_numbers_only(finished):
    data = data_of(shell([Reader(finished.path)]))
    assert data["served"] and "records" not in data and "index" not in data["runs"][0] and data["runs"][0]["total"] == 9


def test_the_same_folder_gives_the_same_page(finished, markup):
    assert render([Reader(finished.path)]) == markup


def test_several_runs_in_one_file(finished, tmp_path):
    other = fake_run.write(tmp_path, steps=2, eval_every=1, rollout_every=1, tasks=6, group_size=2)
    data = data_of(render([Reader(finished.path), Reader(other.path)]))
    assert len(data["compare"]["runs"]) == 2 and {k.split("/")[0] for k in data["records"]} == {"0", "1"}
    assert "steps" in {d["field"] for d in data["compare"]["config"]}


EVIL = "</script></style><script>alert(1)</script><img src=x onerror=alert(2)>\"'><b onmouseover=x>&amp;\u2028\ud800"


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


def evil_run(path):
    """A run in which every text that data can set is hostile. (Lone surrogates cannot be written to files, only escaped in JSON.)"""
    group, words = evil_group()
    run = RunFolder(path, tensorboard=False)
    plain = EVIL.encode("utf-8", "replace").decode()
    run.describe({"name": plain, "model": plain, "method": {"type": plain}, plain: {plain: plain}}, ["fovea", plain])
    for step in (1, 2):
        run.log(
            step, {f"accuracy/{EVIL}": 0.5, "accuracy/other": 0.5, f"reward/{EVIL}": 0.5, "reward/x": 0.1, "reward/mean": 0.5, EVIL: 1.0}
        )
        for split in ("step", "eval"):
            records = [run._group_record(step, group, words, {})]
            file = run.rollouts_path / f"{split}-{step:06d}.jsonl"
            file.write_text("".join(json.dumps(r) + "\n" for r in records))
    return run


def test_no_text_becomes_markup(tmp_path):
    markup = render([Reader(evil_run(tmp_path).path)])
    shown = Page(markup)
    assert not shown.unbalanced and len(shown.named("script")) == 3 and not shown.named("img") and len(shown.named("style")) == 1
    assert "</script><script>alert" not in markup and data_of(markup)["runs"][0]["name"].startswith("</script></style><script>")


def test_what_json_cannot_hold_is_null():
    assert json.loads(dumped({"a": [float("inf"), float("nan"), 1.5], "b": "\ud800<\u2028"})) == {"a": [None, None, 1.5], "b": "?<\u2028"}
    assert "<" not in dumped("</script>") and "\u2028" not in dumped("\u2028")


def test_an_empty_folder(tmp_path):
    data = data_of(render([Reader(tmp_path / "fresh")]))
    assert data["runs"][0]["name"] == "fresh" and not data["records"] and not data["runs"][0]["problems"]


def test_a_lost_picture_is_left_out(tmp_path):
    run = RunFolder(tmp_path, tensorboard=False)
    group, words = evil_group()
    words.pieces[0] = group.episodes[0].error = "plain"
    run.rollouts_path.mkdir()
    (run.rollouts_path / "step-000001.jsonl").write_text(json.dumps(run._group_record(1, group, words, {})) + "\n")
    next((tmp_path / "rollouts" / "images").iterdir()).write_bytes(b"no picture")
    data = data_of(render([Reader(tmp_path)]))
    assert data["images"] == {} and len(data["records"]) == 1


def test_the_size_is_bounded_and_the_ends_stay(tmp_path, monkeypatch):
    assert page.BUDGET <= 5_000_000
    rng = random.Random(0)
    run = RunFolder(tmp_path, tensorboard=False)
    for step in range(1, 16):
        noise = Image.frombytes("RGB", (200, 200), rng.randbytes(200 * 200 * 3))
        task = Task(str(step), "noise", user("?"), (noise,))
        run.log(step, {"reward/mean": 1.0})
        run.log_groups(step, [Group(task, [Episode("e", task, turns=[Turn("x")], score=Score(1.0))])], force=True)
    markup = render([Reader(tmp_path)], budget=400_000)
    data = data_of(markup)
    steps = sorted(r["step"] for r in data["records"].values())
    assert 300_000 < len(markup) < 430_000
    assert steps[0] == 1 and steps[-1] == 15 and 2 < len(steps) < 15 and data["runs"][0]["logged"]["groups"] == 15


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 40])
def test_importance_starts_at_the_ends(n):
    order = by_importance(n)
    assert sorted(order) == list(range(n)) and order[:2] == [n - 1, 0][: min(n, 2)]


def test_importance_halves():
    assert by_importance(9) == [8, 0, 4, 2, 6, 1, 3, 5, 7]
