"""The Python front door: `train`, `evaluate`, `load_policy`. The command line calls these and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fovea import starts
from fovea.device import check as check_device
from fovea.envs.resolve import environment
from fovea.policies import control, generators
from fovea.policies.chain import GaussianChain
from fovea.recipe import Recipe
from fovea.report.metrics import headline, judged
from fovea.tasks.curation import Curator
from fovea.trainer import checkpoint as ckpt
from fovea.trainer.asynchronous import Asynchronous, DataManager
from fovea.trainer.distributed import ALONE, Team
from fovea.trainer.evaluation import Evaluation
from fovea.trainer.evaluation import evaluate as run_evaluation
from fovea.trainer.off_policy import OffPolicy, Stream, demonstrations, spare
from fovea.trainer.offline import Offline, Recorded
from fovea.trainer.on_policy import OnPolicy
from fovea.trainer.replay import HEAD, ReplayBuffer
from fovea.trainer.session import OnStep, Session
from fovea.types import Group, Task

if TYPE_CHECKING:
    from fovea.policies.hf_vlm import HFVLM


NETWORK = "network"
"""The model that is made for the simulator in `data`."""
JUDGED = 16
"""Held-out episodes of a simulator that are played at a time."""
FILMED = 3
"""Those of them that are filmed in each evaluation, for the run page."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      path: the run folder.
      policy: the trained policy, ready for `predict`.
      metrics: one flat dict per step.
      before, after: held-out accuracy (mean over sources), of simulators and denoisers the return, at the start and at the end; NaN
        without evaluation.
      train_seconds: wall time of rollouts and updates, evaluation and logging excluded.
    """

    path: Path
    policy: Any
    metrics: list[dict[str, float]]
    before: float
    after: float
    train_seconds: float


def load_policy(model: str | Path = "tiny", **options: Any) -> Any:
    """A language policy from "tiny", a checkpoint folder, a run folder (its last checkpoint), or "SLUG:NAME", the model that a recipe makes
    (`fovea.starts`). Options as in `HFVLM.load`. A folder that holds the network of a simulator gives that; it has no options. One with a
    model that makes samples by denoising gives that (`fovea.policies.generators`).
    """
    from transformers.utils.logging import disable_progress_bar

    from fovea.policies.hf_vlm import HFVLM

    disable_progress_bar()
    check_device(options.get("device", "cpu"))
    folder = folder_of(model)
    if generators.kind(folder):
        return generators.load(folder, **options)
    return control.load(Path(folder)) if control.saved(Path(folder)) else HFVLM.load(folder, **options)


def folder_of(model: str | Path) -> str | Path:
    """Where the weights of a model are: the newest checkpoint of a run folder, what a recipe made; any other name as it is."""
    if starts.recipe(model):
        return starts.folder(str(model))
    found = ckpt.find(Path(model))
    return found.model if found else model


def train(
    recipe: str | Recipe = "grpo",
    *,
    out: str | Path | None = None,
    resume: str | Path = "auto",
    fork: str | Path | None = None,
    on_step: OnStep | None = None,
    quiet: bool = False,
    **changes: Any,
) -> Run:
    """Run a recipe and return the result; works in scripts, tests and notebooks.

    Args:
      recipe: name in `fovea.recipes`, or a Recipe.
      out: run folder; default ``runs/<name>-<seed>``. If it holds an unfinished run of the same recipe, that run goes on.
      resume: "auto" continues what is in `out`; "never" refuses a folder that holds a run; a path (a run folder or its newest checkpoint)
        continues that run, and there must be one.
      fork: "RUN@STEP" (or "RUN": its newest step) starts a new run from that step of another one. Recipe fields may differ; they are
        printed and recorded in ``parent.json``.
      on_step: called with (step, metrics) after every step; returning True ends the run. Of several processes, the first one calls it.
      quiet: no console output.
      changes: fields of the recipe, nested ones as ``method__beta=0.04``.
    Raises:
      ValueError: unknown field or impossible value, named.
      TrainingDiverged, CheckpointError, NothingToTrain, TooManyUnscored, InUse: see their messages.
    """
    from fovea.trainer import lock

    recipe = resolve(recipe, **changes)
    check_device(recipe.device)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    start = Start.of(recipe, out, resume, fork)
    with Team.join(recipe.device) as team, team.only_main(lock.held, start.path):
        check_team(recipe, team.size)
        return _train(recipe, start, on_step, quiet, team)


def check_team(recipe: Recipe, size: int) -> None:
    """Refuse a recipe that `size` processes cannot train together.

    Raises:
      ValueError: fewer tasks than processes, or a remote engine, whose weights every process would replace.
    """
    if recipe.tasks_per_step < size:
        raise ValueError(f"tasks_per_step = {recipe.tasks_per_step} over {size} processes; expected at least one task for each")
    if size > 1 and recipe.services.workers:
        raise ValueError(f"services.workers = {recipe.services.workers} with {size} processes; expected one, or services.workers = 0")
    if size > 1 and recipe.engine != "local":
        raise ValueError(
            f"engine = {recipe.engine!r} with {size} processes; expected engine='local', or a single process: "
            "each process would send the servers weights under a name of its own"
        )


def whole_only(recipe: Recipe) -> str:
    """The first field of the recipe that does not work on sharded weights, as ``name = value``; empty when there is none."""
    fields = {"optimizer": recipe.optimizer != "adamw", "offload": bool(recipe.offload)}
    found = [f"{name} = {getattr(recipe, name)!r}" for name, used in fields.items() if used]
    return (found + (["lora.nf4 = True"] if recipe.lora.nf4 else []) + [""])[0]


def _train(recipe: Recipe, start: Start, on_step: OnStep | None, quiet: bool, team: Team) -> Run:
    from fovea.report.console import Console
    from fovea.report.run import RunFolder
    from fovea.trainer import origin

    path = start.path
    found, forked, state = team.from_main(start.find)
    checkpoint = ckpt.Checkpoint(Path(found), state) if found else None
    if checkpoint is not None and forked:
        start.check(recipe, checkpoint)
    source, heldout = build_sources(recipe)
    check_simulator(recipe, source, team)
    policy = build_policy(recipe, checkpoint.model if checkpoint else None, team.device, source)
    hashes = origin.hashes(policy, source, heldout if recipe.eval_tasks else None)  # by every process, which then knows its pictures
    team.place(policy, recipe.parallel)
    if team.sharded and (unable := whole_only(recipe)):
        raise ValueError(f"parallel = {recipe.parallel!r} shards the weights, and {unable} needs them whole; expected parallel='data'")
    opened = team.only_main(RunFolder, path, rollout_every=recipe.log_every, sinks=recipe.sinks)
    with opened as folder, build_scorer(recipe) as scorer, contextlib.ExitStack() as ended:
        folder.describe(recipe.to_json())
        engine = closed_with(ended, build_engine(recipe, policy, source))
        collector = build_collector(recipe, policy, source, engine, scorer, team, path)
        console: Any = team.only_main(Console, recipe, recipe.steps, quiet=quiet)
        tasks = heldout_tasks(heldout, recipe.eval_tasks)
        judge = closed_with(ended, judging_engine(recipe, policy, heldout, len(tasks), FILMED)) if simulated(source) else engine

        def assess(progress: Any) -> tuple[dict[str, float], list[Any]]:
            result = run_evaluation(
                judge,
                tasks,
                scorer,
                sampling=recipe.sampling,
                temperature=recipe.eval_temperature,
                on_progress=progress,
                team=team,
                unit=unit_of(source, policy),
            )
            return result.metrics(), result.groups

        session = Session(
            recipe,
            policy,
            collector,
            folder,
            console,
            assess if tasks else None,
            on_step,
            team,
            path,
            hashes,
            origin.surroundings(recipe, team.size),
            origin.Watch(source, heldout) if team.main else None,
            collector if isinstance(collector, OffPolicy) else None,
        )
        if checkpoint is not None and forked:
            session.fork(checkpoint, {"run": start.run})
            folder.write_parent(session.parent)
        elif checkpoint is not None:
            session.restore(checkpoint)
        with console, contextlib.closing(collector) if isinstance(collector, Asynchronous) else contextlib.nullcontext():
            for line in described(source, heldout):
                console.note(line)
            try:
                state = session.run()
            finally:
                with contextlib.suppress(OSError):
                    folder.write_report()
        rows = team.from_main(folder.read_metrics)
    team.unshard()
    scores = [headline(r) for r in rows if judged(r)]
    nan = float("nan")
    return Run(path, policy, rows, scores[0] if scores else nan, scores[-1] if scores else nan, state.train_seconds)


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
      path: its folder.
      resume: "auto", "never" or "must": continue what is there, refuse it, or ask for it.
      pinned: the checkpoint that must be the one to continue from; None takes the newest.
      run, step: the run to fork and its step (None: the newest); "" where nothing is forked.
    """

    path: Path
    resume: str = "auto"
    pinned: Path | None = None
    run: str = ""
    step: int | None = None

    @classmethod
    def of(cls, recipe: Recipe, out: str | Path | None, resume: str | Path, fork: str | Path | None) -> Start:
        """What the arguments of `train` mean.

        Raises:
          ValueError: a path that is no run, or arguments that contradict each other.
        """
        default = Path("runs") / f"{recipe.name}-{recipe.seed}"
        if fork is not None:
            if str(resume) not in ("auto", "never"):
                raise ValueError(f"resume = {str(resume)!r} with fork = {str(fork)!r}; expected one of them: a fork is a new run")
            run, step = _fork_of(str(fork))
            path = Path(out) if out is not None else default.with_name(f"{default.name}-fork")
            if path.resolve() == Path(run).resolve():
                raise ValueError(f"fork = {str(fork)!r} into {path}; expected another folder: a fork is a new run")
            return cls(path, str(resume), run=run, step=step)
        if str(resume) in ("auto", "never"):
            return cls(Path(out) if out is not None else default, str(resume))
        given = Path(resume)
        is_checkpoint = (given / ckpt.STATE).is_file() and given.parent.name == "checkpoints"
        if not is_checkpoint and not (given / "checkpoints").is_dir():
            raise ValueError(f'resume = {str(resume)!r}: expected "auto", "never", a run folder or one of its checkpoints/step-NNNNNN')
        run = given.parent.parent if is_checkpoint else given
        if out is not None and Path(out).resolve() != run.resolve():
            raise ValueError(f"resume = {str(resume)!r} with out = {str(out)!r}; a run goes on in its own folder; fork starts another one")
        return cls(run, "must", given if is_checkpoint else None)

    def find(self) -> tuple[str, bool, dict[str, Any]]:
        """(folder of the checkpoint to begin with or "", whether it is forked, its state)."""
        folder = self.path / "checkpoints"
        there = ckpt.written(folder)
        if there and self.resume == "never":
            raise FileExistsError(f"{self.path} already holds a run; expected a new folder with resume='never'")
        last = ckpt.latest(folder)
        if last is None and (there or self.resume == "must"):
            found = f"{len(there)} checkpoints, all damaged" if there else "no checkpoint"
            raise ckpt.CheckpointError(f"{self.path}: found {found}; expected a complete one. Nothing was changed; choose another --out")
        if self.pinned is not None and last is not None and last.step != ckpt.step_of(self.pinned):
            raise ckpt.CheckpointError(
                f"{self.pinned}: {self.path} has gone on to step {last.step}, and resuming would forget that. Start a new run from "
                f"here: --fork {self.path}@{ckpt.step_of(self.pinned)} --out FOLDER"
            )
        if not self.run:
            return (str(last.path), False, last.state) if last else ("", False, {})
        if last is None:
            parent = ckpt.at(Path(self.run), self.step)
            return str(parent.path), True, parent.state
        mine = last.state["parent"] or {}
        if mine.get("run") != self.run or self.step not in (None, mine.get("step")):
            of = f"a fork of {mine['run']}@{mine['step']}" if mine else "a run of its own"
            raise FileExistsError(f"{self.path} already holds {of}; expected a new folder for a fork of {self.run}")
        return str(last.path), False, last.state

    def check(self, recipe: Recipe, checkpoint: ckpt.Checkpoint) -> None:
        """Refuse changes of a recipe that the weights of a checkpoint do not fit.

        Raises:
          ValueError: another model, other adapters, or another network.
        """
        then, now = checkpoint.state["recipe"], ckpt.plain(recipe.to_json())
        changed = [f"{k} = {now[k]!r} here, {then.get(k)!r} there" for k in ("model", "lora", "network") if now[k] != then.get(k)]
        if changed:
            raise ValueError(f"fork of {self.run}: {'; '.join(changed)}; expected the same, because the weights are taken over")


def _fork_of(text: str) -> tuple[str, int | None]:
    """RUN@STEP -> (RUN, STEP); a name with an @ of its own is a run where there is such a folder."""
    run, at, step = text.rpartition("@")
    if not at or Path(text).is_dir():
        run, step = text, ""
    if not Path(run).is_dir():
        raise ValueError(f"fork = {text!r}: no run folder {run!r}; expected RUN@STEP, such as runs/grpo-0@20")
    if step and not step.isdigit():
        raise ValueError(f"fork = {text!r}: step {step!r}; expected a number, such as {run}@20")
    return run, int(step) if step else None


def export(model: str | Path | HFVLM, *, merged: str | Path | None = None, adapter: str | Path | None = None) -> None:
    """Write a trained policy for other programs.

    Args:
      model: as in `load_policy`, or a policy.
      merged: folder for whole weights, adapters folded in; transformers' `from_pretrained` loads it.
      adapter: folder for the adapters alone; ``peft.PeftModel.from_pretrained(base, folder)`` loads it.
    Raises:
      ValueError: adapters were asked of a policy that has none.
      FileExistsError: the folder is not empty.
    """
    policy = load_policy(model) if isinstance(model, (str, Path)) else model
    if adapter is not None and not policy.model.adapters:
        raise ValueError(f"export: {model} has no adapters; expected a policy trained with lora.rank > 0, or merged=FOLDER")
    for folder in (merged, adapter):
        if folder is not None and Path(folder).is_dir() and any(Path(folder).iterdir()):
            raise FileExistsError(f"export: {folder} is not empty; expected a new folder")
    if merged is not None:
        policy.save(merged, merged=True)
    if adapter is not None:
        policy.save(adapter)


def evaluate(
    model: str | Path | HFVLM = "tiny",
    data: Any = "worlds",
    *,
    tasks: int = 1000,
    temperature: float = 0.0,
    samples: int = 1,
    **changes: Any,
) -> Evaluation:
    """Accuracy per source of a policy on held-out tasks.

    Args:
      model: as in `load_policy`, or a policy.
      data: as `Recipe.data`, or a whole Recipe whose data, reward, environment, sampling, dtype and device are used.
      tasks: held-out tasks (fewer when the source is smaller).
      temperature: 0 is greedy.
      samples: answers per task.
      changes: recipe fields.
    """
    recipe = resolve(data, **changes) if isinstance(data, Recipe) else resolve("grpo", data=data, **changes)
    check_device(recipe.device)
    source, heldout = build_sources(recipe)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    with Team.join(recipe.device) as team, build_scorer(recipe) as scorer, contextlib.ExitStack() as ended:
        policy = load_policy(model, dtype=recipe.dtype, device=team.device) if isinstance(model, (str, Path)) else model
        items = heldout_tasks(heldout, tasks)
        made = judging_engine(recipe, policy, heldout, len(items)) if simulated(source) else build_engine(recipe, policy)
        asked = {"sampling": recipe.sampling, "temperature": temperature, "samples": samples}
        return run_evaluation(closed_with(ended, made), items, scorer, **asked, team=team, unit=unit_of(source, policy))


# -- assembling a run from its recipe -------------------------------------------------------------------------------------------


def resolve(recipe: str | Recipe, **changes: Any) -> Recipe:
    """A recipe by name, with changes applied; ``method="dapo"`` takes that method's defaults."""
    from fovea import recipes

    base = recipes.get(recipe) if isinstance(recipe, str) else recipe
    if changes.get("engine") == "ray":
        from fovea.rollout.rayed import Ray

        changes["engine"] = Ray()
    elif isinstance(changes.get("engine"), str) and changes["engine"] != "local":
        from fovea.rollout.remote import Remote

        changes["engine"] = Remote(changes["engine"])
    return corrected(base.replace(**changes))


def corrected(recipe: Recipe) -> Recipe:
    """Where others sample than the trainer, a method that ignores the mismatch gets importance weights: the engine's or the services'."""
    correct = recipe.services.correct if recipe.services.workers else getattr(recipe.engine, "correct", "none")
    if getattr(recipe.method, "behaviour", "") != "none" or correct == "none":
        return recipe
    return recipe.replace(method__behaviour=correct)


def policy_options(recipe: Recipe) -> dict[str, Any]:
    """What a recipe asks of `HFVLM.load`, new adapters aside."""
    return {
        "dtype": recipe.dtype,
        "device": recipe.device,
        "freeze": recipe.freeze,
        "nf4": recipe.lora.nf4,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "value_head": any(n.endswith("value") for n in recipe.method.needs.loss),
        "critic": recipe.method.needs.critic,
    }


def simulated(source: Any) -> bool:
    """Whether tasks of a source are played in copies of a simulator that step together."""
    return hasattr(source, "vector")


def unit_of(source: Any, policy: Any) -> str:
    """What held-out tasks measure: the "return" of a simulator, or of a denoiser's samples, of which none is right or wrong."""
    return "return" if simulated(source) or isinstance(policy, GaussianChain) else "accuracy"


def check_simulator(recipe: Recipe, source: Any, team: Team = ALONE) -> None:
    """Refuse what does not go together with a simulator, or without one.

    Raises:
      ValueError: with the field, what was found and what was expected.
    """
    if not simulated(source):
        asked = {"model": recipe.model == NETWORK, "method": recipe.method.needs.data == "replay", "horizon": recipe.horizon > 0}
        if wrong := [f"{name} = {getattr(recipe, name)!r}" for name, found in asked.items() if found]:
            raise ValueError(f"{wrong[0]} without a simulator; expected data='gym:ID', found {recipe.data!r}")
        return
    recorded, needs = getattr(source, "recorded", False), recipe.method.needs
    if needs.data == "pairs" or recorded != (needs.data == "responses"):
        raise ValueError(
            f"method = {recipe.method!r} with data = {recipe.data!r}; expected data='demos:ROBOT' with supervised finetuning, and a "
            "simulator with methods that act in it"
        )
    if recipe.network.kind not in ("", needs.policy) and needs.policy != "actor-critic":
        raise ValueError(f"network = {recipe.network!r}; expected one of kind {needs.policy!r}, for {recipe.method!r}")
    large = recipe.model.startswith(control.PI0)
    if starts.root(recipe.model) != NETWORK and not large and not control.saved(Path(folder_of(recipe.model))):
        raise ValueError(
            f"model = {recipe.model!r} cannot act in a simulator; expected model={NETWORK!r}, a run, or a folder with one that was saved"
        )
    alone = {
        "device": "cpu",
        "dtype": "float32",
        "engine": "local",
        "optimizer": "adamw",
        "offload": (),
        "program": None,
        "environment": None,
    }
    alone = {k: v for k, v in alone.items() if not large or k not in ("device", "dtype")}
    if wrong := [
        f"{name} = {getattr(recipe, name)!r}, expected {value!r}" for name, value in alone.items() if getattr(recipe, name) != value
    ]:
        raise ValueError(f"with a simulator: {'; '.join(wrong)}")
    if team.size > 1:
        raise ValueError(f"{team.size} processes with a simulator; expected one: its copies step together in a single process")


def spaces_of(source: Any) -> Any:
    with contextlib.closing(source.vector(1)) as envs:
        return source.spaces(envs)


def build_network(recipe: Recipe, model: Path | None, source: Any) -> Any:
    """A simulator's policy: made for its spaces from the recipe's seed, or that of a folder."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(recipe.seed)
        if recipe.model.startswith(control.PI0):
            from fovea.policies.pi0 import Pi0

            made = Pi0.load(recipe.model.removeprefix(control.PI0), spaces_of(source), recipe.network, recipe.dtype, recipe.device)
        elif recipe.model == NETWORK:
            made = control.build(recipe.network.kind or recipe.method.needs.policy, spaces_of(source), recipe.network)
        else:
            made = control.load(Path(folder_of(recipe.model)))
            if hasattr(made, "tune"):
                made.tune(recipe.network)
    if needs_reference(recipe):
        made.set_reference()
    if model is not None:
        made.load_state_dict(control.load(model).state_dict())
    return made


def needs_reference(recipe: Recipe) -> bool:
    return any(n.startswith("reference/") for n in recipe.method.needs.before | recipe.method.needs.loss)


def build_policy(recipe: Recipe, model: Path | None = None, device: str | None = None, source: Any = None) -> Any:
    """The recipe's policy with its own weights or those of the checkpoint `model`, on `device` (default: the recipe's).

    `source` is that of the training tasks, for a model that is made for them.
    """
    if simulated(source):
        return build_network(recipe, model, source)
    device = device or recipe.device
    if generators.kind(starts.root(recipe.model)):
        return build_generator(recipe, model, device, source)
    fresh = {"lora": recipe.lora, "seed": recipe.seed} if model is None else {}
    policy = load_policy(model or recipe.model, **{**policy_options(recipe), "device": device}, **fresh)
    policy.temperature = recipe.sampling.temperature or 1.0
    policy.offload_activations = "activations" in recipe.offload
    if needs_reference(recipe):
        if model is None or policy.model.adapters:
            policy.set_reference()
        else:
            policy.reference = load_policy(recipe.model, dtype=recipe.dtype, device=device).model.requires_grad_(False)
    return policy


def check_generator(recipe: Recipe) -> None:
    """
    Raises:
      ValueError: fields of language models, which would do nothing.
    """
    unused = {"lora.rank": recipe.lora.rank, "freeze": recipe.freeze, "engine": recipe.engine != "local", "offload": recipe.offload}
    unused |= {"environment": recipe.environment, "program": recipe.program, "dynamic_sampling": recipe.dynamic_sampling}
    if found := [name for name, value in unused.items() if value]:
        raise ValueError(
            f"model {recipe.model!r} makes samples by denoising, where {', '.join(found)} has no meaning; expected the default"
        )


def build_generator(recipe: Recipe, model: Path | None, device: str, source: Any) -> Any:
    """A policy that makes samples by denoising, with its reference where the method asks for one."""
    check_generator(recipe)
    options = {"dtype": recipe.dtype, "device": device, "gradient_checkpointing": recipe.gradient_checkpointing}
    start = starts.folder(recipe.model) if starts.recipe(recipe.model) else recipe.model
    policy = generators.load(start, source, recipe.seed, **options)
    if needs_reference(recipe):
        policy.set_reference()
    if model is not None:
        policy.load_weights(model)
    return policy


def build_sources(recipe: Recipe) -> tuple[Any, Any]:
    """(training source, held-out source)."""
    from fovea.tasks.resolve import pair

    return pair(load_part(recipe.data), load_part(recipe.heldout), seed=recipe.seed, on_bad_row=recipe.on_bad_row)


def described(source: Any, heldout: Any) -> list[str]:
    """What was understood of a table: rows, columns, verifiers, and in one line the held-out rows."""
    about, other = (s.describe().splitlines() if hasattr(s, "describe") else [] for s in (source, heldout))
    return about + [f"{line}, held out" for line in other[:1]]


def heldout_tasks(source: Any, count: int) -> list[Task]:
    if count <= 0 or source is None:
        return []
    return [source[i] for i in range(min(count, len(source)) if hasattr(source, "__len__") else count)]


def build_scorer(recipe: Recipe) -> Any:
    from fovea.verifiers import Scorer, build

    override = load_part(recipe.reward)
    for name in override.values() if isinstance(override, Mapping) else (override,):
        if isinstance(name, str):  # a wrong name would otherwise leave every answer of the first step unscored
            try:
                build(name)
            except TypeError as e:
                raise ValueError(f"reward {name!r}: {e}") from None
    return Scorer(
        override=override,
        timeout_s=recipe.verifier_timeout_s,
        max_unscored=recipe.max_unscored,
        processes=recipe.verifier_processes,
    )


def own_parts(recipe: Recipe) -> dict[str, Any]:
    """The recipe's own episode program and environment, by the name of the engine's argument."""
    given = {"program": load_part(recipe.program), "environment": environment(load_part(recipe.environment))}
    parts = {k: v for k, v in given.items() if v is not None}
    for name, part in parts.items():
        if not callable(part):
            raise ValueError(f"{name} = {part!r}; expected FILE.py:NAME of a class or function, or the thing itself")
    return parts


def judging_engine(recipe: Recipe, policy: Any, heldout: Any, tasks: int, filmed: int = 0) -> Any:
    """Plays held-out episodes of a simulator in copies of its own, so that those that train go on undisturbed; the first are filmed."""
    from fovea.rollout.vector import VectorEngine

    shown = heldout.shown() if filmed and hasattr(heldout, "shown") else heldout
    return VectorEngine(policy, shown.vector(max(1, min(JUDGED, tasks))), recipe.seed, filmed=filmed)


def build_engine(recipe: Recipe, policy: Any, source: Any = None) -> Any:
    from fovea.rollout.engine import Engine

    if simulated(source):
        from fovea.rollout.vector import VectorEngine

        return VectorEngine(policy, source.vector(recipe.max_rows), recipe.seed, senses=policy.senses)
    if isinstance(policy, GaussianChain):
        from fovea.rollout.denoise import DenoiseEngine

        return DenoiseEngine(policy, seed=recipe.seed, max_rows=recipe.max_rows)
    options = {"seed": recipe.seed, "max_rows": recipe.max_rows}
    if recipe.engine == "local" or recipe.services.workers:  # services have actors to themselves; held-out tasks are played here
        return Engine(policy, **options, **own_parts(recipe))
    from fovea.rollout.rayed import Ray, RayEngine
    from fovea.rollout.remote import RemoteEngine

    if isinstance(recipe.engine, Ray):
        here = own_parts(recipe.replace(environment=None) if recipe.engine.environments else recipe)
        return RayEngine(policy, recipe.engine, recipe.sampling, recipe.environment, recipe.dtype, **options, **here)
    return RemoteEngine(policy, recipe.engine, **options, **own_parts(recipe))


def closed_with(ended: contextlib.ExitStack, engine: Any) -> Any:
    """The engine, whose processes, where it has some, end with `ended`."""
    ended.callback(getattr(engine, "close", lambda: None))
    return engine


def build_collector(
    recipe: Recipe, policy: Any, source: Any, engine: Any, scorer: Any, team: Team = ALONE, path: Path | None = None
) -> OnPolicy | Offline | Recorded | Stream | OffPolicy | Asynchronous:
    from fovea.tasks.gates import DynamicSampling
    from fovea.tasks.samplers import Shuffled

    check_services(recipe, engine)
    if recipe.horizon:
        stream = Stream(recipe, engine, source.anywhere)
        return stream if recipe.method.needs.data == "rollout" else build_off_policy(recipe, policy, source, stream, path or Path())
    sampler = Shuffled(source, seed=recipe.seed)
    if recipe.method.needs.data != "rollout" and simulated(source):
        return Recorded(recipe, sampler)
    if recipe.method.needs.data != "rollout":
        return Offline(recipe, policy, sampler, pairs=recipe.method.needs.data == "pairs", team=team, engine=engine)
    if recipe.services.workers:
        own = build_scorer(recipe.replace(max_unscored=1.0))
        manager = DataManager(recipe, sampler, Curator(recipe.curation, recipe.group_size), own)
        return Asynchronous(recipe, policy, engine, manager, scorer)
    return OnPolicy(recipe, engine, sampler, scorer, DynamicSampling() if recipe.dynamic_sampling else None, team)


def check_services(recipe: Recipe, engine: Any) -> None:
    """Refuse services where nothing asks them.

    Raises:
      ValueError: answers that are given, an engine that is not this process's own, or a simulator.
    """
    from fovea.rollout.engine import Engine
    from fovea.rollout.remote import Remote

    wrong = type(engine) is not Engine or recipe.method.needs.data != "rollout" or isinstance(recipe.engine, Remote)
    if recipe.services.workers and wrong:
        found = f"engine = {recipe.engine!r}, {type(engine).__name__} and {type(recipe.method).__name__}"
        raise ValueError(
            f"services.workers = {recipe.services.workers} with {found}; expected a language policy that is sampled in this process "
            "(engine='local') or by Ray's actors (engine='ray') and a method that learns from rollouts, or services.workers = 0"
        )


def build_off_policy(recipe: Recipe, policy: Any, source: Any, stream: Stream, path: Path) -> OffPolicy:
    """The loop around a replay, in the folder of the run."""
    from fovea.envs.watched import DEMONSTRATE
    from fovea.rollout.vector import VectorEngine
    from fovea.trainer.update import Adam

    adam = Adam(recipe.learning_rate, weight_decay=recipe.weight_decay, betas=recipe.betas, max_grad_norm=recipe.max_grad_norm)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(recipe.seed + 1)
        state = recipe.method.init(policy, adam)
    asked, random = recipe.replay, control.Random(source.spaces(stream.engine.envs))
    recorded = recorded_by(recipe.model, random.spaces) if recipe.method.needs.recorded else None
    replay = ReplayBuffer(path / "replay", asked.size, recipe.max_rows, spare(recipe), source.stack)
    # a correction begins in the middle of an episode, so its frames keep their whole stack
    shown = ReplayBuffer(path / "shown", asked.size, 1, recipe.max_rows * spare(recipe)) if asked.share else None

    def demonstrate(count: int) -> list[Group]:
        itself = all(hasattr(env.unwrapped, "demonstrate") for env in stream.engine.envs.envs)
        copies = min(recipe.max_rows, count) if itself else 1  # a person shows one thing at a time
        with contextlib.closing(VectorEngine(random, source.vector(copies), recipe.seed, options={DEMONSTRATE: True})) as engine:
            return demonstrations(engine, source, count)

    return OffPolicy(recipe, stream, replay, random, state, shown, demonstrate, recorded)


def recorded_by(model: str, spaces: Any) -> ReplayBuffer:
    """What the run that trained a model had recorded.

    Raises:
      ValueError: the model is none of a run, its run has no replay, or the observations there have another shape than those here.
    """
    near = starts.folder(model).parent / "run" if starts.recipe(model) else Path(model).absolute()
    found = next((p / "replay" for p in (near, *near.parents[:3]) if (p / "replay" / HEAD).is_file()), None)
    if found is None:
        raise ValueError(
            f"model = {model!r}: found no replay of the run that trained it, expected the folder of a run that learned from one, because "
            "the method looks at what was recorded there"
        )
    recorded = ReplayBuffer.left_in(found)
    shape = tuple(recorded.columns["obs"].shape[2:])
    there = (*shape[:-1], shape[-1] * recorded.stack)
    if there != tuple(spaces.obs_shape):
        raise ValueError(f"{found}: found observations {there}, expected {tuple(spaces.obs_shape)} as in `data`")
    return recorded


def load_part(part: Any) -> Any:
    """ "file.py:name" becomes the object it names; anything else is returned as it is.

    Raises:
      ValueError, FileNotFoundError, ImportError: see `fovea.checks.load_object`.
    """
    if isinstance(part, str) and (".py:" in part or part.endswith(".py")):
        from fovea.checks import load_object

        return load_object(part)
    return part
