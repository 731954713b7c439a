"""Starting children of our own: native code that may die, dies there.

A child reads one JSON object on its standard input and prints one on its standard output; an error of ours travels
back as the same error. What a child does is in `children`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgellm import process, scratch
from edgellm.convert.vocabulary.choose import Engines, Reference, Seen, Settings
from edgellm.errors import BackendError, BadInputError, EdgeLLMError, NativeCrash, ResourceError

REFERENCE_TIMEOUT_S = 60.0
TOKENIZE_TIMEOUT_S = 60.0
TRIAL_TIMEOUT_S = 10.0  # a vocabulary of 250,000 tokens loads in one or two
MAX_TIMEOUTS = 2
DECODE_TIMEOUT_S = 300.0


def launch(
    verb: str,
    spec: dict[str, Any],
    *,
    timeout_s: float,
    memory_limit_bytes: int | None = None,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run `edgellm VERB` in a child with `spec` on its standard input; its standard output, decoded.

    Args:
        memory_limit_bytes, env: as in `process.run_child`.

    Raises:
        NativeCrash: it died.  DeadlineError: it took too long.  ResourceError: memory ran out.
        Any EdgeLLMError the child raised.
    """
    done = process.run_child(
        process.python_argv([verb]), stdin=json.dumps(spec).encode(), timeout_s=timeout_s,
        memory_limit_bytes=memory_limit_bytes, env=env,
    )  # fmt: skip
    try:
        answer = json.loads(done.stdout)
    except ValueError as err:
        raise BadInputError(f"child {verb} printed no JSON: {done.stdout[:100]!r}") from err
    if not isinstance(answer, dict):
        raise BadInputError(f"child {verb} printed {type(answer).__name__}, expected an object")
    return answer


def launch_measure(spec: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """A Launcher for the profiler."""
    return launch("_measure", spec, timeout_s=timeout_s)


def reference_ids(path: Path, texts: Sequence[str], added: Sequence[str]) -> Reference:
    """What the `tokenizers` library makes of some texts under a tokenizer.json, found in a child.

    Raises:
        BadInputError: it refuses the file, or is not done in time (a regular expression can take for ever).
    """
    spec = {"tokenizer": str(path), "texts": list(texts), "added": list(added)}
    try:
        return Reference(**launch("_tokenize", spec, timeout_s=REFERENCE_TIMEOUT_S))
    except ResourceError as err:
        raise BadInputError(
            f"{path}: the tokenizers library is not done with {len(texts)} short texts after {REFERENCE_TIMEOUT_S:g} s",
            hint="a regular expression of its pre_tokenizer may never end",
        ) from err
    except NativeCrash as err:
        raise BadInputError(f"{path}: the tokenizers library dies with this file: {err.message}") from err


def trial_ids(
    path: Path, settings: Sequence[Settings], texts: Sequence[str], wanted: list[list[int]]
) -> list[Seen | EdgeLLMError]:
    """llama.cpp's ids under each of some settings of a vocabulary-only GGUF, up to the first that are as wanted.

    One child serves all of them. Where it dies or hangs, the setting it was at gets that error, and another child goes
    on with the next one.

    Raises:
        BackendUnavailable: the native library is absent.  BadInputError: the file is not a sound vocabulary.
    """
    answers: list[Seen | EdgeLLMError] = []
    n_timeouts = 0
    with scratch.directory("trials") as folder:
        while len(answers) < len(settings):
            log = folder / f"{len(answers)}.jsonl"
            with scratch.write_errors(log):
                log.touch()
            spec = {
                "path": str(path), "settings": [dict(s) for s in settings[len(answers) :]], "texts": list(texts),
                "wanted": wanted, "answers": str(log),
            }  # fmt: skip
            died: EdgeLLMError | None = None
            try:
                left = len(settings) - len(answers)
                launch("_tokenize", spec, timeout_s=TOKENIZE_TIMEOUT_S + TRIAL_TIMEOUT_S * left)
            except (NativeCrash, ResourceError) as err:
                died = err
            answers += [_answer(line) for line in log.read_text("utf-8").splitlines()]
            if died is None:
                break
            n_timeouts += isinstance(died, ResourceError)
            if n_timeouts >= MAX_TIMEOUTS:
                raise died
            answers.append(NativeCrash(died.message, hint=died.hint))
    return answers


def _answer(line: str) -> Seen | EdgeLLMError:
    found = json.loads(line)
    return BackendError(found["error"]) if "error" in found else Seen(**found)


TOKENIZERS = Engines(reference=reference_ids, llama_cpp=trial_ids)


def prove_decode(model: str) -> dict[str, Any]:
    """Load a model and decode a few tokens in a child; what it answered and how fast."""
    return launch("_decode", {"model": model}, timeout_s=DECODE_TIMEOUT_S)
