"""How much memory a step takes, found by running it without numbers: the policy's own code on tensors that have shapes but no data.

The weights are never read and nothing is computed, so a model larger than this machine takes seconds. What is counted: weights, gradients,
moments, the reference, and, phase by phase, every tensor that the policy makes, for as long as it lives. What is not: the program and its
libraries (about 0.5 GB), decoded pictures, scratch memory inside a kernel, other programs.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fovea.heap import Heap, as_set
from fovea.recipe import Recipe
from fovea.rollout.engine import PREFILL_TOKENS
from fovea.rollout.sampling import block_sums
from fovea.types import Episode, Group, Prefix, Score, Segment, Task

META = torch.device("meta")
TAKES_REAL_INDICES = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
"""Their indices may be masks, whose count is data; everything else mixes badly and loses the data of its real operands."""


@contextmanager
def parameters_without_data() -> Iterator[None]:
    """While entered, parameters that modules make for themselves have a shape and no data; buffers (rotary frequencies) are real."""
    register = nn.Module.register_parameter

    def shape_only(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None and not param.is_meta:  # one that is there already is shared, as tied embeddings are
            module._parameters[name] = nn.Parameter(param.detach().to(META), param.requires_grad)

    nn.Module.register_parameter = shape_only  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def without_data(recipe: Recipe) -> Any:
    """The policy that a recipe would train, with shapes for weights."""
    from fovea.api import policy_options
    from fovea.policies.hf_vlm import HFVLM

    with parameters_without_data():
        return HFVLM.load(recipe.model, weights=False, lora=recipe.lora, **policy_options(recipe))


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step.

    Attributes:
      weights, gradients, moments, reference: of the whole policy; the optimizer's float32 copies of 16-bit weights are among the moments,
        the services' copies of the policy among the weights.
      pictures: preprocessed pictures and their features that the run remembers.
      generate, prepare, update: the most that each phase needs beside what stands; only the largest counts.
      optimizer: what the optimizer's own step needs for a moment.
      allocator: what the C library holds beyond all that at the worst moment, on a CPU; see `fovea.heap`.
    """

    weights: int
    gradients: int
    moments: int
    reference: int
    pictures: int
    generate: int
    prepare: int
    update: int
    optimizer: int
    allocator: int = 0

    @property
    def total(self) -> int:
        """Gradients are given up before the next rollout, so they do not meet its caches."""
        standing = self.weights + self.moments + self.reference + self.pictures
        return standing + max(self.generate, self.prepare, self.gradients + max(self.update, self.optimizer)) + self.allocator


class Live(TorchDispatchMode):
    """Bytes of the data-less tensors made while entered, as long as they live: `now` and `peak`."""

    def __init__(self, heap: Heap | None = None) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.held: set[int] = set()
        self.heap = heap or Heap()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(x, Tensor) and x.is_meta for x in tree_leaves((args, kwargs))) and func not in TAKES_REAL_INDICES:
            args, kwargs = tree_map(lambda x: x.to(META) if isinstance(x, Tensor) else x, (args, kwargs))
        given = set(map(_storage, _without_data((args, kwargs))))
        out = func(*args, **(kwargs or {}))
        for x in _without_data(out):
            if _storage(x) not in given:  # a view of a weight is no new memory
                self._hold(x.untyped_storage())
        return out

    def _hold(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self.held:
            self.held.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, storage.nbytes(), self.heap.take(storage.nbytes()))

    def _drop(self, key: int, size: int, block: tuple[int, int]) -> None:
        self.held.discard(key)
        self.now -= size
        self.heap.give(block)


def _without_data(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.is_meta]


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention without data picks the kernel that forms every score; on real devices it is a fused one, which is put in its place."""
    usual = nn.functional.scaled_dot_product_attention

    def attend(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not q.is_meta:
            return usual(q, k, v, *args, **kwargs)
        causal, scale = bool(kwargs.get("is_causal")), kwargs.get("scale")
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)[0]

    nn.functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = usual


def trace(recipe: Recipe, policy: Any, prefix: Prefix, new_tokens: int, tasks: int, processes: int = 1) -> Memory:
    """The memory of one step of `recipe` on each of its processes, every prompt being `prefix` and every answer `new_tokens` long.

    Args:
      policy: from `without_data`.
      prefix: a real prompt, from the policy's `encode`.
      tasks: how many different ones a process will see.
      processes: how many share the tasks of a step, and with ``parallel="fsdp"`` the weights.
    """
    recipe = recipe.replace(tasks_per_step=-(-recipe.tasks_per_step // processes))
    needs = recipe.method.needs
    policy.temperature = recipe.sampling.temperature or 1.0
    trained = list(policy.parameters())
    weights, gradients = _weights(recipe, policy), _bytes(trained)
    refers = any(n.startswith("reference/") for n in needs.before | needs.loss)
    if refers:
        policy.set_reference()
    batch = _batch(recipe, prefix, new_tokens)
    micros = batch.micro_batches(recipe.micro_batch, needs.unit)
    update, _ = _peak(lambda: _updates(policy, micros[:2], needs.loss, trained))
    generate, kept = _peak(lambda: _generate(recipe, policy, prefix, new_tokens)) if needs.data == "rollout" else (0, 0)
    # a view is a pass with the present weights over pictures of the same sizes
    before = {"reference" if name.startswith("reference/") else "policy" for name in needs.before}
    prepare = max((_peak(lambda v=v: _evaluate(policy, micros[0], v))[0] for v in before), default=0)
    found = Memory(
        weights=weights + _copies(recipe, policy, trained),
        gradients=gradients,
        moments=_moments(recipe, trained),
        reference=weights if refers and not policy.model.adapters else 0,
        pictures=_pictures(recipe, policy, prefix, tasks),
        generate=generate,
        prepare=kept + prepare if before else 0,
        update=update - gradients + policy.waiting_bytes,
        optimizer=_visit(trained),
    )
    if processes > 1 and recipe.parallel == "fsdp":
        return _sharded(found, policy, processes)
    if recipe.device != "cpu":
        return dataclasses.replace(found, moments=0) if "optimizer" in recipe.offload else found
    held = _two_steps(recipe, policy, prefix, new_tokens, micros[:2], before, trained)
    standing = found.weights + found.reference + found.pictures
    return dataclasses.replace(found, allocator=max(0, standing + held - found.total))


def _sharded(whole: Memory, policy: Any, processes: int) -> Memory:
    """Each process holds a part of every weight, gradient and moment. While generating, all weights are whole; in a forward or backward
    pass the root (embeddings, head, tower) and two decoder layers are, and in the latter their gradients with them.
    """
    layers = [_bytes(layer.parameters()) for layer in policy.model.text.layers]
    root, layer = _bytes(policy.model.parameters()) - sum(layers), 2 * max(layers)
    trained = whole.gradients / max(1, whole.weights)
    missing = 1 - 1 / processes
    gathered = int((root + layer) * missing)
    return dataclasses.replace(
        whole,
        **{name: getattr(whole, name) // processes for name in ("weights", "gradients", "moments", "reference", "optimizer")},
        generate=whole.generate + int(whole.weights * missing),
        prepare=whole.prepare + gathered if whole.prepare else 0,
        update=whole.update + gathered + int(gathered * trained),
    )


def _two_steps(
    recipe: Recipe, policy: Any, prefix: Prefix, new_tokens: int, micros: list[Any], before: set[str], trained: list[Any]
) -> int:
    """Most bytes that the C library holds for tensors over two steps in a row; moments arrive at the end of the first."""
    heap, moments = as_set(), []
    for _ in range(2):
        policy.forget()
        with Live(heap), fused_attention():
            if recipe.method.needs.data == "rollout":
                _generate(recipe, policy, prefix, new_tokens)
            for variant in before:
                _evaluate(policy, micros[0], variant)
            if policy.gradient_checkpointing:
                policy._fused = None
                heap.trim()
            _updates(policy, micros, recipe.method.needs.loss, trained, after=lambda: moments or moments.extend(_state(recipe, trained)))
    return heap.peak


def _state(recipe: Recipe, trained: list[Any]) -> list[Tensor]:
    return [torch.empty(_moments(recipe, [p]), dtype=torch.uint8, device=META) for p in trained]


def _peak(run: Callable[[], Any]) -> tuple[int, int]:
    """The most bytes that lived at a time, and those that stayed."""
    with Live() as live, fused_attention():
        run()
    return live.peak, live.now


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)


def _weights(recipe: Recipe, policy: Any) -> int:
    """Parameters and buffers. A 64-number block of 4-bit weights has one 8-bit scale."""
    whole = _bytes(policy.model.parameters()) + _bytes(policy.model.buffers())
    matrices = [p for n, p in policy.model.text.named_parameters() if n.endswith("base_layer.weight")] if recipe.lora.nf4 else []
    return whole - sum(p.nbytes - p.numel() // 2 - p.numel() // 64 for p in matrices)


def _copies(recipe: Recipe, policy: Any, trained: list[Any]) -> int:
    """What the services hold: a policy for each worker, and the trained weights that were published last."""
    workers, halved = recipe.services.workers, recipe.services.rounding == "bfloat16"
    own = sum(2 * p.numel() if halved else p.nbytes for p in policy.model.parameters())
    return workers * own + _bytes(trained) if workers else 0


def _updates(policy: Any, micros: list[Any], names: frozenset[str], trained: list[Any], after: Callable[[], Any] = lambda: None) -> None:
    """Forward and backward of two micro-batches: the second meets the gradients of the first."""
    current = frozenset(n for n in names if "/" not in n)
    for micro in micros:
        out = policy.evaluate(micro, current)
        torch.stack([x.sum() for x in out.values()]).sum().backward()
        del out
    after()
    for p in trained:
        p.grad = None


@torch.no_grad()
def _evaluate(policy: Any, micro: Any, variant: str) -> None:
    policy.evaluate(micro, frozenset({"logp"}), variant)


def _generate(recipe: Recipe, policy: Any, prefix: Prefix, new_tokens: int) -> None:
    """Prefill as many groups as the engine admits at once, draw, and decode the last token."""
    rows = min(recipe.group_size, recipe.max_rows)
    admitted = max(1, min(recipe.tasks_per_step, recipe.max_rows // rows))
    together = max(1, min(admitted, PREFILL_TOKENS // prefix.length))
    cohorts, logits = [], []
    with policy.update_follows():
        for start in range(0, admitted, together):
            prompts = [_clone(prefix, n) for n in range(start, min(start + together, admitted))]
            cohort, z = policy.prefill(prompts, [[()] * rows for _ in prompts], new_tokens)
            cohort.length_R = cohort.length_R + new_tokens - 1
            cohorts.append(cohort)
            logits.append(z)
    _draw(logits)
    policy.decode(cohorts, [torch.zeros(cohort.R, dtype=torch.long) for cohort in cohorts])


def _draw(logits: list[Tensor]) -> None:
    """The tensors that `fovea.rollout.sampling.sample` makes of the logits."""
    x_RV = torch.cat(logits) if len(logits) > 1 else logits[0]
    x_RV = x_RV.clone()
    block_sums(torch.exp(x_RV - x_RV.amax(1)[:, None]))


def _batch(recipe: Recipe, prefix: Prefix, new_tokens: int) -> Any:
    from fovea.batch import collate

    rows = {"rollout": recipe.group_size, "pairs": 2}.get(recipe.method.needs.data, 1)
    prompts = -(-recipe.tasks_per_step // recipe.updates_per_rollout)
    prompts = min(prompts, max(1, -(-2 * recipe.micro_batch // rows)))
    zeros, on = torch.zeros(new_tokens, dtype=torch.long), torch.ones(new_tokens, dtype=torch.bool)
    groups = []
    for n in range(prompts):
        task, mine = Task(str(n), "trace", ()), _clone(prefix, n)
        segment = Segment(mine, zeros + 1, on, torch.zeros(new_tokens), zeros, zeros)
        groups.append(Group(task, [Episode(f"{n}.{g}", task, segments=[segment], score=Score(0.0)) for g in range(rows)]))
    return collate(groups)


def _clone(prefix: Prefix, n: int) -> Prefix:
    """The same prompt with other pictures, as far as any cache can tell; the pictures have no data."""
    pictures = tuple(
        dataclasses.replace(p, key=f"{p.key}-{n}", **{k: v.to(META) for k, v in vars(p).items() if isinstance(v, Tensor)})
        for p in prefix.data.pictures
    )
    return Prefix(f"{prefix.key}-{n}", dataclasses.replace(prefix.data, pictures=pictures), prefix.length)


def _pictures(recipe: Recipe, policy: Any, prefix: Prefix, tasks: int) -> int:
    """Preprocessed pictures are remembered; features too, for one step or, from a frozen tower, for the run."""
    seen = policy.model.features
    per_task = seen.bytes / max(1, len(seen)) * len(prefix.data.pictures)
    frozen = not any(p.requires_grad for p in policy.model.visual.parameters())
    features = per_task * (tasks if frozen else min(tasks, recipe.tasks_per_step))
    return int(min(seen.capacity, features) + min(policy.processor.cache_bytes, tasks * prefix.data.nbytes))


def _moments(recipe: Recipe, trained: list[Tensor]) -> int:
    """Two moments of float32, or of 8 bits with one float32 scale per 256; masters of 16-bit weights."""
    low = [p for p in trained if p.dtype.itemsize == 2]
    each = 2 * (1 + 4 / 256) if recipe.optimizer.endswith("8bit") else 8
    return int(each * sum(p.numel() for p in trained)) + 4 * sum(p.numel() for p in low)


def _visit(trained: list[Tensor]) -> int:
    """AdamW makes three tensors of one parameter's size at a time; 16-bit gradients become float32 all at once."""
    low = sum(p.numel() for p in trained if p.dtype.itemsize == 2)
    return 4 * low + max((3 * p.nbytes for p in trained), default=0)
