"""Every family's config.json with the names and shapes of its tensors, and no weights: transformers' own, in a second."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.support import oracle
from tests.support.families.row import Row

_DESCRIBE = """
import importlib, pathlib, torch, transformers
sys.path.insert(0, spec["references"])
for row in spec["rows"]:
    module = importlib.import_module(row["reference"]) if row["reference"] else transformers
    with torch.device("meta"):
        config = getattr(module, row["config_class"])(**row["config"])
        model = getattr(module, row["model_class"])(config)
    tied = config.get_text_config().tie_word_embeddings
    left_out = set(getattr(model, "_tied_weights_keys", None) or []) if tied else set()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items() if name not in left_out}
    config.architectures = [type(model).__name__]
    directory = pathlib.Path(spec["out"]) / row["name"]
    directory.mkdir()
    (directory / "config.json").write_text(config.to_json_string(use_diff=False))
    (directory / "shapes.json").write_text(json.dumps(shapes))
print("true")
"""


def describe(rows: Iterable[Row], root: Path) -> dict[str, Path]:
    """Each row as a Hugging Face directory whose weights are a hole in the file; one child for all."""
    listed = list(rows)
    specs = [
        {
            "name": row.name, "model_class": row.model_class, "config_class": row.config_class,
            "config": {**row.config}, "reference": row.reference,
        } for row in listed
    ]  # fmt: skip
    references = str(Path(__file__).parents[1] / "references")
    oracle.transformers(_DESCRIBE, rows=specs, out=str(root), references=references)
    for row in listed:
        directory = root / row.name
        config = {**json.loads((directory / "config.json").read_text()), **row.saved}
        removed = [key for key, value in row.saved.items() if value is None]
        write_config(directory, {key: value for key, value in config.items() if key not in removed})
        shapes = json.loads((directory / "shapes.json").read_text())
        if row.renamed:
            old, new = row.renamed
            shapes = {
                new + k.removeprefix(old) if k.startswith(old) else k: shape for k, shape in shapes.items()
            }
        _write_sparse(directory / "model.safetensors", shapes)
    return {row.name: root / row.name for row in listed}


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    (directory / "config.json").write_text(json.dumps(config))


def _write_sparse(path: Path, shapes: Mapping[str, list[int]]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    data = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(file.tell() + end)
