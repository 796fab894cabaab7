"""The documents run: every code block of README.md and docs/ is executed, links lead somewhere, generated parts are up to date."""

import asyncio
import importlib.util
import json
import re

import pytest

import fovea
from fovea import sandbox, systems
from fovea.methods import METHODS
from tests.docs.blocks import ROOT, Block, blocks_of, commands, run_command, run_page

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
pytestmark = pytest.mark.usefixtures("one_thread")
LINK = re.compile(r"\]\(([^)\s]+)\)")

spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_code_of_a_page_runs(page, workplace, demo):
    if page.stem == "sandbox" and (said := sandbox.problem()):
        pytest.skip(said)
    run_page(page, workplace, demo)


EXCUSED = {
    ("engine", "a measurement of several minutes"),
    ("ledger", "four arms, five seeds, an hour"),
    ("processes", "it starts processes of its own; tests/trainer/test_distributed.py does the same"),
    ("ray", "it starts a cluster; tests/rollout/test_rayed.py does the same"),
    ("ray", "needs machines"),
    ("remote", "needs a server at this address"),
    ("services", "an agent at a slow desktop takes minutes"),
    ("share", "needs an account"),
    ("view", "needs the extra"),
    ("view", "serves until Ctrl-C"),
}
"""Every block that no test runs, with its reason."""


def test_every_block_is_run_or_excused():
    excused = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fences = re.findall(r"^[ >]*(?:```|~~~)", text, re.MULTILINE)
        blocks = blocks_of(text)
        assert len(fences) == 2 * len(blocks), f"{page.name}: {len(fences)} fence lines, {len(blocks)} blocks found; expected none indented"
        excused |= {(page.stem, b.said) for b in blocks if b.mark == "not run"}
    assert excused == EXCUSED


def test_training_works_where_an_event_loop_is_running(workplace):
    async def notebook():
        run = fovea.train("grpo", out="runs/loop", quiet=True)
        return len(run.metrics), fovea.evaluate(run.policy, tasks=2).mean

    rows, mean = asyncio.run(notebook())
    assert rows >= 1
    assert 0 <= mean <= 1


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    """Pictures of measured runs come with the figures, so they are asked for once these are there."""
    measured = (ROOT / generate.MAIN_JOB).is_file()
    text = page.read_text(encoding="utf-8")
    targets = [t for t in LINK.findall(text) if not t.startswith("http") and (measured or not t.endswith(".png"))]
    for target in targets:
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            heads = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)]
            assert anchor in heads, f"{page.name}: {target}; headings are {', '.join(heads)}"


def test_generated_parts_are_up_to_date():
    pages = generate.pages(ROOT)
    stale = [name for name, text in pages.items() if (ROOT / name).read_text(encoding="utf-8") != text]
    assert not stale, f"run python docs/generate.py; out of date: {', '.join(stale)}"


# -- the generator --------------------------------------------------------------------------------------------------------------


def test_figures_are_what_the_files_say(tmp_path):
    (tmp_path / "benchmarks/quality").mkdir(parents=True)
    (tmp_path / "benchmarks/speed").mkdir(parents=True)
    main_job = {
        "seeds": [0, 1],
        "before": [0.4, 0.4],
        "after": [0.9, 0.8],
        "train_seconds": [200.0, 240.0],
        "families": {
            "count": {"base": {"greedy": 0.25, "sampled": 0.5}, "rl": [{"greedy": 1.0, "sampled": 0.5}, {"greedy": 0.5, "sampled": 0.75}]}
        },
        "base_pass_at_8": {"count": 0.875},
        "controls": {"random": {"greedy": [0.375, 0.125]}},
        "command": "python x.py",
        "commit": "0123456789abcdef",
        "hardware": "2 cores",
    }
    cell = {"image_tokens": 256, "new_tokens": 32, "group_size": 8, "cpu_s_ours": 2.0, "cpu_s_peer": 14.0, "ratio": 7.0}
    speed = {"exact": True, "cells": [{**cell, "mem_ours_mb": 100.0, "mem_peer_mb": 700.0}], "physics_ratio": 1.5, "g16_over_g4": None}
    (tmp_path / generate.MAIN_JOB).write_text(json.dumps(main_job))
    (tmp_path / generate.SPEED).write_text(json.dumps(speed))
    text = generate.figures(tmp_path)
    assert "0.400 → 0.850, gain +0.450 (seeds +0.400 to +0.500); 200 to 240 s of training, 2 seeds | met |" in text
    assert "| count | 0.250 | 0.750 | 0.500 | 0.625 | 0.875 |" in text
    assert "| a coin flip as reward | 0.250 | 0.125 to 0.375 |" in text
    assert "256 image + 32 new tokens, G=8 | ≥ 6× | 7.00× | met |" in text
    assert "1/7.0 (100 MB against 700 MB) | met |" in text
    assert "7.0× in 1 of 28 cells |  |" in text, "the other cells may be lower"
    assert "two handwritten digits from a JSONL file: held-out accuracy, greedy | +.25, at most 300 s | not measured yet |  |" in text
    assert "G=4, 1024 + 32 | ≤ 1.5× | not measured yet |" in text
    assert "commit 0123456789, 2 cores" in text
    cells = [{**cell, "ratio": 5.99}, {**cell, "new_tokens": 512, "ratio": 0.9}]
    (tmp_path / generate.SPEED).write_text(json.dumps(speed | {"cells": cells, "physics_ratio": 1.81}))
    (tmp_path / generate.MAIN_JOB).write_text(json.dumps(main_job | {"train_seconds": [200.0, 301.0]}))
    text = generate.figures(tmp_path)
    assert "| 5.99× | **not met** |" in text and "| 0.9× in 2 of 28 cells | **not met** |" in text and "| 1.81× | **not met** |" in text
    assert "200 to 301 s of training, 2 seeds | gain met, time **not met** by 1 of 2 seeds |" in text


def test_without_files_nothing_is_measured(tmp_path):
    rows = [line for line in generate.figures(tmp_path).splitlines() if line.startswith("|")][2:]
    assert rows
    assert all(line.endswith("| not measured yet |  |") for line in rows)


def test_what_is_shown_is_read_from_tests(tmp_path):
    (tmp_path / "tests/learns").mkdir(parents=True)
    (tmp_path / "tests/methods").mkdir(parents=True)
    (tmp_path / "tests/learns/test_a.py").write_text(
        'import pytest\nSOME = ("rloo", "cispo")\n\n\n'
        '@pytest.mark.parametrize(("name", "control"), [*((n, False) for n in SOME), ("gspo", True)])\n'
        "def test_a_denoiser_learns(name, control):\n    pass\n"
    )
    (tmp_path / "tests/methods/test_b.py").write_text("from fovea.methods.ppo import PPO\n\n\ndef test_numbers():\n    PPO()\n")
    assert generate.learning_tests(tmp_path) == {"rloo": ["a denoiser"], "cispo": ["a denoiser"]}
    assert generate.worked_numbers(tmp_path) == {"ppo"}
    assert "written, not yet tested" in generate.systems(tmp_path)


def test_every_method_has_its_line():
    published = {s.slug for s in systems.load()}
    assert list(generate.CHANGES) == [m for m in METHODS if m not in published]


def test_a_part_without_its_markers_is_an_error():
    assert generate.fill("a\n<!-- x -->\nold\n<!-- /x -->\nb", {"x": "new"}) == "a\n<!-- x -->\nnew\n<!-- /x -->\nb"
    with pytest.raises(ValueError, match="found 0 parts between <!-- x -->"):
        generate.fill("a", {"x": "new"})


# -- the runner -----------------------------------------------------------------------------------------------------------------


def test_blocks_are_found_with_their_marks_and_lines():
    text = "# T\n\n<!-- run: --n 1 -->\n```bash\nfovea list\n```\n\n```text\nx\n```\n"
    assert blocks_of(text) == [Block("bash", "fovea list\n", 5, "run", "--n 1"), Block("text", "x\n", 9)]


def test_commands_are_joined_and_comments_dropped():
    assert commands("# a\nfovea train \\\n  --steps 1  # b\n\n") == [["fovea", "train", "--steps", "1"]]


@pytest.mark.parametrize("words", [["rm", "-r", "x"], ["make", "nothing"], ["pip", "install", "fovea-rl[nope]"]])
def test_commands_that_do_not_exist_fail(words):
    with pytest.raises(AssertionError):
        run_command(words, demo=None)


def test_a_command_that_fails_is_a_failure(workplace):
    with pytest.raises(AssertionError, match="status 2"):
        run_command(["fovea", "nonsense"], demo=None)
