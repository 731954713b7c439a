"""How an encoder's token states become one embedding, as sentence-transformers wrote it beside the model.

modules.json lists the steps; the step named Pooling has a directory with a config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edgellm.convert.source import HeaderValue
from edgellm.errors import BadInputError, UnsupportedError
from edgellm.formats.paths import safe_join
from edgellm.formats.plain_json import Fields, read_json, read_json_array

MAX_MODULES = 16
# Name in the configuration -> enum llama_pooling_type.
_NUMBERS = {"mean": 1, "cls": 2, "lasttoken": 3}
_FLAGS = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max", "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}  # fmt: skip
# Normalizing is left to who asks for an embedding; dropout does nothing outside training.
_STEPS = ("Transformer", "Pooling", "Normalize", "Dropout")


class Pooling(NamedTuple):
    """What the header says of pooling, the files that say so, and what the user should know."""

    header: dict[str, HeaderValue]
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def read_pooling(directory: Path) -> Pooling:
    """The pooling of a sentence-transformers directory.

    Raises:
        UnsupportedError: a step or a pooling that llama.cpp does not compute.
        BadInputError: malformed files.
    """
    modules = safe_join(directory, "modules.json")
    if not modules.is_file():
        note = "no modules.json says how token states become one embedding: who runs the model must choose"
        return Pooling({}, (), (note,))
    folder = _pooling_folder(modules)
    if folder is None:
        raise UnsupportedError(f"{modules}: no step is a Pooling, so the model gives no embedding of a text")
    path = safe_join(directory, f"{folder}/config.json" if folder else "config.json")
    fields = Fields(read_json(path), str(path))
    mode = _mode(fields)
    notes = []
    if not fields.flag("include_prompt", default=True):
        notes.append("the model leaves its prompt out of the pooling, llama.cpp pools all tokens")
    return Pooling({"pooling_type": HeaderValue("UINT32", _NUMBERS[mode])}, (modules, path), tuple(notes))


def _pooling_folder(modules: Path) -> str | None:
    steps = read_json_array(modules)
    if len(steps) > MAX_MODULES:
        raise BadInputError(f"{modules}: {len(steps)} steps, at most {MAX_MODULES} are expected")
    folder: str | None = None
    for number, step in enumerate(steps):
        if not isinstance(step, dict):
            raise BadInputError(f"{modules}: step {number} is not an object")
        fields = Fields(step, str(modules), f"step {number} ")
        kind = fields.text("type", max_chars=200)
        package, _, name = kind.rpartition(".")
        if package.split(".")[0] != "sentence_transformers" or name not in _STEPS:
            raise UnsupportedError(
                f"{modules}: step {number} is {kind!r}; llama.cpp computes {', '.join(_STEPS)} of sentence_transformers",
            )
        if name == "Pooling":
            if folder is not None:
                raise BadInputError(f"{modules}: step {number} is a second Pooling")
            folder = fields.text("path", max_chars=200)
    return folder


def _mode(fields: Fields) -> str:
    modes = [name for key, name in _FLAGS.items() if fields.flag(key, default=False)]
    named = fields.text("pooling_mode", default=None, max_chars=100)
    if named is not None:
        modes = sorted({*modes, named})
    if not modes:
        raise BadInputError(f"{fields.where}: no pooling mode is set")
    if len(modes) > 1 or modes[0] not in _NUMBERS:
        raise UnsupportedError(
            f"{fields.where}: the pooling is {' + '.join(modes)}; llama.cpp pools by one of {', '.join(_NUMBERS)}",
        )
    return modes[0]
