"""Constrained decoding: which tokens may come next so that the text fits a JSON schema, a pattern or a grammar.

llguidance computes the masks. It sees each token as the bytes that the backend gives for it, so what holds for its
text holds for the text that the user sees. Control tokens are in no text; a grammar reaches one by <[id]>.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any, Literal

import numpy as np

from edgellm.errors import BackendError, EdgeLLMError, SpecError
from edgellm.formats.records import Record
from edgellm.protocols import Backend, FloatArray
from edgellm.runtime import constraint_checks as checks

MAX_CACHED = 64
MAX_CACHED_TEXT_BYTES = 256 * 1024  # compiled, a grammar takes up to some 400 bytes for each byte of its text
# Longer forced text is cut into tokens greedily; the backend's own way would cost too much in every step.
_MAX_TOKENIZED_CHARS = 1024
_LIMITS: dict[str, Any] = {
    "max_items_in_row": 10_000,
    "step_max_items": 20_000,
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "verbose_errors": False,
}
_MAX_LEXER_STATES = {"grammar": 8_000}  # its repetitions cannot be counted beforehand
_MAX_LEXER_STATES_ELSE = 32_000
# A line break and some indentation: left free, a small model writes white space for ever.
JSON_OPTIONS: dict[str, Any] = {"lenient": False, "whitespace_pattern": r"[ \t]{0,32}(\r?\n[ \t]{0,32})?"}

Kind = Literal["json_schema", "json_object", "regex", "grammar"]


class ConstraintSpec(Record):
    """What a text must fit.

    Attributes:
        kind: json_schema, json_object (any JSON object), regex (of the whole text; its digits and letters are ASCII as
            in JSON schemas; no look-around, no back-references), or grammar (llguidance's syntax, which is like
            Lark's; or llama.cpp's GBNF).
        text: the schema as JSON, the regular expression, or the grammar; empty for json_object.
    """

    kind: Kind
    text: str = ""


class TokenConstraint:
    """One use of a compiled constraint, for one sequence; a `protocols.Constraint`. Not thread-safe.

    Args:
        matcher: a fresh llguidance matcher.
        n_vocab: of the model; logits have that many columns.
        n_tokens: of llguidance's vocabulary, which has an end token of its own for a model that has none.
        deferred: keep what goes wrong in `failure` and end the text, instead of raising in the middle of a step that
            other sequences share. Who asks for it must look at `failure` after each step.

    Attributes:
        n_beyond: tokens drawn after the text was complete, as happens behind right guesses; they are none of it.
    """

    def __init__(self, matcher: Any, *, n_vocab: int, n_tokens: int, deferred: bool = False) -> None:
        self.failure: EdgeLLMError | None = None
        self.n_beyond = 0
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._deferred = deferred
        self._bits = np.zeros((n_tokens + 31) // 32, dtype=np.uint32)

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow: the text fits and cannot go on, its end was drawn, or it failed."""
        return self.failure is not None or bool(self._matcher.is_stopped())

    @property
    def is_accepting(self) -> bool:
        """Whether the text fits as it is, even if it may go on."""
        return self.failure is None and bool(self._matcher.is_accepting())

    def mask(self, logits: FloatArray) -> None:
        """Set the logits (n_vocab,) of tokens that may not come to -inf, in place.

        Of a complete text only end tokens are left; logits are left alone where the model has none.

        Raises:
            ValueError: logits of another shape.  SpecError: the constraint turned out to be too complex.
            BackendError: llguidance failed.
        """
        if logits.shape != (self._n_vocab,):
            raise ValueError(f"logits have the shape {logits.shape}, expected ({self._n_vocab},)")
        if self.failure is not None:
            return
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            self._fail(self._error())
            return
        # llguidance.numpy does the same four times slower, with an index for every bit.
        allowed = np.unpackbits(self._bits.view(np.uint8), count=self._n_vocab, bitorder="little").view(
            np.bool_
        )
        if allowed.any():
            np.putmask(logits, ~allowed, -np.inf)

    def accept(self, token: int) -> None:
        """This token was drawn; after the text is complete it is ignored.

        Raises:
            BackendError: the token does not fit, so it was not drawn from masked logits.
            SpecError: the constraint turned out to be too complex.
        """
        if self.is_complete:
            self.n_beyond += 1
            return
        if self._matcher.consume_token(token):
            return
        self._fail(self._error(f"token {token} does not fit the constraint: "))

    def forced_tokens(self) -> list[int]:
        """Tokens that must come next, whatever the model thinks; a draft that is nearly always right.

        Another cut into tokens of the same text may be drawn; it fits as well.
        """
        if self.is_complete:
            return []
        forced = [token for token in self._matcher.compute_ff_tokens() if token < self._n_vocab]
        if self._matcher.is_error():
            self._fail(self._error())
            return []
        return forced

    def _error(self, before: str = "the constraint cannot go on: ") -> EdgeLLMError:
        said = before + _reason(self._matcher)
        if "satisfy the grammar" in said or "panic" in said:
            return BackendError(said)
        return SpecError(said, hint="use a simpler schema or grammar")

    def _fail(self, error: EdgeLLMError) -> None:
        self.failure = error
        if not self._deferred:
            raise error


class Constraints:
    """Compiles constraints for one model, and keeps what it compiled. Thread-safe.

    `backend.tokenize` is called by compilations and masks, in their threads.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._tokenizer: Any = None
        self._compiled: OrderedDict[ConstraintSpec, Any] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()
        self._building = threading.Lock()

    def prepare(self, spec: ConstraintSpec, *, deferred: bool = False) -> TokenConstraint:
        """A constraint for one sequence; `deferred` as in `TokenConstraint`.

        The first one for a model takes about a second, to sort its vocabulary.

        Raises:
            SpecError: the spec is malformed, asks for too much, uses what is not supported, or fits no text.
        """
        with self._lock:
            matcher = self._compiled.get(spec)
            if matcher is not None:
                self._compiled.move_to_end(spec)
                return self._fresh(matcher, deferred)
        try:
            spec.text.encode()
        except UnicodeEncodeError as err:
            raise SpecError(f"the {_name(spec)} is no text: half a surrogate pair at {err.start}") from err
        matcher = self._build(spec)
        with self._lock:
            self._keep(spec, matcher)
            return self._fresh(matcher, deferred)

    def _fresh(self, matcher: Any, deferred: bool) -> TokenConstraint:
        return TokenConstraint(
            matcher.deep_copy(),
            n_vocab=self._backend.vocab_size,
            n_tokens=self._tokenizer.vocab_size,
            deferred=deferred,
        )

    def _keep(self, spec: ConstraintSpec, matcher: Any) -> None:
        if spec in self._compiled:
            return
        self._compiled[spec] = matcher
        self._cached_bytes += len(spec.text.encode())
        while len(self._compiled) > MAX_CACHED or self._cached_bytes > MAX_CACHED_TEXT_BYTES:
            oldest, _ = self._compiled.popitem(last=False)
            self._cached_bytes -= len(oldest.text.encode())

    def _build(self, spec: ConstraintSpec) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        grammar = _grammar(spec)
        with self._building:
            if self._tokenizer is None:
                self._tokenizer = make_tokenizer(self._backend)
        limits = LLParserLimits(
            **_LIMITS, max_lexer_states=_MAX_LEXER_STATES.get(spec.kind, _MAX_LEXER_STATES_ELSE)
        )
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        what = _name(spec)
        if matcher.is_error():
            raise SpecError(f"the {what} cannot be used: {_reason(matcher)}")
        trial = matcher.deep_copy()
        bits = trial.compute_bitmask()
        if trial.is_error() or (not trial.is_accepting() and not any(bits)):
            raise SpecError(f"the {what} cannot be used: {_reason(trial)}")
        return matcher


def _name(spec: ConstraintSpec) -> str:
    return {"json_schema": "JSON schema", "json_object": "JSON object", "regex": "regular expression"}.get(
        spec.kind, spec.kind
    )


def _grammar(spec: ConstraintSpec) -> str:
    from llguidance import LLMatcher, regex_to_lark

    if spec.kind == "regex":
        checks.check_regex(spec.text)
        body = regex_to_lark(spec.text, use_ascii="dw")
        return str(LLMatcher.grammar_from_lark(f"start: /{body}/"))
    if spec.kind == "grammar":
        return str(LLMatcher.grammar_from_lark(checks.check_grammar(spec.text, JSON_OPTIONS)))
    if spec.kind == "json_object":
        if spec.text:
            raise SpecError("json_object takes no text", hint="use json_schema to give a schema")
        schema: Any = {"type": "object"}
    else:
        schema = checks.check_schema(spec.text)
    try:
        return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_OPTIONS))  # type: ignore[arg-type]
    except ValueError as err:
        raise SpecError(f"the JSON schema cannot be used: {_first_line(str(err))}") from err


def make_tokenizer(backend: Backend) -> Any:
    """The model's vocabulary as llguidance wants it, of exactly `backend.vocab_size` tokens, padding included.

    One more stands for the end where the model has no end token; no logit is its.
    """
    from llguidance import LLTokenizer

    n_vocab = backend.vocab_size
    ends = [token for token in range(n_vocab) if backend.is_end(token)]
    pieces = [backend.token_bytes(token) for token in range(n_vocab)]
    for token in ends:
        pieces[token] = b""  # one that has text would end the answer in the middle
    special = [token for token, piece in enumerate(pieces) if not piece]
    vocabulary = _Vocabulary(backend, pieces, special, ends)
    made = LLTokenizer(vocabulary, n_vocab=len(vocabulary.tokens), eos_token=vocabulary.ends)  # type: ignore[arg-type]
    vocabulary.greedy = made.greedy_tokenize
    return made


class _Vocabulary:
    """What llguidance calls a TokenizerWrapper."""

    is_tokenizer_wrapper = True

    def __init__(self, backend: Backend, pieces: list[bytes], special: list[int], ends: list[int]) -> None:
        self._backend = backend
        self._pieces = pieces
        self.greedy: Any = None
        self.special_token_ids = special
        self.tokens = list(pieces)
        for token in special:
            self.tokens[token] = backend.token_text(token).encode()
        self.ends = ends
        if not ends:
            self.ends = [len(self.tokens)]
            self.special_token_ids = [*special, len(self.tokens)]
            self.tokens.append(b"<|end of a constrained text|>")
        self.eos_token_id = self.ends[0]
        self.bos_token_id = backend.bos_id

    def __call__(self, text: str) -> list[int]:
        """Tokens whose bytes are exactly this text, which many tokenizers do not promise."""
        if len(text) <= _MAX_TOKENIZED_CHARS:
            ids = self._backend.tokenize(text, add_special=False, parse_special=False)
            if b"".join(self._pieces[token] for token in ids) == text.encode():
                return ids
        ids, rest = [], text.encode()
        for token in self.greedy(text):  # which leaves out bytes that no token has
            if not rest.startswith(self._pieces[token]):
                break
            rest = rest[len(self._pieces[token]) :]
            ids.append(token)
        return ids


def _reason(matcher: Any) -> str:
    said = _first_line(matcher.get_error())
    return (
        "no text that this model can write fits" if said in {"", "NoExtension", "NoExtensionBias"} else said
    )


def _first_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and "non-verbose" not in line]
    reasons = [line for line in lines if line.startswith("error: ")]
    return (reasons or lines or [""])[0].removeprefix("error: ")[:300]
