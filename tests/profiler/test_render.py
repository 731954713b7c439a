"""A report in words: a row per quantity, `missing` where there is no number, and why."""

from __future__ import annotations

from edgellm.formats.records import replace
from edgellm.profiler import render
from edgellm.report import Missing, Result
from edgellm.workload import Workload
from tests.samples import make_energy, make_measurement, make_report

NO_METER = Missing(quantity="decode_j_per_token", reason="no rapl: not an x86 machine")


def test_a_row_has_median_range_and_number_of_samples() -> None:
    report = make_report([make_measurement("tg_tok_per_s", [10.0, 30.0, 20.0])])
    (row,) = [line for line in render.render_text(report).splitlines() if "decode" in line]
    assert row.split() == ["tg128", "decode", "20.0", "tok/s", "10.0", "tok/s", "..", "30.0", "tok/s", "3"]


def test_a_single_sample_has_no_range() -> None:
    text = render.render_text(make_report([make_measurement("load_s", [0.5], unit="s")]))
    (row,) = [line for line in text.splitlines() if "  load" in line]
    assert ".." not in row


def test_what_is_missing_is_shown_as_missing_with_the_reason() -> None:
    text = render.render_text(make_report([make_measurement("tg_tok_per_s", [9.5])], [NO_METER]))
    (row,) = [line for line in text.splitlines() if "decode energy" in line]
    assert row.split()[-1] == "missing"
    assert "missing because: no rapl: not an x86 machine" in text
    assert " 0 J" not in text


def test_a_quantity_without_a_word_of_its_own_is_still_shown_when_missing() -> None:
    text = render.render_text(make_report([], [Missing(quantity="tpot_s", reason="no answer")]))
    assert "tpot_s" in text


def test_the_same_reason_is_said_once() -> None:
    missing = [NO_METER, replace(NO_METER, quantity="prefill_j_per_token")]
    assert render.render_text(make_report([], missing)).count("missing because") == 1


def test_warnings_come_last_and_none_is_lost() -> None:
    text = render.render_text(make_report(warnings=["swap was in use", "on battery"]))
    assert text.endswith("warning: swap was in use\nwarning: on battery\n")


def test_machine_model_and_engine_are_named() -> None:
    text = render.render_text(make_report())
    for words in (
        "tiny Q4_K_M",
        "Cortex-A76",
        "aarch64",
        "4 cores",
        "8.00 GiB",
        "llama.cpp b1 on cpu",
        "4 threads",
        "F16",
    ):
        assert words in text


def test_numbers_keep_three_digits_and_their_unit() -> None:
    text = render.render_text(make_report([make_energy("decode_j_per_token", [0.123456])]))
    assert "0.123 J/token" in text


def test_bytes_and_seconds_are_shown_in_readable_units() -> None:
    text = render.render_text(
        make_report(
            [
                make_measurement("peak_rss_bytes", [200 * 1024**2], unit="B"),
                make_measurement("ttft_s", [0.0421], unit="s"),
            ]
        )
    )
    assert "200" in text
    assert "MiB" in text
    assert "42" in text
    assert "ms" in text


def test_the_headline_is_speed_latency_memory_and_energy() -> None:
    report = make_report(
        [
            make_measurement("pp_tok_per_s", [100.0]),
            make_measurement("tg_tok_per_s", [20.0]),
            make_energy("decode_j_per_token", [0.5]),
        ],
        warnings=["swap was in use"],
    )
    lines = render.headline(report)
    assert "prefill 100.0 tok/s, decode 20.0 tok/s with 4 threads" in lines[0]
    assert "first token after missing" in lines[1]
    assert "0.5 J/token" in lines[2]
    assert lines[-1] == "warning: swap was in use"


def test_the_headline_says_why_energy_is_missing() -> None:
    assert "energy missing: no rapl: not an x86 machine" in render.headline(make_report([], [NO_METER]))


def test_rows_of_several_workloads_stay_apart() -> None:
    report = make_report([make_measurement("tg_tok_per_s", [20.0])])
    other = Workload(id="tg8", about="x", regime="engine", n_gen=8)
    extra = Result(workload=other, measurements=[make_measurement("tg_tok_per_s", [30.0])], missing=[])
    lines = render.render_text(replace(report, results=[*report.results, extra])).splitlines()
    assert [line.split()[0] for line in lines if "decode" in line] == ["tg128", "tg8"]
