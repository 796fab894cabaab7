"""Exact play: every formula that makes a number, and Blackjack's best play by dynamic programming.

A formula is a tuple of symbols: "1" to "10", "+", "-", "*", "/", "(" and ")". Numbers are joined by the four operations and brackets and
nothing else; arithmetic is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import combinations

Formula = tuple[str, ...]
ATOM, PRODUCT, SUM = range(3)

# -- formulas -----------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def formulas(values: tuple[int, ...], target: int, operations: str = "+-*/") -> tuple[Formula, ...]:
    """Every formula that uses each of `values` once and makes `target` (above 0); brackets stand only where they matter. Shortest first.

    >>> ["".join(f) for f in formulas((8, 3, 8, 3), 24)]
    ['8/(3-8/3)']
    """
    if len(values) == 1:
        return ((str(values[0]),),) if values[0] == target else ()
    found: set[Formula] = set()
    for left, right in _splits(tuple(sorted(values))):
        of_left, of_right = _ways(left, operations), _ways(right, operations)
        for op in operations:
            if len(left) <= len(right):
                pairs = ((x, _right_of(op, x, target)) for x in of_left)
            else:
                pairs = ((_left_of(op, y, target), y) for y in of_right)
            known = ((of_left.get(x, ()), of_right.get(y, ())) for x, y in pairs if x is not None and y is not None)
            found |= {_written(a, op, b) for lefts, rights in known for a in lefts for b in rights}
    return tuple(sorted(found, key=lambda f: (len(f), f)))


def _right_of(op: str, x: Fraction, target: int) -> Fraction | None:
    """The y for which ``x op y`` is the target."""
    if op in "+-":
        return target - x if op == "+" else x - target
    return (target / x if op == "*" else x / target) if x else None


def _left_of(op: str, y: Fraction, target: int) -> Fraction | None:
    """The x for which ``x op y`` is the target."""
    if op in "+-":
        return target - y if op == "+" else target + y
    return (target / y if op == "*" else target * y) if y else None


Side = tuple[Formula, int]
"""A formula and how loosely it binds."""


@lru_cache(maxsize=1024)
def _ways(values: tuple[int, ...], operations: str) -> dict[Fraction, list[Side]]:
    """Every formula that uses each of the sorted `values` once, by its value."""
    if len(values) == 1:
        return {Fraction(values[0]): [((str(values[0]),), ATOM)]}
    found: dict[Fraction, dict[Formula, int]] = {}
    for left, right in _splits(values):
        for x, lefts in _ways(left, operations).items():
            for y, rights in _ways(right, operations).items():
                for op in operations if y else operations.replace("/", ""):
                    value = x + y if op == "+" else x - y if op == "-" else x * y if op == "*" else x / y
                    level = SUM if op in "+-" else PRODUCT
                    found.setdefault(value, {}).update({_written(a, op, b): level for a in lefts for b in rights})
    return {value: list(ways.items()) for value, ways in found.items()}


def _written(a: Side, op: str, b: Side) -> Formula:
    """``a op b`` without a bracket that changes nothing."""
    (left, p), (right, q) = a, b
    within_product = op in "*/"
    opened = {"+": False, "-": q == SUM, "*": q == SUM, "/": q != ATOM}[op]
    return (*_bracketed(left, within_product and p == SUM), op, *_bracketed(right, opened))


def _bracketed(f: Formula, needed: bool) -> Formula:
    return ("(", *f, ")") if needed else f


def _splits(values: tuple[int, ...]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every way to share the sorted `values` out to a left and a right side, neither empty."""
    n, places = len(values), range(len(values))
    chosen = (c for k in range(1, n) for c in combinations(places, k))
    return {(tuple(values[i] for i in c), tuple(values[i] for i in places if i not in c)) for c in chosen}


def evaluate(symbols: Sequence[str]) -> Fraction | None:
    """The value of a formula; None for symbols that are no formula, and for a division by zero."""
    try:
        value, rest = _sum(symbols, 0)
    except (ZeroDivisionError, ValueError):
        return None
    return value if rest == len(symbols) else None


def _sum(symbols: Sequence[str], i: int) -> tuple[Fraction, int]:
    value, i = _product(symbols, i)
    while symbols[i : i + 1] and symbols[i] in "+-":
        y, j = _product(symbols, i + 1)
        value, i = value + y if symbols[i] == "+" else value - y, j
    return value, i


def _product(symbols: Sequence[str], i: int) -> tuple[Fraction, int]:
    value, i = _atom(symbols, i)
    while symbols[i : i + 1] and symbols[i] in "*/":
        y, j = _atom(symbols, i + 1)
        value, i = value * y if symbols[i] == "*" else value / y, j
    return value, i


def _atom(symbols: Sequence[str], i: int) -> tuple[Fraction, int]:
    symbol = symbols[i] if i < len(symbols) else ""
    if symbol == "(":
        value, i = _sum(symbols, i + 1)
        if i == len(symbols) or symbols[i] != ")":
            raise ValueError("a bracket is left open")
        return value, i + 1
    if not symbol.isdecimal():
        raise ValueError(f"found {symbol!r}, expected a number")
    return Fraction(int(symbol)), i + 1


# -- Blackjack ----------------------------------------------------------------------------------------------------------------

CHANCES = {value: (4 if value == 10 else 1) / 13 for value in range(1, 11)}
"""How likely each value is drawn from an endless deck; an ace is 1."""
DEALER_STANDS = 17


def total(cards: Sequence[int]) -> int:
    """The value of a hand of values 1 to 10: one ace counts 11 where that does not go over 21."""
    return _high(sum(cards), 1 in cards)


def _high(low: int, ace: bool) -> int:
    return low + 10 if ace and low + 10 <= 21 else low


def outcome(player: int, dealer: int) -> float:
    """+1, 0 or −1 for two totals, the player's not above 21."""
    dealer = dealer if dealer <= 21 else 0
    return float((player > dealer) - (player < dealer))


@lru_cache(maxsize=256)
def dealer_ends(low: int, ace: bool) -> dict[int, float]:
    """Chance of each total at which a dealer who has `low` (aces as 1) ends; 0 stands for going over."""
    if low > 21:
        return {0: 1.0}
    if _high(low, ace) >= DEALER_STANDS:
        return {_high(low, ace): 1.0}
    ends: dict[int, float] = {}
    for card, p in CHANCES.items():
        for end, q in dealer_ends(low + card, ace or card == 1).items():
            ends[end] = ends.get(end, 0.0) + p * q
    return ends


@lru_cache(maxsize=4096)
def best_play(low: int, ace: bool, shown: int) -> dict[str, float]:
    """Expected return of "stand" and of "hit" (and best play after it) with `low` (aces as 1) against the dealer's `shown` card."""
    stand = sum(p * outcome(_high(low, ace), end) for end, p in dealer_ends(shown, shown == 1).items())
    hit = sum(p * (max(best_play(low + c, ace or c == 1, shown).values()) if low + c <= 21 else -1.0) for c, p in CHANCES.items())
    return {"stand": stand, "hit": hit}


def best_return() -> float:
    """Expected return of a game of Blackjack from the deal on, best played with "stand" and "hit"; about −0.047."""
    deals = ((a, b, shown, p * q * r) for a, p in CHANCES.items() for b, q in CHANCES.items() for shown, r in CHANCES.items())
    return sum(p * max(best_play(a + b, 1 in (a, b), shown).values()) for a, b, shown, p in deals)
