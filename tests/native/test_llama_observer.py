"""The observer sees what weights are multiplied with, changes nothing, and never lets an error cross native code."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.api import models
from edgellm.errors import UnsupportedError
from edgellm.formats.gguf import read_gguf
from edgellm.native import llama_observer
from edgellm.native.llama import LlamaModel, LlamaOptions
from edgellm.protocols import Feed, FloatArray, Observation
from tests.support import tiny_gguf

N_EXPERTS = 4
IDS = [0, *range(40, 79)]


class Recorder:
    """Copies of what it was shown; `during` runs while native code waits."""

    def __init__(self, wanted: str = "", during: Callable[[], None] = lambda: None) -> None:
        self.wanted, self.during = wanted, during
        self.asked: list[str] = []
        self.seen: list[Observation] = []

    def wants(self, weight: str) -> bool:
        self.asked.append(weight)
        return self.wanted in weight

    def observe(self, observation: Observation) -> None:
        self.during()
        o = observation
        self.seen.append(
            Observation(
                weight=o.weight, rows=o.rows.copy(), experts=o.experts, n_experts=o.n_experts, source=o.source
            )
        )

    def rows(self, weight: str) -> FloatArray:
        return np.concatenate([o.rows for o in self.seen if o.weight == weight])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "experts.gguf", n_experts=N_EXPERTS)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[LlamaModel]:
    opened = models.open_backend(path, LlamaOptions(n_threads=1, kv_type="F32", flash_attention="off"))
    yield opened
    opened.close()


def run(model: LlamaModel, recorder: Recorder | None, ids: list[int] = IDS) -> FloatArray:
    batcher = model.open(n_sequences=1, context=64, observer=recorder)
    try:
        logits = batcher.step([Feed(sequence=0, tokens=ids, want="all")])[0].logits
    finally:
        batcher.close()
    assert logits is not None
    return logits


def weights(path: Path) -> dict[str, FloatArray]:
    file = read_gguf(path)
    data = np.memmap(path, dtype=np.uint8, mode="r")
    return {
        t.name: data[t.offset : t.offset + t.n_bytes].view(np.float32).reshape(t.shape)
        for t in file.tensors.values()
    }


def test_every_weight_that_multiplies_is_asked_for_once_and_shown(model: LlamaModel, path: Path) -> None:
    recorder = Recorder()
    assert model.capabilities.observer
    run(model, recorder)
    matrices = {
        name for name, array in weights(path).items() if array.ndim > 1 and name != "token_embd.weight"
    }
    assert {o.weight for o in recorder.seen} == matrices
    assert sorted(recorder.asked) == sorted(matrices)


def test_what_is_not_wanted_is_not_shown_and_nothing_changes(model: LlamaModel) -> None:
    recorder = Recorder("blk.1.attn_q")
    plain = run(model, None)
    for observer in (recorder, Recorder(), Recorder("nothing")):
        np.testing.assert_array_equal(run(model, observer), plain)
    assert [o.weight for o in recorder.seen] == ["blk.1.attn_q.weight"]


def test_rows_times_weight_is_what_the_model_computes(model: LlamaModel, path: Path) -> None:
    """The last rows times the head are the logits; the first are the normalised embeddings of the tokens."""
    recorder, table = Recorder(), weights(path)
    logits = run(model, recorder)
    np.testing.assert_allclose(
        recorder.rows("output.weight") @ table["output.weight"].T, logits, rtol=1e-4, atol=1e-4
    )
    embedded = table["token_embd.weight"][IDS]
    normal = embedded / np.sqrt((embedded**2).mean(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(
        recorder.rows("blk.0.attn_q.weight"), normal * table["blk.0.attn_norm.weight"], rtol=1e-4, atol=1e-5
    )


def test_each_row_names_the_experts_it_meets(model: LlamaModel, path: Path) -> None:
    """The router's two best; an expert's output rows follow from its own input rows."""
    recorder, table = Recorder(), weights(path)
    run(model, recorder)
    by_name = {o.weight: o for o in recorder.seen}
    router, up, down = (
        by_name[f"blk.0.{part}.weight"] for part in ("ffn_gate_inp", "ffn_up_exps", "ffn_down_exps")
    )
    best = np.argsort(-(router.rows @ table["blk.0.ffn_gate_inp.weight"].T), axis=1)[:, :2]
    assert up.experts is not None
    assert down.experts is not None
    assert up.n_experts == down.n_experts == N_EXPERTS
    np.testing.assert_array_equal(np.sort(up.experts, axis=1), np.sort(best, axis=1))
    assert up.rows.shape == (len(IDS), tiny_gguf.WIDTH)
    assert down.rows.shape == (2 * len(IDS), tiny_gguf.HIDDEN)
    assert sum(len(rows) for _, rows in up.by_expert()) == 2 * len(IDS)
    gates = table["blk.0.ffn_gate_exps.weight"], table["blk.0.ffn_up_exps.weight"]
    for at in range(len(down.rows)):
        token, expert = up.rows[at // 2], down.experts[at, 0]
        gate, linear = (matrix[expert] @ token for matrix in gates)
        np.testing.assert_allclose(down.rows[at], gate / (1 + np.exp(-gate)) * linear, rtol=1e-3, atol=1e-4)


def test_weights_with_the_same_input_share_a_source_and_parts_of_a_batch_do_not(path: Path) -> None:
    model = models.open_backend(path, LlamaOptions(n_threads=1, n_batch=16, n_ubatch=8))
    recorder = Recorder()
    run(model, recorder, IDS[:32])
    model.close()
    by_source: dict[int, list[Observation]] = {}
    for o in recorder.seen:
        by_source.setdefault(o.source, []).append(o)
    for group in by_source.values():
        for o in group[1:]:
            np.testing.assert_array_equal(o.rows, group[0].rows)
    first = next(iter(by_source.values()))
    assert {o.weight.split(".")[2] for o in first} == {"attn_q", "attn_k", "attn_v"}
    of_query = [o for o in recorder.seen if o.weight == "blk.0.attn_q.weight"]
    assert [len(o.rows) for o in of_query] == [8, 8, 8, 8]
    assert len({o.source for o in of_query}) == 4


def test_rows_cannot_be_written_to(model: LlamaModel) -> None:
    class Writer(Recorder):
        def observe(self, observation: Observation) -> None:
            observation.rows[0, 0] = 1

    with pytest.raises(ValueError, match="read-only"):
        run(model, Writer())


@pytest.mark.parametrize("error", [RuntimeError("no room"), KeyboardInterrupt(), MemoryError()])
def test_what_the_observer_raises_is_raised_by_the_step_and_the_cache_can_be_used_again(
    model: LlamaModel, error: BaseException
) -> None:
    plain = run(model, None)
    raised: list[BaseException] = [error]

    def fail_once() -> None:
        if raised:
            raise raised.pop()

    recorder = Recorder(during=fail_once)
    batcher = model.open(n_sequences=1, context=64, observer=recorder)
    with pytest.raises(type(error)):
        batcher.step([Feed(sequence=0, tokens=IDS, want="all")])
    assert recorder.seen == []
    batcher.free(0)
    np.testing.assert_array_equal(batcher.step([Feed(sequence=0, tokens=IDS, want="all")])[0].logits, plain)
    batcher.close()


def test_ctrl_c_during_an_observed_step_is_not_lost(model: LlamaModel) -> None:
    recorder = Recorder(during=lambda: os.kill(os.getpid(), signal.SIGINT))
    batcher = model.open(n_sequences=1, context=64, observer=recorder)
    with pytest.raises(KeyboardInterrupt):
        batcher.step([Feed(sequence=0, tokens=IDS)])
    recorder.during = lambda: None
    batcher.truncate(0, 0)
    assert batcher.step([Feed(sequence=0, tokens=IDS, want="last")])[0].logits is not None
    batcher.close()


def test_a_model_without_weights_shows_nothing(path: Path) -> None:
    model = LlamaModel(path, LlamaOptions(n_threads=1), vocab_only=True)
    assert not model.capabilities.observer
    model.close()


def layout_with(change: Callable[[list[tuple[str, Any]]], None]) -> Any:
    fields = list(llama_observer.Tensor._fields_)
    change(fields)
    return type("Other", (ctypes.Structure,), {"_fields_": fields})


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.reverse(),
        lambda fields: fields.insert(2, ("new", ctypes.c_int64)),
        lambda fields: fields.insert(4, ("new", ctypes.c_int64)),
        lambda fields: fields.insert(7, ("new", ctypes.c_int64)),
        lambda fields: fields.insert(10, ("new", ctypes.c_int64)),
        lambda fields: fields.insert(11, ("new", ctypes.c_int64)),
        lambda fields: fields.__setitem__(2, ("ne", ctypes.c_int32 * 4)),
    ],
)
def test_another_layout_of_tensors_is_refused_in_one_line(change: Callable[[Any], None]) -> None:
    with pytest.raises(UnsupportedError, match="lays out its tensors differently") as caught:
        llama_observer.check_layout(layout_with(change))
    assert "\n" not in str(caught.value)
    assert "--imatrix none" in (caught.value.hint or "")


def test_the_layout_declared_here_is_that_of_the_library() -> None:
    mul_mat, mul_mat_id = llama_observer.check_layout(llama_observer.Tensor)
    assert mul_mat != mul_mat_id
