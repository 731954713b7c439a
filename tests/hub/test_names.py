"""Hub ids: what is one, what is not, and that none of them leaves a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgellm.errors import SpecError
from edgellm.hub import ModelId, looks_like_id, parse_id, store

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/name", ("org/name", None, None)),
        ("hf://org/name", ("org/name", None, None)),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", ("HuggingFaceTB/SmolLM2-135M-Instruct", None, None)),
        ("org/Llama-3.2_1B@v1.0", ("org/Llama-3.2_1B", None, "v1.0")),
        ("org/name@refs/pr/1", ("org/name", None, "refs/pr/1")),
        (f"org/name@{COMMIT}", ("org/name", None, COMMIT)),
        ("org/name/model-Q4_K_M.gguf", ("org/name", "model-Q4_K_M.gguf", None)),
        ("org/name/Q4_0/model.gguf@main", ("org/name", "Q4_0/model.gguf", "main")),
    ],
)
def test_the_parts_of_an_id(text: str, parts: tuple[str, str | None, str | None]) -> None:
    assert parse_id(text) == ModelId(*parts)
    assert str(parse_id(text)) == text.removeprefix("hf://")


@pytest.mark.parametrize(
    "text",
    [
        "", "name", "/name", "org/", "org//name", "../name", "org/..", "org/a..b", "org/-name", "org/name-", ".org/name",
        "org/na--me", "org/name.git", "org/na me", "org/näme", "org/name@", "org/name@a..b", "org/name@/x",
        "org/name@-x", "org/name@a//b", "org/name@x@y", "org/name@a\n", "org/name\n", "o" * 60 + "/" + "n" * 60,
        "org/name@" + "r" * 129, "org/name/x.safetensors", "org/name/../x.gguf", "org/name//x.gguf", "org/name/.x.gguf",
        "org/name/" + "f" * 150 + ".gguf", "https://huggingface.co/org/name", "org/name?x=1", "org/name#x", "C:\\org/name",
        "hf://", "hf://name", "org/name/x.gguf?y.gguf", "org/%2e%2e",
    ],
)  # fmt: skip
def test_what_is_no_id_is_said_so(text: str) -> None:
    with pytest.raises(SpecError, match="is not a hub id") as caught:
        parse_id(text)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400


@given(
    st.text(max_size=200)
    | st.from_regex(r"[a-z.\-_]{1,5}/[a-z.\-_/]{1,9}(\.gguf)?(@[a-z./]{0,6})?", fullmatch=True)
)
@example("../..").via("leaves the store")
@example("org/name/a\0.gguf").via("NUL")
@example("org/name\\..\\..")
def test_every_text_is_refused_or_stays_in_the_store(text: str) -> None:
    looks_like_id(text)
    try:
        model = parse_id(text)
    except SpecError:
        return
    assert parse_id(str(model)) == model
    folder = store.home(model)
    assert folder.parent == store.root()
    kept = folder / store.COMPLETE / store.key(COMMIT, model.file)
    assert kept.parent.resolve() == (folder / store.COMPLETE).resolve()
    assert model.repo.isascii()
    assert not {"..", "--"} & {model.repo[i : i + 2] for i in range(len(model.repo))}
    assert model.name not in {"", ".", ".."}
    assert len(kept.name) < 255


def test_only_what_cannot_be_a_mistyped_path_is_taken_for_an_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for text in ("org/name", "hf://org/name", "org/name@v1", "org/name/x.gguf", "models/name"):
        assert looks_like_id(text), text
    for text in (
        "name", "./org/name", "/org/name", "~/org/name", "../org/name", "org/name/", "org/model.gguf",
        "models/name/x.gguf", "a/b/c", "a b/c", "builtin:smollm2", "", "org/model.safetensors",
    ):  # fmt: skip
        assert not looks_like_id(text), text
