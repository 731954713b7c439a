"""Constraints over a vocabulary of bytes: whatever is drawn, the text fits; what cannot be compiled is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgellm.errors import BackendError, SpecError
from edgellm.protocols import Feed, FloatArray, SamplingParams
from edgellm.runtime import constraints
from edgellm.runtime.constraints import Constraints, ConstraintSpec, TokenConstraint
from tests.support import hostile_specs
from tests.support.fake_backend import BOS, END, VOCAB_SIZE, FakeBackend
from tests.support.schemas import Schema, schemas

ROOT = Path(__file__).resolve().parents[2]
CAT = ConstraintSpec(kind="regex", text="the (cat|dog)!")
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


@pytest.fixture(scope="module")
def compiler() -> Constraints:
    return Constraints(FakeBackend())


def schema_spec(schema: Any) -> ConstraintSpec:
    return ConstraintSpec(kind="json_schema", text=json.dumps(schema))


def random_text(constraint: TokenConstraint, seed: int, n_tokens: int = 400) -> bytes:
    """Draws any allowed byte; those that close something, and the end, come more often."""
    rng = np.random.default_rng(seed)
    drawn = bytearray()
    for _ in range(n_tokens):
        logits = rng.gumbel(size=VOCAB_SIZE).astype(np.float32)
        logits[list(b'"}],')] += 4
        logits[list(b" \t\n\r")] -= 6
        constraint.mask(logits)
        token = int(logits.argmax())
        assert logits[token] > -np.inf
        constraint.accept(token)
        if token != END:
            drawn.append(token)
        if constraint.is_complete:
            break
    return bytes(drawn)


def allowed(constraint: TokenConstraint) -> list[int]:
    logits = np.zeros(VOCAB_SIZE, dtype=np.float32)
    constraint.mask(logits)
    return [int(token) for token in np.flatnonzero(logits == 0)]


@settings(max_examples=150)
@given(schemas, st.integers(0, 2**32 - 1))
@example({"type": "object", "properties": {}, "required": [], "additionalProperties": False}, 0)
def test_whatever_is_drawn_is_valid_by_another_validator(
    compiler: Constraints, schema: Schema, seed: int
) -> None:
    constraint = compiler.prepare(schema_spec(schema))
    text = random_text(constraint, seed)
    assert constraint.is_complete
    jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator, format_checker=FORMATS)


@given(schemas, st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_a_text_that_ends_early_is_the_beginning_of_one_that_fits(
    compiler: Constraints, schema: Schema, seed: int, n_tokens: int
) -> None:
    beginning = random_text(compiler.prepare(schema_spec(schema)), seed, n_tokens)
    whole = compiler.prepare(schema_spec(schema))
    for token in beginning:
        whole.accept(token)
    text = beginning + (b"" if whole.is_complete else random_text(whole, seed))
    jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator, format_checker=FORMATS)


OPENAI_STRICT = {
    "type": "object",
    "properties": {
        "steps": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"$ref": "#/$defs/step"}},
        "kind": {"type": "string", "enum": ["sum", "product"], "description": "what was done"},
        "score": {"type": ["number", "null"], "minimum": 0, "exclusiveMaximum": 10},
        "email": {"type": "string", "format": "email"},
        "user": {"type": "string", "pattern": "^@[a-z_]{3,8}$"},
        "version": {"const": 2},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["steps", "kind", "score", "email", "user", "version", "next"],
    "additionalProperties": False,
    "$defs": {
        "step": {
            "type": "object",
            "properties": {"text": {"type": "string"}, "n": {"type": "integer", "multipleOf": 5}},
            "required": ["text", "n"],
            "additionalProperties": False,
        }
    },
}


@pytest.mark.parametrize("seed", range(5))
def test_what_openais_strict_mode_allows_works(compiler: Constraints, seed: int) -> None:
    constraint = compiler.prepare(schema_spec(OPENAI_STRICT))
    text = random_text(constraint, seed, 3000)
    assert constraint.is_complete
    jsonschema.validate(json.loads(text), OPENAI_STRICT, format_checker=FORMATS)
    assert list(json.loads(text)) == OPENAI_STRICT["required"]


@pytest.mark.parametrize(
    "name", ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"]
)
def test_formats_are_enforced(compiler: Constraints, name: str) -> None:
    schema = {"type": "string", "format": name}
    for seed in range(3):
        text = random_text(compiler.prepare(schema_spec(schema)), seed, 2000)
        jsonschema.validate(json.loads(text), schema, format_checker=FORMATS)


def test_a_json_object_is_any_object(compiler: Constraints) -> None:
    for seed in range(5):
        text = random_text(compiler.prepare(ConstraintSpec(kind="json_object")), seed, 4000)
        assert isinstance(json.loads(text), dict)


def test_white_space_between_values_is_bounded(compiler: Constraints) -> None:
    constraint = compiler.prepare(ConstraintSpec(kind="json_object"))
    constraint.accept(ord("{"))
    n = 0
    while ord("\n") in allowed(constraint) or ord(" ") in allowed(constraint):
        constraint.accept(ord("\n") if ord("\n") in allowed(constraint) else ord(" "))
        n += 1
    assert n <= 66
    assert ord('"') in allowed(constraint)


@pytest.mark.parametrize(
    "pattern",
    [
        "[a-c]{2,4}",
        "(yes|no)",
        "a/b",
        "a\\nb",
        r"\w{3}",
        r"\d{3}-\d{4}",
        "[^a]b?",
        "é{2}漢",
        "(?i:no)",
        r"a\.b",
        "(a+)+b",
    ],
)
def test_a_pattern_is_of_the_whole_text(compiler: Constraints, pattern: str) -> None:
    for seed in range(5):
        constraint = compiler.prepare(ConstraintSpec(kind="regex", text=pattern))
        text = random_text(constraint, seed)
        if constraint.is_complete:
            assert re.fullmatch(pattern, text.decode(), re.ASCII)


@pytest.mark.parametrize(
    "grammar",
    [
        'start: item ("," item){1,3}\nitem: /[a-z]/ | "(" item ")"',
        'root ::= item ("," item){1,3}\nitem ::= [a-z] | "(" item ")"',
    ],
)
def test_both_grammars_count_and_nest(compiler: Constraints, grammar: str) -> None:
    for seed in range(5):
        constraint = compiler.prepare(ConstraintSpec(kind="grammar", text=grammar))
        text = random_text(constraint, seed, 2000).decode()
        assert constraint.is_complete
        assert 1 <= text.count(",") <= 3
        assert text.count("(") == text.count(")")
        assert all(re.fullmatch(r"\(*[a-z]\)*", item) for item in text.split(","))


def test_llama_cpps_own_json_grammar_gives_json(compiler: Constraints) -> None:
    grammar = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
    n_complete = 0
    for seed in range(8):
        constraint = compiler.prepare(ConstraintSpec(kind="grammar", text=grammar))
        text = random_text(constraint, seed, 2000)
        if constraint.is_complete:
            assert isinstance(json.loads(text), dict)
            n_complete += 1
    assert n_complete


def test_the_end_is_allowed_when_the_text_fits_and_only_then(compiler: Constraints) -> None:
    constraint = compiler.prepare(CAT)
    for character in b"the cat!":
        assert END not in allowed(constraint)
        assert not constraint.is_complete
        assert not constraint.is_accepting
        constraint.accept(character)
    assert constraint.is_complete
    assert constraint.is_accepting
    assert allowed(constraint) == [END]
    constraint.accept(END)
    assert constraint.is_complete
    assert allowed(constraint) == [END]
    constraint.accept(END)


def test_a_text_that_may_end_or_go_on_allows_both(compiler: Constraints) -> None:
    constraint = compiler.prepare(ConstraintSpec(kind="regex", text="ab*"))
    constraint.accept(ord("a"))
    assert sorted(allowed(constraint)) == [ord("b"), END]
    assert constraint.is_accepting
    assert not constraint.is_complete
    constraint.accept(END)
    assert constraint.is_complete


def test_control_tokens_are_in_no_text_but_a_grammar_can_name_them(compiler: Constraints) -> None:
    anything = compiler.prepare(ConstraintSpec(kind="regex", text="(?s:.*)"))
    assert {BOS, END, 258} & set(allowed(anything)) == {END}
    named = compiler.prepare(ConstraintSpec(kind="grammar", text=f'start: <[{BOS}]> "a"'))
    assert allowed(named) == [BOS]
    assert named.forced_tokens() == [BOS, ord("a")]


def test_forced_tokens_are_what_must_come(compiler: Constraints) -> None:
    constraint = compiler.prepare(CAT)
    assert constraint.forced_tokens() == list(b"the ")
    for token in b"the d":
        constraint.accept(token)
    assert constraint.forced_tokens() == list(b"og!")
    for token in b"og!":
        constraint.accept(token)
    assert constraint.forced_tokens() == []


def test_uses_of_one_compilation_do_not_touch_each_other(compiler: Constraints) -> None:
    first, second = compiler.prepare(CAT), compiler.prepare(CAT)
    for token in b"the c":
        first.accept(token)
    assert allowed(first) == [ord("a")]
    assert allowed(second) == [ord("t")]
    assert allowed(compiler.prepare(CAT)) == [ord("t")]


def test_a_token_that_does_not_fit_is_an_error(compiler: Constraints) -> None:
    constraint = compiler.prepare(CAT)
    with pytest.raises(BackendError, match="token 120 does not fit the constraint"):
        constraint.accept(ord("x"))
    assert constraint.is_complete
    assert not constraint.is_accepting


def test_a_deferred_error_ends_the_text_and_is_kept(compiler: Constraints) -> None:
    constraint = compiler.prepare(CAT, deferred=True)
    constraint.accept(ord("x"))
    assert isinstance(constraint.failure, BackendError)
    assert constraint.is_complete
    logits = np.zeros(VOCAB_SIZE, dtype=np.float32)
    constraint.mask(logits)
    assert not logits.any()
    constraint.accept(ord("y"))
    assert constraint.forced_tokens() == []


def test_logits_of_another_model_are_refused(compiler: Constraints) -> None:
    with pytest.raises(ValueError, match=r"\(10,\), expected \(259,\)"):
        compiler.prepare(CAT).mask(np.zeros(10, dtype=np.float32))


class Odd(FakeBackend):
    """A vocabulary with padding, with or without an end token, and a tokenizer that adds a space in front."""

    def __init__(self, *, n_padding: int, ends: Sequence[int], token_of: Callable[[str], str] = str) -> None:
        super().__init__()
        self.vocab_size = VOCAB_SIZE + n_padding
        self.eos_id = ends[0] if ends else None
        self._ends, self._token_of = ends, token_of

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return super().tokenize(self._token_of(text), add_special=add_special, parse_special=parse_special)

    def token_text(self, token: int) -> str:
        return super().token_text(token) if token < VOCAB_SIZE else ""

    def is_end(self, token: int) -> bool:
        return token in self._ends


@pytest.mark.parametrize("n_padding", [0, 1, 28, 29, 30, 61, 1000])
def test_a_padded_vocabulary_is_masked_to_its_last_token(n_padding: int) -> None:
    backend = Odd(n_padding=n_padding, ends=[END, BOS])
    constraint = Constraints(backend).prepare(ConstraintSpec(kind="regex", text="[ab]?"))
    logits = np.zeros(backend.vocab_size, dtype=np.float32)
    constraint.mask(logits)
    assert np.flatnonzero(logits == 0).tolist() == [ord("a"), ord("b"), BOS, END]


@pytest.mark.parametrize("n_padding", [0, 28, 29, 30])
def test_a_model_without_an_end_token_is_complete_and_stops(n_padding: int) -> None:
    backend = Odd(n_padding=n_padding, ends=[])
    constraint = Constraints(backend).prepare(ConstraintSpec(kind="regex", text="ab"))
    for token in b"ab":
        logits: FloatArray = np.zeros(backend.vocab_size, dtype=np.float32)
        constraint.mask(logits)
        assert np.flatnonzero(logits == 0).tolist() == [token]
        constraint.accept(token)
    assert constraint.is_complete
    logits = np.zeros(backend.vocab_size, dtype=np.float32)
    constraint.mask(logits)
    assert not logits.any()
    constraint.accept(7)


def test_a_tokenizer_that_changes_the_text_does_not_change_what_is_forced() -> None:
    """SentencePiece puts a space in front of every text."""
    backend = Odd(n_padding=0, ends=[END], token_of=lambda text: f" {text}")
    constraint = Constraints(backend).prepare(CAT)
    assert constraint.forced_tokens() == list(b"the ")
    logits = np.zeros(VOCAB_SIZE, dtype=np.float32)
    constraint.mask(logits)
    assert np.flatnonzero(logits == 0).tolist() == [ord("t")]


def test_an_end_token_that_has_text_is_never_text() -> None:
    """To the scheduler it ends the answer wherever it comes."""
    backend = Odd(n_padding=0, ends=[ord("#")])
    constraint = Constraints(backend).prepare(ConstraintSpec(kind="regex", text="a[^b]c?"))
    constraint.accept(ord("a"))
    assert ord("#") not in allowed(constraint)
    assert ord("x") in allowed(constraint)
    constraint.accept(ord("x"))
    assert sorted(allowed(constraint)) == [ord("#"), ord("c")]


def test_a_text_that_the_vocabulary_cannot_write_is_an_error_where_it_ends() -> None:
    constraint = Constraints(Odd(n_padding=0, ends=[ord("#")])).prepare(
        ConstraintSpec(kind="regex", text="a#b")
    )
    assert constraint.forced_tokens() == [ord("a")]
    constraint.accept(ord("a"))
    with pytest.raises(SpecError, match="no text that this model can write fits"):
        allowed(constraint)


def test_threads_compile_and_draw_side_by_side() -> None:
    compiler = Constraints(FakeBackend())
    specs = [CAT, *(schema_spec({"const": "x" * n}) for n in range(1, 6))]

    def work(seed: int) -> list[bytes]:
        return [random_text(compiler.prepare(spec), seed) for spec in specs for _ in range(3)]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(work, range(8)))
    assert together == [work(seed) for seed in range(8)]


def test_a_batcher_draws_what_fits_with_and_without_forced_drafts(compiler: Constraints) -> None:
    texts = []
    for with_drafts in (False, True):
        constraint = compiler.prepare(CAT)
        batcher = FakeBackend().open(n_sequences=1, context=64)
        tokens, drawn = [BOS], bytearray()
        while not constraint.is_complete:
            draft = constraint.forced_tokens() if with_drafts else []
            feed = Feed(
                sequence=0, tokens=tokens, sampling=SamplingParams(seed=1), constraint=constraint, draft=draft
            )
            done = batcher.step([feed])[0].tokens
            tokens = done[-1:]
            drawn += bytes(token for token in done if token != END)
        texts.append(bytes(drawn))
        assert len(batcher.feeds) == (2 if with_drafts else 8)
    assert texts[0] == texts[1]
    assert texts[0] in {b"the cat!", b"the dog!"}


def test_the_cache_is_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Constraints(FakeBackend())
    monkeypatch.setattr(constraints, "MAX_CACHED", 3)
    specs = [ConstraintSpec(kind="regex", text=c * 10) for c in "abcde"]
    for spec in specs:
        compiler.prepare(spec)
        compiler.prepare(specs[0])
    assert list(compiler._compiled) == [specs[3], specs[4], specs[0]]
    assert compiler._cached_bytes == 30
    monkeypatch.setattr(constraints, "MAX_CACHED_TEXT_BYTES", 25)
    compiler.prepare(specs[1])
    assert list(compiler._compiled) == [specs[0], specs[1]]
    assert compiler._cached_bytes == 20
    monkeypatch.setattr(constraints, "MAX_CACHED_TEXT_BYTES", 5)
    compiler.prepare(specs[2]).accept(ord("c"))
    assert not compiler._compiled
    assert compiler._cached_bytes == 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (schema_spec({"$ref": "#"}), "no text that this model can write fits"),
        (schema_spec({"enum": []}), "Unsatisfiable"),
        (schema_spec({"type": "text"}), "Invalid type: text"),
        (schema_spec({"type": "string", "format": "address"}), "Unknown format: address"),
        (schema_spec({"allOf": [{"type": "string"}, {"type": "null"}]}), "Unsatisfiable"),
        (schema_spec({"oneOf": [{"type": "string"}, {"minLength": 2}]}), "oneOf"),
        (schema_spec({"not": {}}), "keyword 'not' is not supported"),
        (schema_spec({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (ConstraintSpec(kind="regex", text="(a"), "unclosed group"),
        (ConstraintSpec(kind="regex", text=r"(a)\1"), "backreferences are not supported"),
        (ConstraintSpec(kind="regex", text=""), "0 characters"),
        (ConstraintSpec(kind="regex", text="\ud800"), "half a surrogate pair at 0"),
        (ConstraintSpec(kind="json_schema", text='{"title": "\\ud800"}'), "hex escape"),
        (ConstraintSpec(kind="json_object", text="{}"), "takes no text"),
        (ConstraintSpec(kind="grammar", text='start: missing "a"'), "missing"),
        (ConstraintSpec(kind="grammar", text="start: start"), "no text that this model can write fits"),
        (ConstraintSpec(kind="grammar", text="start: <[999999]>"), "999999"),
        (ConstraintSpec(kind="grammar", text="hello"), "the grammar cannot be used"),
        (
            ConstraintSpec(kind="grammar", text='start: %json {"$ref": "file:///etc/passwd"}'),
            "no schema inside",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    compiler: Constraints, spec: ConstraintSpec, words: str
) -> None:
    with pytest.raises(SpecError) as caught:
        compiler.prepare(spec)
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500


@pytest.mark.timeout(300)
def test_hostile_specs_are_refused_or_work_within_a_minute_and_3_gib_in_all() -> None:
    """In one child, whose processor time and address space are limited."""
    run = [sys.executable, "-m", "tests.support.hostile_specs"]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert list(said) == list(hostile_specs.all_specs())
    for name in ("cycle", "deep", "very deep", "long enum", "more patterns", "multipleOf", "larger product"):
        assert said[f"schema {name}"] != "works"
    for name in (
        "no end",
        "pattern",
        "minItems",
        "largest multipleOf",
        "optional",
        "enum of objects",
        "tuple",
    ):
        assert said[f"schema {name}"] == "works"
    for name in (
        "grammar left recursion",
        "grammar gbnf left recursion",
        "regex nested",
        "regex repeated less",
    ):
        assert said[name] == "works"


def test_llguidance_is_not_loaded_before_a_constraint_is_compiled() -> None:
    code = (
        "import sys, edgellm, edgellm.runtime.constraints as c; from tests.support.fake_backend import FakeBackend;"
        "c.Constraints(FakeBackend()); assert 'llguidance' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
