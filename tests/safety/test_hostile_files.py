"""No code in a file is ever executed: none of our readers unpickles, and what could be a pickle is refused."""

import ast
import base64
import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fovea
from fovea import video
from fovea.policies import damage
from fovea.policies.hf_vlm import HFVLM
from fovea.tasks.load import BadRows, load
from fovea.trainer import checkpoint as ckpt
from fovea.trainer.wire import unpack

ROOT = Path(fovea.__file__).parent
TINY = ROOT / "policies" / "tiny_vlm" / "base"

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "zodbpickle"}
CALLS = {"torch.load", "torch.save", "eval", "exec", "compile", "builtins.eval", "builtins.exec", "runpy.run_path", "os.system"}
ARGUMENTS = {"allow_pickle", "weights_only", "shell"}


def name_of(node):
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def found_in(text):
    """What a module could open a pickle with, or run text with, by line."""
    for node in ast.walk(ast.parse(text)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{line}: import {n}" for n in names if n.split(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            called = name_of(node.func)
            if called in CALLS or (called.endswith(("np.load", "numpy.load")) and not safely(node)):
                yield f"{line}: {called}()"
            for k in node.keywords:
                is_true = isinstance(k.value, ast.Constant) and k.value.value is True
                if (k.arg in ARGUMENTS or k.arg == "trust_remote_code") and (is_true or k.arg == "weights_only"):
                    yield f"{line}: {k.arg}="


def safely(call):
    return any(k.arg == "allow_pickle" and getattr(k.value, "value", None) is False for k in call.keywords)


def test_no_module_can_open_a_pickle_or_run_text():
    found = {str(f.relative_to(ROOT)): list(found_in(f.read_text())) for f in sorted(ROOT.rglob("*.py"))}
    assert len(found) > 80
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "f(trust_remote_code=True)",
        "subprocess.run('ls', shell=True)",
    ],
)
def test_the_search_finds_what_it_is_for(text):
    assert list(found_in(text))


# -- files that would run code -------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.fixture
def mark(tmp_path):
    """The file that a pickle would make; none may, and the pickle itself works."""
    path = tmp_path / "ran"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists()


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    return folder


def test_weights_that_are_a_pickle_are_refused_by_name(checkpoint, mark):
    (checkpoint / "model.safetensors").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ValueError, match=r"model\.safetensors, which is no safetensors file"):
        HFVLM.load(checkpoint)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickled_weights_are_never_opened(checkpoint, mark, name):
    (checkpoint / "model.safetensors").unlink()
    torch.save({"x": Bomb(mark)}, checkpoint / name)
    with pytest.raises(ValueError, match=f"weights only in {name}, which may hold code"):
        HFVLM.load(checkpoint)


def test_pickles_beside_the_weights_are_left_alone(checkpoint, mark):
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "scheduler.pkl"):
        torch.save({"x": Bomb(mark)}, checkpoint / name)
    assert HFVLM.load(checkpoint, weights=False)
    assert HFVLM.load(checkpoint)


def test_code_beside_the_weights_is_not_executed(checkpoint, mark):
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Any: pass\n"
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        file = checkpoint / name
        kinds = ("AutoConfig", "AutoModelForImageTextToText", "AutoTokenizer", "AutoImageProcessor", "AutoProcessor")
        content = json.loads(file.read_text()) if file.exists() else {}
        content["auto_map"] = {kind: "evil.Any" if kind != "AutoTokenizer" else ["evil.Any", None] for kind in kinds}
        file.write_text(json.dumps(content))
    for name in ("evil.py", "conftest.py", "__init__.py", "configuration_evil.py", "modeling_evil.py", "sitecustomize.py"):
        (checkpoint / name).write_text(code)
    assert HFVLM.load(checkpoint)


def test_a_model_that_exists_only_as_code_is_refused(checkpoint, mark):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "evil.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}))
    with pytest.raises(ValueError, match="found model_type 'evil'; expected one of"):
        HFVLM.load(checkpoint)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_settings_without_sizes_are_refused_before_memory_is_taken_for_them(checkpoint, part):
    config = json.loads((checkpoint / "config.json").read_text())
    del config[part]
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json: found sizes of a model with [\d,]+ parameters; expected those of the [\d,]+ that"):
        HFVLM.load(checkpoint)


def test_missing_weights_are_not_made_up(checkpoint):
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint / "model.safetensors")
    name = sorted(k for k in weights if "layers" in k)[0]
    del weights[name]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"found no tensor .* \(1 are missing\)"):
        HFVLM.load(checkpoint)


def test_a_run_whose_optimizer_is_a_pickle_is_refused(tmp_path, mark):
    folder = tmp_path / "step-000001"
    folder.mkdir()
    (folder / ckpt.OPTIMIZER).write_bytes(pickle.dumps(Bomb(mark)))
    state = {"step": 1, "files": {ckpt.OPTIMIZER: ckpt.sha256(folder / ckpt.OPTIMIZER)}}
    (folder / ckpt.STATE).write_text(json.dumps(ckpt.sealed(state)))
    weight = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ckpt.CheckpointError, match="expected safetensors"):
        ckpt.load_optimizer(ckpt.read(folder), torch.optim.AdamW([weight]))
    (folder / ckpt.STATE).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ckpt.CheckpointError, match="expected the JSON that fovea writes"):
        ckpt.read(folder)


def test_a_message_between_processes_that_is_a_pickle_is_refused(mark):
    with pytest.raises(Exception, match=r"(?i)header"):
        unpack(pickle.dumps(Bomb(mark)))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_tables_that_are_a_pickle_are_refused(tmp_path, mark, suffix):
    file = tmp_path / f"table{suffix}"
    file.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises((BadRows, ValueError), match=f"table{suffix}"):
        load(file)


@pytest.mark.parametrize("kind", ["npz", "npy", "torch", "pickle"])
def test_pictures_that_are_a_pickle_are_refused(tmp_path, mark, kind):
    buffer = io.BytesIO()
    if kind == "npz":
        np.savez(buffer, x=np.array([Bomb(mark)], dtype=object))
    elif kind == "npy":
        np.save(buffer, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    elif kind == "torch":
        torch.save(Bomb(mark), buffer)
    else:
        pickle.dump(Bomb(mark), buffer)
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    inline = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    for cell in ("a.png", inline):
        (tmp_path / "t.jsonl").write_text(json.dumps({"question": "?", "answer": "x", "image": cell}))
        with pytest.raises(BadRows, match="not an image"):
            load(tmp_path / "t.jsonl")


def test_a_clip_that_is_a_pickle_is_refused(tmp_path, mark):
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ValueError, match=r"a\.mp4: found no video"):
        video.probe(tmp_path / "a.mp4")


def test_the_first_wrong_file_is_named(checkpoint):
    (checkpoint / "tokenizer.json").write_text("{")
    assert damage.first_odd(checkpoint).startswith("tokenizer.json, which is no JSON")
    with pytest.raises(ValueError, match=r"tokenizer\.json, which is no JSON"):
        HFVLM.load(checkpoint)


# -- ways out of the data folder -------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def rows(folder, *cells):
    (folder / "t.jsonl").write_text("\n".join(json.dumps({"question": "?", "answer": "x", "image": c}) for c in cells))
    return folder / "t.jsonl"


@pytest.mark.parametrize(
    "cell", ["../secret.png", "{above}/secret.png", "sub/../../secret.png", "link.png", "linked/secret.png", "./../data/../secret.png"]
)
def test_pictures_outside_the_data_folder_are_refused(outside, cell):
    (outside / "sub").mkdir()
    (outside / "link.png").symlink_to(outside.parent / "secret.png")
    (outside / "linked").symlink_to(outside.parent)
    with pytest.raises(BadRows, match="outside the data folder"):
        load(rows(outside, cell.format(above=outside.parent)))


@pytest.mark.parametrize("cell", ["http://127.0.0.1:1/a.png", "file:///etc/hostname", "ftp://x/a.png", "\\\\server\\share\\a.png"])
def test_addresses_are_not_fetched(outside, cell):
    with pytest.raises(BadRows, match=r"an address|no such file"):
        load(rows(outside, cell))


@pytest.mark.parametrize("cell", ["a" * 5000, "a\0b", "/dev/zero", "loop", "\ud800.png"])
def test_paths_that_are_none_are_named(outside, cell):
    (outside / "loop").symlink_to(outside / "loop")
    with pytest.raises(BadRows, match=r"row 1, field 'image'"):
        load(rows(outside, cell))


def test_a_device_or_pipe_in_the_folder_is_no_picture(outside):
    import os

    os.mkfifo(outside / "pipe.png")
    with pytest.raises(BadRows, match="no such file"):
        load(rows(outside, "pipe.png"))


def test_a_link_within_the_folder_is_fine(outside):
    Image.new("RGB", (4, 4)).save(outside / "own.png")
    (outside / "link.png").symlink_to(outside / "own.png")
    assert load(rows(outside, "link.png"))[0].images[0].size == (4, 4)


def test_a_checkpoint_cannot_name_files_outside_itself(tmp_path):
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "step-000001"
    folder.mkdir()
    for name in ("../secret", str(tmp_path / "secret"), "a/../../secret"):
        (folder / ckpt.STATE).write_text(json.dumps(ckpt.sealed({"step": 1, "files": {name: "0"}})))
        with pytest.raises(ckpt.CheckpointError, match="outside the checkpoint"):
            ckpt.read(folder)


@pytest.mark.parametrize(
    "text",
    ["#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{clip}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{clip}'\n"],
    ids=["m3u8", "concat"],
)
def test_a_clip_cannot_name_other_files(tmp_path, text):
    pytest.importorskip("av")
    from tests.policies.family_folders import CLIP_FILE

    clip = tmp_path / Path(CLIP_FILE).name
    shutil.copy(CLIP_FILE, clip)
    assert video.probe(clip).total > 0
    (tmp_path / "list.mp4").write_text(text.format(clip=clip.name))
    with pytest.raises(ValueError, match="found no video that can be read"):
        video.probe(tmp_path / "list.mp4")


# -- too much --------------------------------------------------------------------------------------------------------------------


def bomb(width, height):
    """A picture of few bytes and many pixels."""
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def test_a_small_file_of_many_pixels_is_refused_unread(outside):
    data = bomb(20_000, 10_000)
    assert len(data) < 100_000
    (outside / "a.png").write_bytes(data)
    with pytest.raises(BadRows, match="20000 x 10000 = 200 megapixels; expected at most 89 megapixels"):
        load(rows(outside, "a.png"))
    assert load(rows(outside, "a.png"), max_pixels=300_000_000)


def test_text_that_unpacks_to_much_is_refused(outside):
    """A PNG whose comment is 100 MB of nothing, packed."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    plain = bomb(4, 4)
    comment = chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(100 << 20)))
    (outside / "a.png").write_bytes(plain[:33] + comment + plain[33:])
    with pytest.raises(BadRows, match=r"not an image|damaged"):
        load(rows(outside, "a.png"), check_images="full")


def test_postscript_is_a_program(outside):
    (outside / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n")
    with pytest.raises(BadRows, match="a PostScript program"):
        load(rows(outside, "a.eps"))


def test_archives_are_no_tables(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.writestr("../../evil", "x")
    with pytest.raises(ValueError, match=r"a\.zip"):
        load(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "?", "answer": "%s"}' % ("x" * (1 << 26)), "at most 67108864 in a row"),
        ('{"question": "?", "answer": %s}' % ("[" * 100_000 + "]" * 100_000), "recursion"),
        ('{"question": "?", "answer": %s}' % ("[" * 50 + "]" * 50), "33 deep; expected at most 32"),
        ('{"question": "?", "answer": %s}' % ("9" * 400), "at most 300 digits"),
        ('{"question": "?", "answer": %s}' % ("9" * 9000), "digits"),
        ('{"question": "\\ud800", "answer": "x"}', "half of a surrogate pair; expected Unicode text"),
    ],
    ids=["long", "deeper than the reader", "deep", "large", "larger", "surrogate"],
)
def test_rows_that_are_too_much_are_named(tmp_path, text, said):
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(BadRows, match=f"row 1, field '.*{said}"):
        load(tmp_path / "t.jsonl")


@pytest.mark.parametrize(("size", "fine"), [(200_000, True), ((1 << 26) + 1, False)])
def test_a_csv_cell_may_be_long_but_not_endless(tmp_path, size, fine):
    (tmp_path / "t.csv").write_text(f"question,answer\n{'x' * size},a\n")
    if fine:
        assert len(load(tmp_path / "t.csv")) == 1
    else:
        with pytest.raises(BadRows, match="field larger than field limit"):
            load(tmp_path / "t.csv")


def test_line_ends_of_other_alphabets_do_not_cut_a_csv_row(tmp_path):
    (tmp_path / "t.csv").write_text("question,answer\na\u2028b\x0bc,x\n", encoding="utf-8")
    (task,) = load(tmp_path / "t.csv")
    assert task.prompt[0]["content"][0]["text"] == "a\u2028b\x0bc"


def test_a_column_named_twice_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("question,answer,answer\na,b,c\n")
    with pytest.raises(BadRows, match="field 'answer': found two columns of this name; expected one"):
        load(tmp_path / "t.csv")
