"""What children of our own do: one JSON object in, one out. They are started by `launch`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgellm.formats import gguf, gguf_vocab
from edgellm.formats.records import from_builtins, to_builtins


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
