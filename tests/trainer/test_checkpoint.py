import json
from pathlib import Path

import pytest
import torch

from fovea.trainer import checkpoint as ckpt
from tests.trainer.tabular import Tabular


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


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "state"])
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
    said = []
    found = ckpt.latest(tmp_path, note=said.append)
    assert found is not None and found.step == 1
    assert len(said) == 1 and "step-000002" in said[0]


def test_an_interrupted_write_leaves_the_old_one(tmp_path, monkeypatch):
    made(tmp_path, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ckpt, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        made(tmp_path, 2)
    found = ckpt.latest(tmp_path)
    assert found is not None and found.step == 1
    ckpt.prune(tmp_path, keep=2, best=None)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_state_cannot_name_files_outside(tmp_path):
    saved, _, _ = made(tmp_path, 1)
    state = json.loads((saved.path / "state.json").read_text())
    state["files"]["../../etc/passwd"] = "0" * 64
    (saved.path / "state.json").write_text(json.dumps(state))
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
