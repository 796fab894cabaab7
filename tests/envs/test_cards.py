"""The card games: hand-worked rules, exact solvers against figures known from elsewhere, pictures, demonstrations, deals."""

import json
from fractions import Fraction
from itertools import combinations_with_replacement, permutations, product

import numpy as np
import pytest

from fovea.checks import check_environment, check_source
from fovea.envs.cards import GAMES, Cards
from fovea.envs.cards.solve import best_play, best_return, dealer_ends, evaluate, formulas, total
from fovea.envs.words import after_field, only_named
from fovea.rollout.engine import Engine
from fovea.rollout.sampling import Sampling
from fovea.tasks.cards import Deals
from fovea.tasks.resolve import pair
from fovea.types import Action, Task
from fovea.verifiers.scorer import Scorer
from tests.rollout.fake_policy import FakePolicy


def task(game, **start):
    return Task("t", "cards", (), verifier="return", meta={"game": game, "start": start})


def played(game, symbols, seed=0, **start):
    """Rewards and the two ends of the last step."""
    env, rewards, ends = Cards(), [], (False, False)
    env.reset(task(game, **start), seed)
    for symbol in symbols:
        _, reward, *ends, _ = env.step(Action(f"<answer>{symbol}</answer>"))
        rewards.append(reward)
    return rewards, *ends


# -- rules, by hand -----------------------------------------------------------------------------------------------------------


def test_number_line_by_hand():
    assert played("numberline", "++", current=2, target=4) == ([0.0, 1.0], True, False)
    assert played("numberline", "-", current=2, target=4) == ([-1.0], False, False)
    assert played("numberline", "-", current=0, target=4) == ([-1.0], False, False)  # it stays at 0, and is no nearer
    assert played("numberline", "-+" * 5, current=2, target=4) == ([-1.0, 0.0] * 5, False, True)


@pytest.mark.parametrize(
    ("symbols", "rewards", "ends"),
    [
        (("2", "+", "10", "="), [0, 0, 0, 10], (True, False)),
        (("2", "*", "10", "="), [0, 0, 0, -1], (True, False)),
        (("5",), [-1], (False, False)),
        (("5", "10", "+", "2", "="), [-1, 0, 0, 0, 10], (True, False)),  # the blank counts nothing
        (("2", "2"), [0, -1], (False, False)),  # one two is all there is
        (("+",) * 7, [0] * 6 + [-1], (False, True)),
        (("10", "=",), [0, -1], (True, False)),
    ],
)  # fmt: skip
def test_ezpoints_by_hand(symbols, rewards, ends):
    assert played("ezpoints", symbols, cards=[2, 12]) == (rewards, *ends)  # a queen counts 10


@pytest.mark.parametrize(
    ("symbols", "last"), [("4*6*1*1=", 10), ("4*6=", -1), ("(4*6)*1/1=", 10), ("4*6*1+1=", -1), ("4*6*1*1)=", -1), ("46**11=", -1)]
)
def test_points24_by_hand(symbols, last):
    rewards, terminated, _ = played("points24", symbols, cards=[4, 6, 1, 1])
    assert terminated and rewards[-1] == last and not any(rewards[:-1])


def test_the_twenty_second_symbol_of_points24_truncates():
    rewards, terminated, truncated = played("points24", "(" * 22, cards=[4, 6, 1, 1])
    assert rewards == [0] * 21 + [-1] and (terminated, truncated) == (False, True)


def test_blackjack_by_hand():
    assert played("blackjack", ["hit", "hit"], seed=3, cards=[10, 10], dealer=6)[0][-1] == -1  # nothing but an ace or two saves it
    env = Cards()
    for seed in range(50):
        env.reset(task("blackjack", cards=[13, 1], dealer=9), seed)
        _, reward, terminated, _, info = env.step(Action("<answer>stand</answer>"))
        dealer = total([min(c, 10) for c in env.game.dealer])
        assert terminated and dealer >= 17 and reward == (0 if dealer == 21 else 1) and info["measures"]["success"] == (reward > 0)


def test_an_answer_that_names_no_action_is_replaced_by_a_random_one_and_said():
    env, drawn = Cards(), set()
    for seed in range(40):
        env.reset(task("ezpoints", cards=[2, 10]), seed)
        *_, info = env.step(Action("<answer>2 or 10</answer>"))
        assert not info["legal"]
        drawn.add(info["action"])
        env.reset(task("ezpoints", cards=[2, 10]), seed)
        assert env.step(Action("\x00\ud800" * seed))[4]["action"] == info["action"]  # by seed and turn alone
    assert len(drawn) > 8


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("10", "10"),
        ("1", "1"),
        ("1 or 2", None),
        ("101", None),
        ("+", "+"),
        ("(", "("),
        ("", None),
        ("11", None),
        ("= =", "="),
        ("1+", None),
    ],
)
def test_ten_is_not_one_and_two_names_are_none(text, name):
    actions = GAMES["points24"].actions
    index = only_named(text, actions)
    assert (None if index is None else actions[index]) == name


def test_words_are_whole_and_the_last_field_counts():
    assert only_named('"Stand"}', ("stand", "hit")) == 0 and only_named("white", ("stand", "hit")) is None
    assert after_field('{"thoughts": "\\"action\\": no", "Action": "hit"}').strip() == '"hit"}' and after_field("hit") == ""
    assert after_field('{"action": "type(\\"a\\\\\\\\b\\")"}') == ' "type("a\\\\b")"}', "escapes of JSON are undone"


# -- solvers ------------------------------------------------------------------------------------------------------------------


def test_formulas_of_known_hands():
    written = lambda *values: ["".join(f) for f in formulas(values, 24)]  # noqa: E731
    assert written(8, 3, 8, 3) == ["8/(3-8/3)"] and written(1, 1, 1, 1) == []
    assert sorted(written(1, 5, 5, 5)) == ["(5-1/5)*5", "5*(5-1/5)"]
    assert sorted(written(6, 6, 6, 6)) == ["6*6-(6+6)", "6*6-6-6", "6+6+6+6"]
    assert {"4*6*1*1", "6*4/1/1", "4*6+1-1"} <= set(written(4, 6, 1, 1))
    assert sorted("".join(f) for f in formulas((2, 10), 12, "+*")) == ["10+2", "2+10"]


def test_566_of_the_715_hands_without_faces_make_24():
    assert sum(bool(formulas(hand, 24)) for hand in combinations_with_replacement(range(1, 11), 4)) == 566


@pytest.mark.parametrize("hand", [(4, 6, 1, 1), (2, 3, 5, 12), (1, 2, 7, 7)])
def test_formulas_are_those_that_every_bracketing_of_every_order_finds(hand):
    """The same texts as from the five bracketings, with needless brackets taken away by hand: here only which values are reached."""
    shapes = ("(({}{}{}){}{}){}{}", "({}{}({}{}{})){}{}", "({}{}{}){}({}{}{})", "{}{}(({}{}{}){}{})", "{}{}({}{}({}{}{}))")
    reached = set()
    for (a, b, c, d), (p, q, r), shape in product(set(permutations(map(str, hand))), product("+-*/", repeat=3), shapes):
        symbols = [{"0": "10"}.get(s, s) for s in _symbols(shape.format(a, p, b, q, c, r, d))]
        reached |= {evaluate(symbols)}
    for target in range(1, 40):
        assert bool(formulas(hand, target)) == (target in reached)
        assert all(evaluate(f) == target for f in formulas(hand, target))


def _symbols(text):
    out = []
    for char in text:
        out[-1:] = [out[-1] + char] if out and char.isdigit() and out[-1].isdigit() else [*out[-1:], char]
    return out


@pytest.mark.parametrize(
    ("symbols", "value"),
    [("2 + 10", 12), ("8 / ( 3 - 8 / 3 )", 24), ("1 / 3", Fraction(1, 3)), ("2 10", None), ("4 * * 2", None), ("- 2", None), ("", None),
     ("1 / ( 2 - 2 )", None), ("( 2", None), ("2 )", None), ("2 +", None), ("10 - 4 - 3", 3), ("12 / 2 / 3", 2)],
)  # fmt: skip
def test_evaluate(symbols, value):
    assert evaluate(symbols.split()) == value


def test_blackjack_against_published_figures():
    """Dealer who stands on all seventeens, endless deck; chances of going over from the usual tables."""
    over = {2: 0.353608, 6: 0.423154, 7: 0.262312, 10: 0.212109, 1: 0.115286}
    assert {c: dealer_ends(c, c == 1)[0] for c in over} == pytest.approx(over, abs=5e-6)
    assert sum(dealer_ends(9, False).values()) == pytest.approx(1)
    assert best_play(16, False, 6)["stand"] == pytest.approx(2 * over[6] - 1, abs=1e-5)  # wins only if the dealer goes over
    choice = lambda low, ace, shown: max(best_play(low, ace, shown), key=best_play(low, ace, shown).get)  # noqa: E731
    assert [choice(12, False, s) for s in (2, 3, 4, 6, 7)] == ["hit", "hit", "stand", "stand", "hit"]
    assert [choice(8, True, s) for s in (7, 8, 9, 10)] == ["stand", "stand", "hit", "hit"]  # a soft eighteen
    assert best_return() == pytest.approx(-0.0466, abs=5e-5)


def test_the_game_that_is_dealt_is_the_game_that_is_solved():
    env, n, returns = Cards("blackjack"), 1500, []
    for seed in range(n):
        env.reset(Task("t", "s", ()), seed)
        env._look = lambda: None  # pictures cost time
        over = False
        while not over:
            _, reward, over, _, _ = env.step(Action(env.demonstrate()))
        returns.append(reward)
    assert np.mean(returns) == pytest.approx(best_return(), abs=4 * np.std(returns) / n**0.5)


# -- pictures and demonstrations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("reply", ["short", "json"])
def test_contract_and_demonstrations(game, reply):
    check_environment(lambda: Cards(game, reply=reply))
    env, train = Cards(game, reply=reply), Deals((game,), shown={"reply": reply})
    won = 0
    for i in range(20):
        env.reset(train[i], i)
        over = False
        while not over:
            text = env.demonstrate()
            if reply == "json":
                assert list(json.loads(text))[-2:] == ["thoughts", "action"]
            _, _, terminated, truncated, info = env.step(Action(text))
            over = terminated or truncated
            assert info["legal"]
        solvable = game != "points24" or bool(env.game.solutions(env.game.cards))
        assert info["measures"]["success"] == solvable or game == "blackjack"
        won += info["measures"]["success"]
    assert won == 20 or game in ("points24", "blackjack")


def test_slips_misread_one_number_as_often_as_they_say():
    env, slips = Cards("ezpoints", slips=0.4), 0
    for seed in range(300):
        env.reset(task("ezpoints", cards=[3, 9]), seed)
        read = env.demonstrate().split(":")[0].removeprefix("<think>").split()
        assert sum(a != b for a, b in zip(read, ["3", "9"], strict=True)) <= 1
        slips += read != ["3", "9"]
    assert slips / 300 == pytest.approx(0.4, abs=0.1)


def test_pictures_differ_by_state_and_not_by_anything_hidden():
    def shown(seed=0, side=64, **start):
        return Cards(side=side).reset(task("points24", **start), seed).images[0]

    assert shown(cards=[4, 6, 1, 1]).size == (64, 64) and shown(cards=[4, 6, 1, 1], side=300).size == (300, 300)
    assert shown(cards=[4, 6, 1, 1]).tobytes() == shown(cards=[4, 6, 1, 1]).tobytes() != shown(1, cards=[4, 6, 1, 1]).tobytes()
    faces = {shown(cards=[r, 6, 1, 1]).crop((4, 4, 30, 30)).tobytes() for r in range(1, 14)}
    assert len(faces) == 13
    env = Cards()
    first = env.reset(task("ezpoints", cards=[2, 10]), 0)
    second, *_ = env.step(Action("<answer>2</answer>"))
    assert second.images[0] is first.images[0] and second.messages != first.messages


def test_the_gold_member_plays_what_the_environment_demonstrates():
    with Scorer() as scorer:
        (group,) = Engine(FakePolicy(), environment=lambda: Cards(side=32)).rollout(
            [task("ezpoints", cards=[2, 10])], 1, Sampling(max_new_tokens=60), members=("gold",), score=scorer
        )
    (gold,) = [e for e in group.episodes if e.role == "gold"]
    assert gold.turns[0].text == "<think>2 10: 2+10</think><answer>2</answer>" and not gold.error
    assert [t.reward for t in gold.turns] == [0, 0, 0, 10] and len(gold.segments) == 4 and all(s.mask.all() for s in gold.segments)
    assert gold.score.value == 10 and gold.score.correct is True and gold.score.parts == {"success": 1.0}


# -- deals --------------------------------------------------------------------------------------------------------------------


def test_games_with_few_starts_share_them_in_other_pictures():
    train, held = pair("cards:ezpoints")
    hands = [{GAMES["ezpoints"].key(source[i].meta["start"]) for i in range(80)} for source in (train, held)]
    assert len(hands[0] | hands[1]) == 10 and len(hands[0] & hands[1]) >= 8
    assert not {train[i].images[0].tobytes() for i in range(20)} & {held[i].images[0].tobytes() for i in range(20)}


@pytest.mark.parametrize("game", ["points24", "blackjack"])
def test_what_is_held_out_is_never_dealt_in_training(game):
    train, held = pair(f"cards:{game}", seed=5)
    keys = [{GAMES[game].key(source[i].meta["start"]) for i in range(60)} for source in (train, held)]
    assert not keys[0] & keys[1] and all(keys)
    assert held[7].meta == pair(f"cards:{game}", seed=6)[1][7].meta
    check_source(train, 6)


def test_deals_follow_the_rules():
    ez = [Deals(("ezpoints",))[i].meta["start"]["cards"] for i in range(80)]
    assert all(12 in (min(a, 10) + min(b, 10), min(a, 10) * min(b, 10)) for a, b in ez)
    solvable = Deals.named("points24-solvable", "train", 0)
    assert all(formulas(tuple(sorted(min(c, 10) for c in solvable[i].meta["start"]["cards"])), 24) for i in range(20))
    lines = [Deals(("numberline",))[i].meta["start"] for i in range(40)]
    assert all(s["current"] != s["target"] for s in lines)


def test_names_and_options_are_checked():
    assert Deals.named("points24,side=96,reply=json", "train", 0)[0].images[0].size == (96, 96)
    with pytest.raises(ValueError, match="no game points42; there are: numberline, ezpoints"):
        Deals.named("points42", "train", 0)
    with pytest.raises(ValueError, match="no option 'sides'; there are: game, side"):
        Deals.named("points24,sides=3", "train", 0)
    with pytest.raises(IndexError):
        Deals()[-1]


def test_one_card_is_its_own_formula():
    assert formulas((7,), 7) == (("7",),) and formulas((7,), 8) == ()
