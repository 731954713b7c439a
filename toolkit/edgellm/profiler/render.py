"""A report as a table of words; the only place of the profiler that rounds."""

from __future__ import annotations

import statistics

from edgellm.report import Measurement, Report
from edgellm.units import format_bytes, format_count, format_seconds

_SHOWN = {
    "pp_tok_per_s": "prefill", "tg_tok_per_s": "decode", "pg_tok_per_s": "prefill+decode", "ttft_s": "first token",
    "itl_s": "gap between tokens", "decode_tok_per_s": "decode, real text", "load_s": "load", "peak_rss_bytes": "peak RSS",
    "pss_bytes": "PSS", "prefill_j_per_token": "prefill energy", "decode_j_per_token": "decode energy",
    "pg_j_per_token": "energy",
}  # fmt: skip


def render_text(report: Report) -> str:
    """Lines for a terminal: the machine, the model, a row per quantity (median, range), what is missing, warnings."""
    device, model, runtime = report.device, report.model, report.runtime
    size = (
        f"{format_count(model.n_params)} weights, {model.bpw:.2f} bits each, {format_bytes(model.file_bytes)}"
    )
    chip = f"{device.arch}, {device.cores_logical} cores, {format_bytes(device.ram_bytes)}"
    engine = f"{runtime.engine} {runtime.engine_version} on {runtime.backend_actual}"
    lines = [
        f"{model.model} {model.quant}  {size}",
        f"{device.cpu} ({chip}), {device.os}",
        f"{engine}, {runtime.n_threads} threads, KV cache {runtime.kv_type}",
        "",
    ]
    rows = [("workload", "quantity", "median", "min .. max", "n")]
    for result in report.results:
        for m in result.measurements:
            if m.quantity in _SHOWN:
                spread = (
                    f"{_show(m, min(m.samples))} .. {_show(m, max(m.samples))}" if len(m.samples) > 1 else ""
                )
                median = _show(m, statistics.median(m.samples))
                rows.append((result.workload.id, _SHOWN[m.quantity], median, spread, str(len(m.samples))))
        rows += [
            (result.workload.id, _SHOWN.get(x.quantity, x.quantity), "missing", "", "")
            for x in result.missing
        ]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            row[1].ljust(widths[1]),
            row[2].rjust(widths[2]),
            row[3].rjust(widths[3]),
        ]
        lines.append("  ".join([*cells, row[4].rjust(widths[4])]).rstrip())
    reasons = {x.reason for result in report.results for x in result.missing}
    lines += ["", *(f"missing because: {reason}" for reason in sorted(reasons))]
    lines += [f"warning: {warning}" for warning in report.warnings]
    return "\n".join(lines).rstrip() + "\n"


def headline(report: Report) -> list[str]:
    """The report in a few lines: speed, latency, memory, energy or why there is none."""

    def median(quantity: str) -> str:
        found = report.find(quantity)
        return _show(found, found.median) if found else "missing"

    lines = [
        f"prefill {median('pp_tok_per_s')}, decode {median('tg_tok_per_s')} with {report.runtime.n_threads} threads",
        f"first token after {median('ttft_s')}, load {median('load_s')}, peak RSS {median('peak_rss_bytes')}",
    ]
    energy = report.find("decode_j_per_token")
    missing = [x for result in report.results for x in result.missing if x.quantity == "decode_j_per_token"]
    if energy:
        lines.append(
            f"energy {_show(energy, energy.median)} while decoding ({energy.source}, {energy.scope})"
        )
    elif missing:
        lines.append(f"energy missing: {missing[0].reason}")
    return lines + [f"warning: {warning}" for warning in report.warnings]


def _show(m: Measurement, value: float) -> str:
    if m.unit == "s":
        return format_seconds(value)
    if m.unit == "B":
        return format_bytes(value)
    return f"{value:.1f} {m.unit}" if value >= 10 else f"{value:.3g} {m.unit}"
