import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fovea import cli, systems
from fovea.ledger import rows as ledger
from fovea.systems import TAXONOMY, System, count, leaves, load, missing, tagged, to_table, tree

ALL = load()
BY_SLUG = {s.slug: s for s in ALL}


def test_seventy_systems_each_once():
    assert [s.number for s in ALL] == list(range(1, 71))
    assert len(BY_SLUG) == 70 and len({s.paper for s in ALL}) == 70
    assert all(s.title and s.essence and s.base and s.family and 2016 <= s.year <= 2025 for s in ALL)


@pytest.mark.parametrize(
    ("how", "code", "n"),
    [
        ("primary", "R.ft", 48),
        ("any", "G.R.vlm", 11),
        ("any", "G.S.wm", 5),
        ("any", "R.di", 4),
        ("v1", "2", 45),
        ("v1", "0", 8),
        ("primary", "G.R.vlm", 4),
        ("primary", "O.rl", 4),
        ("primary", "G.S.rep", 3),
        ("primary", "G.S.wm", 3),
        ("primary", "META", 1),
        ("primary", "G.R", 4),  # the parent of four kinds of reward
        ("any", "G.R.llm", 2),
        ("any", "G.R.vid", 1),
        ("any", "G.X.llm", 1),
    ],
)
def test_counts_of_the_survey(how, code, n):
    assert count(ALL, **{how: code}) == n


def test_primary_tags_sum_to_all_and_parents_sum_their_children():
    assert sum(count(ALL, primary=c) for c in leaves(TAXONOMY)) == 70
    for code in set(TAXONOMY) - set(leaves(TAXONOMY)):
        children = [c for c in TAXONOMY if c.rpartition(".")[0] == code]
        assert count(ALL, primary=code) == sum(count(ALL, primary=c) for c in children)


def test_gaps_of_the_survey():
    assert missing(ALL) == {"G.R.dif", "G.P.dif", "R.pt.d"}
    assert missing(ALL, version=1) == {"1.1", "3.1", "3.2", "3.3"}


def test_embodiments():
    found = {e: sum(s.embodiment == e for s in ALL) for e in systems.EMBODIMENTS}
    assert found == {"non-robot": 38, "game": 3, "sim": 9, "real": 4, "both": 14, "robot, concept": 1, "survey": 1}


def test_placements_made_by_the_survey_itself_hold():
    assert BY_SLUG["kagi"].primary == "G.R.vlm"
    assert BY_SLUG["modem-v2"].primary == "G.S.wm"
    assert BY_SLUG["rl-vlm-f-offline"].tags == ("G.R.vlm", "G.P.llm")


def test_what_learns_nothing_by_reinforcement_is_marked():
    assert {s.slug for s in ALL if not s.rl} == {"robovlms", "drowsiness", "adaptive-autonomy", "robocerebra", "taco"}


def test_the_table_has_every_field_of_every_system():
    odd = dataclasses.replace(ALL[0], title="a | b", used="", secondary=("R.di", "G.P.llm"))
    head, rule, *rows = to_table([*ALL, odd]).splitlines()
    names = [f.name for f in dataclasses.fields(System)]
    assert head == f"| {' | '.join(names)} |" and rule == "| " + " | ".join(["---"] * len(names)) + " |"
    last = dict(zip(names, rows[-1][2:-2].split(" | "), strict=True))
    assert len(rows) == 71 and (last["number"], last["slug"], last["rl"]) == (str(odd.number), odd.slug, str(odd.rl))
    assert (last["title"], last["used"], last["secondary"]) == ("a \\| b", "–", "R.di+G.P.llm")


@settings(deadline=None)
@given(
    st.sampled_from(leaves(TAXONOMY)),
    st.lists(st.sampled_from(leaves(TAXONOMY)), max_size=3, unique=True),
    st.sampled_from(sorted(TAXONOMY)),
)
def test_a_new_system_changes_its_own_and_its_ancestors_counts_only(primary, secondary, code):
    new = dataclasses.replace(ALL[0], primary=primary, secondary=tuple(t for t in secondary if t != primary))
    more = [*ALL, new]
    above = {code for tag in new.tags for code in TAXONOMY if tag == code or tag.startswith(code + ".")}
    assert count(more, primary=code) - count(ALL, primary=code) == (primary + ".").startswith(code + ".")
    assert count(more, any=code) - count(ALL, any=code) == (code in above)
    assert missing(more) == missing(ALL) - set(new.tags)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"primary": "R"}, "found tag 'R', expected one of"),
        ({"primary": "R.xx"}, "found tag 'R.xx'"),
        ({"secondary": ["G.S.wm"]}, "expected each once"),
        ({"v1": "3"}, "found v1 '3'"),
        ({"embodiment": "moon"}, "found embodiment 'moon'"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_bad_line_is_named(change, message, tmp_path):
    line = {**dataclasses.asdict(ALL[0]), **change}
    (tmp_path / "bad.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"bad.jsonl, line 1: .*" + message):
        load(tmp_path / "bad.jsonl")


def test_a_number_or_slug_twice_is_refused(tmp_path):
    (tmp_path / "twice.jsonl").write_text(2 * (json.dumps(dataclasses.asdict(ALL[0])) + "\n"))
    with pytest.raises(ValueError, match="expected the numbers 1 to 2 in order and every slug once"):
        load(tmp_path / "twice.jsonl")


def test_an_unknown_tag_is_refused():
    with pytest.raises(ValueError, match=r"found 'R.xx', expected one of"):
        tagged(ALL, "R.xx")


def test_states_follow_from_what_exists():
    row = {"verdict": "weaker"}
    assert ledger.system_state(BY_SLUG["fm-rl-survey"], {}) == "works"  # its file is the registry
    absent = dataclasses.replace(ALL[0], file="fovea/recipes/not_there.py")
    assert ledger.system_state(absent, {}) == "planned"
    assert ledger.system_state(absent, {absent.slug: row}) == "weaker"


def test_listing_by_tag(capsys):
    assert cli.main(["list", "methods", "--tag", "R.di", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {r["slug"] for r in rows} == {"gtr", "robot-soccer", "alpamayo-r1", "robovlms"}
    assert {"number", "title", "year", "paper", "family", "primary", "secondary", "v1", "state", "essence"} <= set(rows[0])


def test_listing_everything_and_the_taxonomy(capsys):
    assert cli.main(["list", "methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert sum(r["kind"] == "system" for r in rows) == 70
    assert {r["state"] for r in rows} <= set(systems.STATES)
    assert cli.main(["list", "taxonomy"]) == 0
    out = capsys.readouterr().out
    assert "missing (version 2): G.P.dif, G.R.dif, R.pt.d" in out
    assert len(out.splitlines()) == len(TAXONOMY) + 2 and len(tree(ALL)) == len(TAXONOMY)


@pytest.mark.parametrize("words", [["list", "methods", "--tag", "R.xx"], ["list", "tasks", "--tag", "R.ft"]])
def test_a_wrong_tag_is_explained(words, capsys):
    assert cli.main(words) == 1
    assert "tag" in capsys.readouterr().err


def test_a_system_is_one_line():
    assert isinstance(ALL[0], System)
    assert len(systems.INDEX.read_text(encoding="utf-8").splitlines()) == 70
