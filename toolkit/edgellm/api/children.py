"""What children of our own do: one JSON object in, one out. They are started by `launch`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgellm.errors import BackendError, BackendUnavailable, BadInputError
from edgellm.formats import gguf, gguf_vocab
from edgellm.formats.records import from_builtins, to_builtins


def child_tokenize(spec: dict[str, Any]) -> dict[str, Any]:
    """In the child: tokenize by the `tokenizers` library, or by llama.cpp with vocabulary-only models."""
    return _reference_ids(spec) if "tokenizer" in spec else _trial_ids(spec)


def _reference_ids(spec: dict[str, Any]) -> dict[str, Any]:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(spec["tokenizer"])
        tokenizer.no_truncation()
        tokenizer.no_padding()
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in spec["texts"]]
        plain = tokenizer.encode("a", add_special_tokens=False).ids
        framed = tokenizer.encode("a", add_special_tokens=True).ids
        numbers = [tokenizer.token_to_id(text) for text in spec["added"]]
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as err:  # the library raises bare Exception, and its panics are not even that
        raise BadInputError(f"{spec['tokenizer']}: not a tokenizer.json: {str(err)[:200]}") from err
    at = next((i for i in range(len(framed) + 1) if framed[i : i + len(plain)] == plain), 0)
    return {
        "ids": ids, "before": framed[:at], "after": framed[at + len(plain) :], "framed": framed,
        "numbers": [-1 if number is None else number for number in numbers],
    }  # fmt: skip


def _trial_ids(spec: dict[str, Any]) -> dict[str, Any]:
    """Each answer is a line in a file, so that those before a crash are kept."""
    from edgellm.native.llama import LlamaModel, LlamaOptions

    path = Path(spec["path"])
    gguf_vocab.validate_vocab(gguf.read_gguf(path))
    n_tried = 0
    with Path(spec["answers"]).open("a", encoding="utf-8") as answers:
        for settings in spec["settings"]:
            try:
                model = LlamaModel(path, LlamaOptions(n_threads=1), vocab_only=True, overrides=settings)
            except BackendUnavailable:
                raise
            except BackendError as err:  # this llama.cpp does not know the name
                answer: dict[str, Any] = {"error": err.message}
            else:
                ids = [model.tokenize(text, add_special=False, parse_special=False) for text in spec["texts"]]
                answer = {"ids": ids, "framed": model.tokenize("a", add_special=True, parse_special=False)}
                model.close()
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
            n_tried += 1
            if answer.get("ids") == spec["wanted"]:
                break
    return {"tried": n_tried}


def child_decode(spec: dict[str, Any]) -> dict[str, Any]:
    """In the child: answer one question, greedily."""
    from edgellm.api.loading import load

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


def child_first_load(spec: dict[str, Any]) -> dict[str, Any]:
    """In the child: load a model for the first time."""
    from edgellm.api.first_load import child_first_load

    return child_first_load(spec)


CHILDREN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "_tokenize": child_tokenize,
    "_decode": child_decode,
    "_measure": child_measure,
    "_first_load": child_first_load,
}
