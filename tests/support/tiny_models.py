"""Tiny models of every family: made by transformers in a child, converted by us, compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgellm.checkpoint import open_checkpoint
from edgellm.convert import pipeline, writer
from edgellm.convert.source import HeaderValue, Source
from edgellm.native.llama import LlamaModel, LlamaOptions
from edgellm.protocols import AskedPooling, Feed
from tests.support import oracle, tiny_llama
from tests.support.families.row import Row
from tests.support.tiny_llama import Array

N_TOKENS = 256
IDS = np.random.default_rng(11).integers(3, 300, N_TOKENS).tolist()

# Weights are three times their initial size; norms and biases are moved off ones and zeros, which hide mistakes.
_MAKE = """
import importlib, pathlib, zlib, numpy, torch, transformers
sys.path.insert(0, spec["references"])
ids = torch.tensor([spec["ids"]])
for row in spec["rows"]:
    torch.manual_seed(zlib.crc32(row["name"].encode()))
    module = importlib.import_module(row["reference"]) if row["reference"] else transformers
    config = getattr(module, row["config_class"])(**row["config"])
    cls = getattr(module, row["model_class"])
    model = cls(config).float().eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1 and "norm" not in name:
                value.mul_(3)
            else:
                value.add_(0.2 * torch.randn_like(value))
    model.tie_weights()
    directory = pathlib.Path(spec["out"]) / row["name"]
    model.save_pretrained(directory, safe_serialization=True)
    model = cls.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        body = model.base_model if row["embeds"] else model
        found = body(ids, attention_mask=torch.ones_like(ids))
    values = found.last_hidden_state if row["embeds"] else found.logits
    numpy.save(f"{directory}.npy", values[0].float().numpy())
print("true")
"""


# llama.cpp's converter looks at the kind of tokenizer beside an encoder.
WORDPIECE: dict[str, Any] = {
    "added_tokens": [],
    "model": {"type": "WordPiece", "unk_token": "a", "vocab": {"a": 0}},
}
STEPS = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in (
    ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"),
)]  # fmt: skip


class Made(NamedTuple):
    """A directory, and what transformers computes for IDS: (n_tokens, n_vocab) logits or (n_tokens, n) states."""

    row: Row
    directory: Path
    reference: Array


def make(rows: Iterable[Row], root: Path) -> dict[str, Made]:
    """All rows as Hugging Face directories with their references; one child for all."""
    listed = list(rows)
    specs = [
        {
            "name": row.name, "model_class": row.model_class, "config_class": row.config_class,
            "config": {**row.config}, "embeds": row.embeds, "reference": row.reference,
        } for row in listed
    ]  # fmt: skip
    references = str(Path(__file__).parent / "references")
    oracle.transformers(_MAKE, rows=specs, ids=IDS, out=str(root), references=references)
    made = {}
    for row in listed:
        directory = root / row.name
        path = directory / "config.json"
        config = {**json.loads(path.read_text()), **row.saved}
        removed = [key for key, value in row.saved.items() if value is None]
        path.write_text(json.dumps({key: value for key, value in config.items() if key not in removed}))
        if row.renamed:
            _rename(directory / "model.safetensors", *row.renamed)
        tokenizer = WORDPIECE if row.embeds else _padded_tokenizer()
        (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
        (directory / "tokenizer_config.json").write_text("{}")
        if row.pooling:
            write_pooling(directory, {f"pooling_mode_{row.pooling}": True})
        made[row.name] = Made(row, directory, np.load(f"{directory}.npy"))
    return made


def _padded_tokenizer() -> dict[str, Any]:
    """As many tokens as there are rows: llama.cpp's converter cuts Gemma 3's embedding to them."""
    tokenizer = tiny_llama.tokenizer_json()
    vocab = tokenizer["model"]["vocab"]
    vocab |= {f"<padding {i}>": i for i in range(len(vocab), tiny_llama.VOCAB_SIZE)}
    return tokenizer


def write_pooling(directory: Path, pooling: dict[str, Any], steps: Any = None) -> None:
    """What sentence-transformers writes beside a model."""
    (directory / "modules.json").write_text(json.dumps(STEPS if steps is None else steps))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def _rename(path: Path, old: str, new: str) -> None:
    from safetensors.numpy import load_file, save_file

    renamed = {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in load_file(path).items()}
    save_file(renamed, path, metadata={"format": "pt"})


def read_source(directory: Path) -> Source:
    """The directory as a source with a vocabulary of the right size that is not the model's own."""
    source = pipeline.read_source(open_checkpoint(directory))
    n = source.shape.vocab_size
    header = {
        "general.name": HeaderValue(
            "STRING", "tiny"
        ),  # llama.cpp looks for tokens of Phi 3 where the name says so
        "tokenizer.ggml.model": HeaderValue("STRING", "gpt2"),
        "tokenizer.ggml.pre": HeaderValue("STRING", "gpt-2"),
        "tokenizer.ggml.tokens": HeaderValue("ARRAY", [f"t{i}" for i in range(n)], "STRING"),
        "tokenizer.ggml.token_type": HeaderValue("ARRAY", [1] * n, "INT32"),
        "tokenizer.ggml.merges": HeaderValue("ARRAY", ["t 1"], "STRING"),
        "tokenizer.ggml.eos_token_id": HeaderValue("UINT32", 2),
    }
    return dataclasses.replace(source, header={**source.header, **header})


def write_f32(source: Source, path: Path) -> Path:
    """The source as a GGUF in F32."""
    types = {tensor.name: "F32" for tensor in source.tensors}
    writer.write_gguf(path, source, types, source.header, n_workers=1)
    return path


def our_logits(path: Path, n_tokens: int = N_TOKENS) -> Array:
    """(n_tokens, n_vocab) logits of a GGUF by llama.cpp, with an F32 cache and without flash attention."""
    model = LlamaModel(path, LlamaOptions(n_threads=1, kv_type="F32", flash_attention="off"))
    batcher = model.open(context=n_tokens)
    logits = batcher.step([Feed(sequence=0, tokens=IDS[:n_tokens], want="all")])[0].logits
    batcher.close()
    model.close()
    assert logits is not None
    return logits


class Embeddings(NamedTuple):
    """States of tokens (n_tokens, n), and the embedding of the text (1, n) of length 1."""

    states: Array
    pooled: Array

    def share(self, other: Embeddings) -> float:
        """The larger of both distances, relative to the length of this one."""
        return max(
            float(np.linalg.norm(mine - its) / np.linalg.norm(mine))
            for mine, its in zip(self, other, strict=True)
        )


def reference_embeddings(made: Made) -> Embeddings:
    """What transformers computes for IDS, pooled as the row says."""
    states = made.reference.astype(np.float64)
    pooled = {"mean_tokens": states.mean(axis=0), "cls_token": states[0]}[made.row.pooling or ""]
    return Embeddings(states, pooled[np.newaxis] / np.linalg.norm(pooled))


def our_embeddings(path: Path, ids: Sequence[int] = IDS) -> Embeddings:
    """What llama.cpp computes for a text, pooled as the file's header says; without flash attention."""
    model = LlamaModel(path, LlamaOptions(n_threads=1, flash_attention="off"))
    found = []
    pooling: AskedPooling
    for pooling, normalize in (("none", False), ("model", True)):
        embedder = model.open_embedder(context=len(ids), pooling=pooling)
        found.append(embedder.embed(ids, normalize=normalize))
        embedder.close()
    model.close()
    return Embeddings(*found)


# llama.cpp's own converter, without its vocabulary, which it knows by hashes only.
_THEIRS = """
import pathlib
sys.path[:0] = [spec["llama_cpp"], spec["llama_cpp"] + "/gguf-py"]
import gguf
from conversion import get_model_class
from conversion.base import ModelBase, TextModel, ModelType
for name, directory in spec["models"].items():
    path = pathlib.Path(directory)
    hparams = ModelBase.load_hparams(path, False)
    cls = get_model_class(hparams["architectures"][0])
    cls.set_vocab = lambda self: self._set_vocab_none()
    with __import__("torch").inference_mode():
        cls(path, gguf.LlamaFileType.ALL_F32, pathlib.Path(spec["out"]) / f"{name}.gguf").write()
print("true")
"""


def convert_with_llama_cpp(made: Iterable[Made], folder: Path) -> dict[str, Path]:
    """Every directory as an F32 GGUF without vocabulary, by llama.cpp's converter; one child for all."""
    models = {m.row.name: str(m.directory) for m in made}
    llama_cpp = str(oracle.native_build() / "llama.cpp")
    oracle.transformers(_THEIRS, models=models, out=str(folder), llama_cpp=llama_cpp)
    return {name: folder / f"{name}.gguf" for name in models}


def describe(value: Any) -> Any:
    """A header value for comparison: floats as float32, arrays as lists."""
    if isinstance(value, float):
        return float(np.float32(value))
    return [describe(v) for v in value] if isinstance(value, list | tuple | np.ndarray) else value
