"""Starting children of our own: native code that may die, dies there.

A child reads one JSON object on its standard input and prints one on its standard output; an error of ours travels
back as the same error. What a child does is in `children`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgellm import process
from edgellm.errors import BadInputError

TOKENIZE_TIMEOUT_S = 120.0
DECODE_TIMEOUT_S = 300.0


def launch(verb: str, spec: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
    """Run `edgellm VERB` in a child with `spec` on its standard input; its standard output, decoded.

    Raises:
        NativeCrash: it died.  ResourceError: it took too long.  Any EdgeLLMError the child raised.
    """
    done = process.run_child(
        process.python_argv([verb]), stdin=json.dumps(spec).encode(), timeout_s=timeout_s
    )
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


def tokenize_file(path: Path, texts: Sequence[str]) -> list[list[int]]:
    """llama.cpp's ids of some texts under the vocabulary of a GGUF file, found in a child."""
    answer = launch("_tokenize", {"path": str(path), "texts": list(texts)}, timeout_s=TOKENIZE_TIMEOUT_S)
    ids: list[list[int]] = answer["ids"]
    return ids


def prove_decode(model: str) -> dict[str, Any]:
    """Load a model and decode a few tokens in a child; what it answered and how fast."""
    return launch("_decode", {"model": model}, timeout_s=DECODE_TIMEOUT_S)
