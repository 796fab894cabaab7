import io
import re

import pytest
from rich.console import Console as Screen

from fovea.report.console import ASCII, Console, arithmetic, clock, fit, number, sparkline, summary

METRICS = {
    "reward/mean": 0.5,
    "reward/answer": 0.4,
    "reward/form of the answer, a very long name": 1.0,
    "accuracy/mean": 0.4,
    "accuracy/count": 0.25,
    "accuracy/数え": 1.75,
    "accuracy/broken": float("nan"),
    "eval/accuracy": 0.3,
    "eval/accuracy/count": 0.2,
    "policy/entropy": 0.1,
    "policy/kl": 3e-7,
    "policy/clip_frac": 0.0,
    "length/mean_tokens": 12.5,
    "speed/tokens_per_s": 812.0,
    "optim/grad_norm": float("inf"),
}


class Terminal(io.StringIO):
    """Says that it is a terminal; `encoding` as given."""

    def __init__(self, encoding="utf-8"):
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self):
        return self._encoding

    def isatty(self):
        return True


class AsciiFile(io.TextIOWrapper):
    def __init__(self):
        super().__init__(io.BytesIO(), encoding="ascii")

    def getvalue(self):
        self.flush()
        return self.buffer.getvalue().decode("ascii")


def run(console, steps=6):
    with console:
        for step in range(1, steps + 1):
            console.phase("generate", 1, 4)
            console.step(step, METRICS)
        console.note("checkpoint saved")


def test_a_pipe_gets_plain_lines():
    out = io.StringIO()
    run(Console("tiny run", 6, stream=out, every=2), 6)
    lines = out.getvalue().splitlines()
    assert lines[0] == "tiny run" and lines[-1] == "checkpoint saved"
    assert "\x1b" not in out.getvalue() and "\r" not in out.getvalue()
    assert lines[1].startswith("step 1/6  reward 0.500  acc 0.400  held-out 0.300  len 12.5  ent 0.100  kl 3.0e-07  clip 0.000  grad inf")


def test_lines_come_every_k_steps_and_with_evaluations():
    out = io.StringIO()
    plain = {"reward/mean": 0.5}
    with Console("r", 100, stream=out, every=25) as console:
        for step in range(1, 101):
            console.step(step, plain | ({"eval/accuracy": 0.1} if step == 60 else {}))
    assert [int(n) for n in re.findall(r"step +(\d+)/100", out.getvalue())] == [1, 25, 50, 60, 75, 100]


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    run(Console("r", 6, stream=out))
    assert "\x1b" not in out.getvalue()


def test_quiet_is_silent():
    out = Terminal()
    run(Console("r", 6, stream=out, quiet=True))
    assert out.getvalue() == ""


def test_a_stream_without_unicode(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for live in (False, True):
        out = AsciiFile()
        console = Console("größer × 数", 6, stream=out, live=live, width=80)
        run(console)
        console.note("naïve – 数")
        assert "#" in out.getvalue() or not live
        assert "na?ve" in out.getvalue()


@pytest.mark.parametrize("width", [10, 20, 40, 59, 60, 80, 100, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_panel_fits_any_width(monkeypatch, width, encoding):
    monkeypatch.setenv("TERM", "xterm")
    console = Console("r", 1000, stream=Terminal(encoding), width=width)
    run(console, 30)
    screen = Screen(width=width, file=io.StringIO())
    lines = screen.render_lines(console._panel(), pad=False)
    assert len(lines) > 10
    assert all(sum(s.cell_length for s in line) <= width for line in lines)
    if encoding == "ascii":
        "".join(s.text for line in lines for s in line).encode("ascii")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_terminal_is_given_back(monkeypatch, error):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    console = Console("r", 6, stream=out, width=80)
    with pytest.raises(error), console:
        console.step(1, METRICS)
        assert "\x1b[?25l" in out.getvalue() and "\x1b[?25h" not in out.getvalue()
        raise error
    assert out.getvalue().count("\x1b[?25h") == out.getvalue().count("\x1b[?25l") == 1
    console.finish("twice is harmless")


def test_a_closed_stream_does_not_hide_the_error(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with pytest.raises(RuntimeError, match="the real one"), Console("r", 6, stream=out, width=80):
        out.close()
        raise RuntimeError("the real one")


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(5, "Input/output error")])
def test_a_reader_that_goes_away_ends_the_talking_only(monkeypatch, terminal, error):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal() if terminal else io.StringIO()
    with Console("r", 60, stream=out, width=80) as console:
        console.step(1, {"reward/mean": 0.5})

        def gone(*_):
            raise error

        monkeypatch.setattr(out, "write", gone)
        for step in range(2, 60):
            console.phase("generate", 1, 2)
            console.step(step, {"reward/mean": 0.5})
            console.note("still here")
    assert console.quiet


def test_markup_in_names_is_text(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with Console("[bold]r[/nope]", 3, stream=out, width=80) as console:
        console.step(1, {"reward/mean": 0.5, "accuracy/[red]x[/]": 0.5})
        console.note("[link=x]note[/link")
    assert "[bold]r[/nope]" in out.getvalue() and "[red]x[/]" in out.getvalue() and "[link=x]note[/link" in out.getvalue()


def test_time_left_follows_the_pace(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    console = Console("r", 10, stream=io.StringIO())
    console.start()
    assert console.left_s() is None
    for step, at in ((3, 110.0), (4, 112.0), (5, 114.0)):
        now[0] = at
        console.step(step, {})
    # resumed at step 2: two steps in four seconds, five to go
    assert console.left_s() == pytest.approx(10.0)


def test_batch_arithmetic_by_hand():
    assert arithmetic(tasks=16, group_size=8, micro_batch=64, updates=2, steps=60, max_new_tokens=48) == [
        "each step: 16 tasks × 8 answers = 128 episodes, at most 6,144 new tokens",
        "           2 optimizer steps, at most 64 rows in one pass",
        "the run:   60 steps, 7,680 episodes, 120 optimizer steps",
    ]


def test_a_recipe_is_summed_up():
    from fovea.recipe import Recipe

    head, *rest = summary(Recipe(name="main", tasks_per_step=4, group_size=2, micro_batch=64, steps=3))
    assert head == "main: GRPO on tiny, seed 0" and rest[0].startswith("each step: 4 tasks × 2 answers = 8 episodes")
    assert rest[1].endswith("1 optimizer step, at most 8 rows in one pass")
    assert summary({"a": 1, "b": "c"}) == ["a 1  b c"] and summary("text") == ["text"]


def test_sparkline():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, 1, 9, 9], 2) == "▁█"
    assert sparkline([3.0, 3.0], 5) == "▄▄" and sparkline([], 5) == "" and sparkline([1], 0) == ""
    assert len(sparkline(range(1000), 7, ASCII["spark"])) == 7


def test_short_texts():
    assert [number(x, 3) for x in (0.12345, 1e-9, 12345.6, 1e-6, 2.5e7, float("nan"), float("-inf"))] == [
        "0.123", "0.000", "12,345.600", "1.0e-06", "2.5e+07", "n/a", "-inf",
    ]  # fmt: skip
    assert [clock(s) for s in (0, 59.4, 60, 192, 7500, 90000)] == ["0s", "59s", "1m00s", "3m12s", "2h05m", "1d01h"]
    assert fit("abc", 5) == "abc  " and fit("abcdefgh", 5) == "abc.." and fit("a\nb", 4) == "a b "
