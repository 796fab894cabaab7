"""The rows of this repository: each belongs to the claim as it stands, and its verdict follows from its numbers."""

import pytest

from fovea import cli
from fovea.ledger import rows as ledger
from fovea.ledger.claim import arms_hash, read
from fovea.ledger.reproduce import judge
from fovea.systems import load

ROWS = ledger.read_all()


def stale(row):
    """What is wrong with a row of the ledger; "" when nothing is."""
    tiny, claim, _ = read(row["slug"])
    if row["arms_hash"] != arms_hash(tiny, claim):
        return f"{row['slug']}: the claim has changed since it was measured; run fovea reproduce {row['slug']}, or restore the claim"
    said = judge(row)
    return "" if said == {k: row[k] for k in said} else f"{row['slug']}: its numbers say {said}"


def test_every_row_belongs_to_its_claim():
    assert [problem for row in ROWS.values() if (problem := stale(row))] == []


def test_a_row_of_another_claim_is_found():
    tiny, claim, _ = read("grpo")
    row = {
        "slug": "grpo",
        "effect": 0.3,
        "interval": [0.2, 0.4],
        "expected": {"direction": "more", "test": "better", "margin": 0.1},
        "controlled": {"effect": 0.0, "interval": [-0.01, 0.01], "margin": 0.05},
        "control": "behaves",
        "verdict": "reproduced",
        "arms_hash": arms_hash(tiny, claim),
    }
    assert stale(row) == ""
    assert "the claim has changed" in stale({**row, "arms_hash": "0"})
    assert "its numbers say" in stale({**row, "verdict": "weaker"})
    assert "its numbers say" in stale({**row, "interval": [-0.1, 0.4]})


def test_status_lists_every_system(capsys):
    assert cli.main(["reproduce", "--all", "--status"]) == 0
    out = capsys.readouterr().out
    assert all(f"{s.slug} " in out for s in load())
    named = [line.split()[0] for line in out.splitlines()]
    assert len(set(named)) == len(named), "each once"
    assert out.splitlines()[-1].startswith("planned: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reproduce"], "expected a slug or --all"),
        (["reproduce", "grpo", "--all"], "expected a slug or --all"),
        (["reproduce", "nothing", "--status"], "nothing is known about 'nothing'"),
        (["reproduce", "rloo"], "rloo claims nothing yet"),
        (["reproduce", "grpo", "--arms", "grop"], "no arm grop; the arms are grpo, sft, random, start"),
        (["reproduce", "grpo", "--seeds", "0"], "expected at least 1"),
    ],
)
def test_wrong_use_is_explained(words, message, capsys):
    assert cli.main(words) == 1
    assert message in capsys.readouterr().err
