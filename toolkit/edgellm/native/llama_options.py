"""How llama.cpp runs a model: every option by name, with its bounds."""

from __future__ import annotations

from typing import Literal

from edgellm.formats.records import Record

QUANTIZED_KV_TYPES = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
KV_TYPES = ("F32", "F16", "BF16", *QUANTIZED_KV_TYPES)
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}


class LlamaOptions(Record):
    """How a model is run.

    Attributes:
        n_threads: threads of a decode step;  n_threads_batch: of a prefill (0: the same).
        kv_type: ggml type of the KV cache.
        flash_attention: `auto`, `on` or `off`; a quantized V cache needs it on.
        gpu_layers: `auto` uses a GPU where the library has one; a number asks for that many layers.
        n_batch: most tokens in one native call;  n_ubatch: most tokens computed at once.
        mmap: map the file instead of reading it.
    """

    n_threads: int
    n_threads_batch: int = 0
    kv_type: str = "F16"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    gpu_layers: int | Literal["auto"] = "auto"
    n_batch: int = 2048
    n_ubatch: int = 512
    mmap: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.n_threads <= 1024 or not 0 <= self.n_threads_batch <= 1024:
            raise ValueError(f"n_threads is {self.n_threads}/{self.n_threads_batch}, outside 1 to 1024")
        if not 1 <= self.n_ubatch <= self.n_batch <= 1 << 16:
            raise ValueError(
                f"n_ubatch {self.n_ubatch} and n_batch {self.n_batch} must be 1 <= ubatch <= batch <= 65536"
            )
        if self.gpu_layers != "auto" and self.gpu_layers < 0:
            raise ValueError(f"gpu_layers is {self.gpu_layers}, expected 0 or more, or auto")
