"""The page in a real Chromium: both of its forms, what was drawn where, and what a damaged or growing run does to it."""

import io
import json
import time

import pytest
from PIL import Image

from fovea.report.page import render
from fovea.report.records import Reader
from fovea.report.run import RunFolder
from fovea.types import Context, Episode, Group, Task, Turn, user
from fovea.verifiers import build
from tests.report import fake_run
from tests.report.test_page import evil_run
from tests.report.test_view import served


@pytest.fixture
def shown(tab):
    """A function that opens the page of a run folder: its file, or what a server says at an address."""

    def go(address):
        tab.goto(address)
        tab.wait_for_selector("html[data-painted]", state="attached")
        tab.wait_for_selector("html[data-indexed]", state="attached")
        return tab

    return go


def text(tab, selector):
    return tab.inner_text(selector)


def found(tab):
    """How many groups the list holds; only those in sight are drawn."""
    return int(text(tab, ".bar output").split(" ")[-1])


def settle(tab, script):
    """Wait until `script` holds. (Playwright's own waiting evaluates strings in the page, which its content policy forbids.)"""
    until = time.monotonic() + 60
    while not tab.evaluate(f"Boolean({script})"):
        assert time.monotonic() < until, f"{script} never held"
        time.sleep(0.05)


def test_the_file_opens_without_a_network(shown, finished):
    tab = shown((finished.path / "report.html").as_uri())
    assert text(tab, "h1") == "tiny-worlds" and "tiny-worlds" in tab.title()
    settle(tab, "document.querySelectorAll('.uplot canvas').length >= 2")
    assert tab.locator(".number").count() >= 4 and "95 % interval" in text(tab, "#numbers")
    assert tab.locator("#rollouts .answer").count() == 3 and tab.locator("#heldout .card").count() == 8
    assert tab.evaluate("performance.getEntriesByType('resource').filter((r) => !r.name.startsWith('data:')).length") == 0


def test_a_curve_is_drawn_in_its_colour(shown, finished):
    tab = shown((finished.path / "report.html").as_uri())
    settle(tab, "document.querySelector('[data-chart=accuracy] canvas')")
    picture = Image.open(io.BytesIO(tab.locator("[data-chart=accuracy] .plot").screenshot())).convert("RGB")
    green = tuple(int(v) for v in (0x12, 0x80, 0x5C))
    assert sum(max(abs(a - b) for a, b in zip(p, green)) < 12 for p in picture.get_flattened_data()) > 100


def test_the_pointer_reads_all_curves(shown, finished):
    tab = shown((finished.path / "report.html").as_uri())
    settle(tab, "document.querySelector('[data-chart=reward] canvas')")
    box = tab.locator("[data-chart=accuracy] .u-over").bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    settle(tab, "document.querySelector('[data-chart=accuracy] .at').textContent === 'step 4'")
    values = [row["reward/mean"] for row in finished.read_metrics() if "reward/mean" in row]
    settle(tab, "document.querySelector('[data-chart=reward] .at').textContent === 'step 4'")
    assert f"total {values[3]:.4g}" in text(tab, "[data-chart=reward] .legend")


def test_a_filter_and_the_keys(shown, finished):
    tab = shown((finished.path / "report.html").as_uri())
    groups = [r for r in finished.read_groups()]
    tab.select_option("[data-filter=source]", "count")
    wanted = [g for g in groups if g["source"] == "count"]
    assert f"{len(wanted)} of {len(groups)} groups" in text(tab, "#rollouts > .count") and found(tab) == len(wanted)
    tab.select_option("[data-filter=verdict]", "wrong")
    wrong = [g for g in wanted if any(e["correct"] is False for e in g["episodes"])]
    assert found(tab) == len(wrong)
    tab.locator("h1").click()
    tab.keyboard.press("Escape")
    assert found(tab) == len(groups) and tab.locator("[data-filter=source]").input_value() == ""
    tab.fill("[data-filter=from]", "4")
    tab.fill("[data-filter=to]", "4")
    tab.fill("[data-filter=high]", "0.5")
    low = [g for g in groups if g["step"] == 4 and any(e["score"] is not None and e["score"] <= 0.5 for e in g["episodes"])]
    assert found(tab) == len(low)
    tab.locator("h1").click()
    tab.keyboard.press("Escape")
    at = int(text(tab, ".bar output").split(" ")[0])
    tab.keyboard.press("k")
    assert text(tab, ".bar output").startswith(f"{at - 1} of")
    tab.keyboard.press("ArrowRight")
    assert text(tab, ".bar output").startswith(f"{at} of")
    for key, step in (("[", "1"), ("]", "4"), ("]", "8")):
        tab.keyboard.press(key)
        assert tab.locator(".item.on b").inner_text() == step
    tab.keyboard.press("f")
    assert tab.evaluate("document.activeElement.dataset.filter") == "source"


def placed_run(path, verifier, answer, *texts, segment=None, **params):
    """A run of one group about a grey picture of 200 x 100, its answers judged by the verifier itself."""
    grey = Image.new("RGB", (200, 100), (128, 128, 128))
    task = Task("t", "find", user("Where?", images=1), images=(grey,), answer=answer, verifier=verifier, params=params)
    group = Group(task, [Episode(f"e{i}", task, turns=[Turn(text)], stop="eos") for i, text in enumerate(texts)])
    for e, score in zip(group.episodes, build(verifier, params).score(group, Context())):
        e.score = score
    run = RunFolder(path, tensorboard=False)
    run.describe({"name": "boxes"}, ["fovea"])
    run.log(1, {"reward/mean": 0.0})
    file = run.log_groups(1, [group])
    if segment:
        record = json.loads(file.read_text())
        record["episodes"][0]["segments"] = [segment]
        file.write_text(json.dumps(record) + "\n")
    return run


def box_run(path):
    """The true box is (20, 10, 80, 60) and the answer (120, 30, 180, 90)."""
    segment = {"mask": [1, 1, 0], "logp": [-0.01, -2.0, -0.5], "adv": [-1.0, 1.0, 0.0], "units": 3, "streams": {"visual": [0.0, 1.5, 0.1]}}
    segment |= {"tokens": ["<answer>", "120 30 180 90", "</answer>"]}
    return placed_run(path, "box_iou", [20, 10, 80, 60], "<answer>120 30 180 90</answer>", segment=segment)


RED, GREEN = lambda p: p[0] > 180 and p[1] < 110 and p[2] < 90, lambda p: p[0] < 90 and p[1] > 130 and p[2] < 170
DASHES, GREY = lambda p: min(p) > 200 or max(p) < 100, lambda p: all(abs(v - 128) < 12 for v in p)
CAT, DOG = {"label": "cat", "bbox_2d": [20, 10, 80, 60]}, {"label": "dog", "bbox_2d": [100, 20, 140, 50]}
FOUND = json.dumps([{**CAT, "bbox_2d": [28, 10, 88, 60]}, {**DOG, "bbox_2d": [150, 60, 190, 90]}])


def sides(x1, y1, x2, y2):
    """The middle of each side."""
    return [(x1, (y1 + y2) / 2), (x2, (y1 + y2) / 2), ((x1 + x2) / 2, y1), ((x1 + x2) / 2, y2)]


@pytest.mark.parametrize(
    ("verifier", "answer", "text", "drawn"),
    [
        ("box_iou", CAT["bbox_2d"], "<answer>120 30 180 90</answer>", {RED: sides(120, 30, 180, 90), DASHES: sides(20, 10, 80, 60)}),
        ("point_in_box", CAT["bbox_2d"], "<answer>40 40</answer>", {GREEN: [(40, 40)], DASHES: sides(20, 10, 80, 60)}),
        *(
            (name, [CAT, DOG], FOUND, {GREEN: [(88, 35)], RED: sides(150, 60, 190, 90)[1:], DASHES: sides(100, 20, 140, 50)[1:]})
            for name in ("detection", "criterion")
        ),
    ],
    ids=["box_iou", "point_in_box", "detection", "criterion"],
)
def test_places_are_drawn_where_they_should_be(shown, tmp_path, verifier, answer, text, drawn):
    placed_run(tmp_path, verifier, answer, text)
    with served([tmp_path]) as (_, port):
        tab = shown(f"http://127.0.0.1:{port}/?token=sesame")
        tab.wait_for_selector(".group .picture path", state="attached")
        picture = Image.open(io.BytesIO(tab.locator(".group .picture").screenshot())).convert("RGB")
    scale = picture.width / 200

    def near(x, y):
        """The pixels within 3 of a point given in the picture's own units."""
        cx, cy = round(x * scale), round(y * scale)
        return [picture.getpixel((i, j)) for i in range(cx - 3, cx + 4) for j in range(cy - 3, cy + 4)]

    for colour, points in drawn.items():
        assert all(any(map(colour, near(*point))) for point in points), points
    for point in ((100, 65), (60, 80), (10, 90)):
        assert all(map(GREY, near(*point))), point


def test_labels_stand_at_their_boxes_and_those_of_one_answer_alone_when_it_is_pointed_at(shown, tmp_path):
    empty = "<answer>None</answer>"
    placed_run(tmp_path, "detection", [CAT, DOG], FOUND, empty)
    with served([tmp_path]) as (_, port):
        tab = shown(f"http://127.0.0.1:{port}/?token=sesame")
        tab.wait_for_selector(".group .label")
        assert tab.locator(".group .label.true").all_inner_texts() == ["cat", "dog"]
        frame = tab.locator(".group .picture").bounding_box()
        for label, (x, y) in zip(tab.locator(".group .label.true").all(), ((20, 10), (100, 20)), strict=True):
            box, scale = label.bounding_box(), frame["width"] / 200
            assert abs(box["x"] - frame["x"] - x * scale) < 2 and abs(box["y"] - frame["y"] - y * scale) < 2
        assert tab.locator(".group .label.named.right").all_inner_texts() == ["cat"]
        seen = "[...document.querySelectorAll('.group .label.named')].map((l) => getComputedStyle(l).visibility)"
        assert tab.evaluate(seen) == ["visible", "visible"]
        tab.hover(".answer[data-episode='1']")
        assert tab.evaluate(seen) == ["hidden", "hidden"]
        tab.hover(".answer[data-episode='0']")
        assert tab.evaluate(seen) == ["visible", "visible"]


def test_tokens_take_the_colour_that_is_asked_for(shown, tmp_path):
    box_run(tmp_path)
    (tmp_path / "report.html").write_text(render([Reader(tmp_path)]))
    tab = shown((tmp_path / "report.html").as_uri())
    classes = "[...document.querySelectorAll('.answer .text i')].map((t) => t.className)"
    assert tab.evaluate(classes) == ["p9", "p1", "m"]
    tab.click("[data-tint=a]")
    assert tab.evaluate(classes) == ["a0", "a8", "m"]
    tab.click("[data-tint=m]")
    assert tab.evaluate(classes) == ["trains", "trains", "m given"]
    tab.click("[data-tint=visual]")
    assert tab.evaluate(classes) == ["a4", "a8", "m"] and "needs the picture" in text(tab, ".scale")


def test_turns_stand_between_what_was_said(shown, tmp_path):
    box_run(tmp_path)
    file = tmp_path / "rollouts" / "step-000001.jsonl"
    record = json.loads(file.read_text())
    seen = {"text": "", "reward": 0.5, "messages": [{"role": "user", "content": [{"type": "text", "text": "closer"}, {"type": "image"}]}]}
    record["episodes"][0]["turns"] = [{"text": "", "reward": 0.0, "messages": [], "images": []}, {**seen, "images": record["images"]}]
    record["episodes"][0]["segments"][0]["turn"] = [0, 1, 1]
    file.write_text(json.dumps(record) + "\n")
    with served([tmp_path]) as (_, port):
        tab = shown(f"http://127.0.0.1:{port}/?token=sesame")
        tab.wait_for_selector(".answer")
        parts = tab.evaluate(
            "[...document.querySelectorAll('.answer > .text, .answer > .env')].map((e) => e.className + ' ' + e.textContent)"
        )
        assert parts == ["text <answer>", "env closer", "text 120 30 180 90</answer> reward 0.5"]
        assert tab.locator(".answer .env .picture image").count() == 1


def test_what_changed_between_two_evaluations_is_marked(shown, finished):
    tab = shown((finished.path / "report.html").as_uri())
    held = [r for r in finished.read_groups() if r["split"] == "eval"]
    answers = {(r["task"], r["step"]): r["episodes"][0]["text"] for r in held}
    tab.select_option("#heldout [aria-label=from]", "0")
    tab.select_option("#heldout [aria-label=to]", "4")
    tab.evaluate("document.getElementById('heldout').scrollIntoView()")
    settle(tab, "document.querySelectorAll('#heldout .card .said').length >= 4")
    first, second = tab.locator("#heldout .card").nth(0).locator(".said p").all_inner_texts()
    task = next(t for t, s in answers if s == 0 and answers[t, 0] == first and answers[t, 4] == second)
    assert answers[task, 0] == first and tab.locator("#heldout .card").nth(0).locator(".dots button.on").count() == 2
    changed = [card for card in tab.locator("#heldout .card").all() if len({*card.locator(".said p").all_inner_texts()}) == 2]
    assert changed and all(card.locator("ins, del").count() for card in changed)


def test_a_live_run_updates(shown, tmp_path):
    run = fake_run.write(tmp_path, steps=2, eval_every=2, rollout_every=1, tasks=4, group_size=2)
    with served([tmp_path]) as (_, port):
        tab = shown(f"http://127.0.0.1:{port}/?token=sesame")
        tab.wait_for_selector(".item")
        before = found(tab)
        groups, batch, metrics = fake_run.fake_step(3, 3, words := fake_run.Words(), tasks=4, group_size=2)
        run.log(3, metrics)
        run.log_groups(3, groups, words, batch, force=True)
        settle(tab, f"document.querySelector('.bar output').textContent.endsWith('of {before + 4}')")
        settle(tab, "document.getElementById('live').textContent === 'live, step 3'")
        assert "3" in text(tab, ".number:has(h2:text-is('Steps')) p")


def test_a_corrupt_file_is_named_and_the_rest_is_shown(shown, tmp_path):
    run = fake_run.write(tmp_path, steps=3, eval_every=3, rollout_every=1, tasks=4, group_size=2)
    (run.rollouts_path / "step-000002.jsonl").write_bytes(b'{"step": 2, "task"\xff\x00')
    strange = json.loads((run.rollouts_path / "step-000003.jsonl").read_text().splitlines()[0])
    strange["episodes"][0].update(segments=[{"tokens": "abc"}], turns=[{"images": 3}], parts=[1], text=None)
    (run.rollouts_path / "step-000003.jsonl").write_text(json.dumps(strange) + "\n")
    with served([tmp_path]) as (_, port):
        tab = shown(f"http://127.0.0.1:{port}/?token=sesame")
        settle(tab, "document.querySelector('#problems li')")
        assert "rollouts/step-000002.jsonl, line 1" in text(tab, "#problems")
        tab.wait_for_selector(".detail .problem")  # the strange record cannot be drawn, and says so
        assert "step-000003.jsonl, line 1 cannot be shown" in text(tab, ".detail")
        tab.keyboard.press("k")
        tab.wait_for_selector(".detail .answer")
        assert found(tab) == 4 + 1 + 16


def test_hostile_text_stays_text(shown, tmp_path):
    run = evil_run(tmp_path)
    with served([run.path]) as (_, port):
        for address in (run.write_report().as_uri(), f"http://127.0.0.1:{port}/?token=sesame"):
            tab = shown(address)
            tab.on("dialog", lambda d: pytest.fail("a script of the data ran"))
            tab.wait_for_selector(".answer")
            assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in text(tab, ".answers")
            assert tab.locator("img, b[onmouseover], #page script").count() == 0


def test_runs_side_by_side(shown, finished, tmp_path):
    other = fake_run.write(tmp_path, steps=4, eval_every=2, rollout_every=2, tasks=6, group_size=2)
    with served([finished.path, other.path]) as (_, port):
        tab = shown(f"http://127.0.0.1:{port}/?token=sesame")
        settle(tab, "document.querySelectorAll('[data-chart^=accuracy] .key').length === 4")
        assert tab.locator(".compared > table th .chip").count() == 2 and "steps" in text(tab, ".compared details tbody")
        tab.select_option("[data-filter=run]", "1")
        tab.wait_for_selector(".item")
        assert f"{len(list(other.read_groups()))} of" in text(tab, "#rollouts > .count").partition("answers in ")[2]


def test_an_empty_run_says_so(shown, tmp_path):
    with served([tmp_path]) as (_, port):
        tab = shown(f"http://127.0.0.1:{port}/?token=sesame")
        assert "No step was logged yet." in text(tab, "#curves")


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(shown, finished, width):
    tab = shown((finished.path / "report.html").as_uri())
    tab.set_viewport_size({"width": width, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_what_a_page_must_not_do_would_be_seen(browser, finished):
    code = 'fetch("http://127.0.0.1:9/x").catch(() => {}); throw new Error("broken")'
    seen = browser.look_at(finished.path / "report.html", script=code)
    assert "Content Security Policy" in " ".join(seen.console), "a script that is not the page's own does not run"
    assert seen.requests == ()


def test_requests_of_a_page_are_counted(browser, tmp_path):
    (tmp_path / "page.html").write_text('<!doctype html><body><img src="http://127.0.0.1:9/x.png"></body>')
    assert browser.look_at(tmp_path / "page.html").requests == ("http://127.0.0.1:9/x.png",)
