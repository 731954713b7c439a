"""Schemas, grammars and patterns that ask for too much. As a program: compiles each and draws 30 tokens.

`python -m tests.support.hostile_specs` prints a line for each: works, or why it was refused.
"""

from __future__ import annotations

import json
import resource
from typing import Any

import numpy as np

from edgellm.errors import SpecError
from edgellm.runtime.constraints import Constraints, ConstraintSpec
from tests.support.fake_backend import VOCAB_SIZE, FakeBackend

MAX_BYTES = 3 << 30
MAX_CPU_S = 60


def _items(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


def _doubled(n: int, key: str) -> Any:
    defs: dict[str, Any] = {"d0": {"type": "object", "properties": {f"p{i}": {} for i in range(10)}}}
    for i in range(1, n):
        defs[f"d{i}"] = {key: [{"$ref": f"#/$defs/d{i - 1}"}] * 2}
    return {"$defs": defs, "$ref": f"#/$defs/d{n - 1}"}


def _product(n: int) -> Any:
    def one(i: int) -> Any:
        return {"anyOf": [{"properties": {f"{letter}{i}": {}}} for letter in "ab"]}

    return {"allOf": [one(i) for i in range(n)]}


_A, _B = {"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}
_MANY = {f"p{i}": {"type": "string"} for i in range(1000)}
_RANGE = {"type": "number", "minimum": -1.123456789, "maximum": 98765.987}

SCHEMAS: dict[str, Any] = {
    "cycle": {"$ref": "#"},
    "two in a cycle": {"$defs": {"a": _B, "b": _A}, **_A},
    "cycle through allOf": {"$defs": {"a": {"allOf": [_A, {"type": "object"}]}}, **_A},
    "no end": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "deep": _items(1000),
    "very deep": _items(7000),
    "long enum": {"enum": list(range(10**5))},
    "enum of objects": {"enum": [{"v": i} for i in range(2000)]},
    "pattern": {"type": "string", "pattern": "(a+)+b"},
    "pattern of patterns": {"type": "string", "pattern": "^(.{0,1000}){0,100}$"},
    "late pattern": {"type": "string", "pattern": "^(a|b)*a(a|b){30}$"},
    "patterns": {"allOf": [{"type": "string", "pattern": f"^.*a{i}.*$"} for i in range(8)]},
    "more patterns": {"allOf": [{"type": "string", "pattern": f"^.*a{i}.*$"} for i in range(100)]},
    "minItems": {"type": "array", "minItems": 10**9},
    "maxLength": {"type": "string", "maxLength": 10**9},
    "minLength": {"type": "string", "minLength": 10**9},
    "minProperties": {"type": "object", "minProperties": 10**9},
    "multipleOf": {"type": "integer", "multipleOf": 999_983},
    "largest multipleOf": {"type": "integer", "multipleOf": 19_997},
    "huge bounds": {"type": "integer", "minimum": 10**300, "maximum": 10**301},
    "optional": {"type": "object", "properties": _MANY},
    "required": {"type": "object", "properties": _MANY, "required": list(_MANY)},
    "doubled allOf": _doubled(30, "allOf"),
    "doubled anyOf": _doubled(30, "anyOf"),
    "product": _product(8),
    "larger product": _product(30),
    "alternatives": {
        "anyOf": [
            {"type": "object", "properties": {f"k{j}": {} for j in range(i % 7 + 1)}} for i in range(250)
        ]
    },
    "long value": {"const": "x" * 4096},
    "tuple": {"type": "array", "prefixItems": [{"format": "date"} if i < 200 else True for i in range(3900)]},
    "ranges": {"type": "object", "properties": {f"f{i}": _RANGE for i in range(400)}},
}


def _rules(text: str, n: int) -> str:
    return "".join(text.replace("M", str(i + 1)).replace("N", str(i)) for i in range(n))


GRAMMARS = {
    "left recursion": 'start: start "a" | "a"',
    "ambiguous": "start: s\ns: s s s | s s | /[a-z ]/",
    "empty": 'start: x*\nx: y*\ny: ""',
    "itself": "start: start",
    "repeated": 'start: (("a"{1000}){1000}){1000}',
    "repeated terminals": "start: C\nA: /a{1000}/\nB: A{1000}\nC: B{1000}",
    "parentheses": "start: " + "(" * 30_000 + '"a"' + ")" * 30_000,
    "doubled rules": "start: r0\n" + _rules('rN: rM rM | "xN"\n', 1500) + 'r1500: "a"',
    "nullable rules": "start: r0\n" + _rules("rN: rM? rM?\n", 2000) + 'r2000: "a"?',
    "optional": "start: " + "x? " * 5000 + '\nx: "a"|"b"',
    "intersection": "start: A\nA: /(.*a.{12})/ & /(.*b.{11})/ & ~/(.*c.{10})/",
    "gbnf alternatives": "root ::= " + "|".join(['"x"'] * 12_000),
    "gbnf chain": "root ::= a0\n" + _rules("aN ::= aM\n", 500) + 'a500 ::= "x"',
    "gbnf left recursion": 'root ::= root "a" | "b"',
    "gbnf parentheses": "root ::= " + "(" * 20_000,
    "gbnf literal": 'root ::= "' + "x" * 60_000 + '"',
    "white space": "\n" * 60_000 + "root ::=",
}
PATTERNS = {
    "nested": "(a+)+b",
    "repeated": "((a{1000}){1000}){1000}",
    "repeated less": "((a{40}){50}){50}",
    "dots": ".*a" * 1000,
    "parentheses": "(" * 2000 + "a" + ")" * 2000,
    "classes": r"(?i)(\w|\d|\p{L}){0,500}x",
    "words": "|".join(f"w{i}x" for i in range(600)),
    "gaps": "(?s:.*)".join(["[^x]{1,50}"] * 20),
}


def all_specs() -> dict[str, ConstraintSpec]:
    """Every spec by its name."""
    found = {}
    for name, schema in SCHEMAS.items():
        text = schema if isinstance(schema, str) else json.dumps(schema, separators=(",", ":"))
        found[f"schema {name}"] = ConstraintSpec(kind="json_schema", text=text)
    for name, grammar in GRAMMARS.items():
        found[f"grammar {name}"] = ConstraintSpec(kind="grammar", text=grammar)
    for name, pattern in PATTERNS.items():
        found[f"regex {name}"] = ConstraintSpec(kind="regex", text=pattern)
    return found


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    compiler = Constraints(FakeBackend())
    for name, spec in all_specs().items():
        try:
            _draw(compiler, spec)
            print(name, "works", sep=": ", flush=True)
        except SpecError as err:
            print(name, err.message, sep=": ", flush=True)


def _draw(compiler: Constraints, spec: ConstraintSpec) -> None:
    rng = np.random.default_rng(0)
    constraint = compiler.prepare(spec)
    for _ in range(30):
        logits = rng.standard_normal(VOCAB_SIZE).astype(np.float32)
        constraint.mask(logits)
        constraint.accept(int(logits.argmax()))
        if constraint.is_complete:
            break


if __name__ == "__main__":
    main()
