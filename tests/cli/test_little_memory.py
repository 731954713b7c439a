"""Too little memory for a conversion: one line with the sizes, exit code 75, nothing left, and the old artifact whole."""

from __future__ import annotations

import json
import resource
import subprocess
from pathlib import Path

import pytest

from edgellm.convert import slabs
from edgellm.errors import ResourceError
from edgellm.machine.memory import Headroom
from tests.support.cli import EDGELLM
from tests.support.tiny_llama import read_source, write_tiny_llama
from tests.test_artifact import write_artifact
from tests.test_staging import names

MIB = 1 << 20
# The command itself maps some 180 MiB; what is left of the larger limits ends in different places of a conversion.
LIMITS_MIB = (175, 200, 240, 300, 400)


@pytest.mark.parametrize("limit_mib", LIMITS_MIB)
def test_little_address_space_is_said_with_sizes_and_leaves_nothing(tmp_path: Path, limit_mib: int) -> None:
    old = write_artifact(tmp_path / "out", b"old!")
    argv = [
        *EDGELLM,
        "convert",
        "builtin:smollm2",
        "--quant",
        "Q8_0",
        "--jobs",
        "2",
        "--force",
        "--json",
        "-o",
        "out",
    ]
    done = subprocess.run(
        argv, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit_mib * MIB, limit_mib * MIB)),
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert done.stderr.count("\n") == 1
    error = json.loads(done.stderr)["error"]
    assert error["type"] == "ResourceError"
    assert f"{limit_mib} MiB (limit of the address space, ulimit -v)" in error["message"]
    assert "--jobs" in error["hint"]
    assert names(tmp_path) == ["out"]
    assert (old / "model.gguf").read_bytes() == b"old!"


def test_the_bound_of_a_cgroup_is_held_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would kill the process in the middle, without a word."""
    source = read_source(write_tiny_llama(tmp_path / "m"))
    types = {tensor.name: "F32" for tensor in source.tensors}
    monkeypatch.setattr(slabs, "headroom", lambda: Headroom(64 * MIB, 32 * MIB, "limit of the cgroup"))
    message = r"2 workers needs about 48\.\d MiB more memory, of 64\.0 MiB \(limit of the cgroup\) 32\.0 MiB are left"
    with pytest.raises(ResourceError, match=message) as caught:
        slabs.Slabs(source, types, n_workers=2)
    assert caught.value.exit_code == 75
    monkeypatch.setattr(slabs, "headroom", lambda: Headroom(96 * MIB, 32 * MIB, "limit of the cgroup"))
    with slabs.Slabs(source, types, n_workers=2) as whole:
        assert sum(slab.n_weights for slab in whole) == source.shape.n_params
