"""Builds llama.cpp once per (version, flags, compiler, CPU): the libraries edgellm loads and llama.cpp's own tools.

The tools are the oracle of the tests and the peer of the benchmarks; coming from the same tree with the same flags,
they quantize to the same bytes. A build lives in the cache under a key made of everything that shapes it, so one
whose key differs is never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from lib.say import run, say, stop

VERSION = "0.3.36"
TOOLS = (
    "llama-quantize", "llama-bench", "llama-perplexity", "llama-imatrix", "llama-cli", "llama-server",
    "llama-tokenize", "llama-completion", "llama-batched-bench",
)  # fmt: skip
CMAKE_ARGUMENTS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_CURL=OFF", "-DGGML_CCACHE=OFF", "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN",
)  # fmt: skip
ORACLE_SOURCES = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py")
NO_AMX = ["-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16"]


def cache_directory() -> Path:
    """Where builds, wheels and downloads are kept between checkouts."""
    base = os.environ.get("EDGELLM_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(base).expanduser()
    return path if os.environ.get("EDGELLM_CACHE") else path / "edgellm"


def compiler_identity() -> str:
    """First lines of `cc --version` and `c++ --version`; stops where there is no compiler."""
    lines = []
    for name in (os.environ.get("CC", "cc"), os.environ.get("CXX", "c++")):
        path = shutil.which(name)
        if not path:
            stop(f"no C/C++ compiler: {name} is not on PATH", "on Debian: apt-get install g++")
        shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        lines.append(shown.splitlines()[0] if shown else path)
    return " / ".join(lines)


def cpu_identity() -> dict[str, str]:
    """What `-march=native` depends on: vendor, family, model and feature flags, not the clock or the host's name."""
    wanted = (
        "vendor_id",
        "cpu family",
        "model",
        "model name",
        "flags",
        "CPU implementer",
        "CPU part",
        "Features",
    )
    found: dict[str, str] = {"machine": platform.machine()}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in wanted:
                found.setdefault(key.strip(), " ".join(sorted(value.split())))
    except OSError:
        found["processor"] = platform.processor()
    return found


def choose_flags(cpu: dict[str, str]) -> tuple[list[str], str]:
    """Compile flags and the reason for them.

    Only `-mno-amx-*` is ever added: `-march` would change the bytes of quantized weights.
    """
    if "amx_tile" not in cpu.get("flags", "").split():
        return [], "this CPU has no AMX: no extra flags"
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "amx_check"
        source = Path(__file__).parent / "amx_check.cpp"
        built = subprocess.run(
            [os.environ.get("CXX", "c++"), "-O3", "-mamx-tile", source, "-o", program],
            capture_output=True,
            check=False,
        )
        if built.returncode:
            return [], "this compiler knows no AMX: no extra flags"
        code = subprocess.run([program], capture_output=True, check=False).returncode
    if code == 0:
        return [], "this CPU has AMX and the compiler handles it: no extra flags"
    if code == 3:
        return NO_AMX, "this CPU has AMX but the kernel does not grant it: AMX is left out"
    ended = f"signal {-code}" if code < 0 else "wrong values"
    return (
        NO_AMX,
        f"this compiler loses AMX tile configurations (its check ended with {ended}): AMX is left out",
    )


def build_plan() -> dict[str, object]:
    """Everything that shapes the build, the reason for its flags, and the key made of it."""
    compiler = compiler_identity()
    cpu = cpu_identity()
    flags, reason = choose_flags(cpu)
    shaping = {
        "llama_cpp_python": VERSION,
        "cmake_arguments": list(CMAKE_ARGUMENTS),
        "tools": list(TOOLS),
        "flags": flags,
        "environment_flags": [os.environ.get("CFLAGS", ""), os.environ.get("CXXFLAGS", "")],
        "compiler": compiler,
        "cpu": cpu,
    }
    key = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:16]
    return {"key": key, "reason": reason, **shaping}


def ensure_build(venv_python: Path, venv_bin: Path) -> Path:
    """The directory of the finished build for this machine; built now if the cache has none.

    Layout: lib/ (shared libraries), bin/ (tools beside links to the libraries), llama.cpp/ (its own converter),
    wheel/ (llama-cpp-python's Python part), build.json (what shaped it).
    """
    plan = build_plan()
    say(f"native flags: {' '.join(plan['flags']) or 'none'} ({plan['reason']})")  # type: ignore[arg-type]
    final = cache_directory() / "native" / str(plan["key"])
    if (final / "build.json").is_file():
        say(f"native build {plan['key']}: in the cache")
        _complete(final, venv_python)
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".building-") as folder:
        work = Path(folder)
        source = _unpack(_download(venv_python, work), work)
        staged = work / "staged"
        _compile(source / "vendor" / "llama.cpp", work, staged, plan, venv_bin, venv_python)
        _copy_sources(source, staged, ORACLE_SOURCES)
        _python_part(venv_python, source, staged / "wheel", work)
        (staged / "build.json").write_text(json.dumps(plan, indent=2) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        staged.rename(final)
    return final


def _complete(build: Path, venv_python: Path) -> None:
    """Add the converter's files that an older build lacks; they shape nothing that was compiled."""
    missing = [name for name in ORACLE_SOURCES if not (build / "llama.cpp" / name).exists()]
    if missing:
        with tempfile.TemporaryDirectory(dir=build.parent, prefix=".building-") as folder:
            work = Path(folder)
            _copy_sources(_unpack(_download(venv_python, work), work), build, missing)


def _copy_sources(source: Path, build: Path, names: Iterable[str]) -> None:
    for name in names:
        origin = source / "vendor" / "llama.cpp" / name
        (shutil.copytree if origin.is_dir() else shutil.copy2)(origin, build / "llama.cpp" / name)


def install(build: Path, venv_python: Path) -> None:
    """Put llama-cpp-python and this build's libraries into the environment, unless they are there already."""
    place = subprocess.run(
        [venv_python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    package = Path(place) / "llama_cpp"
    record = package / "lib" / "edgellm-build.json"
    wanted = (build / "build.json").read_bytes()
    if record.is_file() and record.read_bytes() == wanted:
        return
    wheel = next((build / "wheel").glob("llama_cpp_python-*.whl"))
    run(
        [
            venv_python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-cache-dir",
            "--force-reinstall",
            "--no-deps",
            wheel,
        ],
        what="installing llama-cpp-python",
    )
    shutil.rmtree(package / "lib", ignore_errors=True)
    shutil.copytree(build / "lib", package / "lib", symlinks=True)
    record.write_bytes(wanted)
    say(f"llama-cpp-python {VERSION} installed with native build {build.name}")


def _download(venv_python: Path, work: Path) -> Path:
    say(f"fetching the source of llama-cpp-python {VERSION}")
    run(
        [venv_python, "-m", "pip", "download", "--quiet", "--no-cache-dir", "--no-deps", "--no-binary",
         "llama-cpp-python", "-d", work, f"llama-cpp-python=={VERSION}"],
        what="downloading llama-cpp-python",
    )  # fmt: skip
    return next(work.glob("llama_cpp_python-*.tar.gz"))


def _unpack(archive: Path, work: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(work / "source", filter="data")
    return next((work / "source").iterdir())


def _compile(
    source: Path, work: Path, staged: Path, plan: dict[str, object], venv_bin: Path, venv_python: Path
) -> None:
    missing = [name for name in ("cmake", "ninja") if not shutil.which(name)]
    if missing:
        say(f"{' and '.join(missing)} not on PATH: taken from the package index")
        run([venv_python, "-m", "pip", "install", "--quiet", *missing], what="installing build tools")
    environment = dict(os.environ, PATH=f"{os.environ.get('PATH', '')}{os.pathsep}{venv_bin}")
    for name in ("CFLAGS", "CXXFLAGS"):
        environment[name] = " ".join([os.environ.get(name, ""), *plan["flags"]]).strip()  # type: ignore[misc]
    tree, log = work / "build", work / "build.log"
    say(f"compiling llama.cpp and its tools on {os.cpu_count()} cores; once, about 8 minutes on two")
    run(
        ["cmake", "-S", source, "-B", tree, "-G", "Ninja", *CMAKE_ARGUMENTS],
        what="configuring",
        log=log,
        env=environment,
    )
    run(["ninja", "-C", tree, "llama", "mtmd", *TOOLS], what="compiling llama.cpp", log=log, env=environment)
    (staged / "lib").mkdir(parents=True)
    (staged / "bin").mkdir()
    (staged / "llama.cpp").mkdir()
    for path in sorted((tree / "bin").iterdir()):
        shutil.copy2(path, staged / "bin" / path.name, follow_symlinks=False)
        if path.name.startswith(("libllama.", "libggml", "libmtmd.")):
            shutil.copy2(path, staged / "lib" / path.name, follow_symlinks=False)


def _python_part(venv_python: Path, source: Path, into: Path, work: Path) -> None:
    environment = dict(os.environ, CMAKE_ARGS="-DLLAMA_BUILD=OFF")
    run(
        [venv_python, "-m", "pip", "wheel", "--no-cache-dir", "--no-deps", "-w", into, source],
        what="building the Python part of llama-cpp-python", log=work / "wheel.log", env=environment,
    )  # fmt: skip


if sys.version_info < (3, 11):
    stop(f"Python {platform.python_version()} is too old", "run this script with Python 3.11 or newer")
