"""Help with options under headings."""

from __future__ import annotations

import click

# Options that no heading names stand under the last.
_HEADINGS: dict[str, tuple[str, ...]] = {
    "Prompt": ("system", "raw", "session_path"),
    "Answer": (
        "max_tokens", "stop", "json_schema", "regex", "grammar", "overflow", "keep_tokens", "top_logprobs",
    ),
    "Sampling": (
        "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed",
    ),
    "Engine": (
        "context", "threads", "gpu_layers", "kv_type", "flash_attention", "lora", "draft", "no_speculation", "isolate",
    ),
}  # fmt: skip
_LAST = "Options"


class GroupedCommand(click.Command):
    """A command whose help shows its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write them, the headings in their order."""
        heading_of = {name: heading for heading, names in _HEADINGS.items() for name in names}
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in (*_HEADINGS, _LAST)}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (row := parameter.get_help_record(ctx)) is not None:
                rows[heading_of.get(parameter.name or "", _LAST)].append(row)
        for heading, found in rows.items():
            if found:
                with formatter.section(heading):
                    formatter.write_dl(found)
