"""Loads the model in each line of standard input and uses it: `1` where it gave tokens, `0` where llama.cpp refused it."""

from __future__ import annotations

import sys
from pathlib import Path

from edgellm.errors import EdgeLLMError
from edgellm.native.llama import LlamaModel, LlamaOptions
from edgellm.protocols import Feed, SamplingParams

TEXT = "  One two\t3 4567 \u00e4\u6f22\U0001f600 it's \x00\x7f <|endoftext|></s> end\n\n"
CONTEXT = 128


def use(path: Path) -> bool:
    """Whether it loads and gives tokens."""
    try:
        model = LlamaModel(path, LlamaOptions(n_threads=1))
    except EdgeLLMError:
        return False
    try:
        ids = model.tokenize(TEXT, add_special=True, parse_special=True)
        model.tokenize(TEXT, add_special=False, parse_special=False)
        for token in range(min(model.vocab_size, 2000)):
            model.token_bytes(token)
            model.token_text(token)
            model.is_end(token)
        batcher = model.open(n_sequences=1, context=min(CONTEXT, model.context_train))
        feed = ids[: batcher.context // 2] or [0]
        for _ in range(2):
            sampled = batcher.step(
                [Feed(sequence=0, tokens=feed, sampling=SamplingParams(temperature=0.5, seed=1))]
            )
            feed = sampled[0].tokens
        batcher.close()
    except EdgeLLMError:
        return False
    finally:
        model.close()
    return True


def main() -> None:
    for line in sys.stdin.buffer:
        answer = b"1" if use(Path(line.decode().rstrip("\n"))) else b"0"
        sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
