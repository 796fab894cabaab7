"""What changes while a method with several optimizers trains. The method makes it and changes it; the trainer passes it on and saves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class MethodState:
    """Everything that `update` may change.

    Attributes:
      modules: networks by name, trained ones and slow copies; "policy" is the one that acts.
      optimizers: one for each part that is trained by a loss of its own.
      duals: multipliers of constraints, or their logarithms.
      counters: whole numbers, such as updates so far.
      rates: multiples of the recipe's learning rate, by optimizer; 1 where there is none.
      max_grad_norm: gradients of a greater norm are scaled down to it (0: never).
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    duals: dict[str, nn.Parameter] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    max_grad_norm: float = 0.0

    def descend(self, name: str, loss: Tensor, again: bool = False) -> None:
        """One step of an optimizer down `loss`; gradients of other parts are left as they are. `again`: its graph is needed once more."""
        optimizer = self.optimizers[name]
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        for p, g in zip(trained, torch.autograd.grad(loss, trained, retain_graph=again), strict=True):
            p.grad = g
        if self.max_grad_norm:
            nn.utils.clip_grad_norm_(trained, self.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def set_rate(self, rate: float) -> None:
        """The learning rate of every optimizer, as a multiple of it where `rates` says so."""
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * self.rates.get(name, 1.0)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All but the policy, which a checkpoint keeps for itself, by name."""
        for name, module in self._beside().items():
            yield from ((f"module.{name}.{k}", x) for k, x in module.state_dict().items())
        yield from ((f"dual.{name}", x.detach()) for name, x in self.duals.items())
        yield from ((f"counter.{name}", torch.tensor(n)) for name, n in self.counters.items())
        for name, optimizer in self.optimizers.items():
            for i, moments in optimizer.state_dict()["state"].items():
                yield from ((f"optimizer.{name}.{i}.{k}", torch.as_tensor(x)) for k, x in moments.items())

    def load_tensors(self, saved: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` told.

        Raises:
          ValueError: tensors are missing, of another shape, or not known.
        """
        own = {k: x for k, x in self.tensors() if not k.startswith("optimizer.")}
        found = {k: x for k, x in saved.items() if not k.startswith("optimizer.")}
        if odd := sorted(k for k in {**own, **found} if k not in own or k not in found or own[k].shape != found[k].shape):
            there, here = (str(tuple(part[odd[0]].shape)) if odd[0] in part else "nothing" for part in (found, own))
            raise ValueError(
                f"{odd[0]!r}: found {there}, expected {here} ({len(odd)} of {len(own)} tensors differ); is the method the same?"
            )
        for name, module in self._beside().items():
            module.load_state_dict({k: found[f"module.{name}.{k}"] for k in module.state_dict()})
        for name, x in self.duals.items():
            x.data.copy_(found[f"dual.{name}"])
        self.counters = {name: int(found[f"counter.{name}"]) for name in self.counters}
        for name, optimizer in self.optimizers.items():
            mine = f"optimizer.{name}."
            _load_moments(optimizer, {k.removeprefix(mine): x for k, x in saved.items() if k.startswith(mine)})

    def _beside(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self.modules.items() if name != "policy"}


def _load_moments(optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, x in saved.items():
        i, _, moment = key.partition(".")
        state.setdefault(int(i), {})[moment] = x
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
