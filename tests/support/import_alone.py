"""Imports modules, each in a process that has imported nothing of the package before: python -P import_alone.py NAMES.

Each process is forked, which is quicker than a new interpreter. What takes long to import is shared, but only among
modules that ask for it themselves: one that asks for it is tried again in a fork of a process that has it. So no module
leans on what another one imported. Prints what fails, then how many were tried.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

SLOW = (
    "numpy",
    "msgspec",
    "asyncio",
    "click",
    "jinja2",
    "rich",
    "concurrent.futures",
    "ctypes",
    "subprocess",
)
FAILED = 255


class _Noticing:
    """First of the finders: ends the process where something slow is asked for that is not there yet."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in SLOW:
            os._exit(1 + SLOW.index(name))


def _import_here(module: str) -> int:
    if any(name.split(".")[0] == module.split(".")[0] for name in sys.modules):
        print(f"{module}: the package is imported already", flush=True)
        return FAILED
    sys.meta_path.insert(0, _Noticing())  # type: ignore[arg-type]
    try:
        importlib.import_module(module)
    except BaseException as err:
        print(f"{module}: {type(err).__name__}: {err}", flush=True)
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
            print(f"{module}: died of signal {-code}", flush=True)
        elif 0 < code < FAILED:
            asking.setdefault(code - 1, []).append(module)
    for number, group in asking.items():
        child = os.fork()
        if not child:
            importlib.import_module(SLOW[number])
            try_all(group)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            print(f"{', '.join(group)}: {SLOW[number]} cannot be imported", flush=True)


if __name__ == "__main__":
    try_all(sys.argv[1:])
    print(f"{len(sys.argv) - 1} tried", flush=True)
