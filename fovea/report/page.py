"""The run page: curves, what the policy saw and said, the same questions over training, the machine, the settings.

One page in two forms. `render` makes it self-contained: a sample of what was logged, within `BUDGET` bytes, in a file that opens without a
network. `shell` makes its other form, which `fovea view` serves: the same page asks for everything else when it is needed. What came from
data travels as JSON and is put into the page as text, never as markup; the content policy allows no other script than the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fovea.images import data_uri
from fovea.report.compare import compare
from fovea.report.metrics import GLOSSARY
from fovea.report.records import Reader, columns

BUDGET = 4_500_000
IMAGE_SIDE = 384
POINTS = 600
ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("dom.js", "store.js", "curves.js", "rollouts.js", "heldout.js", "page.js")


def render(readers: Sequence[Reader], budget: int = BUDGET) -> str:
    """The page of one or several runs, complete in itself.

    Args:
      budget: bytes that the page should not much exceed; groups are added in order of importance until it is spent.
    """
    runs = [_described(r, POINTS) for r in readers]
    records: dict[str, Any] = {}
    images: dict[str, str] = {}
    fixed = len(dumped(runs)) + len(_style()) + sum(len(s) for s in _scripts())
    room = (budget - fixed) // max(1, len(readers))
    for number, (reader, run) in enumerate(zip(readers, runs)):
        reader.refresh()
        picked = _sample(reader, number, room, records, images)
        logged = [e for entries in reader.index().values() for e in entries]
        run["logged"] = {"groups": len(logged), "episodes": sum(len(e[4]) for e in logged)}
        run["index"] = {file: [e for e in entries if (file, e[0]) in picked] for file, entries in reader.index().items()}
        run["problems"] = reader.problems
    return _page({"served": False, "runs": runs, **_shared(readers), "records": records, "images": images}, "data:")


def shell(readers: Sequence[Reader]) -> str:
    """The page as `fovea view` serves it: numbers inside, everything else on request."""
    return _page({"served": True, "runs": [_described(r) for r in readers], **_shared(readers)}, "'self'")


def policy(images: str) -> str:
    """The content policy: the page's own script and style, nothing from elsewhere."""
    rules = {
        "default-src": "'none'",
        "img-src": " ".join(dict.fromkeys((images, "data:"))),
        "media-src": images,
        "script-src": " ".join(map(_hash, _scripts())),
        "style-src": _hash(_style()),
        "base-uri": "'none'",
        "form-action": "'none'",
        **({"connect-src": images} if images != "data:" else {}),
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def by_importance(n: int) -> list[int]:
    """Indices 0..n-1: the last, the first, then ever finer halves."""
    order, spans = [*dict.fromkeys([n - 1, 0])] if n else [], [(0, n - 1)]
    for a, b in spans:
        if b - a > 1:
            middle = (a + b) // 2
            order.append(middle)
            spans += [(a, middle), (middle, b)]
    return order


# -- what goes in -------------------------------------------------------------------------------------------------------------


def _described(reader: Reader, points: int | None = None) -> dict[str, Any]:
    rows = reader.rows()
    return {
        "name": reader.name,
        "folder": reader.path.resolve().name,
        "config": reader.config,
        "env": reader.env,
        "commands": reader.commands,
        "metrics": columns(rows, points) if points else columns(rows),
        "total": len(rows),
        "last_step": rows[-1]["step"] if rows else -1,
        "problems": reader.problems,
    }


def _shared(readers: Sequence[Reader]) -> dict[str, Any]:
    return {"glossary": GLOSSARY, "compare": compare(readers) if len(readers) > 1 else None}


def _sample(reader: Reader, run: int, room: int, records: dict[str, Any], images: dict[str, str]) -> set[tuple[str, int]]:
    """Add records and pictures of a run until `room` bytes are spent; returns which (file, line) are in."""
    picked: set[tuple[str, int]] = set()
    for file, line in _ordered(reader):
        try:
            record = reader.record(file, line)
        except ValueError:
            continue  # named in the reader's problems
        fresh = {name: _embedded(reader, name) for name in _pictures(record) if name not in images}
        fresh |= {name: _filmed(reader, name) for name in _films(record) if name not in images}
        size = len(dumped(record)) + sum(len(uri or "") + 80 for uri in fresh.values())
        if size > room and picked:
            break
        room -= size
        images.update({name: uri for name, uri in fresh.items() if uri})
        records[f"{run}/{file}/{line}"] = record
        picked.add((file, line))
    return picked


def _ordered(reader: Reader) -> Iterator[tuple[str, int]]:
    """Groups of held-out and training files in turn, the most telling files first."""
    lines = {file: [e[0] for e in entries] for file, entries in reader.index().items()}
    kinds = [[f for f in lines if f.startswith("step-")], [f for f in lines if not f.startswith("step-")]]
    orders = [[files[i] for i in by_importance(len(files))] for files in kinds]
    for i in range(max(map(len, orders))):
        for order in orders:
            if i < len(order):
                yield from ((order[i], line) for line in lines[order[i]])


def _pictures(record: Mapping[str, Any]) -> list[str]:
    turns = [t for e in record["episodes"] for t in e.get("turns") or [] if isinstance(t, dict)]
    shown = [*record["images"], *(i for t in turns for i in (*(t.get("images") or []), t.get("drawn")))]
    return list(dict.fromkeys(str(i.get("file")) for i in shown if isinstance(i, dict)))


def _films(record: Mapping[str, Any]) -> list[str]:
    return [str(e["film"].get("file")) for e in record["episodes"] if isinstance(e.get("film"), dict)]


def _filmed(reader: Reader, name: str) -> str | None:
    """A film as a data URI; None where there is none."""
    found = reader.film(name)
    return f"data:video/mp4;base64,{base64.b64encode(found).decode()}" if found else None


def _embedded(reader: Reader, name: str) -> str | None:
    """A picture as a data URI, at most `IMAGE_SIDE` pixels long; None where there is none that can be read."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(reader.picture(name) or b"")) as picture:
            small = picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    small.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    return data_uri(small)


# -- the document -------------------------------------------------------------------------------------------------------------


def _page(data: Mapping[str, Any], images: str) -> str:
    title = ", ".join(run["name"] for run in data["runs"])
    chart_library, own = _scripts()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy(images))}"><meta name="referrer" content="no-referrer">'
        f'<link rel="icon" href="data:image/svg+xml;base64,{base64.b64encode(_asset("icon.svg").encode()).decode()}">'
        f"<title>{html.escape(title)} · Fovea run</title><style>{_style()}</style></head>"
        "<body><noscript>This page is drawn by the script inside it; allow it to run, or read metrics.jsonl and rollouts/ beside it."
        f'</noscript><main id="page"></main><script type="application/json" id="data">{dumped(data)}</script>'
        f"<script>{chart_library}</script><script>{own}</script></body></html>"
    )


def dumped(value: Any) -> str:
    """JSON that every browser reads and that cannot end the script element it stands in: numbers JSON cannot hold are null."""
    try:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        text = json.dumps(_finite(value), separators=(",", ":"), ensure_ascii=False, default=str)
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return text.encode("utf-8", "replace").decode()


def _finite(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {k: _finite(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


@cache
def _style() -> str:
    return _asset("uplot/uPlot.min.css") + _asset("page.css")


@cache
def _scripts() -> tuple[str, str]:
    own = "\n".join(_asset(name) for name in SCRIPTS)
    return _asset("uplot/uPlot.iife.min.js"), f'"use strict";\n(() => {{\n{own}\n}})();\n'


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
