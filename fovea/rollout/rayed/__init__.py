"""Rollouts on many machines, by Ray: copies of the policy and environments are actors, episodes are kept in books here.

The process that trains is the driver. It keeps episode programs, prompts, verifiers and every episode; a rollout worker is an actor with
one copy of the policy, an environment worker an actor with any number of environments. Actors get and give bytes of `fovea.trainer.wire`
only (JSON and safetensors): no model, task or environment is pickled. Weights go through the object store, once for all workers.

A worker that ends takes nothing with it: a question is asked again elsewhere, an episode whose environment is gone begins anew with the
same random numbers, and another actor takes the worker's place. In turns (`RayEngine`) a run therefore computes what it computes in one
process, but for rounding; beside the trainer (`services.workers`) the data manager's books hold, as they do in one process.

`cluster`: the machines that a run wants. `actors`: what runs there. `crew`: who speaks to them from here. `engine`: rollouts in turns.

Left out: a learner on several machines (`torchrun` does that), and programs that ask environments for more than `reset` and `step`.
"""

from fovea.rollout.rayed.actors import WorkerFailed
from fovea.rollout.rayed.cluster import Ray
from fovea.rollout.rayed.crew import Crew
from fovea.rollout.rayed.engine import RayEngine

__all__ = ["Crew", "Ray", "RayEngine", "WorkerFailed"]
