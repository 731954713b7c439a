"""A model in 150 lines of Python that keeps the Backend contract: its tokens are bytes, its logits follow from the text.

The most likely next token depends on all tokens before it, so a cache that holds the wrong tokens shows. `script`
makes it say something known: each generation then draws these tokens one by one, and the end token after them.
`sharpness` multiplies the logits: the best token stays, and becomes more probable.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgellm.errors import BackendError, ContextOverflowError, SpecError, UnsupportedError
from edgellm.protocols import (
    Adapters,
    AskedPooling,
    Capabilities,
    Embedder,
    Feed,
    FloatArray,
    Observation,
    Observer,
    Pooling,
    Sampled,
    SamplingParams,
)
from edgellm.report import RuntimeInfo
from tests.samples import make_runtime

BOS, END, TURN = 256, 257, 258
VOCAB_SIZE = 259
SPECIAL = {"<s>": BOS, "</s>": END, "<turn>": TURN}
TEMPLATE = "{% for m in messages %}<turn>{{ m.role }}:{{ m.content }}{% endfor %}<turn>assistant:"


OBSERVED = ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.ffn_up_exps.weight")


def input_rows(tokens: Sequence[int]) -> FloatArray:
    """(n_tokens, 32) what the fake's weights are multiplied with."""
    return np.stack([np.random.default_rng(token).standard_normal(32, dtype=np.float32) for token in tokens])


class FakeBackend:
    """Bytes as tokens, and three control tokens: <s>, </s>, <turn>."""

    def __init__(
        self,
        script: Sequence[int] | None = None,
        *,
        chat_template: str | None = TEMPLATE,
        add_bos: bool = True,
        bos_id: int | None = BOS,
        can_truncate: bool = True,
        sharpness: float = 1.0,
        pooling: Pooling | None = None,
    ) -> None:
        self.pooling = pooling
        self.script = script
        self.sharpness = sharpness
        self.vocab_size = VOCAB_SIZE
        self.context_train = 4096
        self.bos_id = bos_id
        self.eos_id: int | None = END
        self.add_bos = add_bos
        self.chat_template = chat_template
        self.capabilities = Capabilities(
            can_truncate=can_truncate, can_copy=can_truncate, can_shift=can_truncate, lora=True, observer=True
        )
        self.batchers: list[FakeBatcher] = []
        self.adapters: dict[str, Path] = {}
        self.closed = False

    @property
    def info(self) -> RuntimeInfo:
        return make_runtime()

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        ids = [BOS] if add_special and self.add_bos else []
        while text:
            name = next((name for name in SPECIAL if parse_special and text.startswith(name)), None)
            ids += [SPECIAL[name]] if name else list(text[0].encode())
            text = text[len(name) :] if name else text[1:]
        return ids

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def token_text(self, token: int) -> str:
        return next((name for name, number in SPECIAL.items() if number == token), chr(token))

    def is_end(self, token: int) -> bool:
        return token == END

    def load_adapter(self, name: str, path: Path) -> None:
        if name in self.adapters:
            raise SpecError(f"an adapter named {name!r} is loaded already")
        self.adapters[name] = path

    def check_adapters(self, adapters: Adapters) -> None:
        for name, _ in adapters:
            if name not in self.adapters:
                raise ValueError(f"unknown adapter {name!r}")

    def open(self, *, n_sequences: int, context: int, observer: Observer | None = None) -> FakeBatcher:
        self.batchers.append(FakeBatcher(self, n_sequences, context, observer))
        return self.batchers[-1]

    def open_embedder(
        self, *, context: int, pooling: AskedPooling = "model", observer: Observer | None = None
    ) -> Embedder:
        if self.pooling is None:
            raise UnsupportedError("this model generates text")
        return FakeEmbedder(context, self.pooling if pooling == "model" else pooling)

    def close(self) -> None:
        self.closed = True


class FakeEmbedder:
    """Rows that follow from the tokens. `before_text` may raise or wait, as native code may."""

    before_text: Callable[[Sequence[int]], None] = staticmethod(lambda _: None)

    def __init__(self, context: int, pooling: Pooling) -> None:
        self.context, self.pooling = context, pooling
        self.embedding_size, self.vocab_size = 32, VOCAB_SIZE
        self.closed = False

    def embed(self, tokens: Sequence[int], *, normalize: bool = False) -> FloatArray:
        if self.closed:
            raise RuntimeError("this embedder is closed")
        if not tokens or not all(0 <= token < VOCAB_SIZE for token in tokens):
            raise ValueError("no tokens, or one outside the vocabulary")
        if len(tokens) > self.context:
            raise ContextOverflowError(f"{len(tokens)} tokens do not fit the context of {self.context}")
        self.before_text(tokens)
        row: FloatArray = input_rows(tokens).mean(axis=0, keepdims=True)
        return row / np.float32(np.linalg.norm(row)) if normalize else row

    def close(self) -> None:
        self.closed = True


class FakeBatcher:
    """Caches as lists of ids. `feeds` keeps what was fed, `n_saves` counts copies.

    `before_step` may raise, as native code may fail.
    """

    def __init__(
        self, model: FakeBackend, n_sequences: int, context: int, observer: Observer | None = None
    ) -> None:
        self.n_sequences, self.context = n_sequences, context
        self.feeds: list[Feed] = []
        self.before_step: Callable[[], None] = lambda: None
        self.closed = False
        self.n_saves = 0
        self._model = model
        self._observer = observer
        self._n_observed = 0
        self._cache: list[list[int]] = [[] for _ in range(n_sequences)]
        self._samplers: dict[int, _Sampler] = {}

    def step(self, feeds: Sequence[Feed]) -> list[Sampled]:
        if self.closed:
            raise RuntimeError("this batcher is closed")
        if len({feed.sequence for feed in feeds}) < len(feeds):
            raise ValueError("two feeds for one sequence")
        for feed in feeds:
            length = self.length(feed.sequence) + len(feed.tokens) + len(feed.draft)
            if not feed.tokens or not all(0 <= t < VOCAB_SIZE for t in (*feed.tokens, *feed.draft)):
                raise ValueError("no tokens, or one outside the vocabulary")
            if feed.draft and (feed.sampling is None or feed.want == "all"):
                raise ValueError("a draft is checked by drawing")
            self._model.check_adapters(feed.adapters)
            if length > self.context:
                raise ContextOverflowError(f"{length} tokens do not fit the context of {self.context}")
        self.before_step()
        return [self._feed(feed) for feed in feeds]

    def _feed(self, feed: Feed) -> Sampled:
        self.feeds.append(feed)
        if self._observer:
            self._show(self._observer, feed.tokens)
        cache = self._cache[feed.sequence]
        rows = []
        for token in feed.tokens:
            cache.append(token)
            if feed.want == "all":
                rows.append(self._logits(cache, feed.adapters))
        if feed.sampling is None:
            if feed.want == "last":
                rows = [self._logits(cache, feed.adapters)]
            return Sampled(tokens=[], logits=np.stack(rows) if rows else None)
        sampler = self._samplers.setdefault(feed.sequence, _Sampler(feed.sampling))
        drawn: list[int] = []
        for guess in (*feed.draft, None):
            row = self._logits(cache, feed.adapters)
            if feed.want == "last":
                rows.append(row.copy())
            if feed.constraint:
                feed.constraint.mask(row)
            drawn.append(sampler.draw(row, self._model.script))
            if feed.constraint:
                feed.constraint.accept(drawn[-1])
            if guess is None or drawn[-1] != guess or self._model.is_end(guess):
                break
            cache.append(guess)
        return Sampled(tokens=drawn, logits=np.stack(rows) if rows else None)

    def _logits(self, tokens: Sequence[int], adapters: Adapters) -> FloatArray:
        return _logits(tokens, adapters) * np.float32(self._model.sharpness)

    def _show(self, observer: Observer, tokens: Sequence[int]) -> None:
        """Two weights that share their input, and one of four experts of which each token meets two."""
        self._n_observed += 1
        rows = input_rows(tokens)
        experts = np.asarray([(token % 4, (token + 1) % 4) for token in tokens], dtype=np.int32)
        for weight in OBSERVED:
            if observer.wants(weight):
                routed = "_exps" in weight
                observer.observe(
                    Observation(
                        weight=weight,
                        rows=rows,
                        experts=experts if routed else None,
                        n_experts=4 if routed else 1,
                        source=self._n_observed,
                    )
                )

    def length(self, sequence: int) -> int:
        self._check(sequence)
        return len(self._cache[sequence])

    def tokens(self, sequence: int) -> Sequence[int]:
        self._check(sequence)
        return self._cache[sequence]

    def truncate(self, sequence: int, n_tokens: int) -> None:
        self._check(sequence)
        if n_tokens < 0:
            raise ValueError(f"n_tokens is {n_tokens}")
        del self._cache[sequence][n_tokens:]

    def copy_prefix(self, source: int, destination: int, n_tokens: int) -> None:
        self._check(source)
        self._check(destination)
        self._cache[destination] = self._cache[source][:n_tokens]

    def shift(self, sequence: int, n_keep: int, n_drop: int) -> None:
        if n_keep < 0 or n_drop < 1 or n_keep + n_drop > self.length(sequence):
            raise ValueError(f"cannot drop {n_drop} tokens after {n_keep}")
        del self._cache[sequence][n_keep : n_keep + n_drop]

    def state_bytes(self, sequence: int) -> int:
        return 4 * self.length(sequence)

    def save(self, sequence: int) -> bytes:
        self._check(sequence)
        self.n_saves += 1
        return np.asarray(self._cache[sequence], dtype=np.int32).tobytes()

    def load(self, sequence: int, state: bytes | bytearray, tokens: Sequence[int]) -> None:
        self.free(sequence)
        if state != np.asarray(tokens, dtype=np.int32).tobytes():
            raise BackendError("not a state of these tokens")
        self._cache[sequence] = list(tokens)

    def reset_sampler(self, sequence: int) -> None:
        self._samplers.pop(sequence, None)

    def free(self, sequence: int) -> None:
        self._check(sequence)
        self._cache[sequence] = []
        self._samplers.pop(sequence, None)

    def close(self) -> None:
        self.closed = True

    def _check(self, sequence: int) -> None:
        if not 0 <= sequence < self.n_sequences:
            raise ValueError(f"sequence {sequence} is outside 0 to {self.n_sequences - 1}")


class _Sampler:
    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._rng = np.random.default_rng(params.seed)
        self._n_drawn = 0

    def draw(self, logits: FloatArray, script: Sequence[int] | None) -> int:
        self._n_drawn += 1
        if script is not None:
            return script[self._n_drawn - 1] if self._n_drawn <= len(script) else END
        if self._params.temperature == 0 or self._params.top_k == 1:
            return int(logits.argmax())
        weights = np.exp((logits - logits.max()) / self._params.temperature)
        return int(self._rng.choice(len(logits), p=weights / weights.sum()))


def _logits(tokens: Sequence[int], adapters: Adapters = ()) -> FloatArray:
    """A row that depends on every token before; the end is unlikely, text is ASCII letters mostly."""
    seen = np.asarray(tokens, dtype=np.int32).tobytes() + (repr(adapters).encode() if adapters else b"")
    rng = np.random.default_rng(zlib.crc32(seen))
    row = rng.standard_normal(VOCAB_SIZE, dtype=np.float32)
    row[97:123] += 3
    row[256:] -= 10
    return row
