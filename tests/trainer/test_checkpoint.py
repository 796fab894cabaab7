import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fovea.trainer import checkpoint as ckpt
from tests.trainer.tabular import Tabular

ROOT = Path(__file__).resolve().parents[2]


def made(folder, step, scale=1.0):
    policy = Tabular()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1)
    (policy.logits_TV.sum() * scale).backward()
    optimizer.step()
    return ckpt.save(folder, step, policy, optimizer, {"run": {"step": step}}), policy, optimizer


def test_round_trip_is_bit_equal(tmp_path):
    saved, policy, optimizer = made(tmp_path, 3)
    found = ckpt.latest(tmp_path)
    assert found is not None and found.step == 3 and found.path == saved.path
    other = Tabular()
    fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
    other.load(found.model)
    ckpt.load_optimizer(found, fresh)
    for p, o in ((policy, optimizer), (other, fresh)):
        p.zero_grad()
        (p.logits_TV**2).sum().backward()
        o.step()
    assert torch.equal(policy.logits_TV, other.logits_TV)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "state", "number", "moments", "streams"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_used(tmp_path, damage):
    made(tmp_path, 1)
    newest, _, _ = made(tmp_path, 2)
    file = newest.model / "model.safetensors"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-3])
    if damage == "flip":
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(raw)
    if damage == "remove":
        file.unlink()
    if damage == "state":
        (newest.path / "state.json").write_text('{"step": 2')
    if damage == "number":  # one bit of a counter: still good JSON
        state = (newest.path / "state.json").read_text()
        (newest.path / "state.json").write_text(state.replace('"step": 2', '"step": 3'))
    if damage in ("moments", "streams"):
        file = newest.path / (ckpt.OPTIMIZER if damage == "moments" else ckpt.STREAMS)
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
    said = []
    found = ckpt.latest(tmp_path, note=said.append)
    assert found is not None and found.step == 1
    assert len(said) == 1 and "step-000002" in said[0]


def test_an_interrupted_write_leaves_the_old_one(tmp_path, monkeypatch):
    made(tmp_path, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ckpt, "save_file", full)
    with pytest.raises(ckpt.CheckpointError, match=r"step-000002 could not be written .*No space left.*newest: step-000001"):
        made(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]  # what was written of it takes no space
    monkeypatch.undo()
    made(tmp_path, 2)
    assert ckpt.latest(tmp_path).step == 2


def test_a_file_that_may_not_grow_is_the_same_as_a_full_disk(tmp_path):
    """A process whose files may have 2000 bytes: the library that writes tensors has its own errors."""
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom fovea.trainer import checkpoint as ckpt\n"
        "from tests.trainer.test_checkpoint import made\nfolder = Path(sys.argv[1])\nmade(folder, 1)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "try:\n    made(folder, 2)\nexcept ckpt.CheckpointError as e:\n    print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "step-000002 could not be written" in done.stdout and "File too large" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001"]
    assert ckpt.latest(tmp_path).step == 1


def test_state_cannot_name_files_outside(tmp_path):
    saved, _, _ = made(tmp_path, 1)
    state = json.loads((saved.path / "state.json").read_text())
    state["files"]["../../etc/passwd"] = "0" * 64
    (saved.path / "state.json").write_text(json.dumps(ckpt.sealed(state)))
    with pytest.raises(ckpt.CheckpointError, match="outside"):
        ckpt.read(saved.path)


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4):
        made(tmp_path, step)
    ckpt.prune(tmp_path, keep=2, best=1)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-000001", "step-000003", "step-000004"]


def test_a_weight_without_a_gradient_so_far_has_no_moments_and_resumes(tmp_path):
    policy = Tabular()
    idle = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([idle, *policy.parameters()], lr=0.1)
    policy.logits_TV.sum().backward()
    optimizer.step()
    saved = ckpt.save(tmp_path, 1, policy, optimizer, {})
    fresh = torch.optim.AdamW([idle, *policy.parameters()], lr=0.1)
    ckpt.load_optimizer(saved, fresh)
    assert torch.equal(fresh.state[policy.logits_TV]["exp_avg"], optimizer.state[policy.logits_TV]["exp_avg"])
    assert not fresh.state.get(idle)
    with pytest.raises(ckpt.CheckpointError, match=r"found 3 tensors, expected 0, first difference '1\.exp_avg'"):
        ckpt.load_optimizer(saved, torch.optim.AdamW([idle], lr=0.1))


def test_the_only_checkpoint_survives_being_written_again(tmp_path, monkeypatch):
    made(tmp_path, 1)
    rename = Path.rename

    def killed(self, target):
        if self.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Path, "rename", killed)
        made(tmp_path, 1)
    found = ckpt.latest(tmp_path)
    assert found is not None and found.step == 1
    made(tmp_path, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_moments_of_another_model_are_refused(tmp_path):
    saved, _, _ = made(tmp_path, 1)
    other = Tabular(T=7)
    with pytest.raises(ckpt.CheckpointError, match="shape"):
        ckpt.load_optimizer(saved, torch.optim.AdamW(other.parameters()))
