"""This machine: CPU, memory, thermal state, power source, and the target `host` made of them.

Every function takes the root of the file system, so that recorded trees test it; below any root but `/` only
files are read and no live system call is made. Unknown is None, never 0. Linux first; on macOS and Windows
what the system tells without privileges. It does not measure bandwidth, nor read energy (that is `meters`).
"""

from edgellm.machine.conditions import ConditionsWatch, conditions
from edgellm.machine.cpu import (
    architecture,
    cpu_name,
    default_threads,
    isa,
    isa_of_flags,
    physical_cores,
    usable_cores,
)
from edgellm.machine.describe import describe, is_virtual
from edgellm.machine.host import detect_target
from edgellm.machine.memory import (
    address_space_left_bytes,
    available_memory_bytes,
    headroom,
    memory_limit_bytes,
    ram_bytes,
    swap_used_bytes,
)
from edgellm.machine.system import board

__all__ = [
    "ConditionsWatch",
    "address_space_left_bytes",
    "architecture",
    "available_memory_bytes",
    "board",
    "conditions",
    "cpu_name",
    "default_threads",
    "describe",
    "detect_target",
    "headroom",
    "is_virtual",
    "isa",
    "isa_of_flags",
    "memory_limit_bytes",
    "physical_cores",
    "ram_bytes",
    "swap_used_bytes",
    "usable_cores",
]
