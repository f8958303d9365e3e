"""Presentation MathML read back as Python, for formulas without indices: what a reader takes it to mean, bracket by bracket."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from typing import Any

SIGNS = {"−": "-", "+": "+",
         "⋅": "*", "×": "*", "=": "==", "≠": "!=", "<": "<", "≤": "<=", ">": ">", "≥": ">=", ",": ",", "(": "(", ")": ")"}
BARS = {"|": "abs(", "[": "float(", "⌊": "floor("}
NAMES = {"σ": "sigmoid", "∞": "inf", "π": "pi", "e": "e"}
APPLY = "\u2061"


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else math.exp(x)


FUNCTIONS: dict[str, Any] = {
    "log": math.log, "exp": math.exp, "sigmoid": sigmoid, "max": max, "min": min, "sgn": lambda x: math.copysign(float(x != 0), x), "tanh": math.tanh,
    "erf": math.erf, "log1p": math.log1p, "expm1": math.expm1, "sqrt": math.sqrt, "abs": abs, "float": float, "floor": math.floor,
    "softplus": lambda x: math.log1p(math.exp(x)), "logcosh": lambda x: math.log(math.cosh(x)), "log1mexp": lambda x: math.log(-math.expm1(-x)),
    "inf": math.inf, "pi": math.pi, "e": math.e,
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
        case "msup":
            return f"(({read(kids[0])})**({read(kids[1])}))"
        case "msqrt":
            return f"sqrt({row(kids)})"
        case "mtable":
            return cases(kids)
    raise AssertionError(f"what is {tag}?")


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
        if k + 1 < len(kids) and kids[k + 1].tag == "mo" and kids[k + 1].text == APPLY:
            rest = k + 3 if k + 2 < len(kids) and kids[k + 2].tag == "mspace" else k + 2
            out.append(f"{read(node)}({row([kids[rest]])})")
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


def equation(parts: list[str]) -> tuple[str, str]:
    """The two sides of an equation that is given in pieces: the left as it is written, the right as Python."""
    trees = [ET.fromstring(p.replace("&#xA0;", " ").replace("&#x2061;", APPLY)) for p in parts]
    first = list(next(iter(trees[0])))
    head, rest = first[0], first[1:]
    left = re.sub(r"\s", "", "".join(next(iter(head)).itertext()))
    return left, row(rest) + "".join(map(read, trees[1:]))
