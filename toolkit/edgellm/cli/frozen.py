"""How a frozen application becomes a child of itself."""

from __future__ import annotations

import sys


def freeze_support() -> None:
    """Call this first in a program that is frozen into an application; in any other it does nothing.

    Native code that may die runs in a child (`load(isolate=True)`), and a frozen application has no Python to start
    one with: it starts itself. In that child this function does the child's work and does not return. Programs made by
    PyInstaller need not call it: the hook that comes with edgellm does, before the program begins.
    """
    from edgellm.process import frozen

    if not frozen.is_frozen():
        return
    arguments = frozen.child_arguments(sys.argv)
    if arguments is None:
        return
    from edgellm.cli import main

    sys.argv = ["edgellm", *arguments]
    main()
