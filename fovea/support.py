"""The support table: which model family has been through which feature, as the tests that ran wrote it down.

    tested     a test passed on trained weights of the family: the tiny model that ships with the package (Qwen2.5-VL) or a published one
    shrunken   a test passed on the family's own classes with small sizes and random weights
    untested   no test passed, or one of them failed
    n/a        the family has no such thing: its own processor takes no clips

``pytest -m support --support benchmarks/support.json`` writes the file; README and ``fovea doctor`` show it. Loads nothing heavy.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from fovea.policies.families import FAMILIES

FEATURES = {
    "full": "full finetuning",
    "lora": "LoRA",
    "multi_image": "several images",
    "video": "video",
    "shared_prefix": "shared prefix",
    "fsdp2": "FSDP2",
    "remote": "remote engine",
}
LEVELS = ("untested", "shrunken", "tested")
ABSENT = "n/a"
PLACES = (Path(__file__).with_name("support.json"), Path(__file__).parents[1] / "benchmarks" / "support.json")

Table = dict[str, dict[str, str]]


def known(name: str, names: Iterable[str], what: str) -> str:
    """`name`, if it is one of `names`.

    Raises:
      ValueError: it is not; the nearest one is named.
    """
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise ValueError(f"support table: found {what} {name!r}, expected one of {', '.join(names)}" + (f"; {near[0]!r}?" if near else ""))
    return name


def table(passed: Mapping[tuple[str, str], str], failed: Iterable[tuple[str, str]] = ()) -> Table:
    """The whole table from the best level at which each (family, feature) passed and the cells in which something failed."""
    failed = set(failed)

    def cell(at: tuple[str, str]) -> str:
        if at[1] == "video" and FAMILIES[at[0]].clip is None:
            return ABSENT
        return LEVELS[0] if at in failed else passed.get(at, LEVELS[0])

    return {family: {feature: cell((family, feature)) for feature in FEATURES} for family in FAMILIES}


def read(places: Iterable[Path] = PLACES) -> Table:
    """The table that comes with this package or checkout; everything is untested where there is none.

    Raises:
      ValueError: a family, feature or level that is not known.
    """
    file = next((p for p in places if p.is_file()), None)
    found: Table = json.loads(file.read_text(encoding="utf-8")) if file else {}
    passed = {
        (known(family, FAMILIES, "family"), known(feature, FEATURES, "feature")): known(level, (*LEVELS, ABSENT), "level")
        for family, row in found.items()
        for feature, level in row.items()
    }
    return table(passed)
