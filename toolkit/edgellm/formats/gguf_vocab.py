"""The vocabulary in a GGUF file, checked for everything that llama.cpp does not survive.

llama.cpp reports most mistakes when a model is loaded, but some end the whole process: by an assertion, an
exception thrown through C, an endless loop or a stack overflow. These are refused here, each with its reason.
Source: src/llama-vocab.cpp of llama.cpp as in llama-cpp-python 0.3.36; functions named here are in that file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgellm.errors import BadInputError
from edgellm.formats.gguf import GGUFFile
from edgellm.units import KIB, MIB

MAX_TOKENS = 1 << 21
MAX_TOKEN_BYTES = 64 * KIB
MAX_TREE_TOKEN_BYTES = KIB
MAX_VOCAB_BYTES = 64 * MIB
MAX_SQUARED_BYTES = 1 << 30
MAX_CHARSMAP_BYTES = 2 * MIB  # XLM-RoBERTa's has 0.3
NO_ID = 0xFFFFFFFF  # converters write -1 for "no such token"; llama.cpp ignores it

_PREFIX = "tokenizer.ggml."
_NO_VOCAB = ("none", "no_vocab")
_BPE = ("gpt2", "gemma4", "hybriddna", "whitespace")
_TREES = ("t5", "rwkv", "plamo2")  # token text becomes nested nodes or all of its suffixes
_BYTE_TYPE = 6
_BYTE_TEXT = re.compile(rb"<0x[0-9A-F]{2}>")
_MERGES = re.compile(r"[^ \n]++ [^ \n]++(?:\n[^ \n]++ [^ \n]++)*+")  # one a line
_ID_NAMES = (
    "bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "cls", "mask",
    "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle",
)  # fmt: skip
_DEFAULT_IDS = {
    "llama": {"bos": 1, "eos": 2}, "bert": {"bos": 101, "seperator": 102}, "t5": {"eos": 1},
    "gpt2": {"bos": 11, "eos": 11}, "hybriddna": {"bos": 11, "eos": 11}, "whitespace": {"bos": 11, "eos": 11},
}  # fmt: skip
_PRE_WITHOUT_BOS = ("chatglm-bpe", "glm4", "glm5")


def has_vocab(file: GGUFFile) -> bool:
    """Whether llama.cpp can tokenize with this file; where not, `llama_tokenize` aborts: do not call it."""
    return file.get(_PREFIX + "model", str, "none") not in _NO_VOCAB


def token_bytes(file: GGUFFile) -> list[bytes]:
    """The text of every token as bytes, as written in the file; empty where there is no vocabulary."""
    tokens: list[str] = file.get(_PREFIX + "tokens", list, [])
    return [token.encode("utf-8", "surrogateescape") for token in tokens]


def validate_vocab(file: GGUFFile) -> None:
    """Refuse a vocabulary that would crash or hang llama.cpp, or that contradicts itself or the embedding.

    A file without `tokenizer.ggml.model`, or with the model `none`, has no vocabulary and passes.

    Raises:
        BadInputError: what is wrong, with the key, the token and the value seen.
    """
    check = _Check(file)
    if not has_vocab(file):
        check.counts(None)
        return
    tokens = check.tokens()
    check.counts(len(tokens))
    check.sizes(tokens)
    check.types(tokens)
    check.scores(len(tokens))
    texts = _as_native(tokens)
    check.unique(texts)
    check.ids(len(tokens))
    if check.model in _BPE:
        check.merges()
    elif check.model == "llama":
        check.byte_fallback(texts)
    elif check.model == "rwkv":
        check.rwkv(texts)
    elif check.model == "t5":
        _check_charsmap(file)


class _Check:
    """One file's checks; each raises BadInputError."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.model = file.get(_PREFIX + "model", str, "none")

    def error(self, message: str) -> BadInputError:
        return BadInputError(f"{self.file.path.name}: {message}")

    def array(self, name: str, element_types: Sequence[str]) -> Any:
        """An array of one of these element types; None where the key is absent."""
        entry = self.file.metadata.get(_PREFIX + name)
        if entry is None:
            return None
        if entry.element_type not in element_types:
            found = f"an array of {entry.element_type}" if entry.element_type else entry.type
            raise self.error(f"{_PREFIX}{name} is {found}, expected an array of {' or '.join(element_types)}")
        return entry.value

    def tokens(self) -> list[bytes]:
        if not self.array("tokens", ["STRING"]):
            raise self.error(
                f"{_PREFIX}tokens is missing or empty, but tokenizer.ggml.model is {self.model!r}"
            )
        return token_bytes(self.file)

    def counts(self, n_tokens: int | None) -> None:
        """The number of tokens against its bound, the model's own count and the embedding."""
        if n_tokens is not None and n_tokens > MAX_TOKENS:
            raise self.error(f"{_PREFIX}tokens has {n_tokens} tokens, more than {MAX_TOKENS}")
        key = f"{self.file.get('general.architecture', str, '')}.vocab_size"
        # Without tokens, load() allocates as many dummy tokens as this key says.
        declared = self.file.fields.integer(key, 1, MAX_TOKENS, default=n_tokens)
        if n_tokens is not None and declared != n_tokens:
            raise self.error(f"{key} is {declared}, but there are {n_tokens} tokens")
        embedding = self.file.tensors.get("token_embd.weight")
        if embedding is not None and declared is not None and embedding.shape[0] != declared:
            raise self.error(f"token_embd.weight has {embedding.shape[0]} rows for {declared} tokens")

    def sizes(self, tokens: list[bytes]) -> None:
        """Lengths of tokens, alone and together."""
        lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
        # naive_trie nests one node per byte and is freed by recursion, which overflows the stack.
        limit = MAX_TREE_TOKEN_BYTES if self.model in _TREES else MAX_TOKEN_BYTES
        longest = int(lengths.argmax())
        if lengths[longest] > limit:
            raise self.error(f"token {longest} has {lengths[longest]} bytes, more than {limit}")
        if lengths.sum() > MAX_VOCAB_BYTES:
            raise self.error(f"all tokens have {lengths.sum()} bytes, more than {MAX_VOCAB_BYTES}")
        # llama_decode_text appends the whole token once for every character that is not in the byte alphabet.
        if (lengths * lengths).sum() > MAX_SQUARED_BYTES:
            raise self.error(f"tokens are too long: token {longest} has {lengths[longest]} bytes")

    def types(self, tokens: list[bytes]) -> None:
        """Token types, and the text of byte tokens."""
        types = self.array("token_type", ["INT32"])
        if types is None:
            return
        if len(types) != len(tokens):
            raise self.error(f"{_PREFIX}token_type has {len(types)} entries for {len(tokens)} tokens")
        for index in np.flatnonzero(types == _BYTE_TYPE):
            # token_to_byte aborts for BERT, and elsewhere reads two hexadecimal digits without looking.
            if self.model == "bert":
                raise self.error(f"token {index} is a byte token, which a BERT vocabulary cannot have")
            if not _BYTE_TEXT.fullmatch(tokens[index]):
                raise self.error(
                    f"byte token {index} has text {tokens[index][:40]!r}, expected <0x00> to <0xFF>"
                )

    def scores(self, n_tokens: int) -> None:
        scores = self.array("scores", ["FLOAT32", "INT32"])
        if scores is None:
            return
        if len(scores) != n_tokens:
            raise self.error(f"{_PREFIX}scores has {len(scores)} entries for {n_tokens} tokens")
        if np.isnan(scores).any():
            raise self.error(f"{_PREFIX}scores: the score of token {int(np.isnan(scores).argmax())} is NaN")

    def unique(self, texts: list[bytes]) -> None:
        """load() asserts that no two tokens have the same text."""
        if len(set(texts)) == len(texts):
            return
        first: dict[bytes, int] = {}
        for index, text in enumerate(texts):
            if first.setdefault(text, index) != index:
                raise self.error(f"tokens {first[text]} and {index} have the same text {text[:40]!r}")

    def ids(self, n_tokens: int) -> None:
        """Special token ids; llama_tokenize asserts that those it adds exist."""
        defaults = _DEFAULT_IDS.get(self.model, {})
        ids = {name: default for name, default in defaults.items() if default < n_tokens}
        pre = self.file.get(_PREFIX + "pre", str, "")
        if pre in _PRE_WITHOUT_BOS:
            ids.pop("bos", None)
        for name in _ID_NAMES:
            key = f"{_PREFIX}{name}_token_id"
            value = self.file.get(key, int, NO_ID)
            if value in (NO_ID, -1):
                continue
            if not 0 <= value < n_tokens:
                raise self.error(f"{key} is {value}, outside the vocabulary of {n_tokens} tokens")
            ids[name] = value
        added = dict.fromkeys(("bos", "eos", "seperator"), False)
        if self.model == "bert":
            added.update(bos=True, seperator=True)
        elif self.model in (*_BPE, "llama", "t5"):
            # Some pre-tokenizers switch BOS on by themselves; with 12 tokens or more they have a default id.
            bos = self.model == "llama" or (self.model != "t5" and n_tokens <= 11)
            added["bos"] = self.file.get(_PREFIX + "add_bos_token", bool, bos)
            added["bos"] |= "gemma4" in (self.model, pre)
            added["eos"] = self.file.get(_PREFIX + "add_eos_token", bool, self.model == "t5")
        for name, is_added in added.items():
            if is_added and name not in ids:
                raise self.error(
                    f"the tokenizer adds a {name} token, but {_PREFIX}{name}_token_id is missing"
                )

    def merges(self) -> None:
        merges = self.array("merges", ["STRING"])
        if merges is None:
            if self.file.get(_PREFIX + "pre", str, "") != "kimi-k2":
                raise self.error(f"{_PREFIX}merges is missing, which a {self.model} vocabulary needs")
            return
        if len(merges) > 4 * MAX_TOKENS:
            raise self.error(f"{_PREFIX}merges has {len(merges)} entries, more than {4 * MAX_TOKENS}")
        joined = "\n".join(merges)
        if joined.count("\n") == len(merges) - 1 and _MERGES.fullmatch(joined):
            return  # nearly always, and several times faster than one by one
        for index, merge in enumerate(merges):
            left, _, right = merge.partition(" ")
            if not left or not right or " " in right:
                raise self.error(f"merge {index} is {merge[:80]!r}, expected two tokens and one space")

    def byte_fallback(self, texts: list[bytes]) -> None:
        """byte_to_token throws out_of_range through C when neither <0xXX> nor the byte itself is a token."""
        known = set(texts)
        for byte in range(256):
            if b"<0x%02X>" % byte not in known and (byte == 0 or bytes([byte]) not in known):
                raise self.error(
                    f"byte token <0x{byte:02X}> is missing: unknown characters could not be tokenized"
                )

    def rwkv(self, texts: list[bytes]) -> None:
        """The RWKV tokenizer loops for ever once it enters its tree and meets no token on the way."""
        plain = [_unescape_rwkv(text) for text in texts]
        single = {text for text in plain if len(text) == 1}
        for index, text in enumerate(plain):
            if text and text[:1] not in single:
                raise self.error(
                    f"token {index} begins with byte 0x{text[0]:02X}, which is not a token itself"
                )


def _as_native(tokens: list[bytes]) -> list[bytes]:
    """Token texts as load() sees them: cut at a NUL, and renamed where nothing is left."""
    texts = tokens
    if b"\0" in b"".join(tokens):
        texts = [token.partition(b"\0")[0] for token in tokens]
    if all(texts):
        return texts
    return [text or b"[EMPTY_%d]" % index for index, text in enumerate(texts)]


def _unescape_rwkv(text: bytes) -> bytes:
    if b"\\" not in text:
        return text
    plain = bytearray()
    at = 0
    while at < len(text):
        if text[at] != ord("\\"):
            plain.append(text[at])
            at += 1
            continue
        escape = text[at + 1 : at + 2]
        if escape == b"x":
            digits = text[at + 2 : at + 4]
            if len(digits) == 2:
                high, low = (digit - (87 if digit >= 97 else 48) & 255 for digit in digits)
                plain.append((high << 4) + low & 255)
            at += 4
        else:
            plain += {b"t": b"\t", b"n": b"\n", b"r": b"\r"}.get(escape, escape)
            at += 2
    return bytes(plain)


def _check_charsmap(file: GGUFFile) -> None:
    """The normalizer's table, walked along every possible input; llama.cpp throws where one leaves it.

    Layout: size of the array in bytes as uint32, the array (an XOR-compressed double array), replacements.
    """
    where = f"{file.path.name}: {_PREFIX}precompiled_charsmap"
    entry = file.metadata.get(_PREFIX + "precompiled_charsmap")
    if entry is None:
        return
    if entry.element_type not in ("INT8", "UINT8"):
        raise BadInputError(f"{where} is {entry.element_type or entry.type}, expected an array of UINT8")
    content = entry.value.tobytes()
    if len(content) > MAX_CHARSMAP_BYTES:
        raise BadInputError(f"{where} has {len(content)} bytes, more than {MAX_CHARSMAP_BYTES}")
    n_array = int.from_bytes(content[:4], "little")
    if len(content) < 4 or n_array + 4 >= len(content):
        raise BadInputError(f"{where} has {len(content)} bytes for a table of {n_array} bytes")
    if n_array < 4:  # an empty table is not used
        return
    units = np.frombuffer(content, "<u4", n_array // 4, 4).astype(np.int64)
    last_end = content[4 + n_array :].rfind(b"\0")  # replacements that begin after it have no end
    bases = ((units >> 10) << ((units & 512) >> 6)) & 0xFFFFFFFF
    seen = np.zeros(len(units), bool)
    labels = np.arange(1, 256)
    pending = [bases[:1]]
    while pending:
        states = pending.pop()
        children = states[:, None] ^ labels
        if children.max() >= len(units):
            raise BadInputError(f"{where} leads outside its table of {len(units)} entries")
        child = children[(units[children] & 0x800000FF) == labels]
        target = child ^ bases[child]
        leaves = target[(units[child] >> 8) & 1 == 1]
        if len(leaves) and (leaves.max() >= len(units) or (units[leaves] & 0x7FFFFFFF).max() > last_end):
            raise BadInputError(f"{where} leads outside its replacement strings")
        if len(target) and target.max() >= len(units):
            raise BadInputError(f"{where} leads outside its table of {len(units)} entries")
        fresh = np.unique(target[~seen[target]])
        seen[fresh] = True
        pending += [fresh[at : at + 1024] for at in range(0, len(fresh), 1024)]
