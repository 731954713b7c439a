"""Hyper-parameters: read from config.json under the names each family uses, bounded and consistent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from edgellm.errors import BadInputError, UnsupportedError
from edgellm.formats.plain_json import Fields

MAX_LAYERS = 512  # as llama.cpp, which aborts above it; so with the experts
MAX_WIDTH = 1 << 20
MAX_VOCAB = 1 << 21
MAX_EXPERTS = 1024
MAX_EXPERTS_IN_ALL = 1 << 17


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Hyper-parameters in llama.cpp's terms.

    Attributes:
        head_size: width of one head.  rotary_size: how much of it rotates.
        rope_base: theta.  norm_epsilon: of the layer norms.
        tied: the output head is the input embedding.
        window: tokens a sliding layer sees; None where nothing slides.
        n_experts, n_experts_used, expert_feed_forward_size: 0 for a dense model.
        shared_feed_forward_size: width of the expert that sees every token; 0 where there is none.
        n_token_types: rows of an encoder's table of token types; 0 where there is none.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    embedding_size: int
    feed_forward_size: int
    vocab_size: int
    context_train: int
    rope_base: float
    rotary_size: int
    norm_epsilon: float
    tied: bool
    window: int | None = None
    n_window_layers: int = 0
    n_experts: int = 0
    n_experts_used: int = 0
    expert_feed_forward_size: int = 0
    shared_feed_forward_size: int = 0
    n_token_types: int = 0

    @property
    def q_size(self) -> int:
        """Rows of the query projection."""
        return self.n_heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Rows of the key, and of the value, projection."""
        return self.n_kv_heads * self.head_size

    @property
    def qkv_size(self) -> int:
        """Rows of the fused projection."""
        return self.q_size + 2 * self.kv_size

    @property
    def gate_up_size(self) -> int:
        """Rows of a fused gate and up projection."""
        return 2 * self.feed_forward_size


def read_hyper(
    fields: Fields,
    *,
    names: Mapping[str, str | tuple[str, ...]] | None = None,
    tied: bool = False,
    multi_query: bool = False,
    default_context: int | None = 2048,
    default_rope_base: float = 10000.0,
    default_epsilon: float = 1e-6,
    default_rotary_share: float = 1.0,
    default_head_size: int | None = None,
    four_times: bool = False,
) -> Hyper:
    """The hyper-parameters of a config.json.

    Args:
        names: Llama's key -> this family's key, or several of which the first that is there counts.
        tied: what an absent `tie_word_embeddings` means.
        multi_query: where the number of key/value heads is absent it is 1, not that of the query heads.
        four_times: an absent feed-forward width is four times the embedding's.

    Raises:
        BadInputError: a number is missing, out of bounds, or contradicts another.
    """

    def key(name: str) -> str:
        own = (names or {}).get(name, name)
        options = (own,) if isinstance(own, str) else own
        return next((option for option in options if option in fields), options[0])

    def integer(name: str, high: int, default: int | None = None) -> int:
        if default is None:
            return fields.integer(key(name), 1, high)
        return fields.integer(key(name), 1, high, default=default)

    n_heads = integer("num_attention_heads", MAX_WIDTH)
    embedding_size = integer("hidden_size", MAX_WIDTH)
    n_kv_heads = integer("num_key_value_heads", n_heads, default=1 if multi_query else n_heads)
    head_size = integer("head_dim", 1 << 16, default=default_head_size or embedding_size // n_heads)
    if n_heads % n_kv_heads or head_size % 2:
        raise BadInputError(
            f"{fields.where}: {n_heads} heads, {n_kv_heads} key/value heads and a head size of {head_size} do not fit together"
        )
    usual_width = 4 * embedding_size if four_times else None
    return Hyper(
        n_layers=integer("num_hidden_layers", MAX_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_size=head_size,
        embedding_size=embedding_size,
        feed_forward_size=integer("intermediate_size", MAX_WIDTH, default=usual_width),
        vocab_size=integer("vocab_size", MAX_VOCAB),
        context_train=integer("max_position_embeddings", 1 << 30, default=default_context),
        rope_base=fields.number(key("rope_theta"), 1e-3, 1e12, default=default_rope_base),
        rotary_size=_rotary_size(fields, key("partial_rotary_factor"), head_size, default_rotary_share),
        norm_epsilon=fields.number(key("rms_norm_eps"), 0.0, 1.0, default=default_epsilon),
        tied=fields.flag("tie_word_embeddings", default=tied),
        window=fields.integer(key("sliding_window"), 1, 1 << 30, default=None),
    )


def _rotary_size(fields: Fields, key: str, head_size: int, default_share: float) -> int:
    """How much of a head rotates: a share that stands at the top or among the parameters of rope."""
    share = fields.number(key, 0.0, 1.0, default=None)
    if share is None:
        share = fields.section("rope_parameters").number(
            "partial_rotary_factor", 0.0, 1.0, default=default_share
        )
    rotary_size = int(head_size * share)
    if rotary_size % 2 or not rotary_size:
        raise BadInputError(
            f"{fields.where}: {share:g} of a head of {head_size} rotates, expected an even number of at least 2"
        )
    return rotary_size


def check_square(fields: Fields, hyper: Hyper) -> None:
    """Refuse heads that are not as wide together as the embedding, where llama.cpp's graph expects that.

    Raises:
        UnsupportedError: they are not.
    """
    if hyper.q_size != hyper.embedding_size:
        raise UnsupportedError(
            f"{fields.where}: {hyper.n_heads} heads of {hyper.head_size} with an embedding of {hyper.embedding_size}; "
            "llama.cpp runs this family with heads that are together as wide as the embedding"
        )


def refuse(fields: Fields, flags: Mapping[str, bool]) -> None:
    """Refuse flags that ask for what llama.cpp's graph of a family does not compute.

    Args:
        flags: key -> the value that llama.cpp runs, which an absent key means too.

    Raises:
        UnsupportedError: one has the other value.
    """
    for key, works in flags.items():
        if fields.flag(key, default=works) != works:
            raise UnsupportedError(
                f"{fields.where}: {key} is {str(not works).lower()}; llama.cpp runs this family with "
                f"{str(works).lower()}"
            )


def with_experts(fields: Fields, hyper: Hyper, *, count: str, used: str, width: str) -> Hyper:
    """The same with its experts, from the keys named.

    Raises:
        BadInputError: more experts used than there are, or very many in all.
    """
    n_experts = fields.integer(count, 1, MAX_EXPERTS)
    if hyper.n_layers * n_experts > MAX_EXPERTS_IN_ALL:
        raise BadInputError(
            f"{fields.where}: {hyper.n_layers} layers of {n_experts} experts, more than {MAX_EXPERTS_IN_ALL} in all"
        )
    return dataclasses.replace(
        hyper,
        n_experts=n_experts,
        n_experts_used=fields.integer(used, 1, n_experts),
        expert_feed_forward_size=fields.integer(width, 1, MAX_WIDTH),
    )


# Names of one function in transformers, and of the exact one that it approximates.
TANH_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh")
EXACT_GELU = ("gelu", "gelu_python")


def check_activation(
    fields: Fields, key: str, default: str, *, same: tuple[str, ...], near: tuple[str, ...] = ()
) -> list[str]:
    """Notes on the activation function.

    Args:
        same: names of what llama.cpp computes.
        near: names of what differs from it a little: converted, with a note.

    Raises:
        UnsupportedError: another function.
    """
    activation = fields.text(key, default=default, max_chars=40)
    if activation in same:
        return []
    if activation in near:
        return [
            f"the model's activation is {activation}, llama.cpp computes {same[0]}: results differ a little"
        ]
    raise UnsupportedError(
        f"{fields.where}: {key} is {activation!r}; llama.cpp runs this family with {same[0]}"
    )
