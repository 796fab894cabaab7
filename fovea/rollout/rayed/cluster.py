"""The machines: what a run asks of them, whether they have room for it, and how they are reached."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

STORE_BYTES = 200 << 20  # of object store beside the weights, where we start Ray ourselves
FINEST = 1e-4  # part of a resource that Ray counts


@dataclass(frozen=True)
class Ray:
    """Where answers are generated and environments live: actors on the machines of a Ray cluster.

    Attributes:
      address: of a running cluster, "auto" or HOST:PORT; "" starts one on this machine for the length of the run.
      workers: copies of the policy; with services, `services.workers` says how many.
      cpus, gpus: of each of them. One with a GPU computes there, else on CPUs.
      environments: processes that hold the environments; 0: the environments stay in the process that trains.
      environment_cpus: of each of them.
      on: a resource of Ray's (`ray start --resources`) of which every rollout worker takes 1, so that they come to chosen machines.
      environments_on: the same for environment workers.
    """

    address: str = ""
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    environments: int = 0
    environment_cpus: float = 1.0
    on: str = ""
    environments_on: str = ""

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("environments", 0), ("cpus", 0), ("gpus", 0), ("environment_cpus", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"engine.{name} = {getattr(self, name)!r}; expected at least {least}")


def connect(where: Ray, weights: int = 0) -> tuple[ModuleType, bool]:
    """Ray, connected to the cluster, and whether it was started here.

    Args:
      weights: bytes of one version of the weights.
    Raises:
      ImportError: Ray is not installed; the extra that brings it is named.
      RuntimeError: no cluster at the address, or none could be started.
      ValueError: the cluster has no room for what is asked.
    """
    try:
        import ray
    except ImportError:
        raise ImportError("engine = Ray(...): missing ray: pip install 'fovea-rl[ray]'") from None
    started = not ray.is_initialized()
    if started:
        attach(ray, where, weights)
    try:
        check_room(where, [n["Resources"] for n in ray.nodes() if n["Alive"]])
    except ValueError:
        if started:
            ray.shutdown()
        raise
    return ray, started


def attach(ray: ModuleType, where: Ray, weights: int) -> None:
    """Connect to the cluster of the address, or start one here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    asked: dict[str, Any] = {"address": where.address}
    if not where.address:
        cpus = where.workers * where.cpus + where.environments * where.environment_cpus
        own = {name: 1e6 for name in (where.on, where.environments_on) if name}
        store = STORE_BYTES + 3 * weights  # the last one, the next one, and what is on its way
        asked = {
            "address": "local",
            "num_cpus": math.ceil(cpus),
            "resources": own,
            "object_store_memory": store,
            "include_dashboard": False,
        }
    try:
        ray.init(**asked, logging_level=logging.ERROR)
    except Exception as e:  # Ray raises plain Exception where its processes do not start in time
        hint = (
            f"is a cluster running at engine.address = {where.address!r}? `ray start --head` begins one"
            if where.address
            else "on a busy machine its processes may take longer than it waits; begin a cluster with `ray start --head` and say "
            "--engine.address auto"
        )
        raise RuntimeError(f"Ray did not connect: {type(e).__name__}: {e}; {hint}") from e


@dataclass(frozen=True)
class Want:
    """What each of `count` actors takes of a resource, by the field of `Ray` that says so."""

    field: str
    each: float
    resource: str
    count: int
    kind: str


def wanted(where: Ray) -> list[Want]:
    """All that the actors of a run take."""
    answers, stages = (where.workers, "rollout workers"), (where.environments, "environment workers")
    wants = [
        Want("cpus", where.cpus, "CPU", *answers),
        Want("gpus", where.gpus, "GPU", *answers),
        Want("on", 1.0, where.on, *answers),
        Want("environment_cpus", where.environment_cpus, "CPU", *stages),
        Want("environments_on", 1.0, where.environments_on, *stages),
    ]
    return [w for w in wants if w.resource and w.count and w.each]


def places(wants: Sequence[Want], machines: Sequence[Mapping[str, float]]) -> int:
    """How many actors that want all of these the machines hold at a time."""
    return sum(min(int((m.get(w.resource, 0.0) + FINEST) / w.each) for w in wants) for m in machines)


def unmet(wants: Sequence[Want], machines: Sequence[Mapping[str, float]]) -> list[Want]:
    """Those for which the machines have no room, also when nobody else is there."""
    for kind in dict.fromkeys(w.kind for w in wants):
        own = [w for w in wants if w.kind == kind]
        if places(own, machines) < own[0].count:
            return [w for w in own if places([w], machines) < w.count] or own
    for resource in dict.fromkeys(w.resource for w in wants):
        own = [w for w in wants if w.resource == resource]
        if sum(w.count * w.each for w in own) > sum(m.get(resource, 0.0) for m in machines) + FINEST:
            return own
    return []


def check_room(where: Ray, machines: Sequence[Mapping[str, float]]) -> None:
    """
    Args:
      machines: the resources of each by name.
    Raises:
      ValueError: some actors would wait for ever.
    """
    lacking = unmet(wanted(where), machines)
    if not lacking:
        return
    asked = ", ".join(f"engine.{w.field} = {getattr(where, w.field)!r} for each of {w.count} {w.kind}" for w in lacking)
    held = {name: [m.get(name, 0.0) for m in machines] for name in dict.fromkeys(w.resource for w in lacking)}
    has = ", ".join(f"{name} {sum(of):g} (at most {max(of, default=0):g} on one machine)" for name, of in held.items())
    raise ValueError(
        f"{asked}; the cluster has {has}; expected room for all of them at a time, each on one machine, or they wait for ever: ask "
        "for less, or give Ray more there (`ray start --num-cpus, --num-gpus, --resources`)"
    )
