"""The registry of published systems: one line each in ``systems.jsonl``, tagged by the taxonomy of the survey arXiv 2410.16411.

A system has one primary tag, any number of secondary ones, and a tag of the survey's first version (`v1`); both taxonomies are trees of
dotted codes, and a question about a code includes everything below it ("G.R" is all reward models). `primary` is what the paper's
contribution changes: R.ft where reinforcement learning updates the foundation model itself, G.* where that model is frozen or a tool.
Tags under O and META are additions to the survey.

What is done about a system is read from what exists: its file and its row in the ledger. Nothing here loads anything heavy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

TAXONOMY = {
    "G": "foundation models as tools for reinforcement learning",
    "G.R": "reward signal",
    "G.R.llm": "reward from a language model",
    "G.R.vlm": "reward from a vision-language model",
    "G.R.dif": "reward from a diffusion model",
    "G.R.vid": "reward from video prediction",
    "G.S": "state representation",
    "G.S.rep": "representations learned from images or videos",
    "G.S.wm": "world models for model-based reinforcement learning",
    "G.X": "exploration",
    "G.X.llm": "exploration by a language model",
    "G.X.vlm": "exploration by a vision-language model",
    "G.P": "planning",
    "G.P.llm": "planning by a language model",
    "G.P.dif": "planning by diffusion",
    "R": "reinforcement learning for generative policies",
    "R.pt": "pretraining with reinforcement learning",
    "R.pt.t": "a transformer policy",
    "R.pt.d": "a diffusion policy",
    "R.ft": "finetuning of a generative policy",
    "R.di": "distillation of a policy",
    "O": "outside the survey",
    "O.rl": "robot reinforcement learning without a foundation model",
    "O.safe": "safety",
    "O.perc": "perception",
    "O.eff": "efficiency",
    "META": "the survey itself",
}
TAXONOMY_V1 = {
    "0": "none",
    "1": "language models",
    "1.1": "they write rewards",
    "1.2": "they make or refine policies",
    "1.3": "they ground plans through primitives",
    "2": "vision-language models for decisions",
    "3": "diffusion",
    "3.1": "offline reinforcement learning",
    "3.2": "planning",
    "3.3": "inverse reinforcement learning",
    "3.4": "policies and representations",
    "4": "video prediction and world models",
    "4.1": "video prediction",
    "4.2": "foundation world models",
    "5": "transformer policies",
    "all": "the survey itself",
}
EMBODIMENTS = ("non-robot", "game", "sim", "real", "both", "robot, concept", "survey")
STATES = ("planned", "works", "reproduced", "weaker", "not reproduced")
INDEX = Path(__file__).with_name("systems.jsonl")


@dataclass(frozen=True)
class System:
    """One published system.

    Attributes:
      number, slug: both unique; the slug names its files.
      title, year, paper: the paper and its arXiv id. family: the kind of method.
      primary, secondary: codes of `TAXONOMY`. v1: a code of `TAXONOMY_V1`.
      base: the model it starts from. used: what is trained, or what the model is used for.
      embodiment: one of `EMBODIMENTS`. rl: False where nothing learns by reinforcement.
      code: repository of the authors, "" where there is none.
      essence: the system in a sentence.
      file: where it is implemented, relative to the project; "" is the recipe named by the slug.
    """

    number: int
    slug: str
    title: str
    year: int
    paper: str
    family: str
    primary: str
    secondary: tuple[str, ...]
    v1: str
    base: str
    used: str
    embodiment: str
    rl: bool
    code: str
    essence: str
    file: str = ""

    def __post_init__(self) -> None:
        where = f"system {self.number} ({self.slug})"
        for tag in (self.primary, *self.secondary):
            if tag not in leaves(TAXONOMY):
                raise ValueError(f"{where}: found tag {tag!r}, expected one of {', '.join(leaves(TAXONOMY))}")
        if self.primary in self.secondary or len(set(self.secondary)) < len(self.secondary):
            raise ValueError(f"{where}: found tags {', '.join(self.tags)}, expected each once")
        if self.v1 not in leaves(TAXONOMY_V1):
            raise ValueError(f"{where}: found v1 {self.v1!r}, expected one of {', '.join(leaves(TAXONOMY_V1))}")
        if self.embodiment not in EMBODIMENTS:
            raise ValueError(f"{where}: found embodiment {self.embodiment!r}, expected one of {', '.join(EMBODIMENTS)}")

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.primary, *self.secondary)

    @property
    def place(self) -> str:
        return self.file or f"fovea/recipes/{module_name(self.slug)}.py"


def module_name(slug: str) -> str:
    """A slug as the name of a Python module."""
    return slug.replace("-", "_")


@cache
def load(file: Path = INDEX) -> tuple[System, ...]:
    """Every system, by number.

    Raises:
      ValueError: a line that is no system, named with its number; numbers other than 1, 2, 3, ...; a slug twice.
    """
    found = []
    for i, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            found.append(System(**{**row, "secondary": tuple(row["secondary"])}))
        except (ValueError, TypeError, KeyError) as e:
            raise ValueError(f"{file.name}, line {i}: {e}") from e
    if [s.number for s in found] != list(range(1, len(found) + 1)) or len({s.slug for s in found}) < len(found):
        raise ValueError(f"{file.name}: expected the numbers 1 to {len(found)} in order and every slug once")
    return tuple(found)


# -- the taxonomy ---------------------------------------------------------------------------------------------------------------


def leaves(taxonomy: Iterable[str]) -> tuple[str, ...]:
    """The codes with nothing below them."""
    codes = tuple(taxonomy)
    return tuple(c for c in codes if not any(d.startswith(c + ".") for d in codes))


def under(tag: str, code: str) -> bool:
    """Whether `tag` is `code` or below it."""
    return tag == code or tag.startswith(code + ".")


def tagged(systems: Iterable[System], code: str) -> list[System]:
    """The systems with a primary or secondary tag under `code`.

    Raises:
      ValueError: a code that is not in the taxonomy.
    """
    if code not in TAXONOMY:
        raise ValueError(f"tag: found {code!r}, expected one of {', '.join(TAXONOMY)}")
    return [s for s in systems if any(under(t, code) for t in s.tags)]


def count(systems: Iterable[System], *, primary: str = "", any: str = "", v1: str = "") -> int:
    """How many systems have their primary, any, or their version-1 tag under a code; each system counts once."""
    return sum(
        (not primary or under(s.primary, primary)) and (not any or any_under(s.tags, any)) and (not v1 or under(s.v1, v1)) for s in systems
    )


def any_under(tags: Iterable[str], code: str) -> bool:
    return any(under(t, code) for t in tags)


def missing(systems: Sequence[System], version: int = 2) -> set[str]:
    """The categories without a single system, neither as primary nor as secondary tag."""
    if version == 1:
        return set(leaves(TAXONOMY_V1)) - {s.v1 for s in systems}
    return set(leaves(TAXONOMY)) - {t for s in systems for t in s.tags}


def tree(systems: Sequence[System]) -> list[dict[str, object]]:
    """Every category of the taxonomy in order, with how many systems have it as primary and as any tag."""
    return [
        {"name": c, "summary": says, "primary": count(systems, primary=c), "any": count(systems, any=c)} for c, says in TAXONOMY.items()
    ]


# -- as a table -----------------------------------------------------------------------------------------------------------------


def to_table(systems: Iterable[System]) -> str:
    """A Markdown table with every field of every system."""
    names = [f.name for f in fields(System)]
    rows = [[_cell(v) for v in asdict(s).values()] for s in systems]
    return "\n".join("| " + " | ".join(r) + " |" for r in [names, ["---"] * len(names), *rows])


def _cell(value: object) -> str:
    return ("+".join(value) if isinstance(value, tuple) else str(value)).replace("|", "\\|") or "–"
