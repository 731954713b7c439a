"""The name in the file, from which llama.cpp takes how Phi 3's special tokens strip the space after them.

Where `general.name` holds phi-3 or phi3, llama.cpp lets every special token strip, and looks up four tokens without
asking whether they are there. So a model that is like that has to be called so, and no other may be.

Source: the end of llama_vocab::impl::load in src/llama-vocab.cpp, as in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import re

from edgellm.convert.vocabulary.tokens import Vocabulary

_LOOKED_UP = frozenset(["</s>", "<unk>", "<s>", "<|endoftext|>"])
_SAYS_SO = re.compile(r"(phi)-?(?=3)", re.IGNORECASE)


def model_name(name: str, vocabulary: Vocabulary) -> str:
    """The name, changed as little as makes llama.cpp read this vocabulary rightly."""
    strips = any(token.special and token.strips_right for token in vocabulary.added)
    if strips and _LOOKED_UP.issubset(vocabulary.tokens):
        return name if _SAYS_SO.search(name) else f"{name} (Phi-3)"
    return _SAYS_SO.sub(r"\1 ", name)
