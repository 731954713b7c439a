"""Headers that ask for terabytes are refused by a process that stays small."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

from tests.support.gguf_files import array, gguf_bytes, key, string, tensor

MAX_MORE_BYTES = 50 << 20
READ_ALL = """
import json, resource, sys
from pathlib import Path
from edgellm.errors import BadInputError
from edgellm.formats.gguf import read_gguf
from edgellm.formats.gguf_model import read_hyperparameters
from edgellm.formats.gguf_vocab import validate_vocab
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, said = peak(), {}
for name in sys.argv[1:]:
    try:
        file = read_gguf(Path(name))
        read_hyperparameters(file)
        validate_vocab(file)
        said[name] = None
    except BadInputError as err:
        said[name] = str(err)
print(json.dumps({"more_bytes": peak() - before, "said": said}))
"""
_VOCAB = [key("general.architecture", "STRING", "llama"), key("tokenizer.ggml.model", "STRING", "gpt2")]
BOMBS = {
    "keys": gguf_bytes(n_keys=2**64 - 1),
    "many keys": gguf_bytes(n_keys=2**31),
    "tensors": gguf_bytes(n_tensors=2**64 - 1),
    "many tensors": gguf_bytes(n_tensors=2**31),
    "keys that are not there": gguf_bytes(n_keys=2**16),
    "tensors that are not there": gguf_bytes(n_tensors=2**17),
    "string": gguf_bytes([string("k") + struct.pack("<IQ", 8, 2**63)]),
    "key": gguf_bytes([struct.pack("<Q", 2**64 - 1) + b"k"]),
    "strings": gguf_bytes([string("k") + struct.pack("<IIQ", 9, 8, 2**40)]),
    "numbers": gguf_bytes([string("k") + struct.pack("<IIQ", 9, 12, 2**61)]),
    "numbers in a key that is read": gguf_bytes([array("k", "UINT8", [1] * 9)[:-9]]),
    "dimension": gguf_bytes([], [tensor("a", [2**63 - 1] * 4)], bytes(64)),
    "layers": gguf_bytes([*_VOCAB, key("llama.block_count", "UINT32", 2**32 - 1)]),
    "vocabulary": gguf_bytes([key("general.architecture", "STRING", "llama"), key("llama.vocab_size", "UINT32", 2**32 - 1)]),
}  # fmt: skip


def test_what_asks_for_terabytes_is_refused_in_a_few_megabytes(tmp_path: Path) -> None:
    names = []
    for number, content in enumerate(BOMBS.values()):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(content)
        names.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, *names], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    refused = dict(zip(BOMBS, found["said"].values(), strict=True))
    assert all(refused.values()), refused
    assert found["more_bytes"] < MAX_MORE_BYTES
