"""Regular expressions over tensor names, matched in time linear in the name whatever the pattern.

Patterns come from users and names from files. They are searched for anywhere in a name, in any case, as by
`llama-quantize --tensor-type`; llguidance's automata do it, which know no look-around and no back-references.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import Any

from edgellm.errors import SpecError

MAX_PATTERN_CHARACTERS = 256
_HINT = r"a part of a name, or a regular expression such as blk\.\d+\.ffn_(up|down)"


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names in which the pattern is found, in their order.

    Raises:
        SpecError: the pattern is empty, too long, malformed, or needs more than an automaton can do.
    """
    if not 1 <= len(pattern) <= MAX_PATTERN_CHARACTERS:
        raise SpecError(
            f"a pattern of {len(pattern)} characters, expected 1 to {MAX_PATTERN_CHARACTERS}", hint=_HINT
        )
    automata = [_automaton(choice, pattern) for choice in _alternatives(pattern)]
    return [name for name in names if any(_found(automaton, name, pattern) for automaton in automata)]


def _alternatives(pattern: str) -> list[str]:
    """The pattern cut at each | outside of groups and classes: anchors belong to one alternative only."""
    cuts, depth, in_class, escaped = [-1], 0, False, False
    for i, character in enumerate(pattern):
        if escaped or character == "\\":
            escaped = not escaped
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        elif character in "()":
            depth += 1 if character == "(" else -1
            if depth < 0:
                raise SpecError(f"pattern {pattern!r} cannot be used: unopened group", hint=_HINT)
        elif character == "|" and depth == 0:
            cuts.append(i)
    cuts.append(len(pattern))
    return [pattern[a + 1 : b] for a, b in itertools.pairwise(cuts)]


def _automaton(choice: str, pattern: str) -> Any:
    from llguidance import LLMatcher

    body, before, after = choice, ".*", ".*"
    if body.startswith("^"):
        body, before = body[1:], ""
    if body.endswith("$") and (len(body[:-1]) - len(body[:-1].rstrip("\\"))) % 2 == 0:
        body, after = body[:-1], ""
    grammar = LLMatcher.grammar_from_regex(f"(?is){before}(?:{body}){after}")
    matcher = LLMatcher(_tokenizer(), grammar, log_level=0)
    if matcher.is_error():
        raise _refused(pattern, matcher.get_error())
    return matcher


def _found(automaton: Any, name: str, pattern: str) -> bool:
    ids = list(name.encode())
    automaton.reset()
    found = (
        automaton.validate_tokens(ids) == len(ids)  # a refused token would spoil the automaton for good
        and bool(automaton.consume_tokens(ids))
        and bool(automaton.is_accepting())
    )
    if automaton.is_error():
        raise _refused(pattern, automaton.get_error())
    return found


def _refused(pattern: str, said: str) -> SpecError:
    lines = [line.strip() for line in said.splitlines() if "error:" in line or "not supported" in line]
    reason = lines[-1].removeprefix("error: ")[-120:] if lines else "too complex"
    return SpecError(f"pattern {pattern!r} cannot be used: {reason}", hint=_HINT)


@functools.cache
def _tokenizer() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")
