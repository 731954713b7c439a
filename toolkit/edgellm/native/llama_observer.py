"""What weights are multiplied with, seen through llama.cpp's evaluation callback.

llama-cpp-python declares the callback but not ggml's tensor. It is declared here, and compared with what ggml's own
functions say of tensors made for the purpose before the first use: another layout is refused, never read.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgellm.errors import BackendError, UnsupportedError
from edgellm.formats import ggml_types
from edgellm.native import library
from edgellm.native.llama_library import bindings
from edgellm.protocols import Observation, Observer

_F32, _I32 = (ggml_types.BY_NAME[name].number for name in ("F32", "I32"))
_SCRATCH_BYTES = 1 << 16


class Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml.h."""

    _fields_ = (
        ("type", ctypes.c_int), ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64), ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )  # fmt: skip


class GraphObserver:
    """Hands an Observer the inputs of the weights it wants, while a batcher computes.

    Raises:
        UnsupportedError: this library lays its tensors out differently.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._mul_mat, self._mul_mat_id = check_layout(Tensor)
        self._wanted: dict[str, bool] = {}
        self._sources: dict[int, int] = {}
        self._seen: set[str] = set()
        self._n_sources = 0
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self.callback = bindings().ggml_backend_sched_eval_callback(self._on_node)

    def run(self, decode: Callable[[], int]) -> int:
        """Call `decode`; what the observer raised meanwhile is raised here.

        It runs in a thread of its own: a KeyboardInterrupt inside a callback would be lost in the native code.
        """
        stop = self._stop = threading.Event()
        began, done = threading.Event(), threading.Event()
        codes: list[int] = []
        self._error = None

        def work() -> None:
            began.set()
            try:
                if not stop.is_set():
                    codes.append(decode())
            except BaseException as err:
                self._error = err
            finally:
                done.set()

        try:
            threading.Thread(target=work, name="edgellm-observed-step").start()
            done.wait()
        except BaseException:
            stop.set()
            while began.is_set() and not done.is_set():
                with contextlib.suppress(KeyboardInterrupt):
                    done.wait()
            raise
        if self._error is not None:
            raise self._error
        return codes[0]

    def _on_node(self, address: int, ask: bool, _: object) -> bool:
        """Called by ggml for every node before it is computed (`ask`), and for the wanted ones after."""
        if self._stop.is_set():
            return ask  # wanted, then cancelled: the quickest way out
        try:
            node = Tensor.from_address(address)
            if node.op not in {self._mul_mat, self._mul_mat_id}:
                return False
            if ask:
                return self._wants(Tensor.from_address(node.src[0]), Tensor.from_address(node.src[1]))
            self._observer.observe(self._observation(node))
        except BaseException as err:
            self._error = err
            self._stop.set()
            return ask
        return True

    def _wants(self, weight: Tensor, rows: Tensor) -> bool:
        if rows.type != _F32:
            return False
        name = _weight_name(weight)
        wanted = self._wanted.get(name)
        if wanted is None:
            wanted = self._wanted[name] = name.endswith(".weight") and self._observer.wants(name)
        return wanted

    def _observation(self, node: Tensor) -> Observation:
        weight, rows = Tensor.from_address(node.src[0]), Tensor.from_address(node.src[1])
        name = _weight_name(weight)
        inputs = _array(rows, np.dtype(np.float32))  # (ne3, ne2, ne1, n_columns)
        n_experts = weight.ne[2] * weight.ne[3]
        experts = None
        if node.op == self._mul_mat_id:
            experts = _routing(
                name, _array(Tensor.from_address(node.src[2]), np.dtype(np.int32))[0, 0], inputs
            )
            if experts.size and not 0 <= experts.min() <= experts.max() < n_experts:
                raise BackendError(f"{name}: a token was sent to an expert outside 0 to {n_experts - 1}")
        elif n_experts > 1:
            i3, i2 = np.indices(inputs.shape[:2])
            matrix = (i3 % weight.ne[3]) * weight.ne[2] + i2 % weight.ne[2]
            experts = np.repeat(matrix.ravel(), inputs.shape[2]).astype(np.int32).reshape(-1, 1)
        flat = inputs.reshape(-1, inputs.shape[3])
        flat.flags.writeable = False
        source = self._source(name, node.src[1])
        return Observation(weight=name, rows=flat, experts=experts, n_experts=n_experts, source=source)

    def _source(self, name: str, address: int) -> int:
        """Addresses come again with every part of a batch; a weight that is seen again tells that one began."""
        if name in self._seen:
            self._seen.clear()
            self._sources.clear()
        self._seen.add(name)
        if address not in self._sources:
            self._n_sources += 1
            self._sources[address] = self._n_sources
        return self._sources[address]


def _routing(
    name: str, used: npt.NDArray[np.int32], inputs: npt.NDArray[np.float32]
) -> npt.NDArray[np.int32]:
    """(n_rows, n_used): either all experts of a token see its one row, or each has a row of its own.

    Args:
        used: (n_tokens, n_used) experts.
        inputs: (1, n_tokens, 1 or n_used, n_columns).
    """
    n_own = inputs.shape[2]
    if used.shape[0] != inputs.shape[1] or n_own not in {1, used.shape[1]}:
        raise BackendError(f"{name}: inputs of shape {inputs.shape} meet experts of shape {used.shape}")
    return used.copy() if n_own == 1 else used.reshape(-1, 1)


def _array(tensor: Tensor, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """All four dimensions, outermost first; the native memory itself where the host can read it."""
    base = _functions()
    address = ctypes.addressof(tensor)
    n_bytes: int = base.ggml_nbytes(address)
    if tensor.buffer and base.ggml_backend_buffer_is_host(tensor.buffer):
        memory = (ctypes.c_uint8 * n_bytes).from_address(tensor.data)
    else:
        memory = (ctypes.c_uint8 * n_bytes)()
        base.ggml_backend_tensor_get(address, memory, 0, n_bytes)
    raw = np.frombuffer(memoryview(memory), dtype=np.uint8)
    return np.ndarray(tuple(tensor.ne)[::-1], dtype, buffer=raw, strides=tuple(tensor.nb)[::-1])


def _weight_name(weight: Tensor) -> str:
    """Without what a scheduler puts around a copy: CUDA0#blk.0.attn_k.weight#0."""
    name: str = weight.name.decode("utf-8", errors="replace")
    return name.split("#")[1] if "#" in name else name


@functools.cache
def check_layout(layout: type[Tensor]) -> tuple[int, int]:
    """The operation numbers of MUL_MAT and MUL_MAT_ID, once `layout` agrees with ggml about every field used.

    Raises:
        UnsupportedError: it does not; the message names the field.
    """
    base = _functions()
    context = base.ggml_init(_InitParams(_SCRATCH_BYTES, None, True))
    if not context:
        raise BackendError("ggml cannot make a context of 64 KiB")
    buffer = None
    try:
        weights = base.ggml_new_tensor_3d(context, _F32, 7, 5, 3)
        rows = base.ggml_new_tensor_3d(context, _F32, 7, 2, 4)
        ids = base.ggml_new_tensor_2d(context, _I32, 2, 4)
        base.ggml_set_name(weights, b"blk.0.check.weight")
        dense, routed = (
            base.ggml_mul_mat(context, base.ggml_new_tensor_2d(context, _F32, 7, 5), rows),
            base.ggml_mul_mat_id(context, weights, rows, ids),
        )
        buffer = base.ggml_backend_alloc_ctx_tensors_from_buft(context, base.ggml_backend_cpu_buffer_type())
        seen, node = layout.from_address(weights), layout.from_address(routed)
        expected = {
            "type": (seen.type, _F32),
            "ne": (list(seen.ne), [7, 5, 3, 1]),
            "nb": (list(seen.nb), [4, 28, 140, 420]),
            "name": (seen.name, base.ggml_get_name(weights)),
            "data": (seen.data, base.ggml_get_data(weights)),
            "buffer": (seen.buffer, buffer),
            "src": (list(node.src)[:4], [weights, rows, ids, None]),
            "op": (  # kept inside ggml's table of names whatever number is read
                [base.ggml_op_name(layout.from_address(t).op % 64) for t in (dense, routed)],
                [b"MUL_MAT", b"MUL_MAT_ID"],
            ),
        }
        for field, (found, wanted) in expected.items():
            if found != wanted:
                raise UnsupportedError(
                    f"this llama.cpp lays out its tensors differently (field {field!r} reads {found!r}, expected {wanted!r}):"
                    " activations cannot be observed",
                    hint="install the version of llama-cpp-python that edgellm names, or convert with --imatrix none",
                )
        return layout.from_address(dense).op, node.op
    finally:
        if buffer:
            base.ggml_backend_buffer_free(buffer)
        base.ggml_free(context)


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


@functools.cache
def _functions() -> ctypes.CDLL:
    base = library.load("ggml-base")
    pointer, number, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
    for name, result, arguments in (
        ("ggml_init", pointer, [_InitParams]),
        ("ggml_free", None, [pointer]),
        ("ggml_new_tensor_2d", pointer, [pointer, ctypes.c_int, number, number]),
        ("ggml_new_tensor_3d", pointer, [pointer, ctypes.c_int, number, number, number]),
        ("ggml_set_name", pointer, [pointer, ctypes.c_char_p]),
        ("ggml_get_name", ctypes.c_char_p, [pointer]),
        ("ggml_get_data", pointer, [pointer]),
        ("ggml_op_name", ctypes.c_char_p, [ctypes.c_int]),
        ("ggml_mul_mat", pointer, [pointer, pointer, pointer]),
        ("ggml_mul_mat_id", pointer, [pointer, pointer, pointer, pointer]),
        ("ggml_nbytes", size, [pointer]),
        ("ggml_backend_cpu_buffer_type", pointer, []),
        ("ggml_backend_alloc_ctx_tensors_from_buft", pointer, [pointer, pointer]),
        ("ggml_backend_buffer_free", None, [pointer]),
        ("ggml_backend_buffer_is_host", ctypes.c_bool, [pointer]),
        ("ggml_backend_tensor_get", None, [pointer, pointer, size, size]),
    ):  # fmt: skip
        try:
            function = getattr(base, name)
        except AttributeError:
            raise UnsupportedError(
                f"this llama.cpp has no function {name}: activations cannot be observed"
            ) from None
        function.restype, function.argtypes = result, arguments
    return base
