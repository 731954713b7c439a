"""llama.cpp's declarations come without their package, which stays whole for a program that imports it."""

from __future__ import annotations

import subprocess
import sys

import pytest

OURS = """
import sys
from edgellm.native.llama_library import bindings
lib = bindings()
assert lib.llama_model_default_params().vocab_only is False
"""
THEIRS = """
import llama_cpp
assert llama_cpp.Llama
assert llama_cpp.llama_cpp.llama_max_devices() > 0
"""
ALONE = "assert not [name for name in sys.modules if name.partition('.')[0] == 'llama_cpp']\n"
# While ours is imported another thread may meet what stands in for the package.
AT_ONCE = """
import sys, types
from edgellm.native import llama_declarations
shell = llama_declarations._Shell("llama_cpp")
sys.modules["llama_cpp"] = shell
from llama_cpp import Llama
assert sys.modules["llama_cpp"] is not shell
assert shell.Llama is Llama
"""


@pytest.mark.parametrize(
    "code", [OURS + ALONE + THEIRS, THEIRS + OURS, AT_ONCE], ids=["ours first", "theirs first", "at once"]
)
def test_both_can_be_used_in_either_order(code: str) -> None:
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=120)
