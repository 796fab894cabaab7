"""What the readers are fed: for each family how an input is made from a random generator, and what reads it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import shutil
import string
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

TABLES = ("tasks/load.py", "tasks/tables.py", "tasks/pictures.py")


@dataclass(frozen=True)
class Family:
    """
    Attributes:
      make: (rng, folder) -> input.
      feed: reads it; True where it was accepted, False where it was refused without an error.
      modules: files of the package whose branches are counted.
      clean: error types that may be raised.
      names: a clean message holds one of these (the file's name, for example).
      prepare: fills the folder once; `finish` undoes what reaches beyond it.
    """

    make: Callable[[Random, Path], Any]
    feed: Callable[[Any, Path], bool]
    modules: tuple[str, ...]
    clean: tuple[type[BaseException], ...]
    names: tuple[str, ...] = ("",)
    prepare: Callable[[Path], None] = lambda folder: None
    finish: Callable[[], None] = lambda: None


# -- damage --------------------------------------------------------------------------------------------------------------------

# fmt: off
TOKENS = [b"\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff", b"-1", b"{", b"[", b'"', b"\\u", b"\n", b",", b"9" * 400,
          b"null", b"NaN"]
# fmt: on


def damaged(rng: Random, data: bytes) -> bytes:
    """Bytes with a few of them changed, removed, repeated or put in; sometimes cut short."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8, 30))):
        if not out:
            break
        at = rng.randrange(len(out))
        kind = rng.randrange(7)
        size = min(rng.choice((1, 1, 2, 4, 16, 64)), len(out) - at)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = out[at : at + size] * rng.choice((1, 1, 3))
        elif kind == 4:
            out[at:at] = rng.choice(TOKENS)
        elif kind == 5:
            out[at : at + size] = rng.randbytes(size)
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)


# fmt: off
TEXTS = [
    "", " ", "x", "How many?", "<image>", "<image><image>How many?", "3", "07", "1,234", "-0", "nan", "inf", "1e400", "50%", "[1, 2, 3, 4]",
    "[4,3,2,1]", "A", "(B)", "yes", "<answer>3</answer>", "\\boxed{3}", "<answer></answer>", "<think>", "a.png", "b.jpg", "../a.png",
    "/etc/passwd", "missing.png", "text.png", "http://x/y.png", "data:image/png;base64,AAAA", "data:,", '["a.png", "b.jpg"]', '["a", "b"]',
    "[", "{", '[{"role": "user", "content": "x"}]', '[{"role": 1}]', '{"tolerance": 1}', '{"cat": 2}', "number", "exact", "choice", "math",
    "box_iou", "no-such-verifier", "weighted", "random", "length", "\u2028", "\x00", "é", "\U0001f600", "\ud800", "a" * 300, "٣", "²",
]
# fmt: on
NUMBERS = [0, 1, -1, 3, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), 10**18, 10**400, 2**63, True, False, None]


def value(rng: Random, depth: int = 0) -> Any:
    """A JSON value, mostly small, sometimes odd."""
    kind = rng.randrange(10 if depth < 3 else 6)
    if kind < 4:
        return rng.choice(TEXTS)
    if kind < 6:
        return rng.choice(NUMBERS)
    if kind < 8:
        return [value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 4)))]
    if kind == 8:
        deep: Any = 1
        for _ in range(rng.choice((2, 5, 40, 900))):
            deep = [deep] if rng.random() < 0.8 else {"x": deep}
        return deep
    keys = ("bytes", "path", "image", "role", "content", "type", "text", "url", "ground_truth", "cat", "x", "")
    return {rng.choice(keys): value(rng, depth + 1) for _ in range(rng.randrange(4))}


COLUMNS = {
    "question": ["How many?", "<image>What?", "Which?"],
    "image": ["a.png", "b.jpg", ["a.png"], None],
    "answer": ["3", 3, "red", [1, 2, 3, 4], 0.5, "A"],
    "id": ["one", "two", "three"],
    "options": [["red", "blue"], '["red", "blue"]', None],
    "verifier": ["number", "exact", None],
    "params": [{"tolerance": 1}, '{"tolerance": 1}', None],
    "data_source": ["s", "t"],
    "other": ["x", 3],
}
RENAMED = ("problem", "images", "messages", "prompt", "solution", "reward_model", "img", "file_name", "", "Question", "gt")


def row(rng: Random) -> dict[str, Any]:
    cells = {name: rng.choice(usual) for name, usual in COLUMNS.items() if name in ("question", "answer") or rng.random() < 0.4}
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        name = rng.choice(list(cells))
        if rng.random() < 0.8:
            cells[name] = value(rng)
        elif rng.random() < 0.5:
            cells[rng.choice(RENAMED)] = cells.pop(name)
            cells = cells or {"question": "?"}
        else:
            cells.pop(name)
            cells = cells or {"question": "?"}
    return cells


def table_folder(folder: Path) -> None:
    from PIL import Image

    Image.new("RGB", (6, 4), "red").save(folder / "a.png")
    Image.new("RGB", (6, 4), "blue").save(folder / "b.jpg")
    (folder / "text.png").write_text("no picture")
    sub = folder / "images"
    sub.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(sub / "c.png")
    with contextlib.suppress(FileExistsError):
        (folder / "loop").symlink_to(folder / "loop")


def read_table(given: tuple[str, bytes, dict[str, Any]], folder: Path) -> bool:
    from fovea.tasks.load import load

    name, data, options = given
    (folder / name).write_bytes(data)
    source = load(folder / name, **options)
    source.describe()
    for i in range(min(3, len(source))):
        json.dumps([source[i].id, source[i].prompt, source[i].meta], default=str).encode()
    return True


def options_of(rng: Random) -> dict[str, Any]:
    options: dict[str, Any] = {"on_bad_row": rng.choice(("stop", "skip", "skip")), "check_images": rng.choice(("header", "full", "none"))}
    if rng.random() < 0.2:
        options["split"] = rng.choice(("train", "heldout"))
    if rng.random() < 0.1:
        options["limit"] = rng.choice((0, 1, 2))
    if rng.random() < 0.1:
        options["verifier"] = rng.choice(("exact", "number", "choice", "count", "box_iou", "set"))
    if rng.random() < 0.1:
        options["instruction"] = rng.choice(TEXTS)
    return options


def dumped(x: Any) -> bytes:
    return json.dumps(x).encode()


def make_jsonl(rng: Random, folder: Path) -> tuple[str, bytes, dict[str, Any]]:
    rows = [row(rng) for _ in range(rng.choice((1, 1, 2, 3, 6)))]
    if rng.random() < 0.1:
        rows.append(value(rng))
    whole = rng.random() < 0.2
    data = dumped(rows) if whole else b"\n".join(map(dumped, rows))
    if rng.random() < 0.05:
        data = data.decode().encode(rng.choice(("utf-16", "utf-8-sig", "latin-1")))
    if rng.random() < 0.02:
        data += b"[" * 5000
    return ("t.json" if whole else "t.jsonl"), (damaged(rng, data) if rng.random() < 0.5 else data), options_of(rng)


def make_csv(rng: Random, folder: Path) -> tuple[str, bytes, dict[str, Any]]:
    import csv

    tab = rng.random() < 0.2
    rows = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row(rng).items()} for _ in range(rng.choice((1, 2, 3)))]
    columns = list(dict.fromkeys(k for r in rows for k in r))
    if rng.random() < 0.1:
        columns.append(rng.choice(columns))
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter="\t" if tab else ",", lineterminator=rng.choice(("\n", "\r\n", "\r")), quoting=rng.choice((0, 1)))
    with contextlib.suppress(csv.Error):
        writer.writerow(columns)
        writer.writerows([r.get(c, "") for c in columns] for r in rows)
    data = out.getvalue().encode(errors="surrogatepass")
    return ("t.tsv" if tab else "t.csv"), (damaged(rng, data) if rng.random() < 0.5 else data), options_of(rng)


@cache
def parquet_files() -> tuple[bytes, ...]:
    """Small tables of every kind of column."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), "red").save(buffer, "PNG")
    n = 6
    base = {"question": ["How many?"] * n, "answer": ["3"] * n}
    picture = pa.array([{"bytes": buffer.getvalue(), "path": None}] * n, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    others: list[dict[str, Any]] = [
        {},
        {"image": [buffer.getvalue()] * n},
        {"image": picture},
        {"image": pa.array([[{"bytes": buffer.getvalue(), "path": None}]] * n)},
        {"image": ["a.png"] * n, "id": list(range(n)), "x": [0.5] * n},
        {"options": [["red", "blue"]] * n, "answer": [0, 1] * (n // 2)},
        {"answer": [[1, 2, 3, 4]] * n, "image": ["a.png"] * n},
        {"x": pa.array([1, 2, 3, 4, 5, 6], pa.timestamp("ns")), "y": pa.array(["a", "b"] * 3).dictionary_encode()},
        {"x": pa.array([None] * n, pa.null()), "y": pa.array([True, None] * 3), "z": pa.array(["é"] * n, pa.large_string())},
        {"reward_model": [{"ground_truth": "3", "style": "rule"}] * n, "prompt": [[{"role": "user", "content": "x"}]] * n},
    ]
    out = []
    for i, extra in enumerate(others):
        for compression in ("none", "snappy", "zstd", "gzip")[: 1 + i % 4]:
            file = io.BytesIO()
            pq.write_table(pa.table({**base, **extra}), file, compression=compression, row_group_size=3, data_page_version=rng_version(i))
            out.append(file.getvalue())
    return tuple(out)


def rng_version(i: int) -> str:
    return ("1.0", "2.0")[i % 2]


def make_parquet(rng: Random, folder: Path) -> tuple[str, bytes, dict[str, Any]]:
    data = rng.choice(parquet_files())
    if rng.random() < 0.1:
        return "t.parquet", data, options_of(rng)
    if rng.random() < 0.4:  # the footer, where the structure is
        size = int.from_bytes(data[-8:-4], "little")
        footer = damaged(rng, data[-8 - size : -8])
        return "t.parquet", data[: -8 - size] + footer + len(footer).to_bytes(4, "little") + data[-4:], options_of(rng)
    return "t.parquet", damaged(rng, data), options_of(rng)


# -- pictures and clips ----------------------------------------------------------------------------------------------------------


@cache
def picture_files() -> dict[str, tuple[bytes, ...]]:
    """A few pictures in every format that Pillow writes here."""
    from PIL import Image

    Image.init()
    made: dict[str, list[bytes]] = {}
    for name in sorted(Image.SAVE):
        if name == "PDF":
            continue
        for mode in ("RGB", "RGBA", "L", "P", "1", "LA", "CMYK", "I;16", "F"):
            image = Image.new("RGB", (17, 13), "red").convert("L").convert(mode) if mode not in ("I;16",) else Image.new(mode, (17, 13))
            file = io.BytesIO()
            with contextlib.suppress(Exception):
                image.save(file, name)
                if file.tell():
                    made.setdefault(name, []).append(file.getvalue())
        frames = [Image.new("RGB", (17, 13), c) for c in ("red", "blue")]
        file = io.BytesIO()
        with contextlib.suppress(Exception):
            frames[0].save(file, name, save_all=True, append_images=frames[1:])
            made.setdefault(name, []).append(file.getvalue())
        file = io.BytesIO()
        with contextlib.suppress(Exception):
            exif = Image.Exif()
            exif[0x0112] = 6
            frames[0].save(file, name, exif=exif)
            made.setdefault(name, []).append(file.getvalue())
    return {k: tuple(v) for k, v in made.items()}


def make_picture(rng: Random, folder: Path) -> tuple[bytes, bool, int]:
    data = rng.choice(picture_files()[rng.choice(list(picture_files()))])
    if rng.random() < 0.95:
        data = damaged(rng, data)
    return data, rng.random() < 0.5, rng.choice((1 << 20, 1 << 20, 100))


def read_picture(given: tuple[bytes, bool, int], folder: Path) -> bool:
    from fovea.tasks.pictures import Picture, pictures_of

    data, on_disk, limit = given
    if on_disk:
        (folder / "a.png").write_bytes(data)
        picture = pictures_of("a.png", [folder])[0]
    else:
        picture = Picture("a.png", lambda: data)
    picture.check(limit)
    image = picture.decode(limit)
    assert image.mode == "RGB" and image.width * image.height <= limit
    return True


@cache
def clip_files() -> tuple[tuple[str, bytes], ...]:
    import tempfile

    import av
    import numpy as np

    av.logging.set_level(av.logging.PANIC)
    made = []
    for suffix, codec, pixels in (
        *(("mp4", "mpeg4", "yuv420p"), ("mkv", "mpeg4", "yuv420p"), ("avi", "mjpeg", "yuvj420p"), ("gif", "gif", "rgb8")),
        *(("webm", "libvpx", "yuv420p"), ("mp4", "libx264", "yuv420p"), ("mpg", "mpeg1video", "yuv420p"), ("flv", "flv", "yuv420p")),
    ):
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Exception):
            path = Path(folder) / f"a.{suffix}"
            with av.open(str(path), "w") as container:
                stream: Any = container.add_stream(codec, rate=25)
                stream.width, stream.height, stream.pix_fmt = 32, 24, pixels
                for i in range(6):
                    frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), 40 * i, np.uint8), format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
            made.append((suffix, path.read_bytes()))
    assert len(made) >= 4
    return tuple(made)


def make_clip(rng: Random, folder: Path) -> tuple[str, bytes]:
    suffix, data = rng.choice(clip_files())
    return f"clip.{suffix}", damaged(rng, data) if rng.random() < 0.97 else data


def read_clip(given: tuple[str, bytes], folder: Path) -> bool:
    from fovea.video import Video, probe, read_frames, still

    name, data = given
    (folder / name).write_bytes(data)
    stream = probe(folder / name)
    frames = read_frames(folder / name, sorted({0, min(2, stream.total - 1)}))
    assert frames and frames[0].mode == "RGB" and still(Video(folder / name)).size == frames[0].size
    return True


# -- checkpoints -----------------------------------------------------------------------------------------------------------------


def checkpoint_folder(folder: Path) -> None:
    import torch
    from transformers.utils import logging

    from fovea.policies.tiny_vlm import BASE_DIR
    from fovea.trainer import checkpoint as ckpt

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    shutil.copytree(BASE_DIR, folder / "model", dirs_exist_ok=True)

    class Nothing:
        def save(self, to: Path) -> None:
            to.mkdir()
            (to / "config.json").write_text("{}")

    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    ckpt.save(folder / "run" / "checkpoints", 3, Nothing(), optimizer, {"sampler": {"at": 5}})


def make_checkpoint(rng: Random, folder: Path) -> tuple[str, str, bytes]:
    """(what is damaged, file, its new content)."""
    step = folder / "run" / "checkpoints" / "step-000003"
    draw = rng.random()
    if draw < 0.55:
        state = json.loads((step / "state.json").read_text())
        if rng.random() < 0.5:
            return "state", "state.json", damaged(rng, json.dumps(state).encode())
        state[rng.choice(("step", "files", "sampler"))] = value(rng)
        if isinstance(state["files"], dict) and rng.random() < 0.4:
            state["files"][rng.choice(TEXTS)] = value(rng)
        return "state", "state.json", json.dumps(state).encode()
    if draw < 0.985:
        return "optimizer", "optimizer.safetensors", damaged_tensors(rng, (step / "optimizer.safetensors").read_bytes())
    name = rng.choice(("config.json", "config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json",
                       "generation_config.json", "model.safetensors"))  # fmt: skip
    file = folder / "model" / name
    data = file.read_bytes() if file.exists() else b"{}"
    if name == "model.safetensors":
        return "model", name, damaged_tensors(rng, data)
    content = json.loads(data)
    if rng.random() < 0.4 or not content:
        return "model", name, damaged(rng, data)
    inner = content
    while isinstance(inner, dict) and inner and rng.random() < 0.6:
        key = rng.choice(list(inner))
        if not isinstance(inner[key], dict) or not inner[key]:
            break
        inner = inner[key]
    inner[rng.choice(list(inner) or ["x"])] = small(rng)
    return "model", name, json.dumps(content).encode()


def small(rng: Random) -> Any:
    """Values for a model's settings that cannot ask for more memory than there is."""
    return rng.choice([None, "", "x", -1, 0, 1, 3, 0.5, True, [], [1], {}, {"x": 1}, "gelu", float("nan"), [[1]], "float16"])


def damaged_tensors(rng: Random, data: bytes) -> bytes:
    """A safetensors file whose header (or the rest) is wrong."""
    size = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + size], data[8 + size :]
    draw = rng.random()
    if draw < 0.3:
        return damaged(rng, data[:8]) + data[8:]
    if draw < 0.6:
        header = damaged(rng, header)
        return len(header).to_bytes(8, "little") + header + rest
    if draw < 0.85:
        content = json.loads(header)
        entry = content[rng.choice(list(content))]
        entry[rng.choice(("dtype", "shape", "data_offsets", "x"))] = value(rng, 2)
        if rng.random() < 0.3:
            content[rng.choice(TEXTS)] = value(rng, 1)
        header = json.dumps(content).encode()
        return len(header).to_bytes(8, "little") + header + rest
    return data[: rng.randrange(len(data))]


def read_checkpoint(given: tuple[str, str, bytes], folder: Path) -> bool:
    import torch

    from fovea.policies.hf_vlm import HFVLM
    from fovea.trainer import checkpoint as ckpt

    kind, name, data = given
    if kind == "model":
        copy = folder / "damaged"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for file in (folder / "model").iterdir():
            if file.name != name:
                os.link(file, copy / file.name)
        (copy / name).write_bytes(data)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            HFVLM.load(copy)
        return True
    step = folder / "run" / "checkpoints" / "step-000003"
    before = {f: (step / f).read_bytes() for f in ("state.json", name)}
    try:
        (step / name).write_bytes(data)
        if kind == "optimizer":  # whoever damages a file on purpose writes its hash, too
            state = json.loads(before["state.json"])
            state["files"][name] = ckpt.sha256(step / name)
            (step / "state.json").write_text(json.dumps(state))
        found = ckpt.read(step)
        assert found.step >= 0 and found.model
        if kind == "optimizer":
            weight = torch.nn.Parameter(torch.zeros(3))
            ckpt.load_optimizer(found, torch.optim.AdamW([weight]))
        ckpt.find(folder / "run")
        return True
    finally:
        for f, content in before.items():
            (step / f).write_bytes(content)


# -- recipes and the command line ------------------------------------------------------------------------------------------------


def odd(rng: Random) -> Any:
    """A value that somebody may give a field."""
    plain = [None, True, False, -1, 0, 1, 3, 0.5, -0.5, 1e9, float("nan"), float("inf"), 10**400, 2**70, "", "x", "1", "auto", "none"]
    others = [(), (1,), (0.9, 0.95), ("tower",), [], ["text"], {}, {"x": 1}, object, b"x", "tiny", "linear", "adamw", "local", "http://x:1"]
    return rng.choice(plain + others)


@cache
def fields_of() -> tuple[str, ...]:
    from dataclasses import fields

    from fovea import methods as learned
    from fovea.policies.lora import LoRA
    from fovea.recipe import Recipe
    from fovea.rollout.sampling import Sampling

    own = [f.name for f in fields(Recipe)]
    nested = [f"sampling__{f.name}" for f in fields(Sampling)] + [f"lora__{f.name}" for f in fields(LoRA)]
    methods = sorted({f"method__{f.name}" for m in learned.METHODS for f in fields(learned.get(m))})
    return (*own, *own, *nested, *methods, "no_such", "method__no_such", "steps__x", "__", "x__y__z")


def make_recipe(rng: Random, folder: Path) -> tuple[str, dict[str, Any]]:
    from fovea.methods import METHODS

    changes = {rng.choice(fields_of()): odd(rng) for _ in range(rng.choice((1, 1, 2, 3)))}
    if rng.random() < 0.3:
        changes["method"] = rng.choice([*METHODS, "no-such", 3, None])
    return rng.choice(["grpo", "grpo", "dapo", "ppo", "dpo", "sft", "gspo", "no-such"]), changes


def read_recipe(given: tuple[str, dict[str, Any]], folder: Path) -> bool:
    from fovea import api
    from fovea.plan import arithmetic

    name, changes = given
    recipe = api.resolve(name, **changes)
    json.dumps(recipe.to_json())
    recipe.fingerprint()
    arithmetic(recipe)
    return True


WORDS = "tiny grpo dapo runs/x a.py:b missing.py:x worlds worlds:count worlds:nothing methods recipes R.ft".split()
OPTIONS = (
    "--help -h --json --dry-run --quiet --out --resume --tasks --temperature --samples --export --image --text --merged --adapter --host "
    "--port --token --max-rows --tag --all --status --quick --seeds -- - --- --= --steps --steps= --method.eps-hi --sampling.top-p "
    "--method --lora.rank --no-such -x"
).split()
VALUES = ["", *"0 1 -1 1.5 nan inf 1e400".split(), "9" * 5000, *"true maybe none a,b , tower,text =".split(), "\0", "é", "x" * 2000]


def make_command(rng: Random, folder: Path) -> list[str]:
    from fovea.cli import COMMANDS

    args = [rng.choice([*COMMANDS, *COMMANDS, *COMMANDS, "no-such", "--version", "-h", "", "--steps"])]
    for _ in range(rng.choice((0, 1, 2, 3, 5, 8))):
        draw = rng.random()
        if draw < 0.3:
            args.append(rng.choice(WORDS))
        elif draw < 0.55:
            args.append(rng.choice(OPTIONS))
        elif draw < 0.8:
            name = "--" + rng.choice(fields_of()).replace("__", ".").replace("_", "-")
            text = rng.choice([*VALUES, *map(str, (odd(rng), odd(rng)))])
            args += [f"{name}={text}"] if rng.random() < 0.5 else [name, text]
        else:
            args.append(rng.choice(VALUES))
    return args


STANDINS = (
    *("fovea.api.train", "fovea.api.evaluate", "fovea.api.load_policy", "fovea.api.export", "fovea.plan.plan", "fovea.hub.push"),
    *("fovea.serve.serve", "fovea.report.view.view", "fovea.ledger.reproduce.reproduce", "fovea.bench.main", "fovea.doctor.examine"),
)
"""What would take long or leave this machine; each is replaced by `Reached`."""


class Reached(Exception):
    """The command line understood a command and would do it now."""


def read_command(args: list[str], folder: Path) -> bool:
    from fovea import cli

    def reached(*_: Any, **__: Any) -> None:
        raise Reached

    out, err = io.StringIO(), io.StringIO()
    here = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.ExitStack() as stack:
            for name in STANDINS:
                stack.enter_context(mock.patch(name, reached))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            status = cli.main(args)
    except Reached:
        return True
    finally:
        os.chdir(here)
    if status:
        assert status in (1, 2) and "fovea" in err.getvalue() and "Traceback" not in err.getvalue(), err.getvalue()
    return not status


# -- the wire --------------------------------------------------------------------------------------------------------------------

SERVED: dict[str, Any] = {}


def start_server(folder: Path) -> None:
    from fovea.serve import App
    from tests.rollout.served import SavedPolicy

    SERVED["app"] = App(SavedPolicy(), "fake", token="secret", max_rows=4, max_context=24)
    SERVED["app"].generator.thread.start()
    SERVED["loop"] = asyncio.new_event_loop()


def stop_server() -> None:
    SERVED["app"].generator.close()
    SERVED["loop"].close()
    SERVED.clear()


@cache
def bodies() -> tuple[tuple[str, dict[str, Any]], ...]:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    shown = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "hi"}]
    drawn = {"n": 2, "max_tokens": 2, "temperature": 1.0, "top_p": 0.9, "top_k": 3}
    sampling = {**drawn, "stop": ["a"], "seed": 1, "logit_bias": {"257": -100}}
    return (
        ("/v1/completions", {"prompt": [10, 20], "logprobs": 1, **sampling, "model": "fake", "return_token_ids": True}),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 2, "seeds": [1, 2], "n": 2}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "logprobs": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": shown}], **sampling}),
        ("/inference/v1/generate", {"token_ids": [257, 5], "content_parts": [shown[0]], "sampling_params": {**sampling, "logprobs": 0}}),
        ("/generate", {"input_ids": [5, 6], "sampling_params": {"n": 1, "max_new_tokens": 2, "sampling_seed": 3}, "return_logprob": True}),
        ("/generate", {"text": "hi", "image_data": [], "sampling_params": {"max_new_tokens": 2}}),
        ("/update_weights_from_disk", {"model_path": "/nowhere", "weight_version": 1}),
    )


def make_request(rng: Random, folder: Path) -> tuple[str, bytes]:
    if rng.random() < 0.3:
        return "reply", make_reply(rng)
    path, body = rng.choice(bodies())
    body = json.loads(json.dumps(body))
    for _ in range(rng.choice((0, 1, 1, 2))):
        inner = body
        while rng.random() < 0.4:
            nested = [v for v in (inner.values() if isinstance(inner, dict) else inner) if isinstance(v, (dict, list)) and v]
            if not nested:
                break
            inner = rng.choice(nested)
        if isinstance(inner, dict):
            inner[rng.choice([*inner, "x", "n", "stop", "stream"])] = value(rng)
        else:
            inner[rng.randrange(len(inner))] = value(rng)
    raw = json.dumps(body).encode()
    if rng.random() < 0.2:
        raw = damaged(rng, raw)
    method = rng.choice(("POST", "POST", "POST", "POST", "GET", "PUT", ""))
    if rng.random() < 0.1:
        path = rng.choice("/health /v1/models /weight_info /pause /resume /nowhere /sleep /wake_up * /?a=b //".split())
    if path in ("/pause", "/sleep"):  # they would stop all that follow
        path = "/is_paused"
    length = rng.choice((len(raw),) * 8 + (len(raw) + 1, 0, -1, 10**12, "x", "1_0"))  # type: ignore[operator]
    lines = [f"{method} {path} HTTP/1.1", "Authorization: Bearer secret" if rng.random() < 0.95 else "Authorization: Bearer x"]
    lines += [f"Content-Length: {length}"] if rng.random() < 0.97 else ["Transfer-Encoding: chunked"]
    head = "\r\n".join([*lines, "", ""]).encode()
    return "request", (damaged(rng, head) if rng.random() < 0.15 else head) + raw


def make_reply(rng: Random) -> bytes:
    said = {"token_logprobs": [-0.5, -0.5]}
    row = {"index": 0, "token_ids": [1, 2], "finish_reason": "length", "logprobs": said, "prompt_token_ids": [10, 20]}
    reply: dict[str, Any] = {"choices": [row, {**row, "index": 1}], "weight_version": "1"}
    target = rng.choice((reply, row, row, said))
    if rng.random() < 0.8:
        target[rng.choice([*target, "x"])] = value(rng)
    raw = json.dumps(reply).encode()
    return damaged(rng, raw) if rng.random() < 0.3 else raw


def read_request(given: tuple[str, bytes], folder: Path) -> bool:
    from fovea.rollout import http, wire
    from fovea.rollout.sampling import Sampling

    kind, raw = given
    if kind == "reply":
        question = wire.Question("task", [10, 20], [10, 20], [], [], [], Sampling(), [1, 2], 2, [256], [257])
        for read in (wire.read_openai, wire.read_sglang):
            with contextlib.suppress(wire.BadAnswer, wire.Aborted):
                read(wire.Exchange("/v1/completions", {}, question), raw, "http://x")
        return True
    app = SERVED["app"]

    async def exchange() -> tuple[int, Any]:
        reader = asyncio.StreamReader(limit=http.HEAD_BYTES)
        reader.feed_data(raw)
        # a client that waits for its answer keeps the connection open; one that has said too little goes away
        asyncio.get_running_loop().call_later(2.0, reader.feed_eof)
        head, _, rest = raw.partition(b"\r\n\r\n")
        _, headers = http._head(head)
        wanted = headers.get("content-length", "0")
        if not wanted.isdecimal() or int(wanted) > len(rest) or b"\r\n\r\n" not in raw:
            reader.feed_eof()
        return await http._handle(app.handle, reader, app.admit)

    try:
        status, payload = SERVED["loop"].run_until_complete(exchange())
    except (OSError, asyncio.IncompleteReadError):
        return False
    assert status < 500 or status == 503, payload
    if status != 200:
        assert payload["error"]["message"]
    else:
        json.dumps(payload)
    return status == 200


# -- answers ---------------------------------------------------------------------------------------------------------------------

# fmt: off
PIECES = [
    "<answer>", "</answer>", "<think>", "</think>", "\\boxed{", "}", "{", "(", ")", "[", "]", ",", ", ", ".", ":", ";", "\n", " ", "  ",
    "1", "12", "0", "-", "+", "1,234", ".5", "3/4", "1/0", "\\frac{1}{2}", "\\frac{1}{0}", "1e5", "1e-9999", "9" * 70, "%", "\\%", "50%",
    "A", "B", "(C)", "D.", "the answer is", "option", "or", "and", "yes", "no", "cat", "two cats", "3 dogs", "a", "x1", "bbox_2d", '"', "'",
    "```python\n", "```\n", "```", "print(1)\n", "$", "\\", "\0", "\ud800", "٣", "²", "½", "\u2212", "é", "\U0001f600", "\u2028", "∞",
    "nan",
]
# fmt: on


def text(rng: Random) -> str:
    draw = rng.random()
    if draw < 0.01:  # long: nothing may take more than linear time
        piece = "".join(rng.choice(PIECES) for _ in range(rng.choice((1, 1, 2, 3))))
        return (piece * (100_000 // max(1, len(piece)) + 1))[:100_000]
    if draw < 0.1:
        return "".join(rng.choice(string.printable) for _ in range(rng.randrange(200)))
    if draw < 0.15:
        return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(40)))
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(30)))


def quick(function: Callable[..., Any], *args: Any) -> Any:
    """The result, within the time that 100,000 characters may take."""
    began = time.process_time()
    result = function(*args)
    spent = time.process_time() - began
    assert spent < 2.0, f"{getattr(function, '__name__', function)} took {spent:.1f} s"
    return result


def read_answer(given: tuple[str, str], folder: Path) -> bool:
    from fovea.verifiers import parse
    from fovea.verifiers.form import follows_tags
    from fovea.verifiers.programs import code_block, same

    said, gold = given
    options = ["red", "a cat", "", "B", gold[:40]]
    numbers = (parse.parse_number, parse.parse_items, parse.parse_counts)
    for function in (parse.boxed, parse.extract_answer, parse.normalise, *numbers, code_block):
        quick(function, said)
    for function in (parse.find_numbers, parse.find_floats):  # callers give them the end of an answer
        quick(function, said[-parse.READ :])
    for number in quick(parse.find_numbers, said[-parse.READ :]):
        assert isinstance(number[0], Fraction)
    quick(parse.tagged, said, "answer")
    quick(parse.parse_choice, said)
    quick(parse.parse_choice, said, options)
    quick(parse.text_similarity, said[:20_000], gold)
    quick(same, said, gold)
    for count in (2, 4):
        found = quick(parse.parse_numbers, said, count)
        assert found is None or len(found) == count
    quick(follows_tags, said, ("think", "answer"))
    return quick(parse.extract_answer, said) is not None


def make_answer(rng: Random, folder: Path) -> tuple[str, str]:
    return text(rng), rng.choice((text(rng)[:200], "3", "A"))


GOLDS = ["3", 3, 0.5, "50%", "red", "A", True, ["red", "blue"], {"cat": 2}, [1, 2, 30, 40], "[1, 2, 30, 40]", "1/2", 10**20, "cats, dogs"]
PARAMS: dict[str, list[dict[str, Any]]] = {
    "choice": [{"options": ["red", "blue", "a cat"]}, {}],
    "number": [{}, {"tolerance": 0.5}, {"relative": 0.1}],
    "box_iou": [{}, {"graded": True}, {"scale": 1000}],
    "point_in_box": [{}, {"scale": 1.0}],
    "length": [{"unit": "chars", "max": 9, "soft": 3}, {"unit": "words"}, {}],
    "weighted": [{"parts": {"a": (1.0, "exact"), "b": (0.1, "format")}}],
    "text_distance": [{}, {"case": True}],
}


def make_verdict(rng: Random, folder: Path) -> tuple[str, dict[str, Any], str, Any]:
    from fovea.verifiers import VERIFIERS

    name = rng.choice([n for n in VERIFIERS if n not in ("math", "program")])
    gold = rng.choice(GOLDS) if rng.random() < 0.7 else value(rng, 1)
    return name, rng.choice(PARAMS.get(name, [{}])), text(rng), gold


def read_verdict(given: tuple[str, dict[str, Any], str, Any], folder: Path) -> bool:
    from PIL import Image

    from fovea.types import Context, Episode, Group, Task, Turn, user
    from fovea.verifiers import build

    name, params, said, gold = given
    task = Task("t", "s", user("?", images=1), images=(Image.new("RGB", (40, 30)),), answer=gold, verifier=name, params=params)
    episodes = [Episode(f"e{i}", task, turns=[Turn(s)]) for i, s in enumerate((said, str(gold)))]
    scores = quick(build(name, params).score, Group(task, episodes), Context())
    assert len(scores) == 2
    for score in scores:
        if score.ok:
            assert score.value == score.value and abs(score.value) < 1e9
        else:  # an exception that was no decision
            assert score.reason and not any(f" {kind}: " in score.reason for kind in UNDECIDED), score.reason
    return scores[0].ok


UNDECIDED = ("TypeError", "ValueError", "KeyError", "IndexError", "AttributeError", "OverflowError", "RecursionError", "ZeroDivisionError",
             "UnicodeEncodeError", "AssertionError", "MemoryError", "RuntimeError")  # fmt: skip


def _families() -> dict[str, Family]:
    from fovea.tasks.pictures import BadImage
    from fovea.trainer.checkpoint import CheckpointError

    refused = (ValueError, FileNotFoundError)
    return {
        "jsonl": Family(make_jsonl, read_table, TABLES, refused, ("t.json",), table_folder),
        "csv": Family(make_csv, read_table, TABLES, refused, ("t.csv", "t.tsv"), table_folder),
        "parquet": Family(make_parquet, read_table, TABLES, refused, ("t.parquet",), table_folder),
        "images": Family(make_picture, read_picture, ("tasks/pictures.py", "images.py"), (BadImage,), ("a.png",)),
        "video": Family(make_clip, read_clip, ("video.py",), refused, ("clip.",)),
        "checkpoints": Family(
            make_checkpoint,
            read_checkpoint,
            ("trainer/checkpoint.py", "policies/damage.py"),
            (CheckpointError, *refused),
            ("step-000003", "damaged", "checkpoints"),
            checkpoint_folder,
        ),
        "recipes": Family(
            make_recipe, read_recipe, ("recipe.py",), (ValueError,), ("recipe", *{f.split("__")[-1] for f in fields_of()} - {""})
        ),
        "command_line": Family(make_command, read_command, ("cli.py",), (SystemExit,)),
        "wire": Family(
            make_request, read_request, ("rollout/http.py", "serve.py", "rollout/wire.py"), (), ("",), start_server, stop_server
        ),
        "answers": Family(make_answer, read_answer, ("verifiers/parse.py",), ()),
        "verifiers": Family(make_verdict, read_verdict, ("verifiers/answers.py", "verifiers/parse.py", "verifiers/core.py"), ()),
    }


FAMILIES = _families()
