"""Reading answers: pure functions from text to a tag's content, numbers, choices, boxes and items.

Every function is linear in the length of the text (a policy may say 100 kB of nonsense): the patterns never nest unbounded repetitions,
delimiters are searched with `str.rfind`, and numbers, choices, boxes and items are read from the last 4,096 characters of an answer.
A text that cannot be read gives None, never an exception.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

_SIGN = r"[+\-\u2212]"
_DECIMAL = rf"{_SIGN}?(?:\d{{1,3}}(?:,\d{{3}})+(?![\d])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][+\-]?\d{{1,4}}(?!\w))?"
_NUMBER = re.compile(
    rf"\\[dt]?frac\{{({_SIGN}?\d{{1,30}})\}}\{{(\d{{1,30}})\}}|(?<![\w.])({_DECIMAL})(?:\s?/\s?(\d{{1,30}})(?!\d|\.\d))?\s?(\\?%)?"
)
_SIGN_BEFORE = re.compile(rf"{_SIGN}\s?$")
_PLAIN_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][+\-]?\d{1,3})?(?![\w])")
_WORD = re.compile(r"[a-z]+")
_PIECE = re.compile(r"\w+")
_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_NUMBER_WORDS = {word: Fraction(i) for i, word in enumerate(_WORDS)}

READ = 4096
"""Characters at the end of an answer in which numbers, choices, boxes and items are looked for."""

_TRIM = " \t\r\n.,;:!?\"'`*$"


# -- where the answer is ------------------------------------------------------------------------------------------------------


def tagged(text: str, tag: str) -> str | None:
    """The content of the last ``<tag>…</tag>``; an unclosed last tag reaches to the end of the text (stop strings cut the closing tag)."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    end = text.rfind(closing)
    start = text.rfind(opening, 0, end if end >= 0 else len(text))
    late = text.rfind(opening)
    if late > end:
        return text[late + len(opening) :]
    return None if start < 0 else text[start + len(opening) : end]


def boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{…}`` with its braces balanced; None when it never closes."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 1, start + len("\\boxed{")
    for brace in re.finditer(r"\\.|[{}]", text[begin:]):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[begin : begin + brace.start()]
    return None


def description(text: str, tag: str = "description") -> str:
    """What stands in the first ``<tag>…</tag>``, any answer in it taken out; "" when that is empty, absent or never closed.

    Nothing outside the tag is ever returned, so that who reads the description cannot read the answer.
    """
    opening, closing = f"<{tag}>", f"</{tag}>"
    start = text.find(opening)
    end = text.find(closing, start)
    if start < 0 or end < 0:
        return ""
    said = text[start + len(opening) : end]
    while (inner := boxed(said)) is not None:
        said = said.replace(f"\\boxed{{{inner}}}", " ")
    if "<answer>" in said:
        said = said[: said.find("<answer>")] + (said[said.rfind("</answer>") + len("</answer>") :] if "</answer>" in said else "")
    return said.strip()


def extract_answer(text: str) -> str | None:
    """What the policy gives as its answer.

    The last ``<answer>…</answer>`` if there is one; otherwise, after the last ``</think>``, the last ``\\boxed{…}``; otherwise all that is
    said there, stripped. None when that is empty, or when a ``<think>`` is never closed (a thought is not an answer).
    """
    answer = tagged(text, "answer")
    if answer is None:
        if text.rfind("<think>") > text.rfind("</think>"):
            return None
        rest = text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text
        answer = boxed(rest)
        answer = rest if answer is None else answer
    elif (inner := boxed(answer)) is not None:
        answer = inner
    return answer.strip() or None


# -- text ---------------------------------------------------------------------------------------------------------------------


def normalise(text: str, case: bool = False) -> str:
    """Whitespace collapsed, outer punctuation and quotes removed, case folded unless `case`."""
    text = " ".join(text.split()).strip(_TRIM)
    return text if case else text.casefold()


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance in characters, bit-parallel (Myers, 1999): one pass over `a` with |b|-bit integers."""
    if not a or not b:
        return max(len(a), len(b))
    if len(b) > len(a):
        a, b = b, a
    m, full = len(b), (1 << len(b)) - 1
    at: dict[str, int] = {}
    for i, char in enumerate(b):
        at[char] = at.get(char, 0) | (1 << i)
    up, down, distance, last = full, 0, m, 1 << (m - 1)
    for char in a:
        match = at.get(char, 0)
        x = match | down
        diagonal = ((((match & up) + up) ^ up) | match) & full
        right_up = (down | ~(diagonal | up)) & full
        right_down = up & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up = ((right_up << 1) | 1) & full
        right_down = (right_down << 1) & full
        up = (right_down | ~(x | right_up)) & full
        down = right_up & x
    return distance


def text_similarity(a: str, b: str) -> float:
    """1 - distance / length of the longer, in [0, 1]; 0 outright when one is more than 20 times longer (it could not exceed 0.05)."""
    long, short = max(len(a), len(b)), min(len(a), len(b))
    if long == 0:
        return 1.0
    if long > 20 * short:
        return 0.0
    return 1.0 - edit_distance(a, b) / long


# -- numbers ------------------------------------------------------------------------------------------------------------------


def _fraction(literal: str) -> Fraction | None:
    literal = literal.replace(",", "").replace("\u2212", "-")
    exponent = re.search(r"[eE]([+\-]?\d+)$", literal)
    if len(literal) > 60 or (exponent and abs(int(exponent.group(1))) > 300):
        return None
    return Fraction(literal)


def find_numbers(text: str) -> list[tuple[Fraction, bool]]:
    """Every number of a text with whether it is a percentage: ``1,234.5  -3  .5  1e-3  3/4  1 1/2  \\frac{3}{4}  50%``.

    Values are exact (50% is 1/2). A sign counts unless a digit or letter stands before it ("5-3" holds 5 and 3). Literals of more than
    60 characters or exponents beyond 300 are not numbers.
    """
    found: list[tuple[Fraction, bool]] = []
    end_of_whole = -1
    for m in _NUMBER.finditer(text):
        top, bottom, decimal, below, percent = m.groups()
        if decimal is not None:
            value = _fraction(decimal)
            if value is not None and below is not None:
                value = value / int(below) if int(below) else None
                mixed = m.start() - end_of_whole == 1 and text[end_of_whole] == " " and found and decimal[0].isdigit()
                if value is not None and mixed:
                    whole = found.pop()[0]
                    value = whole + value if whole >= 0 else whole - value
        else:
            value = Fraction(int(top.replace("\u2212", "-")), int(bottom)) if int(bottom) else None
            if value is not None and _SIGN_BEFORE.search(text[max(0, m.start() - 2) : m.start()]):
                value = -value if "+" not in text[max(0, m.start() - 2) : m.start()] else value
        if value is None:
            continue
        found.append((value / 100 if percent else value, bool(percent)))
        is_whole = decimal is not None and below is None and percent is None and value.denominator == 1
        end_of_whole = m.end() - (1 if is_whole and text[m.end() - 1] == " " else 0) if is_whole else -1
    return found


def parse_number(value: Any) -> tuple[Fraction, bool] | None:
    """The number an answer gives, exactly, and whether it was a percentage: the last in digits, else the last word up to twenty."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | Fraction):
        return Fraction(value), False
    if isinstance(value, float):
        return (_fraction(repr(value)) or Fraction(value), False) if value == value and abs(value) != float("inf") else None
    value = str(value)[-READ:]
    numbers = find_numbers(value)
    if numbers:
        return numbers[-1]
    words = [w for w in _WORD.findall(value.casefold()) if w in _NUMBER_WORDS]
    return (_NUMBER_WORDS[words[-1]], False) if words else None


# -- choices ------------------------------------------------------------------------------------------------------------------

_LONE = re.compile(r"[^\w]*([A-Za-z])[^\w]*")
_LEADING = re.compile(r"[\s*\"'`]*[(\[]?([A-Za-z])(?:[)\]:]|\.(?=\s|$))")
_STATED = re.compile(r"\b(?:answer|option|choice)\b(?:\s{1,3}is)?[\s:*(\[\"']{0,6}([A-Z])\b(?!')", re.IGNORECASE)
_BRACKETED = re.compile(r"[(\[]([A-Z])[)\]]")
_STANDALONE = re.compile(r"(?<![\w'])(A(?!\s{1,3}(?!or\b|and\b)[a-z])|[B-HJ-Z])(?![\w'])")


def parse_choice(text: str, options: Sequence[str] = (), letters: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ") -> str | None:
    """The chosen letter, upper case: ``B  (B)  B.  b) a cat  The answer is B  Option B``, or an option's own text.

    Read in this order: the whole answer is a letter; it is an option's text; it starts with a label; it states one; exactly one bracketed
    or stand-alone capital occurs; exactly one option's text occurs. Otherwise None (an answer that lists several options chooses none).
    """
    text = text[-READ:]
    allowed = set(letters[: len(options)] if options else letters)
    lone = _LONE.fullmatch(text[:64]) if len(text) <= 64 else None
    if lone and lone.group(1).upper() in allowed:
        return lone.group(1).upper()
    names = [normalise(o) for o in options]
    said = normalise(text)
    if names.count(said) == 1:
        return letters[names.index(said)]
    leading = _LEADING.match(text)
    stated = [m.upper() for m in _STATED.findall(text)]
    bracketed = {m for m in _BRACKETED.findall(text) if m in allowed}
    if leading and leading.group(1).upper() in allowed and len(bracketed | {leading.group(1).upper()}) == 1:
        return leading.group(1).upper()
    if stated and stated[-1] in allowed:
        return stated[-1]
    for letter in (bracketed, {m for m in _STANDALONE.findall(text) if m in allowed}):
        if letter:
            return letter.pop() if len(letter) == 1 else None
    padded = _words(said)
    inside = [i for i, name in enumerate(names) if name and _words(name) in padded]
    return letters[inside[0]] if len(inside) == 1 else None


def _words(text: str) -> str:
    """Words between single spaces, with one space at either end, so that `in` matches whole words only."""
    return " " + " ".join(_PIECE.findall(text)) + " "


# -- boxes and points ---------------------------------------------------------------------------------------------------------


def find_floats(text: str) -> list[float]:
    """Every plain number (no thousands separators, which would join coordinates; digits in names such as x1 do not count)."""
    return [float(m) for m in _PLAIN_NUMBER.findall(text)]


def parse_numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """`count` coordinates from a list, or from text: the last bracketed list of exactly that many, else the last that many numbers.

    ``[1, 2, 3, 4]``, ``{"bbox_2d": [1, 2, 3, 4]}``, ``<box>(1,2),(3,4)</box>``, ``1 2 3 4`` are all read.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        ok = len(value) == count and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        return tuple(float(v) for v in value) if ok else None
    if not isinstance(value, str):
        return None
    value = value[-READ:]
    for part in reversed(re.findall(r"[\[(]([^\[\]()]{0,400})[\])]", value)):
        numbers = find_floats(part)
        if len(numbers) == count:
            return tuple(numbers)
    numbers = find_floats(value)
    return tuple(numbers[-count:]) if len(numbers) >= count else None


_POINT = re.compile(r"\(\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*\)")


def cited_points(text: str) -> list[tuple[re.Match[str], tuple[int, int]]]:
    """Every "(x, y)" of two whole numbers, in the order of the text: where it stands, and the numbers."""
    return [(m, (int(m[1]), int(m[2]))) for m in _POINT.finditer(text)]


def called_point(call: str) -> tuple[int, int] | None:
    """The point of a tool call in JSON: the list ``[x, y]``, or the one that is "coordinate" of its "arguments"; None for all else."""
    try:
        value = json.loads(call[:READ])
    except (ValueError, RecursionError):
        return None
    if isinstance(value, Mapping):
        arguments = value.get("arguments")
        value = arguments.get("coordinate") if isinstance(arguments, Mapping) else None
    if not isinstance(value, list) or len(value) != 2 or not all(type(v) is int and abs(v) < 10**9 for v in value):
        return None
    return value[0], value[1]


# -- items --------------------------------------------------------------------------------------------------------------------


def parse_items(value: Any) -> list[str]:
    """Items of an answer, normalised: a list, a JSON list, or text split at commas, semicolons, line ends and "and"."""
    if isinstance(value, str):
        value = text = value[-READ:].strip()
        if text.startswith("[") and text.endswith("]"):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                value = text[1:-1]
        if isinstance(value, str):
            value = re.split(r"[,;\n]|\band\b", value)
    if not isinstance(value, Iterable):
        value = [value]
    return [item for item in (normalise(str(v)).strip("-()[]{} ") for v in value) if item]


def parse_counts(value: Any) -> Counter[str] | None:
    """Counts by name: a mapping, a JSON object, or items such as ``2 cats``, ``cat: 2``, ``two cats``; None without any count."""
    if isinstance(value, str) and value.strip().startswith("{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = value.strip().strip("{}")
    if isinstance(value, Mapping):
        ok = all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < 1e9 and n == int(n) for n in value.values())
        return Counter({normalise(str(k)): int(n) for k, n in value.items()}) if ok else None
    counts: Counter[str] = Counter()
    for item in parse_items(value):
        words = re.findall(r"[^\W\d_]+|\d{1,9}", item)
        numbers = [int(w) if w.isdecimal() else int(_NUMBER_WORDS[w]) for w in words if w.isdecimal() or w in _NUMBER_WORDS]
        name = " ".join(w for w in words if not w.isdecimal() and w not in _NUMBER_WORDS and w != "x")
        if len(numbers) == 1 and name:
            counts[name] += numbers[0]
    return counts or None


def multiset_f1(found: Counter[str], gold: Counter[str]) -> float:
    """2 |found ∩ gold| / (|found| + |gold|) over multisets; 1 when both are empty."""
    total = found.total() + gold.total()
    return 2 * (found & gold).total() / total if total else 1.0
