"""Bounds on schemas, patterns and grammars, each shown at its edge."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgellm.errors import SpecError
from edgellm.runtime import constraint_checks as checks


def refusal(schema: Any) -> str:
    with pytest.raises(SpecError) as caught:
        checks.check_schema(schema if isinstance(schema, str) else json.dumps(schema))
    assert "\n" not in caught.value.message
    return caught.value.message


def check(schema: Any) -> None:
    checks.check_schema(json.dumps(schema))


def nested(depth: int) -> Any:
    schema: Any = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def test_a_schema_of_every_keyword_passes_as_it_is() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://example.com/x", "title": "t",
        "type": "object", "description": "d", "x-order": 3, "required": ["a"], "additionalProperties": False,
        "$defs": {"a/b~c": {"type": "string", "$anchor": "named", "default": {"foo": {}}}},
        "properties": {
            "a": {"$ref": "#/$defs/a~1b~0c"}, "b": {"$ref": "#named"}, "c": {"$ref": "#"}, "not": {"type": "null"},
            "d": {"anyOf": [{"type": "integer", "multipleOf": 5}, {"enum": [1, {"not": 2}]}, True]},
            "e": {"prefixItems": [{"const": 1}], "items": False, "minItems": 1, "examples": [{"if": 1}]},
        },
    }  # fmt: skip
    assert checks.check_schema(json.dumps(schema)) == schema


@pytest.mark.parametrize(
    "keyword",
    ["not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "uniqueItems", "contains",
     "minContains", "propertyNames", "unevaluatedProperties", "unevaluatedItems", "nullable", "x-guidance",
     "$dynamicRef", "$recursiveRef", "foo", "requried"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("place", "pointer"),
    [
        (lambda s: s, "#:"),
        (lambda s: {"properties": {"p": s}}, "#/properties/p:"),
        (lambda s: {"items": s}, "#/items:"),
        (lambda s: {"prefixItems": [{}, s]}, "#/prefixItems/1:"),
        (lambda s: {"$defs": {"d": {"anyOf": [s]}}}, "#/$defs/d/anyOf/0:"),
        (lambda s: {"additionalProperties": s}, "#/additionalProperties:"),
        (lambda s: {"patternProperties": {"^a": s}}, "#/patternProperties/^a:"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_and_place(keyword: str, place: Any, pointer: str) -> None:
    said = refusal(place({keyword: {}}))
    assert f"keyword {keyword!r} is not supported" in said
    assert f"at {pointer}" in said


@pytest.mark.parametrize(
    "target",
    ["#/examples/0", "#/const", "#/properties/a/default", "#/$defs/missing", "#/x-hidden", "#other", "a.json",
     "http://127.0.0.1:9/x", "file:///etc/passwd", "", "#/$defs", "#/%65xamples/0"],
)  # fmt: skip
def test_a_reference_leads_only_to_a_schema_that_was_checked(target: str) -> None:
    hidden = {"multipleOf": 999_983}
    schema = {
        "examples": [hidden], "const": hidden, "x-hidden": hidden, "$defs": {"d": {}},
        "properties": {"a": {"default": hidden}, "b": {"$ref": target}},
    }  # fmt: skip
    assert "is no schema inside it" in refusal(schema)


def test_a_second_base_for_references_is_refused() -> None:
    assert "'$id' is not supported here" in refusal({"items": {"$id": "http://x/"}})


@pytest.mark.parametrize(
    ("inside", "beyond", "words"),
    [
        (nested(64), nested(65), "deeper than 64"),
        ({"enum": list(range(2000))}, {"enum": list(range(2001))}, "2001 enum values"),
        ({"multipleOf": 20_000}, {"multipleOf": 20_001}, "20001 as the common multiple"),
        ({"anyOf": [{"multipleOf": 127}, {"multipleOf": 131}]},
         {"anyOf": [{"multipleOf": 149}, {"multipleOf": 151}]}, "22499 as the common multiple"),
        ({"multipleOf": 1e-9}, {"multipleOf": 0.99991}, "99991 as the common multiple"),
        ({"const": "x" * 4096}, {"const": "x" * 4097}, "4097 characters"),
        ({"required": ["x" * 4096]}, {"properties": {"x" * 4097: {}}}, "4097 characters"),
        ({"properties": {f"p{i}": {} for i in range(1000)}},
         {"$defs": {"a": {"properties": {f"p{i}": {} for i in range(999)}}, "b": {"required": ["a", "b"]}}},
         "1001 properties"),
        ({"prefixItems": [True] * 3999}, {"prefixItems": [True] * 4000}, "4001 subschemas"),
        ({"pattern": "x" * 4096}, {"pattern": "x" * 4097}, "4097 characters"),
        ({"pattern": "(a{100}){1000}"}, {"pattern": "(a{100}){1001}"}, "100100 times"),
        ({"prefixItems": [{"pattern": "a"}] * 256}, {"prefixItems": [{"format": "date"}] * 257}, "257 patterns"),
        ({"allOf": [{"pattern": "a"}] * 8}, {"allOf": [{"pattern": "a"}] * 9}, "9 patterns"),
        ({"anyOf": [{"pattern": "a"}] * 9}, {"anyOf": [{"pattern": "a"}] * 8, "pattern": "b"}, "9 patterns"),
    ],
)  # fmt: skip
def test_each_bound_holds_at_its_edge(inside: Any, beyond: Any, words: str) -> None:
    check(inside)
    assert words in refusal(beyond)


def test_the_text_of_a_schema_is_bounded() -> None:
    text = json.dumps({"description": "x" * 70_000})
    assert "at most 65536" in refusal(text)
    assert "at most 65536" in refusal('{"title": "' + "é" * 32_768 + '"}')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"), ("{", "is not JSON"), ("{'a': 1}", "is not JSON"), ('{"const": NaN}', "NaN"),
        ('{"const": -Infinity}', "Infinity"), ('{"maximum": 1e999}', "not finite"), ("[" * 30_000, "nested deeper"),
        ('{"items":' * 7000, "nested deeper"), ("3", "# is int"), ("[]", "# is list"), ("false", "nothing is valid"),
        ('{"properties": []}', "#/properties is list"), ('{"anyOf": {}}', "#/anyOf is dict"),
        ('{"items": 3}', "#/items is int"), ('{"anyOf": [null]}', "#/anyOf/0 is NoneType"),
    ],
)  # fmt: skip
def test_what_is_no_schema_is_refused(text: str, words: str) -> None:
    assert words in refusal(text)


@pytest.mark.parametrize(
    ("pattern", "n"),
    [
        ("abc", 1), ("a{3}", 3), ("a{3}b{4}", 4), ("(a{3}){4}", 12), ("(a{3}b{9}|c){2,4}", 36), ("((a{3}){4}b{9})", 12),
        ("(?:x{2,}){5}", 10), ("[{3}(]{2}", 2), (r"\(a{3}\){4}", 4), ("a{3}{4}", 12), ("a{,3}", 3),
        ("a{ 3 , 4 }", 4), ("a{1000000000}", 10**9),
        ("{}a", 1), ("(a{5})", 5),
        ("a{0}", 1), ("((((a{10}){10}){10}){10}){10}", 100_000), (")a{2}", 2), ("(a{2}", 2), (r"[\]{9}]{3}", 3),
        ("(a{7}+)*{3}", 21),
    ],
)  # fmt: skip
def test_repetitions_are_counted_through_groups(pattern: str, n: int) -> None:
    assert checks.nested_repeats(pattern) == n


def test_gbnf_is_converted_and_other_grammars_are_left() -> None:
    lark = 'start: "a" | B\nB: /b+/'
    assert checks.check_grammar(lark, {}) == lark
    assert checks.check_grammar('root ::= "a" | b\nb ::= [bc]+', {}).startswith("%llguidance")


def test_schemas_inside_a_grammar_have_the_bounds_and_get_the_options() -> None:
    grammar = 'start: %json {"type": "integer"} "," x\nx: %json true'
    assert checks.check_grammar(grammar, {"lenient": False}) == (
        'start: %json {"type": "integer", "x-guidance": {"lenient": false}} "," x\n'
        'x: %json {"x-guidance": {"lenient": false}}'
    )


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("", "0 bytes"),
        ("x" * 65_537, "65537 bytes"),
        ('start: %json {"not": {}}', "keyword 'not'"),
        ('start: %json {"multipleOf": 149} %json {"multipleOf": 151}', "common multiple"),
        ('start: %json {"x-guidance": {"lenient": true}}', "'x-guidance'"),
        ("start: %json nonsense", "number 1 of the grammar is not followed by JSON"),
        ("start: %json " + '{"items":' * 70 + "{}" + "}" * 70, "deeper than 64"),
        ("start: %json false", "nothing is valid"),
        ("root ::= " + "(" * 20_000, "GBNF"),
        ("root ::= " + "(" * 800 + '"a"' + ")" * 800, "nested too deep"),
        ('root ::= "abc', "Unexpected end of input"),
        ("root ::= missing", "Rule 'missing' not found"),
        ('a ::= "x"', "No 'root' rule"),
        ("\n".join(f"a{i} ::= a{i + 1}" for i in range(513)), "513 rules"),
    ],
)
def test_a_bad_grammar_is_refused_in_one_line(grammar: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        checks.check_grammar(grammar, {})
    assert words in caught.value.message
    assert "\n" not in caught.value.message
