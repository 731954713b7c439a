"""Chat templates for models from before chat templates: Alpaca, Vicuna v1.1, Dolly 2.0, OpenAssistant.

A repository's own template always wins over these. Without one, the format is taken from evidence: from special tokens
that only one family has, else from a name. A template is only carried here, never run: `runtime` renders it.

Sources: PROMPT_DICT of train.py in tatsu-lab/stanford_alpaca; vicuna_v1.1 of conversation.py in lm-sys/FastChat;
PROMPT_FOR_GENERATION_FORMAT of instruct_pipeline.py in databricks/dolly-v2-12b; the model cards of
OpenAssistant/oasst-sft-4-pythia-12b-epoch-3.5 and OpenAssistant/oasst-sft-6-llama-30b. Formats for one turn only (Alpaca,
Dolly) are repeated for further turns, each answer ended as in training.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path

from edgellm.checkpoint import MAX_TEMPLATE_BYTES, Checkpoint
from edgellm.convert import hints
from edgellm.convert.vocabulary.read import read_tokenizer
from edgellm.errors import BadInputError, EdgeLLMError, SpecError
from edgellm.formats.records import read_bounded

NAMES = ("alpaca", "dolly", "openassistant", "openassistant-llama", "vicuna")
_HERE = Path(__file__).parent
# A word in a model's name -> template. Vicuna v0 and the delta repositories spoke another format or hold no model.
_BY_NAME = (
    (re.compile(r"vicuna(?!.*(?:[-_]v0|delta))"), "vicuna"),
    (re.compile(r"alpaca"), "alpaca"),
    (re.compile(r"dolly"), "dolly"),
    (re.compile(r"oasst|open-?assistant"), "openassistant"),
)


def template(name: str) -> str:
    """One of the templates by name.

    Raises:
        SpecError: no such template.
    """
    if name not in NAMES:
        raise SpecError(f"no chat template named {name!r}", hint=f"a file, or one of: {', '.join(NAMES)}")
    return (_HERE / f"{name}.jinja").read_text("utf-8")


def choose_chat_template(checkpoint: Checkpoint, asked: str | None = None) -> tuple[str | None, str | None]:
    """The template for a model, and where it comes from in words.

    Args:
        asked: a template's name or a file; None takes the repository's own, else what evidence says.

    Returns:
        (template, reason): the reason is None where the repository's own is kept, both are None where nothing is known.

    Raises:
        SpecError: neither a name nor a file.  BadInputError: a file that is too large or not UTF-8.
    """
    if asked is not None:
        if asked in NAMES:
            return template(asked), f"chat template {asked}: asked for"
        path = Path(asked).expanduser()
        if not path.is_file():
            template(asked)
        try:
            return read_bounded(path, MAX_TEMPLATE_BYTES).decode(
                "utf-8"
            ), f"chat template {path.name}: a file asked for"
        except UnicodeDecodeError as err:
            raise BadInputError(f"{path}: not UTF-8 text: {err}", hint=hints.SAVE_AS_UTF8) from None
    if checkpoint.chat_template is not None:
        return checkpoint.chat_template, None
    name, because = _by_evidence(checkpoint)
    return (template(name), f"chat template {name}: the model has none; {because}") if name else (None, None)


def warning(chat_template: str | None, check: Callable[[str], None]) -> str | None:
    """A sentence where the template does not parse; such a model is converted all the same.

    Args:
        check: raises an EdgeLLMError for a template that the runtime cannot use.
    """
    if chat_template is None:
        return None
    try:
        check(chat_template)
    except EdgeLLMError as err:
        return f"chat template: invalid: {err.message}; chatting needs --chat-template when converting again"
    return None


def _by_evidence(checkpoint: Checkpoint) -> tuple[str | None, str]:
    tokens = _added_texts(checkpoint)
    llama = checkpoint.config.get("model_type") == "llama" or (
        checkpoint.gguf is not None and checkpoint.gguf.get("tokenizer.ggml.model", str, "") == "llama"
    )
    if {"<|prompter|>", "<|assistant|>"} <= set(tokens):
        name = "openassistant-llama" if llama else "openassistant"
        return name, "its tokenizer has <|prompter|> and <|assistant|>"
    if {"### End", "### Instruction:"} <= set(tokens):
        return "dolly", "its tokenizer has '### End' and '### Instruction:'"
    places = {"its name": checkpoint.name, "_name_or_path": checkpoint.config.get("_name_or_path")}
    for place, text in places.items():
        for pattern, name in _BY_NAME:
            if isinstance(text, str) and pattern.search(text.lower()):
                if name == "openassistant" and llama:
                    name = "openassistant-llama"
                return name, f"{place} is {text[:80]!r}"
    return None, ""


def _added_texts(checkpoint: Checkpoint) -> Collection[str]:
    if checkpoint.gguf is not None:
        tokens: list[str] = checkpoint.gguf.get("tokenizer.ggml.tokens", list, [])
        return tokens
    if checkpoint.tokenizer_path is None and not checkpoint.tokenizer_files:
        return []
    return [token.text for token in read_tokenizer(checkpoint).added]
