"""Pushing a model: what arrives is the model and a card of what was measured; what goes wrong is named; the token stays where it was."""

import json

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from fovea import api, cli, hub
from fovea.files import write_json
from fovea.policies.hf_vlm import HFVLM
from fovea.policies.lora import LoRA
from fovea.report import card
from fovea.trainer import checkpoint as ckpt
from tests import hub_standin
from tests.policies.tiny_checkpoints import build, picture
from tests.report import fake_run

TOKEN = "hf_goodtoken123"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


class Weights:
    """Saves one tensor and a configuration, as a policy saves its model."""

    def save(self, folder):
        folder.mkdir()
        save_file({"w": torch.arange(4.0)}, folder / "model.safetensors")
        (folder / "config.json").write_text('{"model_type": "qwen2_5_vl"}')


def checkpoint(run, step, policy=None):
    parameter = torch.nn.Parameter(torch.zeros(1))
    return ckpt.save(run / "checkpoints", step, policy or Weights(), torch.optim.SGD([parameter], lr=0.1), {})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small finished run with weights of its last step."""
    folder = tmp_path_factory.mktemp("run")
    fake_run.write(folder, steps=4, eval_every=2, tasks=4, group_size=2)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "data": "/home/someone/pictures", "eval_temperature": 0.0})
    (folder / "command.txt").write_text("fovea train --data=/home/someone/pictures --out '/home/someone/my runs'\n")
    checkpoint(folder, 4)
    return folder


@pytest.fixture
def standin(monkeypatch, tmp_path):
    """A hub on this machine that everything speaks to, with a token that it accepts."""
    with hub_standin.hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield found


def test_model_and_card_arrive(run, standin, capsys):
    assert cli.main(["push", str(run), "me/mine", "--private"]) == 0
    shown = capsys.readouterr()
    arrived = standin.files["me/mine"]
    folder = run / "checkpoints" / "step-000004" / "model"
    assert {n: b for n, b in arrived.items() if n not in ("README.md", card.PICTURE)} == {f.name: f.read_bytes() for f in folder.iterdir()}
    assert arrived[card.PICTURE].startswith(b"\x89PNG")
    assert f"]({card.PICTURE})" in arrived["README.md"].decode()
    assert standin.private["me/mine"]
    assert f"{standin.endpoint}/me/mine" in shown.out and "commit aaaaaaaaaa" in shown.out
    assert all(TOKEN not in text for text in (shown.out, shown.err, arrived["README.md"].decode()))
    assert not [f for f in run.rglob("*") if f.is_file() and TOKEN.encode() in f.read_bytes()]


def test_pushing_again_replaces_the_files(run, standin, tmp_path):
    hub.push(run, "me/mine")
    before = standin.files["me/mine"]["README.md"]
    hub.push(run, "me/mine", license="mit")
    assert standin.files["me/mine"]["README.md"] != before


def test_what_was_pushed_loads_and_answers_alike(standin, tmp_path):
    policy = HFVLM.load(build(tmp_path / "base", "qwen2_5_vl"))
    run = tmp_path / "run"
    run.mkdir()
    checkpoint(run, 1, policy)
    pushed = hub.push(run, "me/whole")
    got = arrived(standin, "me/whole", tmp_path / "got")
    assert pushed.files == {n: len(b) for n, b in sorted(standin.files["me/whole"].items())}
    assert api.load_policy(got).predict(picture(0), "?", 4) == policy.predict(picture(0), "?", 4)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A run whose weights are LoRA adapters on a local folder, and the policy."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapted")
    policy = HFVLM.load(build(folder / "base", "qwen2_5_vl"), lora=LoRA(rank=2), seed=1)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1)
    fake_run.write(folder / "run", steps=2, eval_every=2, tasks=4, group_size=2)
    checkpoint(folder / "run", 2, policy)
    return folder / "run", policy


def arrived(standin, repo, folder):
    folder.mkdir()
    for name, content in standin.files[repo].items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    "name", ["modeling.py", "cache.npy", "steps.npz", "head.joblib", "old.BIN", "optimizer.pt", "notes", ".weights.exe/x.so"]
)
def test_only_files_of_a_model_are_sent(tmp_path, name):
    folder = tmp_path / "model"
    Weights().save(folder)
    (folder / "LICENSE").write_text("mine")
    assert set(hub.model_files(folder)) == {"LICENSE", "config.json", "model.safetensors"}
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    if name.startswith("."):  # hidden: neither sent nor refused
        assert set(hub.model_files(folder)) == {"LICENSE", "config.json", "model.safetensors"}
        return
    with pytest.raises(ValueError, match=f"{folder}: found {name}; expected a model's files only"):
        hub.model_files(folder)


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    folder, secret = tmp_path / "model", tmp_path / "token.txt"
    Weights().save(folder)
    secret.write_text("secret")
    (folder / "copy.json").symlink_to(folder / "config.json")
    assert "copy.json" in hub.model_files(folder)
    (folder / "vocab.txt").symlink_to(secret)
    with pytest.raises(ValueError, match=f"vocab.txt leads to {secret}; expected files inside the folder"):
        hub.model_files(folder)
    (folder / "vocab.txt").unlink()
    (folder / "more").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ValueError, match="found more; expected a model's files only"):
        hub.model_files(folder)


def test_adapters_are_folded_in_unless_they_are_wanted_alone(adapted, standin, tmp_path):
    run, policy = adapted
    hub.push(run, "me/whole")
    whole = arrived(standin, "me/whole", tmp_path / "whole")
    assert not (whole / "adapter_config.json").exists()
    assert api.load_policy(whole).predict(picture(0), "?", 4) == policy.predict(picture(0), "?", 4)

    hub.push(run, "me/part", adapter=True, base="org/base")
    part = arrived(standin, "me/part", tmp_path / "part")
    assert json.loads((part / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    assert not list(part.glob("model*.safetensors"))
    text = (part / "README.md").read_text()
    assert 'library_name: "peft"' in text and 'base_model: "org/base"' in text and "LoRA adapters" in text
    assert str(run.parent) not in text + (part / "adapter_config.json").read_text()


def test_adapters_of_a_local_base_need_its_name_and_others_have_none(adapted, run):
    with pytest.raises(ValueError, match="name their base with --base OWNER/NAME"):
        hub.push(adapted[0], "me/part", adapter=True, dry_run=True)
    with pytest.raises(ValueError, match="has no adapters"):
        hub.push(run, "me/part", adapter=True, dry_run=True)


# -- the card -------------------------------------------------------------------------------------------------------------------


def test_the_card_holds_what_was_measured_at_its_step(run):
    text = hub.push(run, "me/mine", license="mit", base="org/base", dry_run=True).card
    rows = {r["step"]: r for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}
    first, last = rows[0], rows[4]
    assert f"| mean over sources | {first['eval/accuracy']:.3f} | {last['eval/accuracy']:.3f} |" in text
    assert f"| count | {first['eval/accuracy/count']:.3f} | {last['eval/accuracy/count']:.3f} |" in text
    assert f"| {last['eval/accuracy_low']:.3f} to {last['eval/accuracy_high']:.3f} |" in text
    head = text.split("---")[1]
    assert 'license: "mit"' in head and 'base_model: "org/base"' in head
    assert '"group_size": 8' in text and "python 3" in text


def test_the_card_names_no_folder_of_this_machine(run):
    text = hub.push(run, "me/mine", dry_run=True).card
    assert "/home" not in text and str(run) not in text
    assert "fovea train --data=pictures --out 'my runs'" in text and "`pictures`" in text


def test_weights_of_a_step_that_was_not_evaluated_claim_nothing(tmp_path):
    fake_run.write(tmp_path, steps=4, eval_every=3, tasks=4, group_size=2)
    made = checkpoint(tmp_path, 4)
    text = hub.push(made.path, "me/mine", dry_run=True).card
    assert "of step 4, at which nothing was measured; evaluations were made at step 0, 3" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| mean over sources")]
    assert row.endswith("| not measured |")


def test_weights_without_a_run_say_so_and_have_no_picture(tmp_path):
    Weights().save(tmp_path / "model")
    found = hub.push(tmp_path / "model", "me/mine", dry_run=True)
    assert "these weights came without the folder of the run" in found.card
    assert "stated no licence" in found.card and "license:" not in found.card
    assert set(found.files) == {"README.md", "config.json", "model.safetensors"}


def test_a_card_that_is_there_is_kept(tmp_path):
    Weights().save(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("my own words")
    assert hub.push(tmp_path / "model", "me/mine", dry_run=True).card == "my own words"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/a/b/c.jsonl", "c.jsonl"),
        ("~/x", "x"),
        ("--out=/a/b", "--out=b"),
        ("C:\\a\\b", "b"),
        ("worlds:count", "worlds:count"),
        ("a/b", "a/b"),
        (["/a/hf_abcdefgh123", {"k": "/x/y.py:f"}, 3], ["***", {"k": "y.py:f"}, 3]),
    ],
)
def test_scrubbing(value, expected):
    assert card.scrub(value) == expected


# -- what goes wrong ------------------------------------------------------------------------------------------------------------


def test_a_dry_run_sends_nothing(run, standin, capsys):
    assert cli.main(["push", str(run), "me/mine", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "model.safetensors" in out and "# mine" in out and "nothing was sent" in out
    assert not standin.requests


MALFORMED = ("mine", "me/", "/mine", "me/mine/more", "me/mi ne", "me/-mine", "me/mi--ne", "me/mine.git", "me/" + "x" * 97)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_names_are_refused_before_anything_is_sent(run, standin, name, capsys):
    assert cli.main(["push", str(run), name]) == 1
    assert "expected OWNER/NAME" in capsys.readouterr().err
    assert not standin.requests


def test_without_a_token_the_way_to_one_is_told(run, standin, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert cli.main(["push", str(run), "me/mine"]) == 1
    assert "no access token: run `hf auth login`" in capsys.readouterr().err
    assert not standin.requests


@pytest.mark.parametrize(("repo", "token", "status"), [("me/mine", "hf_wrongtoken999", 401), ("others/mine", TOKEN, 403)])
def test_a_refused_token_is_told_without_showing_it(run, standin, repo, token, status, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", token)
    assert cli.main(["push", str(run), repo]) == 1
    said = capsys.readouterr()
    assert f"refused the token for {repo} ({status})" in said.err and "write access" in said.err
    assert token not in said.err + said.out


def test_no_network_is_told(run, standin, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(hub.HubError, match=r"http://127.0.0.1:9 was not reached \(ConnectError"):
        hub.push(run, "me/mine")


def test_offline_mode_is_told(run, standin, monkeypatch):
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _http.close_session()
    with pytest.raises(hub.HubError, match="HF_HUB_OFFLINE"):
        hub.push(run, "me/mine")
    monkeypatch.undo()
    _http.close_session()


def test_a_hub_out_of_order_is_told(run, standin):
    standin.refuse_commit = True
    with pytest.raises(hub.HubError, match="answered 500 to the upload of me/mine"):
        hub.push(run, "me/mine")


def test_what_should_be_private_is_never_sent_to_a_public_place(run, standin):
    hub.push(run, "me/mine")
    sent = len(standin.requests)
    with pytest.raises(hub.HubError, match="is there already and public; nothing was sent"):
        hub.push(run, "me/mine", private=True)
    assert not [r for r in standin.requests[sent:] if "commit" in r[1] or "upload" in r[1]]


def test_a_place_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no model; expected a run folder"):
        hub.push(tmp_path, "me/mine", dry_run=True)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        hub.push(tmp_path, "me/mine", dry_run=True)
