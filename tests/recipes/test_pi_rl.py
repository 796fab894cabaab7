"""π_RL from demonstrations on a scene: its parts fit together, its credit is that of the card, its arms differ where they should."""

from dataclasses import replace

import pytest
import torch

from fovea import api, recipes, starts
from fovea.ledger.claim import arm_recipe, read
from fovea.math.advantages import gae
from fovea.math.values import value_loss
from fovea.methods.ppo import PPO
from fovea.methods.sft import SFT
from fovea.policies.control import Flow


def test_advantages_by_hand():
    """r = [0, 0, 1], V = [.2, .4, .6], the task ends, γ = .99, λ = .95."""
    reward, value = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.4, 0.6]])
    adv = gae(reward, value, torch.ones(1, 3, dtype=torch.bool), None, 0.99, 0.95)
    assert adv[0].tolist() == pytest.approx([0.73227, 0.57020, 0.40000], abs=1e-5)


def test_hubers_loss_by_hand():
    """δ = 2: ½·1² below it, 2·(5 − 1) beyond."""
    loss = value_loss(torch.tensor([1.0, 5.0, -5.0]), torch.zeros(3), huber=2.0)
    assert loss.tolist() == [0.5, 8.0, 8.0]
    clipped = value_loss(torch.tensor([0.5]), torch.zeros(1), torch.tensor([1.0]), clip=0.2, huber=10.0)
    assert clipped.tolist() == pytest.approx([0.5 * 0.8**2]), "V_clip = 0.8 is further off"


def test_arms_differ_where_they_should():
    tiny, claim, _ = read("pi-rl")
    arms = {a: arm_recipe(tiny, changes) for a, changes in claim.arms.items()}
    assert arms["pi_rl"] == tiny and arms["start"].replace(steps=tiny.steps) == tiny
    assert arms["quiet"].replace(network__level=tiny.network.level) == tiny
    assert arms["grpo"].tasks_per_step * arms["grpo"].group_size == tiny.tasks_per_step, "as many episodes"
    assert arms["learned"].network.noise == "learned"
    assert starts.root(tiny.model) == "network" and recipes.get("pi-rl:warm").network == tiny.network


pytest.importorskip("mujoco")
pytest.importorskip("pyarrow")
pytest.importorskip("gymnasium")

SMALL = {"network__width": 16, "eval_tasks": 2, "threads": 1}


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A run of two steps of flow matching on two demonstrations; its folder."""
    folder = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEA_CACHE", str(folder / "cache"))
        small = recipes.get("pi-rl:warm").replace(**SMALL, data="demos:scene:reach,count=2,noise=0.5", tasks_per_step=8, steps=2)
        run = api.train(small, out=folder / "run", quiet=True)
    return folder, run


def test_demonstrations_are_a_lerobot_set_and_are_learned_from(warm):
    from fovea.tasks.lerobot import LeRobot

    folder, run = warm
    (place,) = [p for p in (folder / "cache/demos").iterdir() if p.is_dir()]
    told = LeRobot(place)
    assert len(told) == 2 and told.features["action"]["shape"] == [2] and told.cameras == ("observation.images.top",)
    assert all(t.startswith("reach the ") for t in told.tasks)
    losses = [m["policy/nll"] for m in run.metrics if "policy/nll" in m]
    assert len(losses) == 2 and 0.3 < losses[0] < 4


def test_a_frame_is_what_was_seen_and_the_chunk_that_followed(warm, monkeypatch):
    from fovea.envs.parts import unpack
    from fovea.tasks.demos import Demonstrations
    from fovea.tasks.lerobot import LeRobot

    monkeypatch.setenv("FOVEA_CACHE", str(warm[0] / "cache"))
    source = Demonstrations.named("scene:reach,count=2,noise=0.5", "train")
    told = LeRobot(source.folder)
    first = told.episode(0)
    assert len(source) == told.frames
    last = source[len(first) - 1]
    assert last.meta["actions"].shape == (8,) and (last.meta["actions"][2:] == 0).all()
    assert last.meta["actions"][:2].tolist() == first.fields["action"][-1].tolist()
    found = unpack(source.robots.make().parts, torch.from_numpy(last.meta["obs"])[None])
    assert (found["top"][0].numpy() == first.fields["observation.images.top"][-1]).all()
    assert Demonstrations.named("scene:reach,count=2", "heldout")[0].meta["seed"] >= 1 << 30
    with pytest.raises(ValueError, match="found count = 0"):
        Demonstrations.named("scene:reach,count=0", "train")
    with pytest.raises(ValueError, match="found 'reach', expected robot:NAME:TASK"):
        Demonstrations.named("reach", "train")


@pytest.mark.parametrize("arm", ["pi_rl", "learned", "grpo"])
def test_a_step_of_each_kind_runs_from_the_start(warm, tmp_path, arm):
    tiny, claim, _ = read("pi-rl")
    recipe = arm_recipe(tiny, claim.arms[arm]).replace(**SMALL, model=str(warm[0] / "model"), steps=1, max_rows=4, micro_batch=5)
    warm[1].policy.save(warm[0] / "model")
    small = {"tasks_per_step": 2, "group_size": 2} if arm == "grpo" else {"tasks_per_step": 4, "epochs_per_rollout": 1}
    run = api.train(recipe.replace(**small, updates_per_rollout=1), out=tmp_path / "run", quiet=True)
    (step,) = [m for m in run.metrics if "policy/ratio_mean" in m]
    assert step["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-4), "the weights have not changed since the chunks were drawn"
    assert step["length/episodes"] == 4 and 0 <= run.after <= 1


def test_settings_of_the_paper():
    assert isinstance(recipes.get("pi-rl:warm").method, SFT)
    tiny = recipes.get("pi-rl")
    assert isinstance(tiny.method, PPO) and replace(tiny.method, value_huber=0.0).needs == tiny.method.needs
    m = tiny.method
    assert (m.gamma, m.lam, m.eps_lo, m.eps_hi, m.dual_clip, m.value_clip, m.value_huber) == (0.99, 0.95, 0.2, 0.2, 3.0, 0.2, 10.0)
    assert (Flow().steps, Flow().level, Flow().std) == (4, 0.5, (0.08, 0.16))
