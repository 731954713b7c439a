"""`edgellm convert`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from edgellm.cli.common import (
    FiniteRange,
    NewPath,
    Size,
    context_option,
    engine_option,
    json_option,
    min_cosine_option,
    print_json,
    progress_bars,
    show,
)


@click.command("convert")
@click.argument("model")
@click.option(
    "--target",
    default="host",
    show_default=True,
    help="The device: see `edgellm targets`; host is this machine.",
)
@click.option(
    "-o",
    "--output",
    type=NewPath(path_type=Path),
    help="Directory to make.  [default: ./<model>-<target>]",
)
@click.option(
    "--quant", default="auto", show_default=True, metavar="auto|TYPE", help="For example Q4_K_M, Q8_0, BF16."
)
@context_option
@click.option(
    "--kv-type",
    default="auto",
    show_default=True,
    help="Type of the KV cache at run time, for example F16 or Q8_0.",
)
@click.option(
    "--max-bytes",
    type=Size(),
    metavar="SIZE",
    help="A mix of our own in a file of at most this size, for example 100M: types chosen by measuring, rounding "
    "compensated.",
)
@click.option("--bpw", type=FiniteRange(0.5, 32), metavar="BITS", help="The same, as bits per weight.")
@click.option(
    "--imatrix",
    default="auto",
    show_default=True,
    metavar="auto|none|FILE",
    help="Importance matrix: auto collects one where the type needs it; FILE is one of edgellm's or llama-imatrix's.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Text to measure on: an importance matrix, or a mix of our own; by default one that edgellm ships.",
)
@click.option(
    "--tensor-type",
    "tensor_types",
    multiple=True,
    metavar="PATTERN=TYPE",
    help="Type of the tensors whose name holds the pattern; may be given several times, the first that fits decides.",
)
@click.option("--output-tensor-type", metavar="TYPE", help="Type of the output head.")
@click.option("--token-embedding-type", metavar="TYPE", help="Type of the token embedding.")
@click.option(
    "--lora", type=click.Path(path_type=Path), metavar="DIR", help="Merge this PEFT adapter into the model."
)
@click.option(
    "--lora-as",
    type=click.Choice(["merged", "adapter"]),
    default="merged",
    show_default=True,
    help="adapter writes it as a GGUF file of its own, which llama.cpp adds while it runs; the model is not converted.",
)
@click.option(
    "--chat-template",
    metavar="NAME|FILE",
    help="alpaca, dolly, openassistant, openassistant-llama, vicuna, or a file; by default the model's own.",
)
@click.option(
    "--verify",
    type=click.Choice(["none", "quick", "full"]),
    default="none",
    show_default=True,
    help="Compare the result with the source on a text.",
)
@click.option(
    "--max-kl",
    type=FiniteRange(0),
    metavar="NATS",
    help="Fail if it is further from the source than this.",
)
@min_cosine_option
@engine_option
@click.option(
    "--jobs",
    type=click.IntRange(1, 256),
    help="Threads that write, measure and compare; by default all cores.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the recipe, its reasons and sizes, or why it would be refused; write nothing.",
)
@click.option(
    "--force", is_flag=True, help="Replace an artifact of that name; it stays until the new one is complete."
)
@json_option
def command(
    model: str,
    target: str,
    output: Path | None,
    verify: str,
    max_kl: float | None,
    min_cosine: float | None,
    engine: str,
    jobs: int | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
    lora_as: str,
    **choices: Any,
) -> None:
    """Convert MODEL for a device.

    MODEL is a Hugging Face directory, a .gguf file, an artifact, builtin:smollm2 (the embedded model), or a model on the
    hub: org/name, org/name@revision, org/name/file.gguf. A path that is here wins over the hub; hf://org/name asks the hub.
    """
    from edgellm import api, hub

    if Path(model).is_dir() and hub.looks_like_id(model):
        show(f"note: {model} is a directory here; hf://{model} asks the hub", err=True)
    if lora_as == "adapter":
        _convert_adapter(model, output, choices, jobs=jobs, force=force, as_json=as_json)
        return
    if dry_run:
        plan = api.plan_conversion(
            model, target=target, output=output, verify=verify, max_kl=max_kl, min_cosine=min_cosine,  # type: ignore[arg-type]
            engine=engine, jobs=jobs, force=force, **choices,  # type: ignore[arg-type]
        )  # fmt: skip
        _show_plan(plan, as_json=as_json)
        return
    with progress_bars() as progress:
        artifact = api.convert(
            model, target=target, output=output, verify=verify, max_kl=max_kl, min_cosine=min_cosine,  # type: ignore[arg-type]
            engine=engine, jobs=jobs, force=force, progress=progress, **choices,  # type: ignore[arg-type]
        )  # fmt: skip
    if as_json:
        print_json(artifact)
        return
    from edgellm.cli.words import artifact_lines

    for line in artifact_lines(artifact):
        show(line)


def _convert_adapter(
    model: str, output: Path | None, choices: dict[str, Any], *, jobs: int | None, force: bool, as_json: bool
) -> None:
    from edgellm import api
    from edgellm.errors import SpecError

    if choices["lora"] is None:
        raise SpecError("--lora-as adapter without an adapter", hint="add --lora DIR")
    context = click.get_current_context()
    kept = {"model", "output", "quant", "jobs", "force", "as_json", "lora", "lora_as"}
    given = (
        parameter
        for parameter in context.command.params
        if parameter.name not in kept
        and parameter.name is not None
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    )
    other = next(given, None)
    if other is not None:
        raise SpecError(
            f"{other.opts[-1]} with --lora-as adapter: the adapter alone is written, the model is not converted",
            hint=f"leave {other.opts[-1]} out",
        )
    path = api.convert_adapter(
        model, choices["lora"], output=output, type_name=choices["quant"], jobs=jobs, force=force
    )
    if as_json:
        print_json({"adapter": str(path), "n_bytes": path.stat().st_size})
    else:
        show(f"{path}: {choices['lora']} for {model}, {path.stat().st_size} bytes")


def _show_plan(plan: object, *, as_json: bool) -> None:
    from edgellm.api.planning import Plan
    from edgellm.formats.records import to_builtins
    from edgellm.units import format_bytes

    assert isinstance(plan, Plan)
    if as_json:
        print_json(
            {
                "output": str(plan.output),
                "target": plan.target.id,
                "tensor_bytes": plan.needed_bytes,
                "recipe": to_builtins(plan.recipe),
                "warnings": plan.warnings,
            }
        )
        return
    show(
        f"would write {plan.output}: {plan.recipe.quant} for {plan.target.id}, {format_bytes(plan.needed_bytes)}"
    )
    for step in plan.recipe.steps:
        show(f"  {step}")
    for reason in plan.recipe.reasons:
        show(f"  {reason.choice}: {reason.because}")
    for warning in plan.warnings:
        show(f"warning: {warning}", err=True)
