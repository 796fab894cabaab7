"""Policies and critics of simulators, small networks that are made for the spaces they meet.

    actor-critic   a categorical or Gaussian policy with a value head (`fovea.policies.pixel`): PPO and the other on-policy methods
    squashed       a Gaussian squashed into [−1, 1] by tanh: SAC
    gripping       the same, whose last action is a gripper's command, chosen by its value; gripping2 has two grippers: HIL-SERL
    bounded        one action in [−1, 1], with noise while it explores: TD3
    values         a value for each of a few actions, a random one now and then while it explores: DQN
    world-model    a squashed Gaussian on the latents of a world model (`fovea.policies.world_model`): RePo, Dreamer
    flow           chunks of actions by flow matching, from pictures and words (`fovea.policies.flow_vla`): π_RL

All are `fovea.rollout.vector.ArrayPolicy`: observations are uint8 pictures (..., H, W, C) or vectors (..., D), continuous actions lie in
[−1, 1] in every dimension, and the numbers that an action consumes are handed over. Those that learn from a replay also see rows of several
parts, as robots have them: pictures, what is felt, and words (`fovea.policies.parts`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from fovea.envs.parts import Part
from fovea.math.grasps import commands
from fovea.math.options import check, choose
from fovea.math.squash import squashed
from fovea.policies.flow_vla import FlowVLA
from fovea.policies.parts import senses_of, trunk_of
from fovea.policies.pixel import PixelPolicy, normals
from fovea.policies.world_model import WorldModel

PI0 = "pi0:"
"""What stands before the name of a π0 (`fovea.policies.pi0`)."""
LOG_STD = (-5.0, 2.0)
"""Bounds of the squashed Gaussian's log standard deviation, those of common SAC implementations."""


@dataclass(frozen=True)
class Network:
    """The size of a network that is made for a simulator.

    Attributes:
      width: units of a layer.
      normalise: vectors are shifted and scaled by mean and standard deviation of what was seen so far, which the weights keep.
    """

    kind: ClassVar[str] = ""
    """The kind of policy that it is of, a key of `KINDS`; "" leaves that to the method."""

    width: int = 64
    normalise: bool = False

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"network: width = {self.width}; expected at least 1")


@dataclass(frozen=True)
class Flow(Network):
    """A network that draws chunks of actions by flow matching, and how it is sampled while it learns.

    Attributes:
      steps: K, from noise to the chunk; 4 in the paper.
      noise: "sde", one step that keeps the flow's marginals, or "learned", every step with a standard deviation from a head.
      level: a of "sde", 0.5 in the paper. every: all steps of "sde" are random, not one. ignore_last: never the last one.
      std: bounds of "learned"; (0.08, 0.16) in the paper.
      frozen: what reads pictures, proprioception and words is not trained.
    """

    kind: ClassVar[str] = "flow"

    steps: int = 4
    noise: Literal["sde", "learned"] = "sde"
    level: float = 0.5
    every: bool = False
    ignore_last: bool = False
    std: tuple[float, float] = (0.08, 0.16)
    frozen: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check("network: noise", self.noise, ("sde", "learned"))
        for name, ok, rule in (
            ("steps", self.steps >= 1, "at least 1"),
            ("level", self.level >= 0, "0 or more"),
            ("std", 0 < self.std[0] <= self.std[1], "two rising positive numbers"),
            ("ignore_last", not self.ignore_last or self.steps > 1, "False, or steps of at least 2"),
        ):
            if not ok:
                raise ValueError(f"network: {name} = {getattr(self, name)!r}; expected {rule}")


@dataclass(frozen=True)
class Latents(Network):
    """A world model; `width` is that of its belief and of every hidden layer.

    Attributes:
      stochastic: dimensions of its random state.
      channels: of its first convolution; each further one has twice as many.
    """

    kind: ClassVar[str] = "world-model"

    stochastic: int = 8
    channels: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stochastic", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"network: {name} = {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True)
class Spaces:
    """What a simulator shows and takes.

    Attributes:
      obs_shape: (H, W, C) of pictures or (D,) of vectors.
      actions: number of discrete actions, or dimension of continuous ones.
      discrete: which of both.
      parts: of what an observation is made, where it is a row of bytes (`fovea.envs.parts`).
      chunk: how many actions one action is made of.
    """

    obs_shape: tuple[int, ...]
    actions: int
    discrete: bool
    parts: tuple[Part, ...] = ()
    chunk: int = 1


class Controller(nn.Module):
    """What the off-policy policies share: senses, a trunk, a linear head, and how they are saved.

    Attributes:
      exploration: how much is added to what the policy would do, in the unit of its kind; greedy episodes have none.
    """

    kind = ""

    def __init__(self, spaces: Spaces, network: Network, outputs: int, draws: int):
        super().__init__()
        self.spaces, self.network = spaces, network
        self.senses = senses_of(spaces.obs_shape, spaces.parts, network.normalise)
        self.trunk, self.head = trunk_of(spaces.obs_shape, network.width, spaces.parts), nn.Linear(network.width, outputs)
        self.draws, self.version, self.exploration = draws, 0, 0.0

    def forward(self, obs: Tensor) -> Tensor:
        return self.from_seen(self.senses(obs))

    def from_seen(self, seen: Tensor) -> Tensor:
        """The outputs for what the senses made of an observation."""
        return self.head(self.trunk(seen))

    def save(self, folder: str | Path) -> None:
        """`model.safetensors` and `config.json` into `folder`."""
        write(folder, self)


def write(folder: str | Path, policy: Any) -> None:
    """What `load` reads: weights, and the spaces and the network that they were made for."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in policy.state_dict().items()}, Path(folder) / "model.safetensors")
    config = {"policy": policy.kind, "spaces": asdict(policy.spaces), "network": asdict(policy.network)}
    Path(folder, "config.json").write_text(json.dumps(config, indent=1))


class Squashed(Controller):
    kind = "squashed"

    def __init__(self, spaces: Spaces, network: Network):
        super().__init__(spaces, network, 2 * spaces.actions, spaces.actions)

    def sample(self, obs: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
        """(action_BA, logp_B) for standard normal noise, differentiable."""
        return self.sample_seen(self.senses(obs), noise_BA)

    def sample_seen(self, seen: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
        """As `sample`, from what the senses made of an observation."""
        mean_BA, log_std_BA = self.from_seen(seen).chunk(2, -1)
        return squashed(mean_BA, log_std_BA.clamp(*LOG_STD), noise_BA)

    @torch.no_grad()
    def act(self, obs: Tensor, uniform_ED: Tensor, greedy_E: Tensor) -> dict[str, Tensor]:
        actions, logp = self.sample(obs, normals(uniform_ED).float() * ~greedy_E[:, None])
        return {"actions": actions, "logp": logp}


class Gripping(Squashed):
    """The last `grippers` actions are commands: −1 closes, 0 leaves as it is, 1 opens. `grasp` values all of their combinations."""

    grippers = 1
    kind = "gripping"

    def __init__(self, spaces: Spaces, network: Network):
        if spaces.actions <= self.grippers:
            raise ValueError(f"{spaces.actions} actions, of which {self.grippers} move grippers; expected others beside them")
        super().__init__(replace(spaces, actions=spaces.actions - self.grippers), network)
        self.spaces = spaces
        self.grasp = Controller(spaces, network, 3**self.grippers, 0)

    @torch.no_grad()
    def act(self, obs: Tensor, uniform_ED: Tensor, greedy_E: Tensor) -> dict[str, Tensor]:
        out = super().act(obs, uniform_ED, greedy_E)
        best = self.grasp.from_seen(self.senses(obs)).argmax(1)
        return {**out, "actions": torch.cat([out["actions"], commands(best, self.grippers)], 1)}


class GrippingTwo(Gripping):
    grippers = 2
    kind = "gripping2"


class Bounded(Controller):
    """`exploration` is the standard deviation of the noise. A clipped Gaussian has no density: `logp` is 0."""

    kind = "bounded"

    def __init__(self, spaces: Spaces, network: Network):
        super().__init__(spaces, network, spaces.actions, spaces.actions)

    def from_seen(self, seen: Tensor) -> Tensor:
        return torch.tanh(super().from_seen(seen))

    @torch.no_grad()
    def act(self, obs: Tensor, uniform_ED: Tensor, greedy_E: Tensor) -> dict[str, Tensor]:
        noise = self.exploration * normals(uniform_ED).float() * ~greedy_E[:, None]
        actions = (self(obs) + noise).clamp(-1, 1)
        return {"actions": actions, "logp": actions.new_zeros(len(actions))}


class Values(Controller):
    """`exploration` is the probability of an action drawn evenly from all."""

    kind = "values"

    def __init__(self, spaces: Spaces, network: Network):
        super().__init__(spaces, network, spaces.actions, 2)

    @torch.no_grad()
    def act(self, obs: Tensor, uniform_ED: Tensor, greedy_E: Tensor) -> dict[str, Tensor]:
        best, n = self(obs).argmax(1), self.spaces.actions
        chance = self.exploration * (~greedy_E).double()
        even = (uniform_ED[:, 1] * n).long().clamp(max=n - 1)
        actions = torch.where(uniform_ED[:, 0] < chance, even, best)
        return {"actions": actions, "logp": (chance / n + (1 - chance) * (actions == best)).log().float()}


class Random:
    """Actions drawn evenly from all: what fills a replay before there is anything to learn from."""

    def __init__(self, spaces: Spaces):
        self.spaces, self.version, self.draws = spaces, 0, 1 if spaces.discrete else spaces.actions

    def act(self, obs: Tensor, uniform_ED: Tensor, greedy_E: Tensor) -> dict[str, Tensor]:
        n, some = self.spaces.actions, len(uniform_ED)
        if self.spaces.discrete:
            return {"actions": (uniform_ED[:, 0] * n).long().clamp(max=n - 1), "logp": torch.full((some,), 1 / n).log()}
        return {"actions": (2 * uniform_ED - 1).float(), "logp": torch.full((some,), 0.5**n).log()}


class Critics(nn.Module):
    """N estimates of the value of (observation, action), computed side by side; pictures have one trunk for all.

    Args:
      norm: the layers between are normalised (Ba et al. 2016), which keeps values of unseen actions small (RLPD).
    """

    def __init__(self, spaces: Spaces, network: Network, count: int = 2, norm: bool = False):
        super().__init__()
        self.norm = norm
        vector = len(spaces.obs_shape) == 1 and not spaces.parts
        self.trunk = nn.Identity() if vector else trunk_of(spaces.obs_shape, network.width, spaces.parts)
        sizes = ((spaces.obs_shape[0] if vector else network.width) + spaces.actions, network.width, network.width, 1)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inside, outside in itertools.pairwise(sizes):
            layers = [nn.Linear(inside, outside) for _ in range(count)]
            self.weights.append(torch.stack([layer.weight.detach().T for layer in layers]))
            self.biases.append(torch.stack([layer.bias.detach()[None] for layer in layers]))

    def forward(self, seen: Tensor, actions_BA: Tensor) -> Tensor:
        """(N, B); `seen` is what the policy's senses make of an observation."""
        x = torch.cat([self.trunk(seen), actions_BA], -1).expand(len(self.weights[0]), -1, -1)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias, x, weight)
            if i + 1 < len(self.weights):
                x = (layer_norm(x, x.shape[-1:]) if self.norm else x).relu()
        return x[..., 0]


KINDS: Mapping[str, Callable[[Spaces, Any], Any]] = {
    "actor-critic": lambda spaces, network: PixelPolicy(
        spaces.obs_shape,
        spaces.actions,
        "categorical" if spaces.discrete else "gaussian",
        network.width,
        normalise=network.normalise,
        shared=len(spaces.obs_shape) == 3,
    ),
    "squashed": Squashed,
    "gripping": Gripping,
    "gripping2": GrippingTwo,
    "bounded": Bounded,
    "values": Values,
    "flow": FlowVLA,
    "world-model": WorldModel,
}

OWN: Mapping[str, type[Network]] = {network.kind: network for network in (Flow, Latents)}
"""Kinds whose networks have settings of their own; another network gives them its width."""


def build(kind: str, spaces: Spaces, network: Network) -> Any:
    """A policy of a kind with new weights, from torch's generator.

    Raises:
      ValueError: no such kind, or one that cannot take such actions.
    """
    make = choose("policy", kind, KINDS)
    continuous = ("squashed", "gripping", "gripping2", "bounded", "flow", "world-model")
    wanted = {"values": True, **dict.fromkeys(continuous, False)}.get(kind, spaces.discrete)
    if wanted != spaces.discrete:
        raise ValueError(
            f"a policy of kind {kind!r} takes {'discrete' if wanted else 'continuous'} actions, the simulator has "
            f"{'discrete' if spaces.discrete else 'continuous'} ones; expected a method for these (dqn or ppo; sac, td3, repo-mbrl or ppo)"
        )
    own = OWN.get(kind, Network)
    return make(spaces, network if isinstance(network, own) else own(**asdict(network)))


def saved(folder: Path) -> bool:
    """Whether a folder holds a policy of a simulator."""
    file = folder / "config.json"
    if not file.is_file():
        return False
    if (folder / "policy.json").is_file():  # fovea.policies.pi0
        return True
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(config, dict) and ("policy" in config or {"obs_shape", "kind"} <= set(config))


def load(folder: Path) -> Any:
    """The policy that `save` wrote."""
    if (folder / "policy.json").is_file():
        from fovea.policies.pi0 import Pi0

        return Pi0.load(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "policy" not in config:
        return PixelPolicy.load(folder)
    network = OWN.get(config["policy"], Network)(**settings_of(config["network"]))
    policy = build(config["policy"], spaces_of(config["spaces"]), network)
    policy.load_state_dict(load_file(folder / "model.safetensors"))
    return policy


def spaces_of(told: Mapping[str, Any]) -> Spaces:
    """Spaces from JSON."""
    parts = tuple(Part(p["name"], tuple(p["shape"]), p["kind"]) for p in told.get("parts", ()))
    return Spaces(tuple(told["obs_shape"]), told["actions"], told["discrete"], parts, told.get("chunk", 1))


def settings_of(told: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a network from JSON."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
