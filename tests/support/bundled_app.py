"""The application that tests/test_bundle.py freezes: it answers a question and says what it is made of.

app [MODEL] [--isolate]        MODEL: by default model.gguf beside the application
"""

import json
import os
import signal
import sys
from pathlib import Path

import edgellm
from edgellm import targets, workload

CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}


def main() -> None:
    """One JSON object on standard output."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--isolate"]
    isolate = len(arguments) < len(sys.argv) - 1
    path = Path(arguments[0]) if arguments else Path(sys.executable).parent / "model.gguf"
    said: dict[str, object] = {"targets": targets.available(), "workloads": workload.available()}
    with edgellm.load(path, isolate=isolate) as model:
        said["answer"] = model.generate(CAPITAL, max_tokens=16, temperature=0).text
        said["object"] = model.generate(CAPITAL, max_tokens=64, temperature=0, json_schema=SCHEMA).text
        said["binding"] = model.info.binding
        if isolate:
            pid = model._engine.pid  # type: ignore[attr-defined]
            said["child"] = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            stream = model.stream(CAPITAL, max_tokens=1024)
            os.kill(pid, signal.SIGSEGV)
            try:
                list(stream)
            except edgellm.EdgeLLMError as err:
                said["crash"] = str(err)
            said["after_crash"] = model.generate(CAPITAL, max_tokens=16, temperature=0).text
    maps = Path("/proc/self/maps").read_text().splitlines()
    said["mapped"] = sorted({line.split(None, 5)[5] for line in maps if ".so" in line})
    said["modules"] = sorted({name.partition(".")[0] for name in sys.modules})
    print(json.dumps(said))


if __name__ == "__main__":
    main()
