"""The run page in a real browser: it draws, it answers to the reader, it asks nobody for anything."""

import re

STEP = """
const shown = () => document.querySelector("#samples .pane.on");
document.title = document.querySelector("#samples output").textContent;
document.querySelector('#samples [data-go="-1"]').click();
document.title += " | " + document.querySelector("#samples output").textContent;
const plot = document.querySelector(".chart .plot"), box = plot.getBoundingClientRect();
plot.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2, clientY: box.top + 5}));
document.title += " | " + document.querySelectorAll(".chart.hot").length + " | " + Math.round(box.width);
"""


def test_curves_and_groups_of_answers_are_drawn_without_a_request_or_an_error(browser, finished):
    seen = browser.look_at(finished.path / "report.html")
    assert seen.console == () and seen.requests == ()
    charts = re.findall(r'class="chart[" ].*?</figure>', seen.dom, re.DOTALL)
    assert len(charts) >= 4 and all(re.search(r'<path[^>]* d="M[\d.]+', c) for c in charts)
    assert seen.dom.count('class="pane on"') == 1, "one logged step is shown"
    (pane,) = re.findall(r'class="pane on".*?(?=class="pane"|</main>|<script)', seen.dom, re.DOTALL)
    assert pane.count("&lt;answer&gt;") >= 3, "the answers of a group side by side"


def test_the_page_follows_its_reader(browser, finished):
    seen = browser.look_at(finished.path / "report.html", script=STEP)
    title = re.search(r"<title>(.*?)</title>", seen.dom)[1]
    last, before, hot, width = title.split(" | ")
    assert (last, before) == ("step 8", "step 4")
    assert int(hot) >= 2 and int(width) > 100, "the cursor is on every curve of that step, and they have a size"
    assert seen.console == ()


def test_what_a_page_must_not_do_would_be_seen(browser, finished):
    code = 'fetch("http://127.0.0.1:9/x").catch(() => {}); throw new Error("broken")'
    seen = browser.look_at(finished.path / "report.html", script=code)
    said = " ".join(seen.console)
    assert "Content Security Policy" in said and "Uncaught Error: broken" in said
    assert seen.requests == (), "the content policy stops it before it leaves"


def test_requests_of_a_page_are_counted(browser, tmp_path):
    (tmp_path / "page.html").write_text('<!doctype html><body><img src="http://127.0.0.1:9/x.png"></body>')
    assert browser.look_at(tmp_path / "page.html").requests == ("http://127.0.0.1:9/x.png",)
