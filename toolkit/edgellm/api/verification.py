"""Verifying: hashes and structure, and how far a model is from its reference; the receipt that says so."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from edgellm import artifact, machine
from edgellm.api import models
from edgellm.api.reference import open_transformers
from edgellm.api.unquantized import Unquantized
from edgellm.artifact import Artifact, Receipt
from edgellm.convert import pipeline, quality
from edgellm.errors import ArtifactError, BackendUnavailable, BadInputError, QualityError
from edgellm.formats.records import read_bounded
from edgellm.native.llama import LlamaOptions
from edgellm.protocols import Backend
from edgellm.runtime.tokenizer import Tokenizer
from edgellm.targets import Target

MAX_TEXT_BYTES = 64 * 1024**2
Mode = Literal["quick", "full"]
Engine = Literal["auto", "transformers", "gguf"]
Progress = Callable[[str, int, int], None]


def verify(
    path: str | Path,
    *,
    reference: str | Path | None = None,
    text: Path | None = None,
    mode: Literal["quick", "full"] = "quick",
    max_kl: float | None = None,
    engine: Engine = "auto",
    progress: Progress | None = None,
) -> Receipt | None:
    """Check an artifact's structure and hashes; with a reference, also how far it is from it.

    Raises:
        ArtifactError, BadInputError: it is not what its manifest says.  QualityError: further than allowed.
    """
    opened = models.open_artifact(path)
    done = 0
    total = sum(entry.n_bytes for entry in opened.manifest.files)

    def hashed(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress:
            progress("hash", done, total)

    artifact.verify_hashes(opened, hashed)
    _check_manifest(opened)
    if reference is None:
        return None
    check = Check(mode, max_kl, text=text, engine=engine)
    source = pipeline.read_source(models.resolve(reference, progress=progress))
    with Unquantized(source) as unquantized:
        receipt = make_receipt(opened, unquantized, check, progress=progress)
    if receipt.verdict == "fail":
        raise QualityError(
            f"{path}: {why_rejected(receipt)}",
            hint="choose a type with more bits, or allow more with --max-kl",
        )
    return receipt


def _check_manifest(opened: Artifact) -> None:
    """The manifest says of the model what the model's own header says."""
    found, said = pipeline.manifest_of_gguf(models.resolve(opened.model_path)), opened.manifest
    for name in ("architecture", "n_params", "context_train", "quant", "file_bytes"):
        if getattr(found, name) != getattr(said, name):
            raise ArtifactError(
                f"{opened.path}: the manifest says {name} is {getattr(said, name)}, model.gguf says {getattr(found, name)}",
                hint="convert the model again",
            )


@dataclasses.dataclass(frozen=True)
class Check:
    """What a comparison is asked to do.

    Attributes:
        mode: quick (1,024 tokens) or full (at most 32,768).
        max_kl, min_top1: bounds; None takes the target's or the type's.
        text: the text to compare on; None takes the bundled one.
        engine: what computes the reference; `auto` is transformers where it is installed.
        target: its bounds hold; None for none.
    """

    mode: Mode = "quick"
    max_kl: float | None = None
    min_top1: float | None = None
    text: Path | None = None
    engine: Engine = "auto"
    target: Target | None = None

    def bounds(self, quant: str) -> tuple[float, float]:
        """The largest KL divergence and the smallest top-1 agreement that pass."""
        by_type = quality.MAX_KL.get(quant, max(quality.MAX_KL.values()))
        asked = self.target.quality if self.target else None
        max_kl = min(by_type, asked.max_kl) if asked else by_type
        min_top1 = asked.min_top1_agreement if asked else 0.0
        return (
            self.max_kl if self.max_kl is not None else max_kl,
            self.min_top1 if self.min_top1 is not None else min_top1,
        )


def make_receipt(
    opened: Artifact, reference: Unquantized, check: Check, *, progress: Progress | None = None
) -> Receipt:
    """Run reference and artifact over a text and write down how far apart they are.

    The reference is computed by transformers where an environment has it and the model fits in float32, else by
    llama.cpp in its own precision.
    """
    chosen = check.text or quality.CHECK_TEXT
    data = read_bounded(chosen, MAX_TEXT_BYTES)
    try:
        words = data.decode("utf-8")
    except UnicodeDecodeError as err:
        raise BadInputError(f"{chosen}: not UTF-8 text: {err}") from err
    max_kl, min_top1 = check.bounds(opened.manifest.quant)
    with ExitStack() as stack:
        candidate = models.open_backend(
            Path(opened.model_path), LlamaOptions(n_threads=machine.default_threads())
        )
        stack.callback(candidate.close)
        first, engine, because = _open_reference(reference, candidate, check, stack)
        tokenizer = Tokenizer(candidate, Path(opened.tokenizer_path) if opened.tokenizer_path else None)
        ids = tokenizer.encode(words, add_special=False, parse_special=False)
        max_chunks = quality.QUICK_CHUNKS if check.mode == "quick" else quality.FULL_CHUNKS
        total = min(len(ids) // quality.N_CTX, max_chunks) * (quality.N_CTX - 1)
        done = 0

        def scored(n_tokens: int) -> None:
            nonlocal done
            done += n_tokens
            if progress:
                progress("verify", done, total)

        found = quality.compare(first, candidate, ids, max_chunks=max_chunks, progress=scored)
        golden = quality.golden_outputs(
            candidate, lambda prompt: tokenizer.encode(prompt, add_special=True, parse_special=False)
        )
    passed = found.kl_mean <= max_kl and found.top1_agreement >= min_top1
    return Receipt(
        schema=artifact.RECEIPT_SCHEMA,
        reference=f"{reference.source.checkpoint.name} ({reference.precision})",
        reference_engine=engine,
        reference_because=because,
        reference_sha256=reference.weights_sha256(),
        same_parents=_same_parents(opened, reference),
        text_name=chosen.name,
        text_sha256=hashlib.sha256(data).hexdigest(),
        golden=golden,
        max_kl=max_kl,
        min_top1_agreement=min_top1,
        verdict="pass" if passed else "fail",
        **found.__dict__,
    )


def why_rejected(receipt: Receipt) -> str:
    """Which bound a failing receipt breaks, in words."""
    if receipt.kl_mean > receipt.max_kl:
        return f"KL divergence from {receipt.reference} is {receipt.kl_mean:.4f} nats per token, more than {receipt.max_kl:g}"
    return (
        f"its most likely token is that of {receipt.reference} at {receipt.top1_agreement:.1%} of positions, "
        f"less than {receipt.min_top1_agreement:.1%}"
    )


def _same_parents(opened: Artifact, reference: Unquantized) -> bool | None:
    """Whether the reference is, hash by hash, what the artifact was made from; None where it does not say."""
    parents = {parent.sha256 for parent in opened.manifest.parents}
    return parents <= set(reference.hashes().values()) if parents else None


def _open_reference(
    reference: Unquantized, candidate: Backend, check: Check, stack: ExitStack
) -> tuple[quality.Reference, str, str]:
    """The reference, the engine that computes it, and why it is that one."""
    because = "asked for"
    if check.engine != "gguf":
        found, because = open_transformers(reference, add_bos=candidate.add_bos, bos_id=candidate.bos_id)
        if found:
            stack.callback(found.close)
            return found, found.engine, "installed" if check.engine == "auto" else "asked for"
        if check.engine == "transformers":
            where = reference.source.checkpoint.path
            raise BackendUnavailable(f"{where}: transformers cannot be the reference: {because}")
    model = reference.open()
    return model, f"{model.info.engine} {model.info.engine_version} on the unquantized GGUF", because
