"""Every family: tiny models of transformers, converted, give the same distributions; wrong conversions do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgellm.formats.gguf import read_gguf
from tests.support import tiny_models
from tests.support.families import ROWS
from tests.support.tiny_llama import kl_divergence
from tests.support.tiny_models import Made

EQUAL_NATS, WRONG_NATS = 1e-4, 1e-3
WRONG_SHARE, NEAR_COSINE = 1e-2, 0.9999
COMPARED = [name for name, row in ROWS.items() if not row.theirs_fails]
CONTROLS = [(row.name, control) for row in ROWS.values() for control in row.controls]
DECODERS = [name for name, row in ROWS.items() if not row.embeds]
ENCODERS = [name for name, row in ROWS.items() if row.embeds]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return tiny_models.make(ROWS.values(), tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def theirs(made: dict[str, Made], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    compared = [made[name] for name in COMPARED]
    return tiny_models.convert_with_llama_cpp(compared, tmp_path_factory.mktemp("theirs"))


@pytest.mark.parametrize("name", DECODERS)
def test_distributions_equal_those_of_transformers(made: dict[str, Made], name: str, tmp_path: Path) -> None:
    n, reference = ROWS[name].n_tokens, made[name].reference
    source = tiny_models.read_source(made[name].directory)
    seen = tiny_models.our_logits(tiny_models.write_f32(source, tmp_path / "model.gguf"))
    assert kl_divergence(reference[:n], seen[:n]) < EQUAL_NATS
    if n < len(reference):
        assert source.shape.context_train == n
        assert kl_divergence(reference[n:], seen[n:]) > WRONG_NATS


@pytest.mark.parametrize("name", DECODERS)
def test_the_reference_distributions_are_not_flat(made: dict[str, Made], name: str) -> None:
    reference = made[name].reference
    assert kl_divergence(reference, np.zeros_like(reference)) > 0.1


@pytest.mark.parametrize("name", ENCODERS)
def test_embeddings_equal_those_of_transformers(made: dict[str, Made], name: str, tmp_path: Path) -> None:
    expected = tiny_models.reference_embeddings(made[name])
    source = tiny_models.read_source(made[name].directory)
    seen = tiny_models.our_embeddings(tiny_models.write_f32(source, tmp_path / "model.gguf"))
    assert expected.share(seen) < ROWS[name].within_share
    lengths = np.linalg.norm(expected.states, axis=1) * np.linalg.norm(seen.states, axis=1)
    assert np.min((expected.states * seen.states).sum(axis=1) / lengths) > NEAR_COSINE
    assert float((expected.pooled * seen.pooled).sum()) > NEAR_COSINE


@pytest.mark.parametrize("name", ENCODERS)
def test_the_states_of_tokens_differ(made: dict[str, Made], name: str) -> None:
    states = made[name].reference
    assert np.linalg.norm(states - states.mean(axis=0)) > 0.1 * np.linalg.norm(states)


@pytest.mark.parametrize(("name", "control"), CONTROLS)
def test_a_wrong_conversion_is_noticed(
    made: dict[str, Made], name: str, control: str, tmp_path: Path
) -> None:
    source = ROWS[name].controls[control](tiny_models.read_source(made[name].directory))
    path = tiny_models.write_f32(source, tmp_path / "model.gguf")
    if ROWS[name].embeds:
        expected = tiny_models.reference_embeddings(made[name])
        assert expected.share(tiny_models.our_embeddings(path)) > WRONG_SHARE
        return
    seen = tiny_models.our_logits(path)
    n = ROWS[name].n_tokens
    assert kl_divergence(made[name].reference[:n], seen[:n]) > WRONG_NATS


@pytest.mark.parametrize("name", COMPARED)
def test_tensors_and_header_equal_those_of_llama_cpps_converter(
    made: dict[str, Made], theirs: dict[str, Path], name: str, tmp_path: Path
) -> None:
    ours = read_gguf(
        tiny_models.write_f32(tiny_models.read_source(made[name].directory), tmp_path / "model.gguf")
    )
    other = read_gguf(theirs[name])
    tensors = set(ours.tensors) ^ set(other.tensors)
    for tensor, expected in other.tensors.items():
        if tensor in tensors:
            continue
        found = ours.tensors[tensor]
        assert (found.shape, found.type_name) == (expected.shape, expected.type_name), tensor
        mine = (tmp_path / "model.gguf").read_bytes()[found.offset :][: found.n_bytes]
        assert mine == theirs[name].read_bytes()[expected.offset :][: expected.n_bytes], tensor
    skipped = ("general.", "tokenizer.")
    wanted = {
        k: tiny_models.describe(v.value) for k, v in other.metadata.items() if not k.startswith(skipped)
    }
    seen = {k: tiny_models.describe(ours.metadata[k].value) if k in ours.metadata else None for k in wanted}
    different = {key for key in wanted if wanted[key] != seen[key]}
    assert different | tensors == set(ROWS[name].theirs), {key: (seen[key], wanted[key]) for key in different}
