"""Several processes train one run together; one process is the trivial case and takes the same path.

    torchrun --nproc-per-node 2 -m fovea train …

Every process draws the same tasks, works on its share of them and exchanges what came out (`fovea.trainer.exchange`), so that all hold the
same batch and compute the same credit, totals and metrics. Each then computes the rows whose prompts it holds; gradients are added up.
What a run computes therefore does not depend on how many processes run it, beyond rounding.

Weights lie on the processes in one of two ways. "data": every process has all of them. "fsdp": each holds a part of every weight, gradient
and moment (PyTorch's `fully_shard`); decoder layers are put together one at a time during the update, everything while rolling out.

Nothing is pickled: what travels is JSON and safetensors.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from fovea.trainer import wire
from fovea.waits import Waits

T = TypeVar("T")

PATIENCE = timedelta(hours=2)  # processes wait this long for the slowest rollout
BUCKET = 1 << 26  # bytes of gradients added up in one call
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
REASON = "reason"

_store: Any = None  # one connection per process, whatever number of runs it makes
_runs = itertools.count()


class ProcessLost(RuntimeError):
    """Another process of the run has ended; the message says which and why, where it could still tell."""


class Halt(Exception):
    """This process, or another of its team, was asked to stop."""


class Team:
    """The processes of a run. `Team()` is a single one; `Team.join` reads what torchrun says.

    Attributes:
      rank: number of this process; 0 is the one that writes files and speaks.
      size: how many there are.
      device: where this process computes.
      sharded: the weights are spread over the team.
      waits: for the others, in exchanges of this class's own; those inside a sharded pass belong to the pass.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: str = "cpu", store: Any = None):
        self.rank, self.size, self.device, self._store = rank, size, device, store
        self.units: list[Any] = []
        self.waits = Waits()
        self._reached: set[int] = set()  # ids of the sharded weights that backward passes came to since the last update
        self._watch = _Watch(store) if device.startswith("cuda") and size > 1 else None

    @classmethod
    def join(cls, device: str = "cpu") -> Team:
        """The team that this process was started in: torchrun's environment variables, or a single process without them.

        Raises:
          ValueError: an incomplete environment, or a device that the processes cannot share out.
        """
        global _store
        rank, size = _place(os.environ)
        if size == 1:
            return cls(device=device)
        own = _own_device(device, os.environ)
        if _store is None:
            _store, *_ = next(iter(rendezvous("env://", timeout=timedelta(minutes=5))))
        store = PrefixStore(f"fovea/{next(_runs)}", _store)
        backend = "gloo" if own == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        return cls(rank, size, own, store)

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        return bool(self.units)

    def __enter__(self) -> Team:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Leave the team. Another process's end becomes `ProcessLost` with its reason; an error of our own is left as the reason."""
        if self.size == 1:
            return
        ended = self._watch is not None and self._watch.close()
        lost = ProcessLost(self._why()) if ended or _is_loss_of_contact(error) else None
        if error is not None and lost is None and not isinstance(error, ProcessLost):
            with contextlib.suppress(RuntimeError):
                self._store.compare_set(REASON, "", f"process {self.rank} of {self.size}: {type(error).__name__}: {error}")
        if error is not None and self._watch is not None:
            _abort()  # the orderly end waits for exchanges that the others may never join
        else:
            dist.destroy_process_group()
        if error is not None:
            self._let_go()
        if lost is not None:
            raise lost from error

    def _let_go(self) -> None:
        """Sharded weights hold on to the connections, and gloo's close, for the others to notice, only when nobody does."""
        for unit, _ in self.units:
            for group in unit._get_fsdp_state()._fsdp_param_groups:
                group.mesh_info.shard_process_group = None
                group.mesh_info.mesh._pg_registry.clear()

    def only_main(self, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`make(...)` on the main process, something silent on the others."""
        return make(*args, **kwargs) if self.main else Silent()

    # -- exchange -------------------------------------------------------------------------------------------------------------

    def gather(self, make: Callable[[], Any]) -> list[Any]:
        """`make()` of every process, by rank. If it fails on one, all end: that one with its error, the others with `ProcessLost`.

        What it returns may hold tensors, pictures, arrays, mappings, sequences, text and numbers (see `fovea.trainer.wire`).
        """
        if self.size == 1:
            return [make()]
        failed: BaseException | None = None
        try:
            sent = {"value": make()}
        except Halt as e:
            failed, sent = e, {"halt": True}
        except Exception as e:
            failed, sent = e, {"error": f"{type(e).__name__}: {e}"}
        packed = wire.pack(sent)
        with self.waits:
            got = self._exchange(packed)
        got = [wire.unpack(data) for data in got]
        if failed is not None:
            raise failed
        for rank, message in enumerate(got):
            if "error" in message:
                raise ProcessLost(f"process {rank} of {self.size} has ended: {message['error']}")
        if any("halt" in message for message in got):
            raise Halt
        return [message["value"] for message in got]

    def from_main(self, make: Callable[[], T]) -> T:
        """`make()` of the main process, on every process."""
        return self.gather(make if self.main else lambda: None)[0]

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on any process."""
        return any(self.gather(lambda: flag))

    def largest(self, n: int) -> int:
        return max(self.gather(lambda: n))

    def add(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sums by name; a process that has no such number adds nothing."""
        total: dict[str, float] = {}
        for part in self.gather(lambda: dict(numbers)):
            for name, x in part.items():
                total[name] = total.get(name, 0.0) + x
        return total

    def add_rows(self, streams: Mapping[str, Tensor], home_B: Tensor) -> dict[str, Tensor]:
        """Streams with leading (B,) of which each process computed its own rows -> all rows."""
        if self.size == 1:
            return dict(streams)
        out: dict[str, Tensor] = dict(streams)
        mine_B = home_B == self.rank
        for rank, part in enumerate(self.gather(lambda: {name: x[mine_B] for name, x in streams.items()})):
            for name, rows in part.items():
                if name not in out:
                    out[name] = rows.new_zeros(len(home_B), *rows.shape[1:])
                out[name][home_B == rank] = rows
        return out

    def _exchange(self, data: bytes) -> list[bytes]:
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(data)]))
        out = []
        for rank, size in enumerate(int(n) for n in sizes):
            buffer = torch.frombuffer(bytearray(data if rank == self.rank else size), dtype=torch.uint8)
            dist.broadcast(buffer, rank)
            out.append(buffer.numpy().tobytes())
        return out

    # -- weights --------------------------------------------------------------------------------------------------------------

    def place(self, policy: Any, parallel: str = "auto") -> None:
        """Lay the policy's weights on the team, "data" or "fsdp"; "auto" shards what would fill more than half of a process's memory.

        The weights of the main process count: all others take them.
        """
        if self.size == 1:
            return
        for x in _tensors(policy):
            dist.broadcast(x.data, 0)
        if parallel == "fsdp" or (parallel == "auto" and self.any(_too_large(policy, self.device))):
            self._shard(policy)

    def _shard(self, policy: Any) -> None:
        """Every decoder layer is a unit of its own; embeddings, head, tower and the rest are one unit, the root.

        The root stays whole from an update's forward to its backward, so a tower that some process has no pictures for calls nothing.
        """
        if not hasattr(policy, "shardable"):
            raise ValueError(f"parallel='fsdp': a {type(policy).__name__} says nothing of how it is sharded; expected parallel='data'")
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        mesh = dist.device_mesh.init_device_mesh(torch.device(self.device).type, (self.size,))
        for root, layers in policy.shardable():
            for module in (*layers, root):
                unit: Any = module
                _one_kind(unit)
                fully_shard(unit, mesh=mesh)
                if unit is not root:
                    unit.as_forward = partial(_as_forward, unit)
                    register_fsdp_forward_method(unit, "as_forward")
                unit.set_gradient_divide_factor(1.0)  # gradients are added, not averaged: totals are already the team's
                unit.set_force_sum_reduction_for_comms(True)
                unit.set_reduce_scatter_unused_params(True)
                self.units.append((unit, unit is not root))
            for unit in (*layers, root):
                self._note_reached(unit)
            root.list_parameters()
            root.in_step = True

    def _note_reached(self, unit: Any) -> None:
        """From now on remember which weights of a unit a backward pass comes to: sharding gives zeros to those that it does not."""
        shards = [(module, name, p) for module in unit.modules() for name, p in module._parameters.items() if is_shard(p)]
        unit.unshard()
        for module, name, shard in shards:
            weight = module._parameters[name]
            if weight.requires_grad and not is_shard(weight):
                weight.register_post_accumulate_grad_hook(partial(self._reach, id(shard)))
        unit.reshard()

    def _reach(self, key: int, _: Tensor) -> None:
        self._reached.add(key)

    def go_along(self, outputs: Iterable[Tensor]) -> None:
        """A backward pass that changes nothing: all processes must come through the sharded layers equally often."""
        reached = set(self._reached)
        torch.stack([0.0 * x.sum() for x in outputs if x.requires_grad]).sum().backward()
        self._reached = reached

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """While entered, all weights are whole on every process, and forwards need no other process: rollouts may be uneven."""
        self.unshard()
        try:
            yield
        finally:
            for unit, layer in self.units:
                unit.reshard()
                unit.set_reshard_after_forward(layer, recurse=False)

    def unshard(self) -> None:
        """Put all weights together on every process."""
        for unit, _ in self.units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()

    def add_gradients(self, weights: Sequence[Tensor]) -> None:
        """Replace each weight's gradient by its sum over the team. Sharded ones were added up in the backward pass.

        A weight without a gradient on every process keeps none, so that the optimizer passes it over as it would in one process.
        """
        if self.size == 1 or not weights:
            return
        has = torch.tensor([id(w) in self._reached if is_shard(w) else w.grad is not None for w in weights], dtype=torch.uint8)
        with self.waits:
            dist.all_reduce(has, dist.ReduceOp.MAX)
        self._reached.clear()
        plain = []
        for w, used in zip(weights, has.tolist(), strict=True):
            if not used:
                w.grad = None
            elif not is_shard(w):
                w.grad = torch.zeros_like(w) if w.grad is None else w.grad
                plain.append(w)
        for bucket in _buckets(plain):
            precise = torch.promote_types(bucket[0].dtype, torch.float32)
            flat = torch.cat([w.grad.flatten().to(precise) for w in bucket])  # type: ignore[union-attr]
            with self.waits:
                dist.all_reduce(flat)
            for w, total in zip(bucket, flat.split([w.numel() for w in bucket])):
                w.grad.copy_(total.view_as(w))  # type: ignore[union-attr]

    def norm(self, own: Tensor) -> Tensor:
        """Norm of all gradients from the norm of this process's part of them: √Σ own²; where all hold all, `own` itself."""
        if not self.sharded:
            return own
        square = own.double() ** 2
        dist.all_reduce(square)
        return square.sqrt().to(own.dtype)

    @contextlib.contextmanager
    def gathered(self, policy: Any) -> Iterator[None]:
        """While entered, the main process's policy holds whole weights, to be saved; all processes take part."""
        held: list[tuple[nn.Module, str, Any]] = []
        fresh: dict[int, nn.Parameter] = {}  # tied weights stay tied
        for model in _models(policy) if self.sharded else ():
            for module in model.modules():
                for name, p in module._parameters.items():
                    if p is None or not is_shard(p):
                        continue
                    if id(p) not in fresh:
                        x = full(p.detach())
                        fresh[id(p)] = nn.Parameter(x.cpu() if self.main else x.new_empty(0), requires_grad=p.requires_grad)
                    held.append((module, name, p))
        for module, name, p in held:
            module._parameters[name] = fresh[id(p)]
        try:
            yield
        finally:
            for module, name, p in held:
                module._parameters[name] = p

    def collect(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Whole tensors in CPU memory on the main process, one after the other; nothing on the others."""
        out: dict[str, Tensor] = {}
        for name, x in tensors:
            x = full(x.detach())
            if self.main:
                out[name] = x.cpu().contiguous()
        return out

    # -- endings --------------------------------------------------------------------------------------------------------------

    def _why(self) -> str:
        """What the lost process left behind."""
        reason = ""
        with contextlib.suppress(RuntimeError):
            self._store.wait([REASON], timedelta(seconds=2))
            reason = self._store.get(REASON).decode()
        found = reason or "no reason was left (killed, out of memory, or its machine is gone?)"
        return (
            f"process {self.rank} of {self.size} has lost contact with another process of the run: {found}. "
            "The last complete checkpoint stands; the same command goes on from it."
        )


class _Watch(threading.Thread):
    """Frees this process from exchanges that another one will never join.

    gloo notices that a process has gone; NCCL waits for it. So whoever fails leaves its reason in the store, as everywhere, and the watch
    of each other process, which finds it there, takes the exchanges down unless the process ends by itself within `grace_s`. A store that
    does not answer has gone with the process that kept it.
    """

    def __init__(self, store: Any, abort: Callable[[], None] | None = None, every_s: float = 2.0, grace_s: float = 10.0):
        super().__init__(name="watch", daemon=True)
        self.store, self.abort, self.every_s, self.grace_s = store, abort or _abort, every_s, grace_s
        self.over, self.acted = threading.Event(), False
        self.start()

    def run(self) -> None:
        while not self.over.wait(self.every_s):
            if self._told():
                if not self.over.wait(self.grace_s):
                    self.acted = True
                    self.abort()
                return

    def _told(self) -> bool:
        try:
            return self.store.check([REASON])
        except RuntimeError:
            return True

    def close(self) -> bool:
        """Stop watching; whether exchanges were taken down."""
        self.over.set()
        return self.acted


def _abort() -> None:
    """End all exchanges of this process where they stand."""
    dist.distributed_c10d._abort_process_group()


ALONE = Team()


class Silent:
    """Takes every call and does nothing: the run folder and the console of a process that does not write."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def full(x: Tensor) -> Tensor:
    """All of a tensor that may be sharded; every process of the team must ask."""
    part: Any = x
    return part.full_tensor() if is_shard(x) else x


def local(x: Tensor) -> Tensor:
    """This process's part of a tensor that may be sharded, in the same memory."""
    part: Any = x
    return part.to_local() if is_shard(x) else x


def is_shard(x: Any) -> bool:
    """Whether a tensor is this process's part of a larger one (a DTensor, whose module is too heavy to load without need)."""
    return hasattr(x, "placements")


def like(x: Tensor, weight: Tensor) -> Tensor:
    """A whole tensor laid as `weight` is, without talking to other processes."""
    x = x.to(weight.device)
    if not is_shard(weight):
        return x
    from torch.distributed.tensor import distribute_tensor

    place: Any = weight
    return distribute_tensor(x, place.device_mesh, place.placements, src_data_rank=None)


def _place(environment: Mapping[str, str]) -> tuple[int, int]:
    """(rank, size) as torchrun gives them."""
    size = environment.get("WORLD_SIZE", "1")
    if not size.isdigit() or int(size) < 1:
        raise ValueError(f"WORLD_SIZE = {size!r} in the environment; expected a number of processes, as torchrun sets it")
    if int(size) == 1:
        return 0, 1
    missing = [name for name in VARIABLES if not environment.get(name)]
    if missing:
        raise ValueError(
            f"WORLD_SIZE = {size} but {', '.join(missing)} not set in the environment; expected all of {', '.join(VARIABLES)}: "
            "start with `torchrun --nproc-per-node N -m fovea train …`, or unset WORLD_SIZE for a single process"
        )
    rank = environment["RANK"]
    if not rank.isdigit() or int(rank) >= int(size):
        raise ValueError(f"RANK = {rank!r} with WORLD_SIZE = {size}; expected a number from 0 to {int(size) - 1}")
    return int(rank), int(size)


def _own_device(device: str, environment: Mapping[str, str]) -> str:
    """This process's device: one GPU each."""
    if device == "cpu":
        return device
    if device != "cuda":
        raise ValueError(f"device = {device!r} with several processes; expected 'cpu', or 'cuda': each process takes the GPU of its number")
    local, count = int(environment.get("LOCAL_RANK", environment["RANK"])), torch.cuda.device_count()
    if local >= count:
        raise ValueError(f"process {local} of this machine found {count} GPUs; expected one for each, so --nproc-per-node {max(1, count)}")
    torch.cuda.set_device(local)
    return f"cuda:{local}"


def _is_loss_of_contact(error: BaseException | None) -> bool:
    if isinstance(error, ProcessLost) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "Gloo", "NCCL", "Connection closed by peer"))


def _models(policy: Any) -> list[nn.Module]:
    """The modules that hold a policy's weights, its frozen reference included."""
    if isinstance(policy, nn.Module):
        return [policy]
    return [m for m in (policy.model, getattr(policy, "reference", None)) if isinstance(m, nn.Module)]


def _tensors(policy: Any) -> list[Tensor]:
    """Weights and buffers, each once."""
    return list({id(x): x for m in _models(policy) for x in itertools.chain(m.parameters(), m.buffers())}.values())


def _one_kind(unit: nn.Module) -> None:
    """Refuse a unit whose trained weights are of several types, which cannot be reduced together."""
    kinds = {str(p.dtype).removeprefix("torch.") for p in unit.parameters() if p.requires_grad and not is_shard(p)}
    if len(kinds) > 1:
        raise ValueError(
            f"parallel='fsdp': trained weights of a {type(unit).__name__} are {' and '.join(sorted(kinds))} (adapters are float32 "
            "at least); expected one type for all: dtype 'float32', or parallel='data'"
        )


def _as_forward(unit: Any, work: Callable[..., Any], *args: Any) -> Any:
    return work(unit, *args)


def _too_large(policy: Any, device: str) -> bool:
    """Whether weights, gradients and float32 moments (and masters of 16-bit weights) would fill more than half of a process's memory."""
    size = 0
    for p in _tensors(policy):
        state = 8 if p.element_size() > 2 else 12
        size += p.numel() * (p.element_size() + (p.element_size() + state if p.requires_grad else 0))
    if device != "cpu":
        return 2 * size > torch.cuda.get_device_properties(device).total_memory
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 2 * size > memory / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _buckets(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive weights of one type, `BUCKET` bytes at a time."""
    bucket: list[Tensor] = []
    for w in weights:
        if bucket and (w.dtype != bucket[0].dtype or sum(b.nbytes for b in bucket) + w.nbytes > BUCKET):
            yield bucket
            bucket = []
        bucket.append(w)
    if bucket:
        yield bucket
