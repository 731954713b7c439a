"""What is measured on a text before converting: importance matrices."""

from __future__ import annotations

from pathlib import Path

from edgellm.api.receipts import Progress
from edgellm.api.unquantized import Unquantized
from edgellm.convert import hints, imatrix
from edgellm.convert.chunks import chunk_tokens
from edgellm.convert.imatrix import Calibration, ImportanceMatrix
from edgellm.convert.imatrix_file import read_imatrix
from edgellm.errors import MissingInputError


@hints.of(MissingInputError, "--imatrix takes auto, none, or a file of llama-imatrix or edgellm")
def read_importance(asked: str | Path) -> ImportanceMatrix | None:
    """The matrix of a file; None for `auto` and `none`.

    Raises:
        MissingInputError, BadInputError: no file, or no importance matrix.
    """
    return None if asked in ("auto", "none") else read_imatrix(Path(asked))


@hints.of(MissingInputError, "--calibration takes a text in UTF-8; left out, edgellm takes its own")
def read_text(path: str | Path | None) -> Calibration:
    """A text of the user's, or the one that edgellm ships.

    Raises:
        MissingInputError, BadInputError: no such text.
    """
    return imatrix.read_calibration(Path(path)) if path else imatrix.bundled_calibration()


def collect(
    unquantized: Unquantized, text: str | Path | None, progress: Progress | None = None
) -> ImportanceMatrix:
    """Run the unquantized model over a text, the bundled one by default, and sum what its weights see.

    Raises:
        MissingInputError, BadInputError: no such text, or too little of it.
    """
    chosen = read_text(text)
    model = unquantized.open()
    ids = model.tokenize(chosen.text, add_special=True, parse_special=False)
    is_encoder = unquantized.source.shape.is_encoder
    length = chunk_tokens(model.context_train)
    total = min(len(ids) // length, imatrix.MAX_CHUNKS) * length
    done = 0

    def run(n_tokens: int) -> None:
        nonlocal done
        done += n_tokens
        if progress:
            progress("importance", done, total)

    return imatrix.collect(
        model,
        ids,
        chosen,
        model=unquantized.source.checkpoint.name,
        model_sha256=unquantized.weights_sha256(),
        is_encoder=is_encoder,
        progress=run,
    )
