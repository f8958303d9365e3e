"""Presentation MathML read back as Python: what a reader takes it to mean, bracket by bracket.

A name with an index is a function of it; sums and maxima go over SIZE positions; `n` with an index is how many there are.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from typing import Any

SIGNS = {"−": "-", "+": "+",
         "⋅": "*", "×": "*", "=": "==", "≠": "!=", "<": "<", "≤": "<=", ">": ">", "≥": ">=", ",": ",", "(": "(", ")": ")"}
BARS = {"|": "abs(", "[": "float(", "⌊": "floor("}
NAMES = {"σ": "sigmoid", "∞": "inf", "π": "pi", "e": "e"}
APPLY = "\u2061"
SIZE = 3


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else math.exp(x)


FUNCTIONS: dict[str, Any] = {
    "log": math.log, "exp": math.exp, "sigmoid": sigmoid, "max": max, "min": min, "tanh": math.tanh, "cosh": math.cosh, "erf": math.erf,
    "log1p": math.log1p,
    "expm1": math.expm1, "sqrt": math.sqrt, "abs": abs, "float": float, "floor": math.floor, "inf": math.inf, "pi": math.pi, "e": math.e,
    "sgn": lambda x: math.copysign(float(x != 0), x), "softplus": lambda x: math.log1p(math.exp(x)),
    "logcosh": lambda x: math.log(math.cosh(x)), "log1mexp": lambda x: math.log(-math.expm1(-x)), "step": lambda x: float(x > 0),
    "log1pmx": lambda x: math.log1p(x) - x, "expm1mx": lambda x: math.expm1(x) - x, "binade": lambda x: 2.0 ** math.floor(math.log2(x)),
    "log_mixture": lambda x, y: math.log1p(y * math.expm1(x)),
    "entropy_gap": lambda a, b, y: -y * math.exp(a) * math.log1p((1 - y) * math.expm1(b - a)) - (1 - y) * math.exp(b) * math.log1p(
        y * math.expm1(a - b)),
}


def identifier(name: str) -> str:
    return "v_" + "".join(c if c.isalnum() and c.isascii() else f"_{ord(c):x}" for c in name)


def read(node: ET.Element) -> str:
    """The Python text of an element."""
    tag, text, kids = node.tag, (node.text or "").strip(), list(node)
    match tag:
        case "math" | "mrow":
            return row(kids)
        case "mn":
            return text
        case "mi":
            name = NAMES.get(text, text)
            return name if name in FUNCTIONS else identifier(text)
        case "mo":
            return SIGNS[text]
        case "mtext":
            return {"mod": " % ", "and": " and ", "or": " or ", "not": " not "}[node.text.strip() if node.text else ""]
        case "mfrac":
            return f"(({read(kids[0])})/({read(kids[1])}))"
        case "msub":
            return indexed(identifier("".join(kids[0].itertext())), kids[1])
        case "msubsup":
            return indexed(identifier("".join(kids[0].itertext()) + "^" + "".join(kids[2].itertext())), kids[1])
        case "msup" if "".join(kids[0].itertext()) == "v":
            return identifier("v^" + "".join(kids[1].itertext()))
        case "msup":
            return f"(({read(kids[0])})**({read(kids[1])}))"
        case "msqrt":
            return f"sqrt({row(kids)})"
        case "mtable":
            return cases(kids)
    raise AssertionError(f"what is {tag}?")


def indexed(name: str, index: ET.Element) -> str:
    """A cell of a table; the number of positions of an axis."""
    return str(SIZE) if name == identifier("n") else f"{name}({row([index])})"


def bound(node: ET.Element, body: str) -> str:
    """A sum or maximum over the letter below it."""
    what, letter = node
    return f"{'sum' if what.text == '∑' else 'max'}(({body}) for {read(letter)} in range({SIZE}))"


def cases(rows: list[ET.Element]) -> str:
    """The arms of braces, the last one otherwise."""
    *arms, (last, _) = (list(r) for r in rows)
    text = f"({row(list(last))})"
    for value, condition in reversed(arms):
        inner = next(iter(condition))
        assert inner[0].tag == "mtext" and "if" in (inner[0].text or "")
        text = f"(({row(list(value))}) if ({row(list(inner)[1:])}) else {text})"
    return text


def row(kids: list[ET.Element]) -> str:
    """Elements side by side."""
    out, k = [], 0
    while k < len(kids):
        node = kids[k]
        text = (node.text or "").strip() if node.tag == "mo" else ""
        if node.tag == "munder" and node[0].tag == "mo":
            out.append(bound(node, row([kids[k + 1]])))
            k += 2
            continue
        if k + 1 < len(kids) and kids[k + 1].tag == "mo" and kids[k + 1].text == APPLY:
            rest = k + 3 if k + 2 < len(kids) and kids[k + 2].tag == "mspace" else k + 2
            inside = row([kids[rest]])
            out.append(bound(node, inside) if node.tag == "munder" else f"{read(node)}({inside.removeprefix('(').removesuffix(')')})"
                       if inside.startswith("(") and kids[rest][0].get("fence") else f"{read(node)}({inside})")
            k = rest + 1
            continue
        if text in BARS and node.get("fence"):
            inside = kids[k + 1]
            out.append(f"{BARS[text]}{row([inside])})")
            k += 3
            continue
        if text == "{":
            k += 1
            continue
        out.append(read(node))
        k += 1
    return "".join(out)


def equation(parts: list[str]) -> tuple[str, list[str], str]:
    """An equation that is given in pieces: what is on the left, the letters that it is at, and the right as Python."""
    trees = [ET.fromstring(p.replace("&#xA0;", " ").replace("&#x2061;", APPLY)) for p in parts]
    head, *rest = next(iter(trees[0]))
    left = next(iter(head))
    cell = next((e for e in left.iter() if e.tag in ("msub", "msubsup")), None)
    letters = [] if cell is None else [identifier(t) for t in "".join(cell[1].itertext()).split(",")]
    name = "".join(left.itertext())
    if cell is not None:
        name = name.replace("".join(cell.itertext()), "".join(cell[0].itertext()), 1)
    return name, letters, row(rest) + "".join(map(read, trees[1:]))
