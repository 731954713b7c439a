"""What a schema, a regular expression or a grammar may ask for, checked before any automaton is built.

Schemas are programs: some short ones take llguidance minutes or gigabytes to compile. The bounds here are on what was
seen to do so; what is left takes it about a second. Keywords that it would ignore are refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, NoReturn
from urllib.parse import unquote

from edgellm.errors import SpecError

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 64
MAX_SUBSCHEMAS = 4000
MAX_PROPERTIES = 1000
MAX_ENUM_VALUES = 2000
MAX_LITERAL_CHARS = 4096
MAX_PATTERNS = 256
MAX_COMBINED_PATTERNS = 8  # intersections of regular expressions grow exponentially
MAX_MULTIPLE = 20_000  # an automaton of that many states
MAX_REGEX_CHARS = 4096
MAX_NESTED_REPEATS = 100_000
MAX_GRAMMAR_BYTES = 64 * 1024
MAX_GBNF_RULES = 512

_MAPS = {"properties", "patternProperties", "$defs", "definitions"}
_LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_SINGLE = {"additionalProperties", "additionalItems"}
_ASSERTIONS = {
    "type", "const", "enum", "required", "minItems", "maxItems", "minProperties", "maxProperties", "minLength",
    "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "items", "$ref",
}  # fmt: skip
# These say nothing about which values are valid.
_ANNOTATIONS = {
    "$schema", "$id", "id", "$anchor", "$comment", "title", "description", "default", "examples", "deprecated",
    "readOnly", "writeOnly", "contentMediaType", "contentEncoding", "discriminator",
}  # fmt: skip
KEYWORDS = _MAPS | _LISTS | _SINGLE | _ASSERTIONS | _ANNOTATIONS
_ONLY_AT_THE_ROOT = {"$schema", "$id", "id"}
_NOT_COMBINING = _ANNOTATIONS | {"$defs", "definitions"}


def parse_json(text: str, what: str, *, max_bytes: int, max_depth: int) -> Any:
    """JSON of bounded size and depth.

    Raises:
        SpecError: too large, too deep, not JSON, or with a number that is not finite.
    """
    n_bytes = len(text.encode("utf-8", errors="replace"))
    if n_bytes > max_bytes:
        raise SpecError(f"{what} has {n_bytes} bytes, at most {max_bytes} are allowed")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise SpecError(f"{what} is nested deeper than {max_depth}") from None
    except ValueError as err:
        raise SpecError(f"{what} is not JSON: {str(err)[:200]}") from err
    check_depth(value, what, max_depth)
    return value


def check_depth(value: Any, what: str, max_depth: int) -> None:
    """Refuse lists and objects nested too deep, and numbers that are not finite.

    Raises:
        SpecError: with the bound.
    """
    level = [value]
    for _ in range(max_depth + 1):
        if any(isinstance(item, float) and not math.isfinite(item) for item in level):
            raise SpecError(f"{what} has a number that is not finite")
        level = [inner for item in level for inner in _inside(item)]
        if not level:
            return
    raise SpecError(f"{what} is nested deeper than {max_depth}")


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


class SchemaCheck:
    """Counts what several schemas ask for together, and refuses what is too much or not supported."""

    def __init__(self) -> None:
        self._n_subschemas = self._n_properties = self._n_values = self._n_patterns = 0
        self._combines = False
        self._multiple = 1

    def add(self, schema: Any, what: str = "the JSON schema") -> None:
        """Check a schema of bounded depth, and all inside it.

        Raises:
            SpecError: names the place in the schema, as a JSON pointer, and what is wrong there.
        """
        seen: dict[str, Any] = {}
        waiting = [("#", schema)]
        while waiting:
            where, inner = waiting.pop()
            seen[where] = inner
            self._n_subschemas += 1
            self._bound(self._n_subschemas, MAX_SUBSCHEMAS, "subschemas", f"{what} at {where}")
            if isinstance(inner, bool):
                continue
            if not isinstance(inner, dict):
                raise SpecError(f"{what} at {where[:200]} is {type(inner).__name__}, expected an object")
            self._add_one(inner, f"{what} at {where[:200]}", is_root=where == "#")
            waiting += _subschemas(inner, where, what)
        targets = {
            *seen,
            *(f"#{s['$anchor']}" for s in seen.values() if isinstance(s, dict) and "$anchor" in s),
        }
        for where, inner in seen.items():
            # A reference into data, such as an example, would be a schema that nobody checked.
            if isinstance(inner, dict) and "$ref" in inner and unquote(str(inner["$ref"])) not in targets:
                raise SpecError(
                    f"{what} at {where[:200]}: $ref {str(inner['$ref'])[:100]!r} is no schema inside it",
                    hint="refer to one by #/$defs/NAME",
                )

    def _add_one(self, schema: dict[str, Any], where: str, *, is_root: bool) -> None:
        for key in schema:
            is_known = key in KEYWORDS and (is_root or key not in _ONLY_AT_THE_ROOT)
            if not is_known and (not key.startswith("x-") or key == "x-guidance"):
                raise SpecError(
                    f"{where}: keyword {key[:60]!r} is not supported" + (" here" if key in KEYWORDS else ""),
                    hint="leave it out, or use: " + ", ".join(sorted(KEYWORDS - _ANNOTATIONS)),
                )
        self._combines |= "allOf" in schema or (
            bool(schema.keys() & {"$ref", "anyOf", "oneOf"}) and len(schema.keys() - _NOT_COMBINING) > 1
        )
        self._add_values(schema, where)
        self._add_patterns(schema, where)
        step = schema.get("multipleOf")
        if isinstance(step, int | float) and not isinstance(step, bool) and step > 0:
            self._multiple = math.lcm(self._multiple, _digits(step))
            self._bound(self._multiple, MAX_MULTIPLE, "as the common multiple of all multipleOf", where)

    def _add_values(self, schema: dict[str, Any], where: str) -> None:
        named = [group for k in ("properties", "required") if isinstance(group := schema.get(k), dict | list)]
        self._n_properties += max(map(len, named), default=0)
        self._bound(self._n_properties, MAX_PROPERTIES, "properties", where)
        values = schema.get("enum")
        literals = [*values] if isinstance(values, list) else []
        self._n_values += len(literals)
        self._bound(self._n_values, MAX_ENUM_VALUES, "enum values", where)
        literals += [schema["const"]] if "const" in schema else []
        for literal in (*literals, *(name for group in named for name in group)):
            n_chars = len(literal) if isinstance(literal, str) else len(json.dumps(literal))
            self._bound(n_chars, MAX_LITERAL_CHARS, "characters in one value or name", where)

    def _add_patterns(self, schema: dict[str, Any], where: str) -> None:
        patterns = [schema["pattern"]] if isinstance(schema.get("pattern"), str) else []
        by_name = schema.get("patternProperties")
        patterns += list(by_name) if isinstance(by_name, dict) else []
        for pattern in patterns:
            check_regex(pattern, f"{where}: pattern")
        self._n_patterns += len(patterns) + ("format" in schema)

    def finish(self) -> None:
        """Check what only the whole shows.

        Raises:
            SpecError: with the bound.
        """
        bound = MAX_COMBINED_PATTERNS if self._combines else MAX_PATTERNS
        if self._n_patterns > bound:
            because = " in a schema that combines others (allOf, or beside $ref, anyOf, oneOf)"
            raise SpecError(
                f"{self._n_patterns} patterns and formats, at most {bound} are allowed"
                + (because if self._combines else "")
            )

    def _bound(self, n: int, bound: int, what: str, where: str) -> None:
        if n > bound:
            raise SpecError(f"{where}: {n} {what}, at most {bound} allowed")


def _subschemas(schema: dict[str, Any], where: str, what: str) -> Iterator[tuple[str, Any]]:
    """(JSON pointer, schema) of what lies directly inside."""
    for key, inner in schema.items():
        here = f"{where}/{key}"
        if key in _MAPS or (key in _LISTS and not isinstance(inner, list)):
            if not isinstance(inner, dict) or key in _LISTS:
                raise SpecError(
                    f"{what} at {here[:200]} is {type(inner).__name__}, expected "
                    + ("a list" if key in _LISTS else "an object")
                )
            for name, one in inner.items():
                yield f"{here}/{name.replace('~', '~0').replace('/', '~1')}", one
        elif key in _LISTS or (key == "items" and isinstance(inner, list)):
            for i, one in enumerate(inner):
                yield f"{here}/{i}", one
        elif key in _SINGLE or key == "items":
            yield here, inner


def _digits(step: float) -> int:
    """The digits of a decimal number as an integer: 0.25 and 25 are 25."""
    exact = Fraction(str(step))
    while exact.denominator > 1 and exact.numerator <= MAX_MULTIPLE:
        exact *= 10
    return exact.numerator


def check_schema(text: str) -> Any:
    """The schema as an object, once all bounds hold.

    Raises:
        SpecError: names what is too much, or not supported.
    """
    schema = parse_json(text, "the JSON schema", max_bytes=MAX_SCHEMA_BYTES, max_depth=MAX_SCHEMA_DEPTH)
    if schema is False:
        raise SpecError("the JSON schema is false: nothing is valid")
    check = SchemaCheck()
    check.add(schema)
    check.finish()
    return {} if schema is True else schema


def check_regex(pattern: str, what: str = "the regular expression") -> None:
    """Refuse one that is too long, or repeats repetitions too often.

    Raises:
        SpecError: with the bound.
    """
    if not 1 <= len(pattern) <= MAX_REGEX_CHARS:
        raise SpecError(f"{what} has {len(pattern)} characters, expected 1 to {MAX_REGEX_CHARS}")
    n = nested_repeats(pattern)
    if n > MAX_NESTED_REPEATS:
        raise SpecError(f"{what} repeats repetitions {n} times, at most {MAX_NESTED_REPEATS} are allowed")


_REPEAT = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")


def nested_repeats(pattern: str) -> int:
    """The largest product of counts in braces, one inside the other: ((a{3}){4}b{9}) has 12."""
    groups = [1]  # of each open group, the largest product inside it
    last, i = 1, 0  # the product of what a count would repeat
    while i < len(pattern):
        character, repeat = pattern[i], _REPEAT.match(pattern, i)
        i += 1
        if repeat:
            last *= max(1, int(repeat[1] or 0), int(repeat[2] or 0))
            groups[-1] = max(groups[-1], last)
            i = repeat.end()
        elif character == "(":
            groups.append(1)
        elif character == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] = max(groups[-1], last)
        elif character not in "*+?":
            last = 1
            i = _class_end(pattern, i) if character == "[" else i + (character == "\\")
    return max(groups)


def _class_end(pattern: str, i: int) -> int:
    while i < len(pattern) and pattern[i] != "]":
        i += 2 if pattern[i] == "\\" else 1
    return i + 1


_GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)


def check_grammar(text: str, options: Mapping[str, Any]) -> str:
    """The grammar in llguidance's syntax, which is like Lark's; one in llama.cpp's GBNF is converted.

    Schemas in it (%json) have together the bounds of one schema, and `options` for llguidance.

    Raises:
        SpecError: too long; GBNF that does not parse; a schema inside it that `check_schema` would refuse.
    """
    n_bytes = len(text.encode("utf-8", errors="replace"))
    if not 1 <= n_bytes <= MAX_GRAMMAR_BYTES:
        raise SpecError(f"the grammar has {n_bytes} bytes, expected 1 to {MAX_GRAMMAR_BYTES}")
    n_gbnf = sum(1 for _ in _GBNF_RULE.finditer(text))
    if not n_gbnf:
        return _with_checked_schemas(text, options)
    if n_gbnf > MAX_GBNF_RULES:
        raise SpecError(f"the grammar has {n_gbnf} rules, at most {MAX_GBNF_RULES} are allowed in GBNF")
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(text)
    except RecursionError:
        raise SpecError("the GBNF grammar is nested too deep") from None
    except Exception as err:  # the library raises bare Exception for most
        said = (str(err).splitlines() or ["unknown"])[0][:200]
        raise SpecError(f"the GBNF grammar cannot be used: {said}") from err


def _with_checked_schemas(grammar: str, options: Mapping[str, Any]) -> str:
    check, pieces, end = SchemaCheck(), [], 0
    for n, found in enumerate(re.finditer(r"%json\b\s{0,99}", grammar), 1):
        if found.start() < end:
            continue  # inside the schema before
        what = f"%json number {n} of the grammar"
        try:
            schema, after = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(grammar, found.end())
        except (ValueError, RecursionError) as err:
            raise SpecError(f"{what} is not followed by JSON") from err
        check_depth(schema, what, MAX_SCHEMA_DEPTH)
        check.add(schema, what)
        if schema is False:
            raise SpecError(f"{what} is false: nothing is valid")
        with_options = {**({} if schema is True else schema), "x-guidance": dict(options)}
        pieces += [grammar[end : found.end()], json.dumps(with_options)]
        end = after
    check.finish()
    return "".join(pieces) + grammar[end:]
