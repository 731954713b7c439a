"""Runs in a bundled application before its own code: in a child of edgellm's it does the child's work and ends."""

import edgellm

edgellm.freeze_support()
