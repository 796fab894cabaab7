"""The command line. Each command imports what it needs, so that ``fovea --help`` is instant."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

USAGE = """\
fovea: reinforcement learning of models that see

  fovea train [RECIPE] [--FIELD VALUE ...]   train; without a recipe: the tiny vision-language model that ships with the package
  fovea eval MODEL [--data ...]              accuracy per source, with confidence intervals
  fovea generate MODEL --image F --text T    one answer
  fovea export MODEL --merged FOLDER         whole weights with adapters folded in  [--adapter FOLDER]
  fovea push MODEL OWNER/NAME                upload a model with its card to a hub  [--dry-run]
  fovea serve MODEL [--port 8000]            a generation server, for `fovea train --engine http://...` and OpenAI clients
  fovea view RUN [RUN ...]                   the run page, live while runs go on, several compared  [--save FILE]
  fovea compare RUN_A RUN_B [--json]         where runs ended, with intervals, how long they took, which settings differ
  fovea reproduce SLUG [--quick]             a method against its baseline: several seeds, a verdict, a row of the ledger  [--all --status]
  fovea list [recipes|methods|verifiers|tasks|envs|taxonomy]   what there is  [--tag R.ft] [--json]
  fovea check FILE.py:NAME                   contract checks for your own verifier, environment, source, method, policy
  fovea bench step [--vs trl] [--json]       speed and memory of one training step
  fovea doctor [--json]                      what is installed, what is missing, what brings it

Run `fovea COMMAND --help` for its options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 fine, 1 the run failed, 2 wrong usage, 130 interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if args[0] == "--version":
        from fovea import __version__

        print(__version__)
        return 0
    if int(os.environ.get("RANK") or 0) > 0:  # of several processes the first one speaks; errors of all go to stderr
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - open until the process ends
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        print(f"fovea: no command {name!r}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return COMMANDS[name](rest) or 0
    except KeyboardInterrupt as e:
        with contextlib.suppress(OSError):  # the terminal may be what has gone
            print(f"\n{e}" if str(e) else "\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as e:
        return _explain(e)


def _explain(e: Exception) -> int:
    """Errors that a user can mend are printed as one message; anything else keeps its traceback."""
    if _out_of_memory(e):
        print(
            f"fovea: out of memory ({e}).\n  Lower --micro-batch first (results stay the same), then --tasks-per-step or "
            "--sampling.max-new-tokens; --gradient-checkpointing true trades time for memory; --freeze tower needs less.",
            file=sys.stderr,
        )
        return 1
    if isinstance(e, OSError) and e.filename and e.strerror:
        print(f"fovea: {e.filename}: {e.strerror.lower()}", file=sys.stderr)
        return 1
    own = type(e).__module__.startswith("fovea.")
    if own or isinstance(e, (ValueError, OSError, ImportError)):
        print(f"fovea: {e}", file=sys.stderr)
        return 1
    raise e


def _out_of_memory(e: Exception) -> bool:
    return isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(e)


# -- commands -------------------------------------------------------------------------------------------------------------------


def train(args: list[str]) -> int:
    parser = _parser("train", "Train a recipe. Every field of the recipe is an option; see `fovea train --help`.", fields=True)
    parser.add_argument("recipe", nargs="?", default="grpo", help="name of a recipe (fovea list recipes)")
    parser.add_argument("--out", help="run folder; default runs/<name>-<seed>. A run that is there goes on")
    parser.add_argument(
        "--resume", default="auto", metavar="auto|never|PATH", help="auto continues what is in --out; PATH a run that must be there"
    )
    parser.add_argument("--fork", metavar="RUN@STEP", help="a new run that starts from that step of another; fields may differ")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe, batch arithmetic and memory estimate, then stop")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    options, changes = _parse(parser, args)
    if options.dry_run:
        from fovea.plan import plan

        text, lacks = plan(resolve(options.recipe, changes))
        print(text, flush=True)
        for line in lacks:
            print(f"fovea: this run cannot start here: {line}", file=sys.stderr)
        return 1 if lacks else 0
    from fovea import api

    recipe = resolve(options.recipe, changes)
    run = api.train(recipe, out=options.out, resume=options.resume, fork=options.fork, quiet=options.quiet)
    print(f"run folder: {run.path}   report: {run.path / 'report.html'}")
    if run.before == run.before:
        job = "main job" if recipe.data == resolve("grpo", []).data else recipe.name
        what = "return" if any("eval/return" in r for r in run.metrics) else "accuracy"
        print(f"{job}: held-out {what} {run.before:.3f} -> {run.after:.3f} in {run.train_seconds:.0f} s")
    return 0


def evaluate(args: list[str]) -> int:
    from fovea.recipe import READ_BY_EVAL, Recipe

    parser = _parser("eval", "Accuracy per source of a checkpoint, with 95 % intervals.", fields=READ_BY_EVAL)
    parser.add_argument("model", help='"tiny", a checkpoint folder or a run folder')
    parser.add_argument("--tasks", type=int, default=1000, help="held-out tasks (default 1000)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--samples", type=int, default=1, help="answers per task")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--export", nargs=2, metavar=("FORMAT", "FOLDER"), help="also write files that lmms-eval or vlmevalkit reads")
    options, changes = _parse(parser, args)
    from fovea import api
    from fovea.report import exports
    from fovea.report.metrics import interval

    if options.export and options.export[0] not in exports.FORMATS:
        parser.error(f"--export {options.export[0]}: expected one of {', '.join(exports.FORMATS)}")

    for key, _ in _pairs(changes):
        if (name := key.partition("__")[0]) in Recipe.__dataclass_fields__ and name not in READ_BY_EVAL:
            parser.error(f"--{key.replace('__', '.').replace('_', '-')}: an evaluation does not read this field; see fovea eval --help")
    recipe = resolve("grpo", changes)
    result = api.evaluate(options.model, recipe, tasks=options.tasks, temperature=options.temperature, samples=options.samples)
    if options.export:
        form, folder = options.export
        settings = {"temperature": options.temperature, "samples": options.samples, "max_new_tokens": recipe.sampling.max_new_tokens}
        for file in exports.export(form, result, folder, options.model, settings):
            print(f"wrote {file}", file=sys.stderr)
    rows = {s: (a, *interval(result.correct[s], result.count[s])) for s, a in result.accuracy.items()}
    if options.json:
        sources = {s: {"accuracy": a, "low": lo, "high": hi, "count": result.count[s]} for s, (a, lo, hi) in rows.items()}
        print(json.dumps({"accuracy": result.mean, "unscored": result.unscored, "sources": sources}))
        return 0
    width = max(map(len, rows), default=6)
    for s, (a, lo, hi) in rows.items():
        print(f"{s:{width}}  {a:.3f}  [{lo:.3f}, {hi:.3f}]  n={result.count[s]}")
    print(f"{'mean':{width}}  {result.mean:.3f}" + (f"   ({result.unscored} could not be scored)" if result.unscored else ""))
    return 0


def generate(args: list[str]) -> int:
    parser = _parser("generate", "Ask a checkpoint about one or several images.")
    parser.add_argument("model", help='"tiny", a checkpoint folder or a run folder')
    parser.add_argument("--image", action="append", default=[], help="image file; repeat for several")
    parser.add_argument("--text", required=True)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    options = parser.parse_args(args)
    from PIL import Image

    from fovea import api

    policy = api.load_policy(options.model)
    images = [Image.open(f) for f in options.image]
    print(policy.predict(images, options.text, max_new_tokens=options.max_new_tokens, temperature=options.temperature))
    return 0


def export(args: list[str]) -> int:
    parser = _parser("export", "Write a trained policy for other programs.")
    parser.add_argument("model", help="a run folder, a checkpoint or an adapter folder")
    parser.add_argument("--merged", help="folder for whole weights, adapters folded in (transformers loads it)")
    parser.add_argument("--adapter", help="folder for the adapters alone (peft loads it)")
    options = parser.parse_args(args)
    if not (options.merged or options.adapter):
        parser.error("expected --merged FOLDER, --adapter FOLDER or both")
    from fovea import api

    api.export(options.model, merged=options.merged, adapter=options.adapter)
    for folder in filter(None, (options.merged, options.adapter)):
        print(f"wrote {folder}")
    return 0


def push(args: list[str]) -> int:
    parser = _parser("push", "Upload a model to a hub, with a card written from its run. The token comes from `hf auth login` or HF_TOKEN.")
    parser.add_argument("model", help="a run folder (its last checkpoint), a checkpoint of a run, or a model folder")
    parser.add_argument("repo", help="OWNER/NAME")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--merged", action="store_true", help="whole weights, adapters folded in (default)")
    weights.add_argument("--adapter", action="store_true", help="the adapters alone")
    parser.add_argument("--license", default="", help="identifier for the card, such as apache-2.0")
    parser.add_argument("--base", default="", help="OWNER/NAME of the base model, for the card and for adapters")
    parser.add_argument("--dry-run", action="store_true", help="print the card and list the files, then stop")
    options = parser.parse_args(args)
    from fovea import hub

    given = {k: getattr(options, k) for k in ("private", "adapter", "license", "base", "dry_run")}
    done = hub.push(options.model, options.repo, **given)
    if options.dry_run:
        print(done.card)
    for name, size in done.files.items():
        print(f"{size:>13,}  {name}")
    print(f"nothing was sent to {options.repo}" if options.dry_run else f"{done.url}   commit {done.commit[:10]}")
    return 0


def serve(args: list[str]) -> int:
    parser = _parser("serve", "Serve a checkpoint over HTTP until Ctrl-C, with the fields of vLLM and SGLang.")
    parser.add_argument("model", help='"tiny", a checkpoint folder or a run folder')
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    parser.add_argument(
        "--token", default="", help='what clients must send; default FOVEA_TOKEN (in no process list) or a new one; "none" asks for none'
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--max-rows", type=int, default=256, help="answers decoded at a time")
    options = parser.parse_args(args)
    from fovea.serve import serve as run

    run(**vars(options))
    return 0


def view(args: list[str]) -> int:
    parser = _parser("view", "Serve the page of one or several runs until Ctrl-C: curves, what the policy saw and said, the machine.")
    parser.add_argument("runs", nargs="+", help="run folders; several are compared")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--token", default="", help='what the address must hold; default FOVEA_TOKEN or a new one; "none" asks for none')
    parser.add_argument("--open", action="store_true", help="open the page in this machine's browser")
    parser.add_argument(
        "--save", metavar="FILE", help="write the page to a file that opens without a network, with a sample of the answers"
    )
    options = parser.parse_args(args)
    from fovea.report import view as viewer

    if options.save:
        print(f"wrote {viewer.save(options.runs, options.save)}")
        return 0
    viewer.view(options.runs, options.host, options.port, options.token, options.open)
    return 0


def compare(args: list[str]) -> int:
    parser = _parser("compare", "Runs side by side: final numbers with 95 % intervals, time, and the settings that differ.")
    parser.add_argument("runs", nargs="+", help="run folders, two or more")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(args)
    from fovea.report import compare as sides
    from fovea.report.view import opened

    if len(options.runs) < 2:
        parser.error(f"found one run, {options.runs[0]}; expected two or more")
    found = sides.compare(readers := opened(options.runs))
    for problem in (p for r in readers for p in r.problems):
        print(f"fovea: {problem}", file=sys.stderr)
    print(json.dumps(found, default=str) if options.json else sides.table(found))
    return 0


def listing(args: list[str]) -> int:
    from fovea.registry import KINDS, registry

    parser = _parser("list", "What there is.")
    parser.add_argument("kind", nargs="?", choices=KINDS, default="recipes")
    parser.add_argument("--tag", default="", help="with methods: only systems under this code of the taxonomy")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(args)
    if options.tag and options.kind != "methods":
        raise ValueError(f"--tag {options.tag} is for `fovea list methods`, found `fovea list {options.kind}`")
    rows = registry(options.kind, options.tag)
    if options.json:
        print(json.dumps(rows))
        return 0
    if not rows:
        print(f"no system under {options.tag}")
        return 0
    columns = [c for c in ("name", "state", "primary", "any") if c in rows[0] and (c != "primary" or options.kind == "taxonomy")]
    widths = {c: max(len(str(r[c])) for r in rows) for c in columns}
    for r in rows:
        print("  ".join(f"{r[c]:{widths[c]}}" for c in columns) + f"  {r['summary']}" + (f"  {r['effect']}" if r.get("effect") else ""))
    if options.kind == "taxonomy":
        from fovea import systems

        for version in (2, 1):
            print(f"missing (version {version}): {', '.join(sorted(systems.missing(systems.load(), version)))}")
    return 0


def reproduce(args: list[str]) -> int:
    parser = _parser("reproduce", "Run the arms of a claim with several seeds, compare them, judge, and write the row of the ledger.")
    parser.add_argument("slug", nargs="?", help="a recipe with a claim, or a Python file with `tiny` and `CLAIM`")
    parser.add_argument("--seeds", type=int, help="seeds 0 to N − 1; default as the claim says")
    parser.add_argument("--arms", default="", help="only these, separated by commas; such a comparison is not counted")
    parser.add_argument("--quick", action="store_true", help="two tiny steps of everything, to see that it runs; not counted")
    parser.add_argument("--jobs", type=int, help="runs at a time; default one per core")
    parser.add_argument("--runs", default="runs/reproduce", help="folder of the runs; what is complete there is not run again")
    parser.add_argument("--all", action="store_true", help="every claim, one after another; with --status every system")
    parser.add_argument("--status", action="store_true", help="what the ledger says; runs nothing")
    options = parser.parse_args(args)
    if bool(options.slug) == options.all:
        raise ValueError("expected a slug or --all, and not both; `fovea reproduce --all --status` shows what there is")
    if any(n is not None and n < 1 for n in (options.seeds, options.jobs)):
        raise ValueError("--seeds and --jobs: expected at least 1")
    if options.status:
        return _status(options.slug)
    from fovea.ledger.claim import claimed
    from fovea.ledger.reproduce import reproduce as run
    from fovea.ledger.reproduce import table

    for slug in claimed() if options.all else [options.slug]:
        arms = [a for a in options.arms.split(",") if a]
        found = run(slug, seeds=options.seeds, arms=arms, quick=options.quick, jobs=options.jobs, runs=options.runs)
        print(table(found.row))
        print(f"written to {found.counted}" if found.counted else f"not counted: {found.why_not}")
        if found.plot:
            print(f"plot: {found.plot}")
    return 0


def _status(slug: str | None) -> int:
    """The state of every objective and system, or all that the ledger holds about one."""
    from fovea.ledger import rows as ledger
    from fovea.registry import methods

    shown, rows = [r for r in methods() if slug in (None, r["slug"])], ledger.read_all()
    if not shown:
        raise ValueError(f"nothing is known about {slug!r}; `fovea reproduce --all --status` lists every system")
    if slug in rows:
        from fovea.ledger.reproduce import table

        print(table(rows[slug]))
        return 0
    width = max(len(r["name"]) for r in shown)
    for r in shown:
        print(f"{r['name']:{width}}  {r['state']:14}  {r['effect'] or r['summary']}")
    if slug is None:
        counts = {s: sum(r["state"] == s for r in shown) for s in ledger.STATES}
        print("  ".join(f"{s}: {n}" for s, n in counts.items()))
    return 0


def check(args: list[str]) -> int:
    parser = _parser("check", "Contract checks for your own part.")
    parser.add_argument("object", help="FILE.py:NAME, or the name of an environment (fovea list envs)")
    options = parser.parse_args(args)
    from fovea import checks
    from fovea.envs.resolve import ENVIRONMENTS, environment

    named = options.object.partition(":")[0] in ENVIRONMENTS
    held = checks.check_environment(environment(options.object)) if named else checks.check(checks.load_object(options.object))
    for line in held:
        print(line)
    print(f"{options.object}: all rules hold")
    return 0


def bench(args: list[str]) -> int:
    from fovea.bench import main as bench_main

    return bench_main(args)


def doctor(args: list[str]) -> int:
    from fovea.doctor import examine, render

    parser = _parser("doctor", "What is installed, what is missing, what brings it.")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(args)
    found = examine()
    print(json.dumps(found) if options.json else render(found))
    return 0 if found["ok"] else 1


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "eval": evaluate,
    "generate": generate,
    "export": export,
    "push": push,
    "reproduce": reproduce,
    "serve": serve,
    "view": view,
    "compare": compare,
    "list": listing,
    "check": check,
    "bench": bench,
    "doctor": doctor,
}


# -- recipe fields as options ---------------------------------------------------------------------------------------------------


def resolve(name: str, options: Sequence[str]) -> Any:
    """A recipe by name with ``--field value`` options applied.

    Raises:
      ValueError: an unknown option (with the nearest), a missing or unreadable value.
    """
    from fovea import api

    changes = dict(_pairs(options))
    recipe = api.resolve(name, **{key: changes.pop(key) for key in ("method", "engine") if key in changes})
    typed = {}
    for key, text in changes.items():
        outer, _, inner = key.partition("__")
        owner = getattr(recipe, outer, None) if inner else recipe
        hints = typing.get_type_hints(type(owner)) if owner is not None else {}
        typed[key] = _convert(text, hints.get(inner or outer, str), key)
    return api.resolve(recipe, **typed)


def _parse(parser: argparse.ArgumentParser, args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and what is left for the recipe: every unknown ``--field`` with the value behind it.

    (argparse alone would take the value of an unknown option for a positional argument.)
    """
    known = parser._option_string_actions
    own, fields, i = [], [], 0
    while i < len(args):
        option = args[i].partition("=")[0]
        target = fields if option.startswith("--") and option not in known else own
        target.append(args[i])
        i += 1
        if target is fields and option == args[i - 1] and i < len(args):
            fields.append(args[i])
            i += 1
    return parser.parse_args(own), fields


def _pairs(options: Sequence[str]) -> list[tuple[str, str]]:
    out, i = [], 0
    while i < len(options):
        option = options[i]
        if not option.startswith("--"):
            raise ValueError(f"unexpected argument {option!r}; fields are set with --field value")
        key, eq, value = option[2:].partition("=")
        if not eq:
            i += 1
            if i == len(options):
                raise ValueError(f"option {option} has no value; expected {option} VALUE")
            value = options[i]
        out.append((key.replace("-", "_").replace(".", "__"), value))
        i += 1
    return out


def _convert(text: str, hint: Any, key: str) -> Any:
    """Text of the command line -> the type of the field."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    name = "--" + key.replace("__", ".").replace("_", "-")
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in inside:
            return None
        return _convert(text, next(a for a in inside if a is not type(None)), key)
    if origin is typing.Literal:
        if text not in inside:
            raise ValueError(f"{name} {text!r}: expected one of {', '.join(map(str, inside))}")
        return text
    if origin is tuple:
        parts = [p for p in text.split(",") if p]
        kinds = inside[:1] * len(parts) if inside[-1] is Ellipsis else inside
        if len(parts) != len(kinds):
            raise ValueError(f"{name} {text!r}: expected {len(kinds)} values separated by commas")
        return tuple(_convert(p, k, key) for p, k in zip(parts, kinds, strict=True))
    if dataclasses.is_dataclass(hint):
        fields = ", ".join(f"{name}.{f.name.replace('_', '-')}" for f in dataclasses.fields(hint))
        raise ValueError(f"{name} {text!r}: expected its fields one by one: {fields}")
    if hint is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise ValueError(f"{name} {text!r}: expected true or false")
        return text.lower() in ("true", "1", "yes")
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError(f"{name} {text!r}: expected {'a whole number' if hint is int else 'a number'}") from None
    return text


class _Fields(argparse.Action):
    """--help that also lists fields of the recipe, all or `const`, with their defaults."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: Sequence[str] = (), **_: Any):
        what = "the fields of the recipe that it reads" if const else "every field of the recipe"
        super().__init__(option_strings, dest, nargs=0, const=const, help=f"show this, and {what}")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from fovea.recipe import Recipe

        parser.print_help()
        default = Recipe()
        names = [name for name in default.to_json() if not self.const or name in self.const]
        nested = [f"--{name}.FIELD" for name in ("method", "sampling", "lora", "network", "replay") if name in names]
        print(f"\nfields of the recipe (see also {', '.join(nested)}):")
        for name in names:
            print(f"  --{name.replace('_', '-'):22} default {getattr(default, name)!r}")
        told = re.split(r"\n(?=      \w)", (Recipe.__doc__ or "").split("Attributes:")[1].rstrip())
        print("\n" + "\n".join(t for t in told if not set(t.partition(":")[0].strip().split(", ")).isdisjoint(names)))
        parser.exit()


def _parser(command: str, text: str, fields: bool | Sequence[str] = False) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"fovea {command}", description=text, add_help=not fields, allow_abbrev=False)
    if fields:
        parser.add_argument("-h", "--help", action=_Fields, const=() if fields is True else fields)
    return parser


if __name__ == "__main__":
    sys.exit(main())
