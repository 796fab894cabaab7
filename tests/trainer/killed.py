"""Runs that are killed at chosen instants: this process imports once, then forks a child for every job that it reads from stdin.

A job is {"out", "changes"} and how it ends: nothing, {"phase", "cpu_s"} for death once the run has spent so much CPU time in that phase, or
{"after"} for SIGKILL from outside after so many seconds. The answer is a line: {"killed", "seconds", "spent"}, the last being the CPU
seconds of each phase of a run that was left alone. Phases are the methods of `Session` below; what comes before its `run` is "start".
"""

import json
import os
import signal
import sys
import time

import torch

import fovea
import fovea.api
import fovea.report.console
import fovea.report.run
import fovea.rollout.engine
from fovea.trainer.session import Session

PHASES = {"run": "loop", "_step": "step", "_evaluate": "evaluate", "save": "save"}


class Watch:
    """Adds up the CPU time of each phase, the innermost counts. In the chosen one a timer runs whose signal nobody handles: the kernel ends
    the process where it stands, as SIGKILL would."""

    def __init__(self, phase="", cpu_s=0.0):
        self.phase, self.cpu_s, self.inside, self.since = phase, cpu_s, ["start"], time.process_time()
        self.spent = dict.fromkeys(("start", *PHASES.values()), 0.0)
        for method, name in PHASES.items():
            setattr(Session, method, self.watched(getattr(Session, method), name))
        self.turn()

    def watched(self, method, name):
        def call(*args, **kwargs):
            self.turn(enter=name)
            try:
                return method(*args, **kwargs)
            finally:
                self.turn()

        return call

    def turn(self, enter=""):
        now = time.process_time()
        self.spent[self.inside[-1]] += now - self.since
        self.since = now
        self.inside.append(enter) if enter else len(self.inside) > 1 and self.inside.pop()
        left = self.cpu_s - self.spent[self.inside[-1]] if self.inside[-1] == self.phase else 0.0
        signal.setitimer(signal.ITIMER_PROF, max(left, 1e-3) if self.inside[-1] == self.phase else 0.0)


def run(job):
    read, write = os.pipe()
    began, child = time.monotonic(), os.fork()
    if not child:
        try:
            watch = Watch(job.get("phase", ""), job.get("cpu_s", 0.0))
            fovea.train("grpo", out=job["out"], quiet=True, **job["changes"])
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.write(write, json.dumps(watch.spent).encode())
        finally:
            os._exit(0)
    os.close(write)
    if "after" in job:
        time.sleep(job["after"])
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(read) as answer:
        spent = json.loads(answer.read() or "{}")
    return {"killed": os.WIFSIGNALED(status), "seconds": time.monotonic() - began, "spent": spent}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
