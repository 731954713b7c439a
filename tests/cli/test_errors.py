"""What goes wrong becomes one line, a hint and an exit code, seen from outside through a real process."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import EDGELLM, edgellm, refused, refused_json

QUESTION = "Hello"


@pytest.fixture
def pickles(tmp_path: Path) -> Path:
    """A Hugging Face directory whose weights are a pickle that would make a file when it is loaded."""
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    )
    evil = b"cos\nsystem\n(S'touch " + os.fsencode(tmp_path / "pwned") + b"'\ntR."
    (folder / "pytorch_model.bin").write_bytes(evil)
    return folder


@pytest.fixture
def truncated(smollm2_gguf: Path, tmp_path: Path) -> Path:
    """The embedded model without its last byte."""
    path = tmp_path / "truncated.gguf"
    path.write_bytes(smollm2_gguf.read_bytes()[:-1])
    return path


@pytest.mark.parametrize("verb", ["convert", "verify", "run", "chat", "profile"])
def test_a_path_to_nothing_is_missing_input(verb: str, tmp_path: Path) -> None:
    error = refused(66, verb, tmp_path / "nothing", *(["Hello"] if verb == "run" else []))[0]
    assert "nothing" in error


def test_an_unknown_built_in_model_names_the_known_ones() -> None:
    assert "builtin:smollm2" in refused(64, "run", "builtin:llama", QUESTION)[1]


def test_a_hub_id_without_a_network_is_explained() -> None:
    error, hint = refused(66, "convert", "HuggingFaceTB/SmolLM2-135M-Instruct", HF_HUB_OFFLINE="1")
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in error
    assert "edgellm pull" in hint


@pytest.mark.parametrize("verb", ["convert", "run", "verify"])
def test_a_directory_of_pickles_is_refused_unread(verb: str, pickles: Path, tmp_path: Path) -> None:
    done = edgellm(verb, pickles, *(["Hello"] if verb == "run" else []))
    assert done.returncode == (65 if verb == "convert" else 69)
    if verb == "convert":
        assert "pytorch_model.bin" in done.stderr
        assert "safetensors" in done.stderr
    assert not (tmp_path / "pwned").exists()


def test_a_truncated_gguf_is_bad_input_and_leaves_nothing(truncated: Path, tmp_path: Path) -> None:
    for arguments in (
        ["run", truncated, QUESTION],
        ["verify", truncated],
        ["convert", truncated, "-o", tmp_path / "out"],
    ):
        error = refused(65, *arguments)[0]
        assert "truncated.gguf" in error
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"GGUF" + struct.pack("<IQQ", 99, 0, 0), b"\0" * 100, b"{}"]
)
@pytest.mark.parametrize("name", ["model.gguf", "model.bin"])
def test_what_is_no_gguf_is_bad_input(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert name in refused(65, "run", path, QUESTION)[0]


def test_a_truncated_safetensors_is_bad_input_naming_the_file(smollm2_hf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    for path in smollm2_hf.iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    whole = smollm2_hf / "model.safetensors"
    with whole.open("rb") as file:
        (folder / whole.name).write_bytes(file.read(1 << 20))
    assert "model.safetensors" in refused(65, "convert", folder, "-o", tmp_path / "out")[0]
    (folder / whole.name).write_bytes(b"")
    assert "model.safetensors" in refused(65, "convert", folder, "-o", tmp_path / "out")[0]
    assert not (tmp_path / "out").exists()


def test_a_hugging_face_directory_given_to_run_says_to_convert_it(smollm2_hf: Path) -> None:
    error, hint = refused(69, "run", smollm2_hf, QUESTION)
    assert "Hugging Face" in error
    assert f"edgellm convert {smollm2_hf}" in hint


@pytest.mark.parametrize(
    ("option", "value", "near"),
    [("--target", "rpi55", "rpi5"), ("--quant", "Q4_K_N", "Q4_K_M"), ("--kv-type", "Q8_1", "Q8_0")],
)
def test_an_unknown_name_is_a_usage_error_with_the_nearest(
    option: str, value: str, near: str, tmp_path: Path
) -> None:
    error, hint = refused(64, "convert", "builtin:smollm2", option, value, "-o", tmp_path / "out")
    assert value in error
    assert near in hint
    assert not (tmp_path / "out").exists()


def test_an_unknown_workload_tariff_or_price_is_a_usage_error(tmp_path: Path) -> None:
    assert "tg128" in refused(64, "profile", "builtin:smollm2", "--workload", "tg129")[1]
    report = tmp_path / "report.json"
    report.write_text("{}")
    refused(65, "cost", report, "--tariff", "0.30 EUR")
    refused(66, "cost", tmp_path / "nothing.json", "--tariff", "0.30 EUR")


@pytest.mark.parametrize("kind", ["artifact", "file", "directory", "dangling link"])
def test_an_output_that_exists_is_never_overwritten(kind: str, smollm2_q8: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "artifact":
        out.mkdir()
        (out / "manifest.json").write_text("{}")
    elif kind == "file":
        out.write_text("precious")
    elif kind == "directory":
        out.mkdir()
        (out / "precious").touch()
    else:
        out.symlink_to(tmp_path / "nowhere")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    refused(73, "convert", "builtin:smollm2", "-o", out)
    if kind != "artifact":
        refused(73, "convert", "builtin:smollm2", "-o", out, "--force")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, made in a mount namespace of its own where that is allowed, else by a quota per file."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "edgellm-test", place], capture_output=True, check=False
    )
    yield place
    if mounted.returncode == 0:
        subprocess.run(["umount", place], check=True)


def test_a_disk_too_small_is_an_output_error_before_writing(small_disk: Path) -> None:
    if not os.path.ismount(small_disk):
        limit_output(small_disk)
        return
    lines = refused(74, "convert", "builtin:smollm2", "-o", small_disk / "out")
    assert "out" in lines[0] or str(small_disk) in lines[0]
    assert list(small_disk.iterdir()) == []


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    limit_output(tmp_path)


def limit_output(place: Path) -> None:
    """Convert where no file may grow beyond 8 MiB: the kernel refuses the write in the middle of the weights."""
    argv = [*EDGELLM, "convert", "builtin:smollm2", "-o", str(place / "out"), "--jobs", "1"]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20)),
    )  # fmt: skip
    assert done.returncode == 74, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert list(place.iterdir()) == []


def test_stdout_on_a_full_disk_is_an_output_error() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*EDGELLM, "targets", "list"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 74
    assert b"No space left" in done.stderr
    assert done.stderr.count(b"\n") <= 2


@pytest.mark.parametrize(
    "arguments", [["targets", "list"], ["run", "builtin:smollm2", "Count to ten", "--max-tokens", "9"]]
)
def test_a_reader_that_leaves_early_ends_the_command_quietly(arguments: list[str]) -> None:
    child = subprocess.Popen(
        [*EDGELLM, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    stderr = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 0
    assert b"rror" not in stderr


def test_an_output_below_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refused(74, "convert", "builtin:smollm2", "-o", tmp_path / "file" / "out")


@pytest.mark.parametrize("place", ["nowhere/report.json", "taken"])
def test_a_report_that_cannot_be_written_is_refused_before_measuring(tmp_path: Path, place: str) -> None:
    (tmp_path / "taken").mkdir()
    error = refused(74, "profile", "builtin:smollm2", "--workload", "load", "-o", tmp_path / place)[0]
    assert place in error
    assert "measuring" not in error


def test_json_errors_are_one_object(tmp_path: Path) -> None:
    error = refused_json(66, "run", tmp_path / "nothing", QUESTION)
    assert error["type"] == "MissingInputError"
    assert "nothing" in error["message"]
    assert error["hint"]
    assert refused_json(64, "convert", "builtin:smollm2", "--quant", "Q9")["type"] == "SpecError"
    assert refused_json(64, "targets", "show", "rpi9")["hint"]
    usage = refused_json(64, "targets", "show")
    assert "name" in usage["message"].lower()


def test_control_characters_in_a_name_are_escaped(tmp_path: Path) -> None:
    name = "evil\x1b[2J\n\r\x07\u202ename"
    error, *_ = refused(66, "run", tmp_path / name, QUESTION)
    for raw in ("\x1b", "\r", "\x07", "\u202e"):
        assert raw not in error
    assert "evil" in error
    assert "name" in error
    assert "\\x1b" in error
    assert "\x1b[2J" in refused_json(66, "run", tmp_path / name, QUESTION)["message"].encode().decode(
        "unicode_escape"
    )


def test_control_characters_in_a_model_are_escaped_on_the_terminal(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    path = tmp_path / "evil\x1b[2Jname.gguf"
    path.symlink_to(smollm2_gguf)
    for arguments in (["verify", path], ["convert", path, "--dry-run", "-o", tmp_path / "o\x1bt"]):
        done = edgellm(*arguments)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout + done.stderr


def test_an_argument_that_is_not_utf8_is_a_usage_error(smollm2_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "mod\udce9le.gguf"
    path.symlink_to(smollm2_gguf)
    for arguments in (
        ["verify", path],
        ["run", "builtin:smollm2", "Hi \udcff"],
        ["convert", "x", "-o", "sorti\udce9"],
    ):
        error, _ = refused(64, *arguments)
        assert "not UTF-8" in error
        assert "\\udc" in error


def test_a_prompt_that_does_not_fit_names_both_numbers() -> None:
    error, hint = refused(65, "run", "builtin:smollm2", "word " * 200, "--context", "64", "--threads", "1")
    assert "the context holds 64" in error
    assert "--context" in hint


def test_a_bug_is_one_line_and_debug_shows_where() -> None:
    spec = json.dumps({"nonsense": 1})
    done = edgellm("_tokenize", stdin=spec)
    assert done.returncode == 70
    assert json.loads(done.stderr)["error"]["message"].startswith("internal error: ")
    assert "Traceback" not in done.stderr
    assert "Traceback" in edgellm("_tokenize", stdin=spec, EDGELLM_DEBUG="1").stderr


@pytest.mark.parametrize("stdin", ["", "[]", "{", "1", "[" * 100_000])
def test_a_child_given_no_object_says_so(stdin: str) -> None:
    done = edgellm("_decode", stdin=stdin)
    assert done.returncode == 65
    assert json.loads(done.stderr)["error"]["type"] == "BadInputError"


def test_out_of_memory_is_a_resource_error() -> None:
    argv = [*EDGELLM, "run", "builtin:smollm2", QUESTION, "--threads", "1", "--max-tokens", "1"]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (250 << 20, 250 << 20)),
    )  # fmt: skip
    assert done.returncode == 75, (done.returncode, done.stderr)
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
