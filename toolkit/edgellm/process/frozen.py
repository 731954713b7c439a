"""Children of a frozen application: there is no `python -m edgellm`, so the application starts itself again.

    app --edgellm-child VERB        what such a child is started as

Before the application's own code runs, `edgellm.freeze_support` sees the option and becomes the child. Where nothing
calls it, a child would be a second copy of the application that starts a third: children are refused there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from edgellm.errors import BackendError

CHILD_OPTION = "--edgellm-child"
_is_ready = False


def is_frozen() -> bool:
    """Whether this is an application made by PyInstaller or the like, not a Python interpreter."""
    return bool(getattr(sys, "frozen", False))


def child_arguments(argv: Sequence[str]) -> list[str] | None:
    """What edgellm is to do in this process, None where the application itself is wanted.

    Args:
        argv: the command line with the program.
    """
    global _is_ready
    _is_ready = True
    return list(argv[2:]) if list(argv[1:2]) == [CHILD_OPTION] else None


def child_argv(arguments: Sequence[str]) -> list[str]:
    """The command that runs `edgellm ARGUMENTS` in a child of this application.

    Raises:
        BackendError: the application would not know that it is a child.
    """
    if not _is_ready:
        raise BackendError(
            f"{sys.executable}: a frozen application that cannot start children: it has not called edgellm.freeze_support()",
            hint="call edgellm.freeze_support() first in the program; PyInstaller's hook of edgellm does it by itself",
        )
    return [sys.executable, CHILD_OPTION, *arguments]
