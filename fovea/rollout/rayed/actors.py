"""What runs in the actors, and the bytes in which they are spoken to."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import traceback
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fovea.rollout.programs import settled
from fovea.rollout.sampling import Sampling
from fovea.rollout.services import Question, Weights, Worker
from fovea.trainer import wire
from fovea.types import Prefix

PROMPTS = 256  # that stay in the object store, and that a worker keeps encoded


class WorkerFailed(RuntimeError):
    """Something was raised in a worker; the message says what, in which line, and on which machine."""


def packed(value: Any) -> np.ndarray:
    """Bytes that Ray moves without looking into them."""
    return np.frombuffer(wire.pack(value), np.uint8)


def unpacked(data: np.ndarray) -> Any:
    return wire.unpack(data.tobytes())


async def told(work: Callable[[], Awaitable[Any]]) -> np.ndarray:
    """What `work` returns, or what it raised, in words: an exception's own object might not be what the other side can read."""
    try:
        return packed({"value": await work()})
    except Exception as e:
        at = traceback.extract_tb(e.__traceback__)[-1]
        return packed({"error": f"{type(e).__name__}: {e} ({at.filename}:{at.lineno} on {socket.gethostname()})"})


def heard(data: np.ndarray) -> Any:
    """
    Raises:
      WorkerFailed: the other side did.
    """
    said = unpacked(data)
    if "error" in said:
        raise WorkerFailed(said["error"])
    return said["value"]


class Responder:
    """A rollout worker: one copy of the policy, made from the files of its checkpoint.

    Args:
      files: bytes of the checkpoint's files by name.
      options: of `HFVLM.load`.
    """

    def __init__(self, files: np.ndarray, options: Mapping[str, Any], sampling: Mapping[str, Any], rounding: str):
        from fovea.api import load_policy

        with tempfile.TemporaryDirectory(prefix="fovea-policy-") as folder:
            for name, content in unpacked(files).items():
                (Path(folder) / name).write_bytes(content.tobytes())
            policy = load_policy(folder, **options)
        self.worker = Worker(policy, Sampling(**sampling), rounding)
        self.prompts: OrderedDict[str, Prefix] = OrderedDict()
        self.serving: asyncio.Task[None] | None = None

    async def answer(self, question: np.ndarray, shown: np.ndarray) -> np.ndarray:
        return await told(lambda: self._answer(question, shown))

    async def renew(self, weights: np.ndarray) -> np.ndarray:
        return await told(lambda: self._while_serving(self.worker.renew(Weights(**unpacked(weights)))))

    async def _answer(self, question: np.ndarray, shown: np.ndarray) -> dict[str, Any]:
        asked = unpacked(question)
        asked["sampling"] = Sampling(**asked["sampling"])
        prefix = self._encoded(asked.pop("prompt"), shown)
        return asdict(await self._while_serving(self.worker.answer(Question(prefix, **asked))))

    def _encoded(self, key: str, shown: np.ndarray) -> Prefix:
        if key not in self.prompts:
            prefix = self.worker.policy.encode(*unpacked(shown))
            if prefix.key != key:
                raise ValueError(f"a prompt became {prefix.key} here and {key} where it was asked; expected the same versions of packages")
            self.prompts[key] = prefix
            if len(self.prompts) > PROMPTS:
                self.prompts.popitem(last=False)
        return self.prompts[key]

    async def _while_serving(self, work: Awaitable[Any]) -> Any:
        """What `work` gives; what ends the worker's own loop ends it too."""
        if self.serving is None or self.serving.done():
            self.serving = asyncio.ensure_future(self.worker.serve())
        task = asyncio.ensure_future(work)
        await asyncio.wait({task, self.serving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            self.serving.result()
        return task.result()


class Stage:
    """An environment worker: environments by number, made from the name that stands in the recipe."""

    def __init__(self, name: str):
        from fovea.api import load_part
        from fovea.envs.resolve import environment

        self.make, self.held = environment(load_part(name)), dict[int, Any]()

    async def demonstrates(self) -> bool:
        """Whether these environments know what a good player would say."""
        made = self.make()
        if hasattr(made, "close"):
            made.close()
        return hasattr(made, "demonstrate")

    async def reset(self, number: int, asked: np.ndarray) -> np.ndarray:
        async def work() -> Any:
            if number not in self.held:
                self.held[number] = self.make()
            return await settled(self.held[number].reset(*unpacked(asked)))

        return await told(work)

    async def step(self, number: int, asked: np.ndarray) -> np.ndarray:
        async def work() -> Any:
            observation, reward, terminated, truncated, info = await settled(self.held[number].step(*unpacked(asked)))
            return observation, float(reward), bool(terminated), bool(truncated), {"measures": info.get("measures")}

        return await told(work)

    async def demonstrate(self, number: int, asked: np.ndarray) -> np.ndarray:
        return await told(lambda: settled(self.held[number].demonstrate(*unpacked(asked))))

    async def close(self, number: int) -> None:
        env = self.held.pop(number, None)
        if hasattr(env, "close"):
            env.close()
