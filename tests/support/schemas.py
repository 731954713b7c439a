"""Small JSON schemas for property tests: what OpenAI's strict mode allows, and values that end soon."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]

_NAMES = st.text("abcxyz_é", min_size=1, max_size=6)


def _numbers(kind: str) -> st.SearchStrategy[Schema]:
    low = st.integers(-50, 50)
    return st.tuples(low, st.integers(0, 90), st.booleans()).map(
        lambda t: (
            {"type": kind, "minimum": t[0], "maximum": t[0] + t[1]}
            if t[2]
            else {"type": kind, "exclusiveMinimum": t[0], "maximum": t[0] + t[1] + 1}
        )
    )


_STRINGS: st.SearchStrategy[Schema] = st.one_of(
    st.integers(0, 6).map(lambda n: {"type": "string", "minLength": n // 2, "maxLength": n + 2}),
    st.sampled_from(["^[a-z]{2,5}$", "^(red|green) \\d$", "^\\+?[0-9]{3}-[0-9]{2}$"]).map(
        lambda p: {"type": "string", "pattern": p}
    ),
    st.sampled_from(["date", "time", "ipv4", "uuid"]).map(lambda f: {"type": "string", "format": f}),
)
_LEAVES: st.SearchStrategy[Schema] = st.one_of(
    _numbers("integer"),
    _numbers("number"),
    _STRINGS,
    st.just({"type": "boolean"}),
    st.just({"type": ["string", "null"], "maxLength": 4}),
    st.just({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 70}),
    st.lists(st.sampled_from(["a", "é", 1, 2.5, None, True, {"k": [1]}]), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from(["x", 3, None, ["a"]]).map(lambda value: {"const": value}),
)


def _object(properties: Schema, optional: bool) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties)[: len(properties) // 2 if optional else None],
        "additionalProperties": False,
    }


def _wider(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.one_of(
        st.builds(_object, st.dictionaries(_NAMES, inner, max_size=3), st.booleans()),
        st.builds(
            lambda s, n: {"type": "array", "items": s, "minItems": n, "maxItems": n + 1},
            inner,
            st.integers(0, 2),
        ),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
        st.builds(lambda s: {"$defs": {"d": s}, "anyOf": [{"$ref": "#/$defs/d"}, {"type": "null"}]}, _LEAVES),
    )


def _rooted(schema: Schema) -> Schema:
    """References of a schema that was put inside another point to the root: all definitions go there."""
    found: Schema = {}

    def lift(value: Any) -> Any:
        if isinstance(value, list):
            return [lift(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$defs" in value:
            name = f"d{len(found)}"
            found[name] = value["$defs"]["d"]
            return {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}
        return {key: lift(item) for key, item in value.items()}

    lifted: Schema = lift(schema)
    return {**lifted, "$defs": found} if found else lifted


schemas: st.SearchStrategy[Schema] = st.recursive(_LEAVES, _wider, max_leaves=5).map(_rooted)
