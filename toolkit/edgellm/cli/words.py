"""Artifacts and receipts as lines for a terminal."""

from __future__ import annotations

from edgellm.artifact import Artifact, Receipt
from edgellm.units import format_bytes, format_count


def artifact_lines(artifact: Artifact) -> list[str]:
    """What was made, why, and how good it is."""
    manifest = artifact.manifest
    size, weights = format_bytes(manifest.file_bytes), format_count(manifest.n_params)
    made = f"{manifest.model} {manifest.quant} for {manifest.target}"
    lines = [f"{artifact.path}: {made}, {size}, {weights} weights at {manifest.bpw:.2f} bits"]
    if manifest.recipe:
        lines += [f"  {reason.choice}: {reason.because}" for reason in manifest.recipe.reasons]
    lines += [f"  warning: {warning}" for warning in manifest.warnings]
    if artifact.receipt:
        lines.append(f"  {receipt_line(artifact.receipt)}")
    return lines


def receipt_line(receipt: Receipt) -> str:
    """The figures of a receipt in one line."""
    if receipt.kind == "embedding":
        return (
            f"{receipt.verdict}: cosine with the embeddings of {receipt.reference} {receipt.cosine_min:.6f} or more, "
            f"{receipt.cosine_mean:.6f} on average (over {receipt.n_texts} texts of {receipt.n_tokens} tokens together; "
            f"at least {receipt.min_cosine:g} is asked for; reference by {receipt.reference_engine}{_origin(receipt)})"
        )
    return (
        f"{receipt.verdict}: KL {receipt.kl_mean:.4f} +- {receipt.kl_mean_error:.4f} nats/token from {receipt.reference}, "
        f"same top token {receipt.top1_agreement:.1%} +- {receipt.top1_agreement_error:.1%}, "
        f"perplexity x {receipt.perplexity_ratio:.4f} (over {receipt.n_tokens} tokens; allowed KL {receipt.max_kl:g}; "
        f"reference by {receipt.reference_engine}{_origin(receipt)})"
    )


def _origin(receipt: Receipt) -> str:
    """Whether the reference is what the artifact was made from, where that is known."""
    said = {True: ", hash by hash what it was made from", False: ", not what it was made from"}
    return said.get(receipt.same_parents, "") if receipt.same_parents is not None else ""
