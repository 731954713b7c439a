"""Reports: they survive a file, refuse what they do not know, and hold no number that is not one."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm import report
from edgellm.errors import BadInputError
from edgellm.formats.records import to_json
from edgellm.report import Missing, Report, Result
from edgellm.workload import Workload
from tests.samples import make_energy, make_measurement, make_report

FULL = make_report(
    [make_measurement("tg_tok_per_s", [5.0, 5.25, 4.75]), make_energy("decode_j_per_token", [2.4])],
    [Missing(quantity="prefill_j_per_token", reason="the meter is too slow")],
    warnings=["throttled"],
    verdict="unstable",
)


def edited(**changes: object) -> bytes:
    return json.dumps({**json.loads(to_json(FULL)), **changes}).encode()


def test_round_trip() -> None:
    assert report.read(to_json(FULL), "r.json") == FULL
    assert to_json(report.read(to_json(FULL), "r.json")) == to_json(FULL)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_samples_survive_exactly(samples: list[float]) -> None:
    written = make_report([make_measurement("tg_tok_per_s", samples)])
    assert report.read(to_json(written), "r.json") == written


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(BadInputError, match=r"r\.json.*Report.*comment"):
        report.read(edited(comment="fast"), "r.json")


def test_another_schema_is_an_error() -> None:
    with pytest.raises(BadInputError, match=r"edgellm\.report/2"):
        report.read(edited(schema="edgellm.report/2"), "r.json")
    with pytest.raises(ValueError, match="schema is"):
        msgspec.structs.replace(FULL, schema="x").__post_init__()


@pytest.mark.parametrize("key", list(json.loads(to_json(FULL))))
def test_every_key_is_required(key: str) -> None:
    fields = json.loads(to_json(FULL))
    del fields[key]
    with pytest.raises(BadInputError, match=key):
        report.read(json.dumps(fields).encode(), "r.json")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "null", '"5"'])
def test_a_sample_that_is_no_number_is_refused(text: str) -> None:
    data = to_json(FULL).replace(b"5.25", text.encode())
    with pytest.raises(BadInputError):
        report.read(data, "r.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_is_refused_before_it_is_written(value: float) -> None:
    with pytest.raises(ValueError, match="not a finite number"):
        make_measurement("tg_tok_per_s", [1.0, value])
    hot = msgspec.structs.replace(FULL.conditions, load_1min=value)
    with pytest.raises(ValueError, match=r"conditions\.load_1min"):
        to_json(msgspec.structs.replace(FULL, conditions=hot))


def test_a_measurement_has_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        make_measurement("tg_tok_per_s", [])


def test_the_median_comes_from_the_samples() -> None:
    assert make_measurement("x", [3.0, 1.0, 2.0]).median == 2.0
    assert make_measurement("x", [1.0, 2.0]).median == 1.5


def test_find_takes_the_first_result_that_has_it() -> None:
    chat = Workload(id="chat", about="text", regime="text", n_gen=8, prompts=["Hello"])
    second = Result(
        workload=chat,
        measurements=[make_measurement("ttft_s", [0.2]), make_measurement("tg_tok_per_s", [1.0])],
        missing=[],
    )
    both = make_report(results=[*FULL.results, second])
    speed, first_token = both.find("tg_tok_per_s"), both.find("ttft_s")
    assert speed is not None
    assert speed.median == 5.0
    assert first_token is not None
    assert first_token.samples == [0.2]
    assert both.find("load_s") is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_garbage(data: bytes) -> None:
    with pytest.raises(BadInputError, match=r"r\.json"):
        report.read(data, "r.json")


def test_methods_and_verdicts_are_closed_lists() -> None:
    with pytest.raises(BadInputError, match="verdict"):
        report.read(edited(verdict="great"), "r.json")
    with pytest.raises(BadInputError, match="method"):
        report.read(to_json(FULL).replace(b'"measured"', b'"guessed"', 1), "r.json")


def test_a_report_is_frozen() -> None:
    with pytest.raises(AttributeError):
        FULL.verdict = "ok"  # type: ignore[misc]
    assert isinstance(FULL, Report)
