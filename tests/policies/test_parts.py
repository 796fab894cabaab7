"""Pictures, what is felt, and words side by side: what of an observation reaches a policy and its critics."""

import numpy as np
import pytest
import torch

from fovea.batch import Windows
from fovea.envs.parts import Part, pack, unpack
from fovea.envs.robots import spelled
from fovea.math.augment import shifted
from fovea.policies.control import Critics, Network, Spaces, build, load
from fovea.policies.parts import PartSenses, PartTrunk

PARTS = (Part("wrist", (8, 8, 3), "uint8"), Part("state", (2,)), Part("told", (96,), "uint8"), Part("side", (4, 6, 3), "uint8"))
SPACES = Spaces((sum(p.bytes for p in PARTS),), 3, False, PARTS)


def seen(wrist=0, state=(0.0, 0.0), told="go", side=0):
    values = {"wrist": np.full((8, 8, 3), wrist), "state": state, "told": spelled(told), "side": np.full((4, 6, 3), side)}
    return torch.from_numpy(pack(PARTS, values))[None]


def test_senses_are_numbers_of_size_one_in_the_order_of_the_parts():
    row = PartSenses(PARTS)(seen(wrist=255, state=(0.25, -3), told="A", side=51))[0]
    assert len(row) == 192 + 2 + 96 + 72 and (row[:192] == 0.5).all() and row[192:194].tolist() == [0.25, -3.0]
    assert row[194] == 65 and row[290:].tolist() == pytest.approx([-0.3] * 72)
    assert PartSenses(PARTS)(torch.cat([seen(), seen()])[None]).shape == (1, 2, 362)


@pytest.mark.parametrize("changed", [{"wrist": 9}, {"side": 9}, {"state": (0, 1)}, {"told": "stop"}])
def test_every_part_reaches_policy_and_critics(changed):
    torch.manual_seed(0)
    policy = build("squashed", SPACES, Network(width=16))
    critics = Critics(SPACES, Network(width=16), 2, norm=True)
    action = torch.zeros(1, 3)
    assert (policy(seen()) != policy(seen(**changed))).any()
    assert (critics(policy.senses(seen()), action) != critics(policy.senses(seen(**changed)), action)).all()
    look = PartTrunk(PARTS, 16, pictures_only=True)
    assert (look(policy.senses(seen())) != look(policy.senses(seen(**changed)))).any() == bool({"wrist", "side"} & set(changed))


def test_such_a_policy_is_saved_and_loaded(tmp_path):
    policy = build("gripping", SPACES, Network(width=8))
    policy.save(tmp_path)
    again = load(tmp_path)
    assert again.spaces == SPACES and torch.equal(again(seen(wrist=3)), policy(seen(wrist=3)))


def test_pictures_are_shifted_and_nothing_else():
    rng = np.random.default_rng(0)
    values = [
        {
            "wrist": rng.integers(0, 255, (8, 8, 3)),
            "state": rng.normal(size=2),
            "told": spelled("go"),
            "side": rng.integers(0, 255, (4, 6, 3)),
        }
        for _ in range(4)
    ]
    obs = torch.from_numpy(np.stack([pack(PARTS, v) for v in values])).view(2, 2, -1)
    nothing = torch.zeros(2, 1)
    batch = Windows(obs=obs, actions=nothing[..., None], reward_BL=nothing, ended_BL=nothing.bool(), extras={}, key=5)
    before, after = unpack(PARTS, obs), unpack(PARTS, shifted(batch, 2, PARTS).obs)
    assert torch.equal(after["state"], before["state"]) and torch.equal(after["told"], before["told"])
    for name in ("wrist", "side"):
        assert not torch.equal(after[name], before[name])
        inside = after[name][:, :, 2:-2, 2:-2].flatten(0, 1), before[name].flatten(0, 1)
        height, wide = inside[0].shape[1:3]
        for one, whole in zip(*inside):
            places = [(i, j) for i in range(5) for j in range(5) if torch.equal(whole[i : i + height, j : j + wide], one)]
            assert places, "what is left is where it was, up to two pixels aside"
    assert shifted(batch, 2).obs is obs, "without its parts a row is a vector"
