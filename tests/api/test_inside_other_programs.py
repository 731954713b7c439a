"""The library inside programs that have no terminal, no writable home, handlers of their own and no main thread to spare.

Each runs in a process of its own, which loads the model twice: with the native code in it, and in a child.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

QUESTION = """
import json, sys
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
CAPITAL = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]

def answers(path):
    import edgellm
    found = []
    for isolate in (False, True):
        with edgellm.load(path, isolate=isolate) as model:
            text = "".join(piece.text for piece in model.stream(CAPITAL, max_tokens=16, temperature=0))
            data = model.generate(CAPITAL, max_tokens=64, temperature=0, json_schema=SCHEMA).text
            found.append([text, sorted(json.loads(data))])
    return found
"""
EXPECTED = [["The capital of France is Paris.", ["city"]]] * 2


def run(program: str, model: Path, tmp_path: Path, **env: str) -> object:
    """What the program wrote as JSON into the file that its second argument names; its exit code must be 0."""
    out = tmp_path / "answers.json"
    source = tmp_path / "program.py"
    source.write_text(QUESTION + textwrap.dedent(program))
    here = Path(sys.modules["edgellm"].__path__[0]).parent
    done = subprocess.run(
        [sys.executable, source, model, out],
        env={"PYTHONPATH": str(here), "OMP_WAIT_POLICY": "passive", **env},
        cwd="/", capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == "", "a library has nothing to say on the standard streams"
    return json.loads(out.read_text())


def test_a_home_that_cannot_be_written_is_enough(smollm2_gguf: Path, tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "TMPDIR"), "/proc/nowhere")
    program = "open(sys.argv[2], 'w').write(json.dumps(answers(sys.argv[1])))"
    assert run(program, smollm2_gguf, tmp_path, **nowhere) == EXPECTED


@pytest.mark.parametrize(
    "how", ["sys.stdin = sys.stdout = sys.stderr = None", "import os; os.closerange(0, 3)"]
)
def test_no_standard_streams_are_needed(smollm2_gguf: Path, tmp_path: Path, how: str) -> None:
    """As in programs without a console, and in services that close them."""
    program = f"""
    {how}
    found = answers(sys.argv[1])
    with open(sys.argv[2], "w") as out:
        out.write(json.dumps(found))
    """
    assert run(program, smollm2_gguf, tmp_path) == EXPECTED


def test_threads_that_end_load_and_use_models_and_signals_are_left_alone(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    """The kernel's own record of handlers is compared, so those that native code would install are seen too."""
    program = """
    import signal, threading

    OF_THE_C_LIBRARY = 0b11 << 31  # signals 32 and 33, which glibc keeps for its threads

    def handlers():
        lines = open("/proc/self/status").read().splitlines()
        masks = dict(line.split(":") for line in lines if line.startswith(("SigCgt", "SigIgn", "SigBlk")))
        return {name: hex(int(mask, 16) & ~OF_THE_C_LIBRARY) for name, mask in masks.items()}

    def in_a_thread(work):
        kept = []
        thread = threading.Thread(target=lambda: kept.append(work()))
        thread.start()
        thread.join()
        return kept[0]

    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    before = handlers(), [signal.getsignal(n) for n in range(1, 32)]
    found = in_a_thread(lambda: answers(sys.argv[1]))

    import edgellm
    for isolate in (False, True):
        model = in_a_thread(lambda: edgellm.load(sys.argv[1], isolate=isolate))
        pid = getattr(model._engine, "pid", None)
        stream = in_a_thread(lambda: model.stream(CAPITAL, max_tokens=16, temperature=0))
        assert "Paris" in in_a_thread(lambda: "".join(piece.text for piece in stream))
        assert getattr(model._engine, "pid", None) == pid
        assert before == (handlers(), [signal.getsignal(n) for n in range(1, 32)]), (before, handlers())
        in_a_thread(model.close)
    assert before == (handlers(), [signal.getsignal(n) for n in range(1, 32)])
    open(sys.argv[2], "w").write(json.dumps(found))
    """
    assert run(program, smollm2_gguf, tmp_path) == EXPECTED
