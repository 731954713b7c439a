"""Receipts: how far an artifact is from its reference, and whether that is near enough."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edgellm import artifact
from edgellm.api import models
from edgellm.api.reference import C, TransformersEmbedder, TransformersReference, open_transformers
from edgellm.api.unquantized import Unquantized
from edgellm.artifact import Artifact, Receipt
from edgellm.checkpoint import Checkpoint
from edgellm.convert import hints, quality, quality_embeddings
from edgellm.convert.chunks import chunk_tokens
from edgellm.errors import BackendUnavailable, BadInputError, QualityError, SpecError
from edgellm.formats.gguf_model import ENCODERS
from edgellm.formats.records import read_bounded
from edgellm.native.llama import LlamaModel, LlamaOptions
from edgellm.native.llama_embeddings import POOLING_NAMES
from edgellm.protocols import Embedder, Pooling
from edgellm.runtime.tokenizer import Tokenizer
from edgellm.targets import Target

MAX_TEXT_BYTES = 64 * 1024**2
Mode = Literal["quick", "full"]
Engine = Literal["auto", "transformers", "gguf"]
Progress = Callable[[str, int, int], None]


def check_words(said: Mapping[str, object], **allowed: tuple[str, ...]) -> None:
    """Refuse a word that is none of those it may be: one that is mistyped must not count as one left out.

    Args:
        said: argument -> its value.  allowed: argument -> its words.

    Raises:
        ValueError: it names the argument and the words.
    """
    for name, words in allowed.items():
        if said[name] not in words:
            raise ValueError(f"{name} must be one of {', '.join(words)}, got {said[name]!r}")


@dataclasses.dataclass(frozen=True)
class Check:
    """What a comparison is asked to do.

    Attributes:
        mode: quick (1,024 tokens) or full (at most 32,768).
        max_kl, min_top1: bounds of a model that generates text; None takes the target's or the type's.
        min_cosine: bound of a model that gives embeddings; None takes the type's.
        text: the text to compare on; None takes the bundled one.
        engine: what computes the reference; `auto` is transformers where it is installed.
        target: its bounds hold; None for none.
    """

    mode: Mode = "quick"
    max_kl: float | None = None
    min_top1: float | None = None
    min_cosine: float | None = None
    text: Path | None = None
    engine: Engine = "auto"
    target: Target | None = None

    def bounds(self, quant: str) -> tuple[float, float]:
        """The largest KL divergence and the smallest top-1 agreement that pass."""
        by_type = quality.max_kl(quant)
        asked = self.target.quality if self.target else None
        max_kl = min(by_type, asked.max_kl) if asked else by_type
        min_top1 = asked.min_top1_agreement if asked else 0.0
        return (
            self.max_kl if self.max_kl is not None else max_kl,
            self.min_top1 if self.min_top1 is not None else min_top1,
        )

    def check_kind(self, *, is_encoder: bool) -> None:
        """Refuse a bound that says nothing of such a model.

        Raises:
            SpecError: it is that of the other kind.
        """
        if is_encoder and (self.max_kl is not None or self.min_top1 is not None):
            raise SpecError(
                "--max-kl is given, but this model gives embeddings: they are held to a cosine",
                hint="use --min-cosine",
            )
        if not is_encoder and self.min_cosine is not None:
            raise SpecError(
                "--min-cosine is given, but this model generates text: it is held to a KL divergence",
                hint="use --max-kl",
            )


class _Text(NamedTuple):
    """The text a comparison runs on."""

    name: str
    words: str
    sha256: str


class _Comparison(NamedTuple):
    """The part of a receipt that was measured, under the receipt's names; what computed the reference, and why that."""

    figures: dict[str, Any]
    engine: str
    because: str


class _Sides(NamedTuple):
    """What is compared, and how far the comparison goes."""

    candidate: LlamaModel
    tokenizer: Tokenizer
    reference: Unquantized
    quant: str
    check: Check
    progress: Progress | None
    stack: ExitStack

    def counting(self, total: int) -> Callable[[int], None]:
        """A callback that adds up tokens for the progress."""
        done = 0

        def scored(n_tokens: int) -> None:
            nonlocal done
            done += n_tokens
            if self.progress:
                self.progress("verify", done, total)

        return scored


def make_receipt(
    opened: Artifact, reference: Unquantized, check: Check, *, progress: Progress | None = None
) -> Receipt:
    """Run reference and artifact over a text and write down how far apart they are.

    The reference is computed by transformers where an environment has it and the model fits in float32, else by
    llama.cpp in its own precision.

    Raises:
        BadInputError: they are not the same model.  SpecError: a bound of another kind of model.
    """
    is_encoder = opened.manifest.architecture in ENCODERS
    if is_encoder != reference.source.shape.is_encoder:
        kinds = {True: "gives embeddings", False: "generates text"}
        raise BadInputError(
            f"{opened.path} {kinds[is_encoder]}, the reference {kinds[not is_encoder]}: not the same model",
            hint="give the model that it was converted from",
        )
    check.check_kind(is_encoder=is_encoder)
    text = _read_text(check.text or quality.CHECK_TEXT)
    with ExitStack() as stack:
        candidate = models.open_backend(Path(opened.model_path), LlamaOptions(n_threads=reference.n_threads))
        stack.callback(candidate.close)
        tokenizer = Tokenizer(candidate, Path(opened.tokenizer_path) if opened.tokenizer_path else None)
        sides = _Sides(candidate, tokenizer, reference, opened.manifest.quant, check, progress, stack)
        found = (_compare_embeddings if is_encoder else _compare_text)(sides, text.words)
    return Receipt(
        schema=artifact.RECEIPT_SCHEMA,
        reference=f"{reference.source.checkpoint.name} ({reference.precision})",
        reference_engine=found.engine,
        reference_because=found.because,
        reference_sha256=reference.weights_sha256(),
        same_parents=_same_parents(opened, reference),
        text_name=text.name,
        text_sha256=text.sha256,
        **found.figures,
    )


def why_rejected(receipt: Receipt) -> str:
    """Which bound a failing receipt breaks, in words."""
    if receipt.kind == "embedding":
        seen = f"{receipt.cosine_min:.6f}, less than {receipt.min_cosine:g}"
        return f"the cosine of an embedding with that of {receipt.reference} is {seen}"
    assert receipt.kl_mean is not None
    assert receipt.max_kl is not None
    if receipt.kl_mean > receipt.max_kl:
        return f"KL divergence from {receipt.reference} is {receipt.kl_mean:.4f} nats per token, more than {receipt.max_kl:g}"
    return (
        f"its most likely token is that of {receipt.reference} at {receipt.top1_agreement:.1%} of positions, "
        f"less than {receipt.min_top1_agreement:.1%}"
    )


def rejected(receipt: Receipt, what: str, *, kept: str = "") -> QualityError:
    """The error that a failing receipt is.

    Args:
        what: the artifact.  kept: what became of it.
    """
    option = "less with --min-cosine" if receipt.kind == "embedding" else "more with --max-kl"
    hint = f"choose a type with more bits, or allow {option}"
    if receipt.same_parents is False:
        hint = "the reference is not what it was made from (an adapter, see --lora; another revision?): compare with that"
    return QualityError(f"{what}: {why_rejected(receipt)}{kept}", hint=hint)


def _read_text(path: Path) -> _Text:
    data = read_bounded(path, MAX_TEXT_BYTES)
    try:
        return _Text(path.name, data.decode("utf-8"), hashlib.sha256(data).hexdigest())
    except UnicodeDecodeError as err:
        raise BadInputError(f"{path}: not UTF-8 text: {err}", hint=hints.SAVE_AS_UTF8) from err


def _compare_text(sides: _Sides, words: str) -> _Comparison:
    """Next-token distributions."""
    candidate, tokenizer, check = sides.candidate, sides.tokenizer, sides.check
    add_bos, bos_id = candidate.add_bos, candidate.bos_id
    found, because = _by_transformers(
        sides,
        lambda checkpoint: TransformersReference(
            checkpoint, add_bos=add_bos, bos_id=bos_id, n_threads=sides.reference.n_workers
        ),
    )
    first: quality.Reference = found or sides.reference.open()
    max_kl, min_top1 = check.bounds(sides.quant)
    ids = tokenizer.encode(words, add_special=False, parse_special=False)
    max_tokens = quality.QUICK_TOKENS if check.mode == "quick" else quality.FULL_TOKENS
    length = chunk_tokens(candidate.context_train)
    total = min(len(ids), max_tokens) // length * (length - 1)
    seen = quality.compare(first, candidate, ids, max_tokens=max_tokens, progress=sides.counting(total))
    golden = quality.golden_outputs(
        candidate, lambda prompt: tokenizer.encode(prompt, add_special=True, parse_special=False)
    )
    figures = {
        **dataclasses.asdict(seen), "max_kl": max_kl, "min_top1_agreement": min_top1, "golden": golden,
        "verdict": _verdict(seen.kl_mean <= max_kl and seen.top1_agreement >= min_top1),
    }  # fmt: skip
    return _Comparison(figures, _engine(found, candidate), because)


def _compare_embeddings(sides: _Sides, words: str) -> _Comparison:
    """Embeddings, pooled as each side's own file says; where it says nothing, their mean."""
    candidate, tokenizer, check, stack = sides.candidate, sides.tokenizer, sides.check, sides.stack
    context = quality_embeddings.longest_piece(candidate.context_train)
    embedder = quality_embeddings.open_pooled(candidate, context)
    stack.callback(embedder.close)
    pooling = _pooling(sides.reference)
    found, because = _by_transformers(
        sides,
        lambda checkpoint: TransformersEmbedder(
            checkpoint, context=context, pooling=pooling, n_threads=sides.reference.n_workers
        ),
    )
    first: Embedder = found or quality_embeddings.open_pooled(sides.reference.open(), context)
    stack.callback(first.close)
    plain, whole = (
        tokenizer.encode(words, add_special=special, parse_special=False) for special in (False, True)
    )
    pieces = quality_embeddings.cut(
        plain,
        quality_embeddings.special_ends(plain, whole),
        limit=context,
        max_tokens=quality_embeddings.QUICK_TOKENS
        if check.mode == "quick"
        else quality_embeddings.FULL_TOKENS,
    )
    progress = sides.counting(sum(map(len, pieces)))
    seen = quality_embeddings.compare_embeddings(first, embedder, pieces, progress=progress)
    golden = quality_embeddings.golden_embeddings(
        embedder, lambda text: tokenizer.encode(text, add_special=True, parse_special=False)
    )
    bound = check.min_cosine if check.min_cosine is not None else quality_embeddings.min_cosine(sides.quant)
    figures = {
        "kind": "embedding", **dataclasses.asdict(seen), "min_cosine": bound, "golden_embeddings": golden,
        "verdict": _verdict(seen.cosine_min >= bound),
    }  # fmt: skip
    return _Comparison(figures, _engine(found, candidate), because)


def _pooling(reference: Unquantized) -> Pooling:
    """What the reference's header says; the mean where it says nothing."""
    header = reference.source.header
    entry = header.get(f"{reference.source.shape.architecture}.pooling_type")
    found = POOLING_NAMES.get(entry.value, "none") if entry else "none"
    return "mean" if found == "none" else found


def _by_transformers(sides: _Sides, make: Callable[[Checkpoint], C]) -> tuple[C | None, str]:
    """The reference by transformers where that is asked for and possible, and why it is that or not."""
    check = sides.check
    if check.engine == "gguf":
        return None, "asked for"
    found, because = open_transformers(sides.reference, make)
    if found:
        sides.stack.callback(found.close)
        return found, "installed" if check.engine == "auto" else "asked for"
    if check.engine == "transformers":
        where = sides.reference.source.checkpoint.path
        raise BackendUnavailable(
            f"{where}: transformers cannot be the reference: {because}",
            hint="leave --reference-engine out, or use gguf",
        )
    return None, because


def _engine(found: TransformersReference | TransformersEmbedder | None, candidate: LlamaModel) -> str:
    """What computed the reference, in words; llama.cpp is the one that runs the candidate too."""
    if found:
        return found.engine
    return f"{candidate.info.engine} {candidate.info.engine_version} on the unquantized GGUF"


def _verdict(passed: bool) -> str:
    return "pass" if passed else "fail"


def _same_parents(opened: Artifact, reference: Unquantized) -> bool | None:
    """Whether the reference is, hash by hash, what the artifact was made from; None where it does not say."""
    parents = {parent.sha256 for parent in opened.manifest.parents}
    return parents <= set(reference.hashes().values()) if parents else None
