"""Models that recipes make."""

import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from fovea import api, recipes, starts
from fovea.ledger.claim import settings
from fovea.ledger.runs import weights
from fovea.methods.sft import SFT
from fovea.plan import checkpoint
from fovea.policies.tiny_vlm import BASE_DIR
from fovea.recipe import Recipe
from fovea.recipes import sft
from fovea.trainer import lock

WARM = Recipe(name="warm", method=SFT(), data="worlds:count", steps=1, tasks_per_step=2, eval_tasks=0)


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """A recipe sft:warm, and the commands that were run to train it; they run here instead of in a process that knows no such recipe."""
    commands = []

    def run(command, **_):
        commands.append(command)
        starts.main(command[3], starts.Path(command[4]))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(sft, "warm", WARM, raising=False)
    monkeypatch.setenv("FOVEA_CACHE", str(tmp_path))
    monkeypatch.setattr(starts, "subprocess", SimpleNamespace(run=run))
    weights.cache_clear()
    return commands


def test_a_start_is_trained_once_and_then_found(runs, tmp_path):
    first = starts.folder("sft:warm")
    assert runs == [[sys.executable, "-m", "fovea.starts", "sft:warm", str(first.parent)]]
    assert first.is_relative_to(tmp_path / "starts")
    assert starts.folder("sft:warm") == first
    assert len(runs) == 1
    assert not (first.parent / "run" / "checkpoints").exists()
    trained, base = (api.load_policy(m).model.state_dict() for m in ("sft:warm", "tiny"))
    assert any(not torch.equal(trained[k], base[k]) for k in base)
    assert len(weights("sft:warm")) == 12
    assert weights("sft:warm") != weights("tiny")


def test_the_key_follows_the_recipe_and_what_is_under_it(runs, monkeypatch):
    key = starts.key("sft:warm")
    monkeypatch.setattr(sft, "warm", WARM.replace(steps=2))
    assert starts.key("sft:warm") != key
    monkeypatch.setattr(sft, "warm", WARM.replace(seed=1))
    assert starts.key("sft:warm") != key
    monkeypatch.setattr(sft, "warm", WARM)
    assert starts.key("sft:warm") == key
    monkeypatch.setattr(sft, "warmer", WARM.replace(model="sft:warm"), raising=False)
    over = starts.key("sft:warmer")
    monkeypatch.setattr(sft, "warm", WARM.replace(learning_rate=1.0))
    assert starts.key("sft:warmer") != over
    assert runs == []


def test_the_key_follows_the_code_of_its_own_tasks_alone(tmp_path, monkeypatch):
    for file, text in {
        "recipes/mine.py": "'''Old words.'''\nfrom fovea.tasks.mine import Mine\nCLAIM = 1\n",
        "tasks/mine.py": "from fovea.tasks.deep import draw\n",
        "tasks/deep/__init__.py": "",
        "tasks/deep/draw.py": "SIZE = 1\n",
        "tasks/other.py": "A = 1\n",
    }.items():
        (tmp_path / "fovea" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fovea" / file).write_text(text)

    def code_with(file, old, new):
        place = tmp_path / "fovea" / file
        place.write_text(place.read_text().replace(old, new))
        return starts.code_of(["fovea.recipes.mine"])

    monkeypatch.setattr(starts, "PACKAGE", tmp_path / "fovea")
    first = starts.code_of(["fovea.recipes.mine"])
    for change in (("recipes/mine.py", "Old", "New"), ("recipes/mine.py", "CLAIM = 1", "CLAIM = 2"), ("tasks/other.py", "1", "2")):
        assert code_with(*change) == first
    for change in (("tasks/deep/draw.py", "1", "2"), ("tasks/mine.py", "\n", "\nB = 1\n"), ("recipes/mine.py", "CLAIM", "OTHER")):
        assert code_with(*change) != first
        first = starts.code_of(["fovea.recipes.mine"])


def test_settings_of_a_run_hold_those_of_its_start(runs, monkeypatch):
    recipe = WARM.replace(model="sft:warm")
    before = settings(recipe)
    assert before["start"]["steps"] == 1
    monkeypatch.setattr(sft, "warm", WARM.replace(steps=7))
    assert settings(recipe)["start"]["steps"] == 7
    assert "start" not in settings(WARM)


def test_what_only_looks_needs_no_training(runs):
    assert starts.root("sft:warm") == "tiny"
    assert checkpoint("sft:warm") == BASE_DIR
    assert "sft:warm" in recipes.names()
    assert runs == []


def test_other_models_are_not_starts():
    assert starts.recipe("tiny") is None
    assert starts.recipe("some/folder") is None
    assert starts.recipe("odd:name") is None
    with pytest.raises(ValueError, match="no recipe 'sft:nothing'"):
        starts.recipe("sft:nothing")
    with pytest.raises(ValueError, match="not made by a recipe"):
        starts.key("tiny")


def test_another_process_that_trains_it_is_waited_for(runs, monkeypatch):
    monkeypatch.setattr(starts, "WAIT_S", 0.01)
    place = starts.home() / "starts" / f"sft-warm-{starts.key('sft:warm')}"
    held = threading.Event()

    def other():
        with lock.held(place):
            held.set()
            time.sleep(0.2)
            (place / "model").mkdir()

    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    assert starts.folder("sft:warm") == place / "model"
    assert runs == []
    thread.join()


def test_a_start_whose_training_fails_is_said_by_name(runs, monkeypatch):
    monkeypatch.setattr(starts, "subprocess", SimpleNamespace(run=lambda *_, **__: SimpleNamespace(returncode=3)))
    with pytest.raises(RuntimeError, match="sft:warm: training it ended with status 3"):
        starts.folder("sft:warm")
