"""Imports modules, each in a process that has imported nothing of the package before: python -P import_alone.py NAMES.

Each process is forked, which is quicker than a new interpreter. What takes long to import, of the package too, is
shared, but only among modules that ask for it themselves: one that asks for it is tried again in a fork of a process that
has it. One that uses it without asking, or before, fails in the first fork, which has it not. Prints what fails, then how
many were tried.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

SLOW = (
    "numpy", "msgspec", "msgspec.inspect", "asyncio", "click", "jinja2", "concurrent.futures", "ctypes", "subprocess",
    "edgellm.artifact", "edgellm.checkpoint", "edgellm.convert.architectures.family", "edgellm.convert.rounding.blocks",
    "edgellm.convert.recipe", "edgellm.errors", "edgellm.formats.gguf", "edgellm.formats.gguf_vocab",
    "edgellm.formats.records", "edgellm.machine", "edgellm.native.llama_batcher", "edgellm.process", "edgellm.protocols",
    "edgellm.report", "edgellm.runtime.constraint_checks", "edgellm.runtime.scheduler", "edgellm.shape",
    "edgellm.targets",
)  # fmt: skip
FAILED = 255


def say(line: str) -> None:
    """In one piece: other processes write too."""
    os.write(1, f"{line}\n".encode())


class _Noticing:
    """First of the finders: ends the process where something slow is asked for that is not there yet."""

    def __init__(self, module: str) -> None:
        self._module = module

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in SLOW and name != self._module:
            os._exit(1 + SLOW.index(name))


def _import_here(module: str) -> int:
    sys.meta_path.insert(0, _Noticing(module))  # type: ignore[arg-type]
    try:
        importlib.import_module(module)
    except BaseException as err:
        say(f"{module}: {type(err).__name__}: {err}")
        return FAILED
    return 0


def try_all(modules: Sequence[str]) -> None:
    """Import each in a fork of this process, or of one that has also what it asks for."""
    waiting, running = list(modules), {}
    asking: dict[int, list[str]] = {}
    while waiting or running:
        if waiting and len(running) < (os.cpu_count() or 1):
            module = waiting.pop()
            child = os.fork()
            if not child:
                os._exit(_import_here(module))
            running[child] = module
            continue
        child, status = os.wait()
        module, code = running.pop(child), os.waitstatus_to_exitcode(status)
        if code < 0:
            say(f"{module}: died of signal {-code}")
        elif 0 < code < FAILED:
            asking.setdefault(code - 1, []).append(module)
    for number, group in asking.items():
        child = os.fork()
        if not child:
            importlib.import_module(SLOW[number])
            try_all(group)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            say(f"{', '.join(group)}: {SLOW[number]} cannot be imported")


if __name__ == "__main__":
    try_all(sys.argv[1:])
    say(f"{len(sys.argv) - 1} tried")
