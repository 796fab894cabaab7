"""Equations of docstrings as MathML, which browsers draw by themselves.

Docstrings state mathematics in plain Unicode: ``A_i = (r_i − mean_g r) / (std_g r + ε)``. `mathml` reads that form:

    x_i, x_{t+1}, γ^{s−t}, x²     subscripts and superscripts; a group in braces, or a run of letters and digits
    a / b                         a fraction of the two products beside the slash; brackets around a whole part fall away
    Σ_i, Π_t                      a sum or product over i, with the index below
    √(x), |x|, (x), [x]           a root, and brackets that grow with what they hold
    words                         upright: names of functions (`NAMES`) and prose

`page` renders a whole docstring: lines that are equations, lists of terms, and prose with its symbols.
"""

from __future__ import annotations

import re
from html import escape

NAMES = {"log", "exp", "min", "max", "clip", "mean", "std", "var", "sg", "loss", "median", "softmax", "KL", "IoU", "argmax"}
"""Words that belong to a formula; every other word of two letters or more is prose."""

TOKEN = re.compile(
    r"(?P<gap> {2,})|(?P<space> )|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)|(?P<greek>[α-ωΑ-ΩϵΔ∇∂])|(?P<word>[A-Za-zÀ-ÿ][A-Za-zÀ-ÿ0-9']*)"
    r"|(?P<open>[(\[{⟨])|(?P<close>[)\]}⟩])|(?P<script>[_^])|(?P<bar>[|])|(?P<root>√)|(?P<power>[²³])|(?P<slash>/)|(?P<sign>.)"
)
FACTOR = ("number", "greek", "word", "open", "bar", "root")
BIG = {"Σ": "∑", "Π": "∏", "∑": "∑", "∏": "∏"}
THIN = '<mspace width="0.17em"/>'
SCRIPT = r"_(?:\{[^}]*\}|[A-Za-z0-9α-ω]+)"
SYMBOL = re.compile(rf"(?<![\w`.\-])(?:(?:[A-Za-z]|mean|std|max|min){SCRIPT}|[α-ω](?:{SCRIPT})?)(?![\w`])")


def mathml(text: str, display: bool = False) -> str:
    """`text` as one <math> element; nothing of it is lost, whatever it says."""
    row = Reader(text.strip()).row(None)
    return f"<math{' display=' + chr(34) + 'block' + chr(34) if display else ''}><mrow>{row}</mrow></math>"


class Reader:
    """Reads the linear form from left to right; each method returns the MathML of what it read."""

    def __init__(self, text: str):
        self.tokens = [(m.lastgroup or "", m[0]) for m in TOKEN.finditer(text)]
        self.at = 0

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ("end", "")

    def take(self) -> tuple[str, str]:
        self.at += 1
        return self.tokens[self.at - 1]

    def row(self, until: str | None) -> str:
        """Everything up to a closing bracket or bar (`until`), which is left, or to the end."""
        out: list[str] = []
        while self.peek()[0] != "end" and self.peek()[0] != until:
            kind, text = self.peek()
            if kind not in FACTOR:
                self.take()
                out += {"gap": ['<mspace width="1.5em"/>'], "space": []}.get(kind, [f"<mo>{escape(text)}</mo>"])
            elif self.is_prose():
                out.append(self.prose())
            else:
                before = self.at
                out.append(self.quotient())
                if self.at == before:  # a bar that closes nothing here
                    out.append(f"<mo>{escape(self.take()[1])}</mo>")
        return "".join(out)

    def is_prose(self, ahead: int = 0) -> bool:
        (kind, text), (after, _) = self.peek(ahead), self.peek(ahead + 1)
        return kind == "word" and len(text) > 1 and text.isalpha() and text not in NAMES and after not in ("script", "open")

    def prose(self) -> str:
        words = [self.take()[1]]
        while self.peek()[0] == "space" and self.is_prose(1):
            self.take()
            words.append(self.take()[1])
        return f'<mspace width="0.3em"/><mtext>{escape(" ".join(words))}</mtext><mspace width="0.3em"/>'

    def quotient(self) -> str:
        above, bare_above = self.product()
        here = self.at
        while self.peek()[0] == "space":
            self.take()
        if self.peek()[0] != "slash":
            self.at = here
            return above
        self.take()
        while self.peek()[0] == "space":
            self.take()
        below, bare_below = self.product()
        return f"<mfrac><mrow>{bare_above}</mrow><mrow>{bare_below}</mrow></mfrac>" if below else above + "<mo>/</mo>"

    def product(self) -> tuple[str, str]:
        """Factors that stand side by side; and the same without the brackets that hold all of it."""
        parts: list[str] = []
        inside = ""
        while True:
            here = self.at
            while self.peek()[0] == "space":
                self.take()
            kind, _ = self.peek()
            if kind not in FACTOR or self.is_prose() or (kind == "bar" and self.closes):
                self.at = here
                break
            factor, inside = self.factor()
            parts.append(factor)
        return "".join(parts), inside if len(parts) == 1 and inside else "".join(parts)

    closes = False

    def factor(self) -> tuple[str, str]:
        """One symbol or bracket with its scripts; and what is inside where it is a bracket without scripts."""
        kind, text = self.take()
        inside, number, limits, name = "", "", False, False
        if kind == "open":
            inside = self.row("close")
            shut = self.take()[1] if self.peek()[0] == "close" else ""
            body = f"<mrow><mo>{escape(text)}</mo>{inside}<mo>{escape(shut)}</mo></mrow>"
            if text == "(" and re.fullmatch(r"<mfrac>(?:(?!<mfrac>).)*</mfrac>", inside) and self.peek()[0] not in ("script", "power"):
                body = inside  # the bar of a fraction brackets it already
            inside = inside if text == "(" else ""
        elif kind == "bar":
            self.closes = True
            held = self.row("bar")
            self.closes = False
            if self.peek()[0] == "bar":
                self.take()
            body = f"<mrow><mo>|</mo>{held}<mo>|</mo></mrow>"
        elif kind == "root":
            whole, held = self.factor() if self.peek()[0] in FACTOR else ("", "")
            body = f"<msqrt><mrow>{held or whole}</mrow></msqrt>"
        elif kind == "number":
            mantissa, _, power = text.partition("e")
            body = f"<mn>{mantissa}</mn>"
            if power:
                ten = f"<msup><mn>10</mn><mn>{power.replace('-', '−')}</mn></msup>"
                body = ten if mantissa == "1" else f"<mrow>{body}<mo>·</mo>{ten}</mrow>"
        elif text in BIG:
            body, limits = f'<mo largeop="true" movablelimits="false">{BIG[text]}</mo>', True
        elif re.fullmatch(r"[A-Za-z]\d+", text):
            body, number = f"<mi>{text[0]}</mi>", f"<mn>{text[1:]}</mn>"
        else:
            name = len(text) > 1
            body = f'<mi mathvariant="normal">{escape(text)}</mi>' if name else f"<mi>{escape(text)}</mi>"
        scripts = self.scripts()
        if number:
            scripts["_"] = f"<mrow>{number}<mo>,</mo>{scripts['_']}</mrow>" if "_" in scripts else number
        if "_" in scripts and "^" in scripts:
            body = f"<msubsup>{body}{scripts['_']}{scripts['^']}</msubsup>"
        elif "_" in scripts:
            body = f"<munder>{body}{scripts['_']}</munder>" if limits else f"<msub>{body}{scripts['_']}</msub>"
        elif "^" in scripts:
            body = f"<msup>{body}{scripts['^']}</msup>"
        if (name or limits) and self.peek()[0] == "space":
            body += THIN
        return body, "" if scripts else inside

    def scripts(self) -> dict[str, str]:
        found: dict[str, str] = {}
        while self.peek()[0] in ("script", "power") and ("^" if self.peek()[0] == "power" else self.peek()[1]) not in found:
            kind, text = self.take()
            if kind == "power":
                found["^"] = f"<mn>{ {'²': 2, '³': 3}[text] }</mn>".replace(" ", "")
            elif self.peek()[1] == "{":
                self.take()
                found[text] = f"<mrow>{self.row('close')}</mrow>"
                if self.peek()[0] == "close":
                    self.take()
            else:
                run = ""
                while self.peek()[0] in ("word", "greek", "number") and (not run or self.tokens[self.at - 1][0] != "space"):
                    run += self.take()[1]
                style = ' mathvariant="normal"' if len(run) > 2 or run in ("lo", "hi") else ""
                letters = [f"<mi>{escape(c)}</mi>" for c in run] if not style else [f"<mi{style}>{escape(run)}</mi>"]
                found[text] = letters[0] if len(letters) == 1 else f"<mrow>{''.join(letters)}</mrow>"
        return found


def inline(text: str) -> str:
    """Prose with its symbols (``ε_hi``, ``L_max``) as MathML; what stands between backticks is left alone.

    The spans keep Markdown from taking a symbol at the start of a line for a block.
    """
    parts = re.split(r"(`+[^`]*`+)", text)
    return "".join(p if p.startswith("`") else SYMBOL.sub(lambda m: f"<span>{mathml(m[0])}</span>", p.replace("](", "]\\(")) for p in parts)


def is_equation(line: str) -> bool:
    """Whether a line states a formula, or several set apart by spaces: each has a relation, and words are few beside symbols."""
    parts = re.split(r" {3,}", line.strip())
    if len(parts) > 1:
        return all("=" in p for p in parts) or (is_equation("  ".join(parts)) and "=" in parts[0])
    words = [w for w in re.findall(r"(?<![_\w{])[A-Za-z]{2,}", re.sub(r"_\{[^}]*\}|_\w+", "", line)) if w not in NAMES]
    symbols = re.findall(r"[α-ωΣΠ=+−·/√|²]|_\w", line)
    return bool(re.search(r"[=≤≥]", line)) and len(symbols) >= 3 and len(words) * 1.5 <= len(symbols) and not line.strip().endswith(":")


def equations(line: str) -> str:
    """One line of formulas; those that are set apart by three spaces or more get lines of their own."""
    each = [part.strip().rstrip(",") for part in re.split(r" {3,}", line.strip())]
    return "".join(f'<div class="equation">{mathml(part, display=True)}</div>\n' for part in each if part)


def page(text: str) -> str:
    """A docstring's text (without its first line) as Markdown with MathML."""
    out: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        prose: list[str] = []
        terms: list[tuple[str, str]] = []

        def flush(prose: list[str] = prose, terms: list[tuple[str, str]] = terms) -> None:
            if prose:
                out.append(inline(" ".join(prose)))
            if terms:
                out.append(term_table(terms))
            prose.clear()
            terms.clear()

        for line in paragraph.split("\n"):
            term = re.match(r" {2,}(\S(?:.*?\S)?) {3,}(\S.*)", line)
            if is_equation(line) and (line.startswith("  ") or not prose):
                flush()
                out.append(equations(line))
            elif term:
                if prose:
                    flush()
                terms.append((term[1], term[2]))
            elif terms and line.startswith("     "):
                terms[-1] = (terms[-1][0], f"{terms[-1][1]} {line.strip()}")
            else:
                if terms:
                    flush()
                prose.append(line.strip())
        flush()
    return "\n\n".join(out)


def term_table(terms: list[tuple[str, str]]) -> str:
    cells = [(escape(term), mathml(says) if is_equation(says) else code(inline(says))) for term, says in terms]
    return f'<table class="terms">{"".join(f"<tr><th>{term}</th><td>{says}</td></tr>" for term, says in cells)}</table>'


def code(text: str) -> str:
    """Backticks as <code>, for text that stands in HTML."""
    return re.sub(r"``?([^`]+)``?", lambda m: f"<code>{escape(m[1])}</code>", text)
