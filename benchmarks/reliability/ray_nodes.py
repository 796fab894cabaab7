"""One machine of a Ray cluster against two: the same episodes, the same parameters.

    python benchmarks/reliability/ray_nodes.py [--namespace]

Two `ray start` on this machine, with --namespace the second in a network namespace of its own (root, iproute2): it reaches the first
through a pair of virtual interfaces only, as another machine would. First every worker is on the first node; then one rollout worker is on
each and the environments are on the second. Prints a line of JSON; fails where an episode differs, or a parameter by more than 1e-6.
"""

import argparse
import contextlib
import itertools
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fovea
from fovea.rollout.engine import Engine
from fovea.rollout.rayed import Ray

PORT, NAMESPACE = 6390, "fovea-ray"
HERE, THERE = "10.77.0.1", "10.77.0.2"
MOST = 1e-6
PORTS = itertools.count(21100)

RUN: dict[str, Any] = dict(
    data="desk:mark,each=4",
    environment="desk",
    tasks_per_step=2,
    group_size=3,
    max_rows=6,
    sampling__max_new_tokens=4,
    dtype="float64",
    eval_tasks=0,
    steps=2,
    threads=1,
    quiet=True,
)


class Parity:
    """Right is an episode whose words add up to an odd number: random to the model, and the same wherever it was played."""

    scope = "episode"

    def score(self, group, context):
        values = [sum(map(ord, "".join(t.text for t in e.turns))) % 2 for e in group.episodes]
        return [fovea.Score(float(v), correct=bool(v)) for v in values]


@contextlib.contextmanager
def node(*options, prefix=(), patience_s=180):
    """A node of Ray's until the block ends. Ports are given, because a raylet waits only fifteen seconds to be told."""
    names = ("metrics-export-port", "dashboard-agent-grpc-port", "dashboard-agent-listen-port", "runtime-env-agent-port")
    ports = [f"--{name}={next(PORTS)}" for name in names]
    command = [*prefix, str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=4", "--object-store-memory=100000000"]
    process = subprocess.Popen([*command, *ports, *options], stdout=subprocess.DEVNULL, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"})
    try:
        yield process
    finally:
        process.terminate()
        process.wait(patience_s)


@contextlib.contextmanager
def namespace(name):
    """A network namespace whose only way out is a pair of virtual interfaces."""
    pair = f"{name[:8]}0", f"{name[:8]}1"
    steps = f"""ip netns add {name}
        ip link add {pair[0]} type veth peer name {pair[1]} netns {name}
        ip addr add {HERE}/24 dev {pair[0]}
        ip link set {pair[0]} up
        ip -n {name} addr add {THERE}/24 dev {pair[1]}
        ip -n {name} link set {pair[1]} up
        ip -n {name} link set lo up"""
    try:
        for step in steps.splitlines():
            subprocess.run(step.split(), check=True)
        yield ("ip", "netns", "exec", name)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


def wait(nodes, address, patience_s=180):
    """Until so many nodes are there."""
    import ray

    end = time.monotonic() + patience_s
    host, _, port = address.partition(":")
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            break
        time.sleep(1)
    while True:
        with contextlib.suppress(Exception):
            ray.init(address=address, logging_level=40)
            if sum(n["Alive"] for n in ray.nodes()) == nodes:
                ray.shutdown()
                return
        ray.shutdown()
        if time.monotonic() > end:
            raise TimeoutError(f"{nodes} nodes at {address} within {patience_s} s; see /tmp/ray/session_latest/logs")
        time.sleep(1)


def train(engine):
    """(episodes, parameters) of a short run."""
    episodes, old = [], Engine.rollout

    def rollout(self, *args, **kwargs):
        groups = old(self, *args, **kwargs)
        episodes.extend((e.id, [t.text for t in e.turns]) for g in groups for e in g.episodes)
        return groups

    Engine.rollout = rollout
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = fovea.train("grpo", out=folder, engine=engine, reward=Parity(), **RUN)
    finally:
        Engine.rollout = old
    assert not any(v for k, v in run.metrics[-1].items() if k.startswith("ray/")), "a worker was lost"
    return episodes, {n: p.detach() for n, p in run.policy.named_parameters()}


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--namespace", action="store_true", help="the second node in a network namespace of its own")
    apart = parser.parse_args().namespace
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with contextlib.ExitStack() as ended:
        prefix = ended.enter_context(namespace(NAMESPACE)) if apart else ()
        own = HERE if apart else "127.0.0.1"
        address = f"{own}:{PORT}"
        head = ["--head", f"--port={PORT}", f"--node-ip-address={own}", "--include-dashboard=false"]
        ended.enter_context(node(*head, "--resources", json.dumps({"one": 9, "each": 1})))
        wait(1, address)
        episodes, parameters = train(Ray(address, workers=2, environments=1, on="one", environments_on="one"))
        there = ["--node-ip-address", THERE] if apart else []
        ended.enter_context(node(f"--address={address}", *there, "--resources", json.dumps({"two": 9, "each": 1}), prefix=prefix))
        wait(2, address)
        again, others = train(Ray(address, workers=2, environments=1, on="each", environments_on="two"))
    differ = max(float((parameters[n] - others[n]).abs().max()) for n in parameters)
    found = {"episodes": len(episodes), "same_episodes": episodes == again, "parameters_differ_by": differ, "namespaces": apart}
    print(json.dumps(found))
    return 0 if found["same_episodes"] and differ <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
