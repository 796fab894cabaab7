"""The run page: one HTML file that opens without a network, with the run's numbers, curves, and what the policy saw and said.

Everything that came from data (prompts, answers, names, tokens) passes through `esc`. A content policy in the page forbids any request.
The file stays near `BUDGET` bytes: steps are added in order of importance until it is spent.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fovea.report.charts import Chart, Series, chart, value_text
from fovea.report.console import clock
from fovea.report.metrics import explain, family, interval

if TYPE_CHECKING:
    from fovea.report.run import RunFolder

BUDGET = 4_500_000
IMAGE_SIDE = 384
STEPS_SHOWN = 40
HUES = 8
PHASES = ("generate", "score", "prepare", "update")
COORDINATES = {"box_iou": 4, "point_in_box": 2}
ASSETS = Path(__file__).parent / "assets"

Row = Mapping[str, float]


def render(run: RunFolder) -> str:
    """The page of a run folder, complete."""
    rows = run.read_metrics()
    config, env = _read_json(run.path / "config.json"), _read_json(run.path / "env.json")
    command = _read_text(run.path / "command.txt").strip().splitlines()
    images = Images(run.rollouts_path / "images")
    charts = _charts(rows, config)
    journey = _journey(run, images)
    room = BUDGET - images.size - sum(len(c.markup) + len(json.dumps(c.data)) for c in charts.values())
    samples = _samples(run, images, room)
    body = [
        _header(run, rows, config, env, command),
        _curves(charts),
        journey,
        samples,
        _details(config, env, command, rows),
    ]
    data = json.dumps({k: c.data for k, c in charts.items()}, separators=(",", ":")).replace("<", "\\u003c")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
            "script-src 'unsafe-inline'\">",
            f"<title>{esc(_name(run, config))} · Fovea run</title><style>{_read_text(ASSETS / 'page.css')}</style></head><body>",
            f'<svg class="store" aria-hidden="true">{images.markup}</svg>',
            *body,
            f'<script type="application/json" id="data">{data}</script><script>{_read_text(ASSETS / "page.js")}</script></body></html>',
        ]
    )


def esc(x: Any) -> str:
    return html.escape(str(x), quote=True)


class Images:
    """Pictures of the page: each is embedded once as an SVG symbol in its own pixel units and drawn wherever it is needed."""

    def __init__(self, folder: Path):
        self.folder, self.symbols = folder, {}
        self.size = 0

    @property
    def markup(self) -> str:
        return "".join(self.symbols.values())

    def figure(self, image: Mapping[str, Any], overlay: str = "", label: str = "") -> str:
        """An inline SVG of the picture with shapes over it, coordinates in the picture's pixels."""
        width, height, name = int(image["width"]), int(image["height"]), str(image["file"])
        if name not in self.symbols and not self._embed(name, width, height):
            return f'<div class="missing">picture {esc(name)} is missing</div>'
        wide = " wide" if width > 2 * height else ""
        return (
            f'<svg class="picture{wide}" viewBox="0 0 {width} {height}" role="img" aria-label="{esc(label or "input picture")}">'
            f'<use href="#im-{esc(Path(name).stem)}" width="{width}" height="{height}"/>{overlay}</svg>'
        )

    def _embed(self, name: str, width: int, height: int) -> bool:
        from PIL import Image

        try:
            with Image.open(self.folder / Path(name).name) as picture:
                picture.load()
                small = picture.convert("RGB")
        except OSError:
            return False
        small.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
        tiny = max(small.size) <= 160
        buffer = io.BytesIO()
        small.save(buffer, "PNG", optimize=True) if tiny else small.save(buffer, "JPEG", quality=82)
        uri = f"data:image/{'png' if tiny else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
        crisp = ' class="crisp"' if tiny else ""
        self.symbols[name] = (
            f'<symbol id="im-{esc(Path(name).stem)}" viewBox="0 0 {width} {height}"><image{crisp} href="{uri}" width="{width}" '
            f'height="{height}" preserveAspectRatio="none"/></symbol>'
        )
        self.size += len(self.symbols[name])
        return True


# -- head ---------------------------------------------------------------------------------------------------------------------

MARK = (
    '<svg class="mark" viewBox="0 0 32 32" aria-hidden="true"><path d="M2 16C7 8 11.5 5 16 5s9 3 14 11c-5 8-9.5 11-14 11S7 24 2 16Z"/>'
    '<circle cx="16" cy="16" r="6.5"/><circle class="dot" cx="16" cy="16" r="2.2"/></svg>'
)


def _header(run: RunFolder, rows: Sequence[Row], config: Mapping[str, Any], env: Mapping[str, Any], command: Sequence[str]) -> str:
    method = config.get("method")
    method_name = method.get("type", "") if isinstance(method, Mapping) else str(method or "")
    facts = [
        method_name,
        _last_name(config.get("model")),
        _last_name(config.get("data")),
        f"seed {config['seed']}" if "seed" in config else "",
    ]
    facts += [
        env.get("started", "")[:16],
        env.get("processor") or env.get("machine"),
        f"commit {env['commit'][:10]}" if env.get("commit") else "",
    ]
    line = "".join(f"<span>{esc(f)}</span>" for f in facts if f)
    copy = (
        f'<div class="command"><code>{esc(command[0])}</code><button data-copy="{esc(command[0])}">copy</button></div>' if command else ""
    )
    return (
        f'<header><div class="brand">{MARK}<span>Fovea</span><em>run report</em></div><h1>{esc(_name(run, config))}</h1>'
        f'<p class="facts">{line}</p>{copy}{_key_numbers(rows, config)}</header>'
    )


def _key_numbers(rows: Sequence[Row], config: Mapping[str, Any]) -> str:
    """The few numbers a reader looks for first."""
    cards = []
    held = [(r, *_band(r, config)) for r in rows if _known(r, "eval/accuracy")]
    if held:
        (first, *_), (last, low, high) = held[0], held[-1]
        a, b = first["eval/accuracy"], last["eval/accuracy"]
        change = f'<span class="was">{a * 100:.1f}</span><span class="to">→</span>' if len(held) > 1 else ""
        within = f"95 % interval {low * 100:.1f} to {high * 100:.1f}" if math.isfinite(low) else "percent of held-out tasks"
        cards.append(
            f'<div class="number lead"><h2>Held-out accuracy</h2><p>{change}{b * 100:.1f}<small>%</small></p><i>{within}</i></div>'
        )
    rewards = [r["reward/mean"] for r in rows if _known(r, "reward/mean")]
    if rewards:
        k = max(1, len(rewards) // 10)
        start, end = sum(rewards[:k]) / k, sum(rewards[-k:]) / k
        note = f"mean of the first and last {k} steps" if k > 1 else "first and last step"
        cards.append(_number("Training reward", f'<span class="was">{start:.2f}</span><span class="to">→</span>{end:.2f}', note))
    steps = max((int(r["step"]) for r in rows), default=0)
    total = config.get("steps", steps)
    cards.append(_number("Steps", f"{steps:,}", f"of {total:,}" if isinstance(total, int) else ""))
    if rows and _known(rows[-1], "time/wall_s"):
        train = sum(r["time/step_s"] for r in rows if _known(r, "time/step_s"))
        cards.append(_number("Time", clock(rows[-1]["time/wall_s"]), f"{clock(train)} of it in training steps" if train else ""))
    made = sum(r["length/episodes"] for r in rows if _known(r, "length/episodes"))
    tokens = sum(r["length/tokens"] for r in rows if _known(r, "length/tokens"))
    speeds = sorted(r["speed/tokens_per_s"] for r in rows if _known(r, "speed/tokens_per_s"))
    speed = f"{speeds[len(speeds) // 2]:,.0f} tokens/s while generating" if speeds else ""
    if made:
        cards.append(_number("Answers", _big(made), f"{_big(tokens)} tokens"))
    if speed:
        cards.append(_number("Speed", f"{speeds[len(speeds) // 2]:,.0f}<small>tok/s</small>", "median while generating"))
    return f'<div class="numbers">{"".join(cards)}</div>'


def _number(title: str, value: str, note: str = "") -> str:
    """One card; `value` is markup."""
    return f'<div class="number"><h2>{esc(title)}</h2><p>{value}</p><i>{esc(note)}</i></div>'


def _big(n: float) -> str:
    return f"{n / 1e6:.1f} M" if n >= 1e6 else f"{n / 1e3:.1f} k" if n >= 1e4 else f"{n:,.0f}"


def _band(row: Row, config: Mapping[str, Any]) -> tuple[float, float]:
    """The interval of a held-out accuracy: as logged, or from the number of held-out tasks."""
    if _known(row, "eval/accuracy_low"):
        return row["eval/accuracy_low"], row["eval/accuracy_high"]
    n = row.get("eval/n", config.get("eval_tasks", 0))
    return interval(row["eval/accuracy"] * n, int(n)) if isinstance(n, int | float) and n > 0 else (math.nan, math.nan)


def _known(row: Row, name: str) -> bool:
    return math.isfinite(row.get(name, math.nan))


# -- curves -------------------------------------------------------------------------------------------------------------------


def _charts(rows: Sequence[Row], config: Mapping[str, Any]) -> dict[str, Chart]:
    trained = [r for r in rows if any(k.startswith(("reward/", "loss/", "time/update_s")) for k in r)]
    held = [r for r in rows if _known(r, "eval/accuracy")]
    bands = [_band(r, config) for r in held]
    x_train, x_held = [r["step"] for r in trained], [r["step"] for r in held]

    def curve(name: str, label: str, colour: str, style: str = "line") -> Series:
        return Series(label, colour, x_train, [r.get(name, math.nan) for r in trained], style)

    out: dict[str, Chart | None] = {}
    out["accuracy"] = chart(
        "accuracy",
        "Accuracy",
        [
            curve("accuracy/mean", "training samples", "c0"),
            Series("held out", "good", x_held, [r["eval/accuracy"] for r in held], "dots", [b[0] for b in bands], [b[1] for b in bands]),
        ],
        "Training samples are drawn at the training temperature; held-out tasks are never trained on. The band is a 95 % Wilson interval.",
        (0.0, None),
        percent=True,
        size="big",
    )
    parts = sorted({k for r in trained for k in family(r, "reward")})
    out["reward"] = chart(
        "reward",
        "Reward",
        [
            *(curve(f"reward/{p}", p, f"c{(i + 1) % HUES}") for i, p in enumerate(parts[: HUES - 1]) if len(parts) > 1),
            curve("reward/mean", "total", "ink"),
        ],
        explain("reward/mean") + (" " + explain("reward/<part>") if len(parts) > 1 else ""),
        size="big",
    )
    for key, title, lines, low in (
        ("length", "Answer length, tokens", (("length/mean_tokens", "mean", "c0"), ("length/max_tokens", "longest", "c3")), 0.0),
        ("entropy", "Entropy, nats", (("policy/entropy", "entropy", "c2"),), 0.0),
        ("kl", "KL, nats per token", (("policy/kl", "to the sampling policy", "c4"), ("policy/kl_ref", "to the reference", "c5")), None),
        ("grad", "Gradient norm", (("optim/grad_norm", "before clipping", "c1"),), 0.0),
        ("nll", "Negative log-likelihood, nats", (("policy/nll", "of given answers", "c0"),), None),
        ("preference", "Chosen over rejected", (("policy/preference_accuracy", "of pairs", "c0"),), 0.0),
        ("speed", "Tokens per second", (("speed/tokens_per_s", "while generating", "c5"),), 0.0),
        ("clip", "Clipped", (("policy/clip_frac", "units clipped", "c4"), ("length/cut_frac", "answers cut", "c1")), 0.0),
        (
            "groups",
            "Groups",
            (
                ("group/degenerate_frac", "no gradient", "muted"),
                ("group/solved_frac", "all correct", "good"),
                ("group/failed_frac", "none correct", "bad"),
            ),
            0.0,
        ),
    ):
        shares = key in ("clip", "groups", "preference")
        notes = " ".join(f"{label}: {explain(name)}" if len(lines) > 1 else explain(name) for name, label, _ in lines)
        out[key] = chart(key, title, [curve(*line) for line in lines], notes, (low, None), percent=shares)
    spent = [curve(f"time/{p}_s", p, f"c{i}", "area") for i, p in enumerate(PHASES) if any(_known(r, f"time/{p}_s") for r in trained)]
    out["time"] = chart("time", "Seconds per step", spent, "Where the time of a step goes.", (0.0, None))
    sources = sorted({k for r in trained for k in family(r, "accuracy")} | {k for r in held for k in family(r, "eval/accuracy")})
    for i, source in enumerate(sources[:40] if len(sources) > 1 else []):
        held_source = Series("held out", "good", x_held, [r.get(f"eval/accuracy/{source}", math.nan) for r in held], "dots")
        out[f"source-{i}"] = chart(
            f"source-{i}", source, [curve(f"accuracy/{source}", "training", "c0"), held_source], "", (0.0, 1.0), percent=True, size="small"
        )
    return {k: c for k, c in out.items() if c is not None}


def _curves(charts: Mapping[str, Chart]) -> str:
    def block(keys: Sequence[str], kind: str) -> str:
        found = "".join(charts[k].markup for k in keys if k in charts)
        return f'<div class="grid {kind}">{found}</div>' if found else ""

    sources = [k for k in charts if k.startswith("source-")]
    rest = [k for k in charts if k not in ("accuracy", "reward") and k not in sources]
    by_source = f"<h2>By source</h2>{block(sources, 'small')}" if sources else ""
    health = f"<h2>Health of the run</h2>{block(rest, 'mid')}" if rest else ""
    if not charts:
        return '<section><p class="empty">No step was logged yet.</p></section>'
    return f"<section><h2>Learning</h2>{block(('accuracy', 'reward'), 'big')}{by_source}{health}</section>"


# -- the same question, before and after ----------------------------------------------------------------------------------------


def _journey(run: RunFolder, images: Images) -> str:
    """Held-out tasks that were logged at several evaluations: how the answer to one question changed."""
    files = [f for f in run.rollout_files() if not f.name.startswith("step")]
    if len(files) < 2:
        return ""
    history: dict[str, list[dict[str, Any]]] = {}
    for record in run.read_groups(files):
        history.setdefault(record["task"], []).append(record)
    cards = [_before_after(records, images) for records in history.values() if len(records) > 1 and all(r["episodes"] for r in records)]
    if not cards:
        return ""
    return (
        '<section><h2>The same question, before and after</h2><p class="lede">Held-out tasks, chosen once before training and never '
        f'trained on. Each dot is one evaluation.</p><div class="grid journey">{"".join(cards)}</div></section>'
    )


def _before_after(records: Sequence[dict[str, Any]], images: Images) -> str:
    first, last = records[0], records[-1]
    dots = "".join(f'<i class="{_verdict(r["episodes"][0])}" title="step {r["step"]}"></i>' for r in records)
    overlays = _overlays(last, [first["episodes"][0], last["episodes"][0]], ("was", "now"))
    pictures = "".join(images.figure(i, overlays.get(k, "")) for k, i in enumerate(last["images"][:3]))
    rows = "".join(
        f'<div class="said {_verdict(r["episodes"][0])}"><b>step {r["step"]}</b><p>{_answer_markup(r["episodes"][0]["text"])}</p></div>'
        for r in (first, last)
    )
    return (
        f'<article class="card"><div class="pictures">{pictures}</div><div class="body"><p class="tag">{esc(last["source"])}</p>'
        f'<p class="question">{_prompt_markup(last["prompt"])}</p>{_gold(last)}{rows}<p class="dots">{dots}</p></div></article>'
    )


def _answer_markup(text: str, limit: int = 320) -> str:
    """An answer as text; the part between answer tags stands out."""
    shown = text if len(text) <= limit else "… " + text[-limit:]
    start, end = shown.rfind("<answer>"), shown.rfind("</answer>")
    if 0 <= start < end:
        head, inner, tail = shown[:start].strip(), shown[start + 8 : end], shown[end + 9 :].strip()
        return f"{esc(head)} <mark>{esc(inner)}</mark> {esc(tail)}".strip()
    return esc(shown) or "<em>(nothing)</em>"


# -- sampled groups -------------------------------------------------------------------------------------------------------------


def _samples(run: RunFolder, images: Images, room: int) -> str:
    """A pane for each logged step, as many as fit into `room` bytes; the newest is shown first."""
    files = [f for f in run.rollout_files() if f.name.startswith("step")] or run.rollout_files()
    panes: dict[int, str] = {}
    for file in [files[i] for i in by_importance(len(files))][:STEPS_SHOWN]:
        before = images.size
        records = list(run.read_groups([file]))
        if not records:
            continue
        pane = "".join(_group(r, images) for r in records)
        room -= len(pane.encode()) + images.size - before
        if room < 0 and panes:
            break
        panes[int(records[0]["step"])] = pane
    if not panes:
        return ""
    steps = sorted(panes)
    kept = "".join(f'<div class="pane{" on" if s == steps[-1] else ""}" data-step="{s}">{panes[s]}</div>' for s in steps)
    return (
        '<section id="samples" data-tint="p"><h2>What it saw and said</h2><div class="bar"><div class="steps">'
        '<button data-go="-1" aria-label="earlier">←</button>'
        f'<input type="range" min="0" max="{len(steps) - 1}" value="{len(steps) - 1}" aria-label="step" data-steps="{json.dumps(steps)}">'
        f'<button data-go="1" aria-label="later">→</button><output>step {steps[-1]}</output></div>'
        '<div class="tints" role="group" aria-label="colour of tokens"><button data-tint="p" class="on">probability</button>'
        '<button data-tint="a">advantage</button><button data-tint="n">plain</button></div>'
        f'<p class="scale p">less likely {_swatches("p", range(1, 10, 2))} certain</p>'
        f'<p class="scale a">discouraged {_swatches("a", range(0, 9, 2))} encouraged</p>'
        f"</div>{kept}</section>"
    )


def _swatches(kind: str, levels: Iterable[int]) -> str:
    return "".join(f'<i class="{kind}{n}"></i>' for n in levels)


def by_importance(n: int) -> list[int]:
    """Indices 0..n-1: the last, the first, then ever finer halves."""
    order, spans = [*dict.fromkeys([n - 1, 0])] if n else [], [(0, n - 1)]
    for a, b in spans:
        if b - a > 1:
            middle = (a + b) // 2
            order.append(middle)
            spans += [(a, middle), (middle, b)]
    return order


def _group(record: Mapping[str, Any], images: Images) -> str:
    episodes = record["episodes"]
    overlays = _overlays(record, episodes)
    pictures = "".join(images.figure(i, overlays.get(k, "")) for k, i in enumerate(record["images"]))
    scores = [e["score"] for e in episodes if e["role"] == "sample" and e["score"] is not None]
    right = sum(e["correct"] is True for e in episodes)
    judged = sum(e["correct"] is not None for e in episodes)
    tally = f"{right} of {judged} correct" if judged else f"mean {sum(scores) / len(scores):.2f}" if scores else "unscored"
    flat = (
        '<span class="flat" title="All scores are equal: no gradient.">no gradient</span>'
        if len(scores) > 1 and len(set(scores)) == 1
        else ""
    )
    cards = "".join(_episode(e, k, images) for k, e in enumerate(episodes))
    return (
        f'<article class="group"><aside><div class="pictures">{pictures}</div><p class="tag">{esc(record["source"])}'
        f'<span>{tally}</span>{flat}</p><p class="question">{_prompt_markup(record["prompt"])}</p>{_gold(record)}'
        f'<p class="id">{esc(record["task"])}</p></aside><div class="answers">{cards}</div></article>'
    )


def _episode(e: Mapping[str, Any], index: int, images: Images) -> str:
    verdict = _verdict(e)
    score = f"{e['score']:.2f}" if e["score"] is not None else "unscored"
    role = f'<span class="role">{esc(e["role"])}</span>' if e["role"] != "sample" else ""
    odd = " odd" if e["stop"] in ("length", "error", "cut") else ""
    parts = "".join(
        f'<li><span>{esc(k)}</span><i><b style="width:{min(1.0, max(0.0, v)) * 100:.0f}%"></b></i><em>{v:.2f}</em></li>'
        for k, v in e["parts"].items()
        if v is not None
    )
    why = f'<p class="reason">{esc(e["error"] or e["reason"])}</p>' if e["error"] or (e["score"] is None and e["reason"]) else ""
    seen = "".join(images.figure(i) for t in e["turns"] for i in t["images"])
    return (
        f'<div class="answer {verdict}" data-episode="{index}"><div class="top"><b class="score">{score}</b>{role}'
        f'<span class="stop{odd}">{esc(e["stop"])}</span><span class="count">{e["length"]}</span></div>'
        f'<div class="text">{_tokens(e)}</div>{f"<div class=seen>{seen}</div>" if seen else ""}{why}'
        f"{f'<ul class=parts>{parts}</ul>' if parts else ''}</div>"
    )


def _tokens(e: Mapping[str, Any]) -> str:
    """Tokens with classes: p0 (unlikely) to p9 (certain), a0 (discouraged) to a8 (encouraged), m where the policy did not choose."""
    segments = [s for s in e["segments"] if s.get("tokens")]
    if not segments:
        return esc(e["text"]) or "<em>(nothing)</em>"
    reach = max((abs(a) for s in segments for a in s.get("adv", []) if a is not None), default=0.0)
    out = []
    for s in segments:
        adv = s.get("adv") or [None] * len(s["tokens"])
        for token, mask, logp, a in zip(s["tokens"], s["mask"], s["logp"], adv, strict=False):
            out.append(_token(token, bool(mask), logp, a, reach))
        if s["units"] > len(s["tokens"]):
            out.append(f'<em class="rest"> … {s["units"] - len(s["tokens"])} more</em>')
    return "".join(out)


def _token(token: str, mask: bool, logp: float | None, adv: float | None, reach: float) -> str:
    shown = esc(token).replace("\n", "↵\n")
    if not mask:
        return f'<i class="m">{shown}</i>'
    p = math.exp(min(0.0, logp)) if logp is not None else None
    classes, tip = [], []
    if p is not None:
        classes.append(f"p{min(9, int(p * 10))}")
        tip.append(f"p {p:.3g}")
    if adv is not None:
        classes.append(f"a{round(adv / reach * 4) + 4 if reach else 4}")
        tip.append(f"adv {adv:+.3g}")
    return f'<i class="{" ".join(classes)}" title="{", ".join(tip)}">{shown}</i>'


def _verdict(e: Mapping[str, Any]) -> str:
    return {True: "right", False: "wrong", None: "graded" if e["score"] is not None else "unscored"}[e["correct"]]


def _prompt_markup(prompt: Sequence[Mapping[str, Any]]) -> str:
    """The user's words; earlier roles are named. Placeholders of pictures are left out, the pictures stand beside."""
    spoken = [(m["role"], " ".join(p["text"] for p in m["content"] if p["type"] == "text").strip()) for m in prompt]
    spoken = [(role, text) for role, text in spoken if text]
    named = len(spoken) > 1
    return "<br>".join((f"<b>{esc(role)}</b> " if named else "") + esc(text) for role, text in spoken)


def _gold(record: Mapping[str, Any]) -> str:
    answer = record["answer"]
    if answer is None:
        return ""
    shown = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    return f'<p class="gold"><span>expected</span> {esc(shown[:300])}</p>'


def _overlays(record: Mapping[str, Any], episodes: Sequence[Mapping[str, Any]], classes: Sequence[str] = ()) -> dict[int, str]:
    """True and predicted boxes or points over the picture they are about, by its index, where the verifier looks at places.

    Gold places are in pixels; a prediction is too, unless the row's `scale` names what the policy calls a full side.
    """
    count, params = COORDINATES.get(record["verifier"]), record.get("params") or {}
    index = params.get("image", 0)
    if count is None or index not in range(len(record["images"])):
        return {}
    from fovea.verifiers.parse import extract_answer, parse_numbers

    sides, scale = record["images"][index], params.get("scale")
    unit = (sides["width"] / scale, sides["height"] / scale) if scale else (1.0, 1.0)
    shapes = [_shape(place, kind) for place in _places(record["answer"]) for kind in ("under", "true")]
    for k, e in enumerate(episodes):
        numbers = parse_numbers(extract_answer(e["text"]), count)
        if numbers is not None:
            kind = f"said {_verdict(e)} {classes[k] if k < len(classes) else ''}".strip()
            shapes.append(_shape([min(1e6, max(-1e6, v * unit[i % 2])) for i, v in enumerate(numbers)], kind, k))
    return {index: "".join(shapes)}


def _places(answer: Any) -> list[Sequence[float]]:
    """One box or point, or a list of them."""
    if not isinstance(answer, list) or not answer:
        return []
    candidates = answer if all(isinstance(v, list) for v in answer) else [answer]
    return [c for c in candidates if len(c) in (2, 4) and all(isinstance(v, int | float) for v in c)]


def _shape(numbers: Sequence[float], kind: str, index: int | None = None) -> str:
    marker = "" if index is None else f' data-episode="{index}"'
    if len(numbers) == 2:
        return f'<path class="place point {kind}"{marker} d="M{numbers[0]:g} {numbers[1]:g}h0"/>'
    x, y, x2, y2 = numbers
    return f'<path class="place {kind}"{marker} d="M{x:g} {y:g}H{x2:g}V{y2:g}H{x:g}Z"/>'


# -- the rest -------------------------------------------------------------------------------------------------------------------


def _details(config: Mapping[str, Any], env: Mapping[str, Any], command: Sequence[str], rows: Sequence[Row]) -> str:
    names = sorted({k for r in rows for k in r if k != "step"})
    last = {k: v for r in rows for k, v in r.items()}
    glossary = "".join(f"<tr><td><code>{esc(n)}</code><td>{value_text(last[n])}<td>{esc(explain(n))}" for n in names)
    blocks = [
        ("Recipe", _table(_flat(config))),
        ("Surroundings", _table(_flat(env))),
        ("Every metric, its last value and what it means", f"<table><tbody>{glossary}</tbody></table>" if names else ""),
        ("Commands", "".join(f"<pre>{esc(c)}</pre>" for c in command)),
    ]
    return (
        "<section class=details><h2>Details</h2>"
        + "".join(f"<details><summary>{esc(t)}</summary><div>{b}</div></details>" for t, b in blocks if b)
        + "</section>"
    )


def _flat(x: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for k, v in x.items():
        if isinstance(v, Mapping) and v:
            yield from _flat(v, f"{prefix}{k}.")
        else:
            yield f"{prefix}{k}", v


def _table(pairs: Iterator[tuple[str, Any]]) -> str:
    cells = "".join(f"<tr><td><code>{esc(k)}</code><td>{esc('' if v is None else v)}" for k, v in pairs)
    return f"<table><tbody>{cells}</tbody></table>" if cells else ""


def _last_name(place: Any) -> str:
    """A name as it is; of a path its last part, so that a page can be shown around."""
    return Path(place).name if isinstance(place, str) else str(place or "")


def _name(run: RunFolder, config: Mapping[str, Any]) -> str:
    return str(config.get("name") or run.path.resolve().name)


def _read_text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(_read_text(file) or "{}")
