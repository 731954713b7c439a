"""Child processes: starting them, and what they do. Native code that may die, dies there.

A child reads one JSON object on its standard input and prints one on its standard output; an error of ours travels
back as the same error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgellm import process
from edgellm.errors import BadInputError
from edgellm.formats import gguf, gguf_vocab
from edgellm.formats.records import from_builtins, to_builtins

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


def child_tokenize(spec: dict[str, Any]) -> dict[str, Any]:
    """In the child: tokenize with a vocabulary-only model."""
    from edgellm.native.llama import LlamaModel, LlamaOptions

    path = Path(spec["path"])
    gguf_vocab.validate_vocab(gguf.read_gguf(path))
    model = LlamaModel(path, LlamaOptions(n_threads=1), vocab_only=True)
    return {"ids": [model.tokenize(text, add_special=False, parse_special=False) for text in spec["texts"]]}


def child_decode(spec: dict[str, Any]) -> dict[str, Any]:
    """In the child: answer one question, greedily."""
    from edgellm.api.models import load

    with load(spec["model"], context=512) as model:
        done = model.generate(
            [{"role": "user", "content": "What is the capital of France? Answer in one word."}],
            max_tokens=16,
            temperature=0,
        )
        return {"text": done.text, "tokens": len(done.token_ids), "runtime": to_builtins(model.info)}


def child_measure(spec: dict[str, Any]) -> dict[str, Any]:
    """In the child: measure one workload."""
    from edgellm.api.profiling import measure
    from edgellm.profiler.measure import Spec

    outcome: dict[str, Any] = to_builtins(measure(from_builtins(Spec, spec, "measuring spec")))
    return outcome


CHILDREN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "_tokenize": child_tokenize,
    "_decode": child_decode,
    "_measure": child_measure,
}
