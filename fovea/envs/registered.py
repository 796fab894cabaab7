"""The package's own simulators for array policies, by Gymnasium id: ``data="gym:fovea/PointMass-v0"``, ``"gym:dmc/walker-walk-v0"``."""

from __future__ import annotations

from fovea.envs.resolve import Listed

SIMULATORS: dict[str, Listed] = {
    "fovea": Listed(
        "fovea.envs.pixels",
        "in pixels: a point mass before a drifting background, a peg and its slot",
        "gym:fovea/PointMass-v0",
    ),
    "dmc": Listed(
        "fovea.envs.dmc:Suite",
        "tasks of dm_control in pixels, their sky replaced by a drifting background",
        "gym:dmc/walker-walk-v0",
        extra="sim",
        packages=("gymnasium", "dm_control", "mujoco"),
        libraries=("EGL",),
    ),
}
"""Namespace of the id -> what is behind it; `where` is a class that takes the name in the id, or the module of such classes."""


def register(id: str) -> None:
    """Make an id of `SIMULATORS` known to Gymnasium; any other one is left alone.

    Raises:
      ImportError: its packages are absent; the extra that brings them is named.
      ValueError: there is no such simulator.
    """
    import importlib

    import gymnasium

    space, _, rest = id.partition("/")
    if space not in SIMULATORS or id in gymnasium.registry:
        return
    if problem := SIMULATORS[space].problem():
        raise ImportError(f"gym:{id}: {problem}")
    name, version = rest.rpartition("-v")[::2]
    where, colon, _ = SIMULATORS[space].where.partition(":")
    if version != "0" or not name or not (colon or hasattr(importlib.import_module(where), name)):
        raise ValueError(f"gym:{id}: found no such simulator; expected a name and its version, such as {SIMULATORS[space].example}")
    entry, kwargs = (SIMULATORS[space].where, {"name": name}) if colon else (f"{where}:{name}", {})
    gymnasium.register(id, entry_point=entry, kwargs=kwargs, disable_env_checker=True)
