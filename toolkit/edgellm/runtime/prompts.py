"""A prompt as token ids: text as it is, messages through the model's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from edgellm.errors import SpecError
from edgellm.protocols import Backend
from edgellm.runtime import chat
from edgellm.runtime.tokenizer import Tokenizer
from edgellm.runtime.tools import Tool

Prompt = str | Sequence[chat.Message] | Sequence[int]


def is_messages(prompt: Prompt) -> TypeGuard[Sequence[chat.Message]]:
    """Whether it is messages, or nothing at all; else it is text or token ids."""
    return not isinstance(prompt, str) and not (prompt and isinstance(prompt[0], int))


def check_tools_are_shown(prompt: Prompt, tools: Sequence[Tool]) -> None:
    """Refuse tools beside a prompt that does not go through a chat template.

    Raises:
        SpecError: it does not.
    """
    if tools and not is_messages(prompt):
        raise SpecError(
            f"tools with a prompt of {'text' if isinstance(prompt, str) else 'token ids'}: the model would not see them",
            hint='give messages: [{"role": "user", "content": "..."}]',
        )


class PromptEncoder:
    """Encodes prompts for one model; thread-safe.

    Args:
        name: the model's, for errors.
    """

    def __init__(self, backend: Backend, tokenizer: Tokenizer, name: str) -> None:
        self._backend, self._tokenizer, self._name = backend, tokenizer, name

    def encode(
        self, prompt: Prompt, tools: Sequence[Tool] = (), *, most_tokens: int | None = None
    ) -> list[int]:
        """Token ids of a prompt, at least one.

        Args:
            tools: functions that the prompt shows to the model, as `tools.check_tools` gave them.
            most_tokens: what cannot be so few is refused before it is tokenized.

        Raises:
            ContextOverflowError: see `most_tokens`.
            SpecError: messages without a chat template, tools without messages, or nothing at all.
            BadInputError: the template fails.  ValueError: a token id that the model does not know.
        """
        backend = self._backend
        check_tools_are_shown(prompt, tools)
        if isinstance(prompt, str):
            ids = self._tokenizer.encode(
                prompt, add_special=True, parse_special=False, most_tokens=most_tokens
            )
        elif is_messages(prompt):
            ids = self._of_messages(prompt, tools, most_tokens)
        else:
            ids = self._checked(prompt)
        if not ids:
            if backend.bos_id is None:
                raise SpecError("the prompt is empty", hint="give some text")
            ids = [backend.bos_id]
        return ids

    def _of_messages(
        self, messages: Sequence[chat.Message], tools: Sequence[Tool], most_tokens: int | None
    ) -> list[int]:
        backend = self._backend
        if backend.chat_template is None:
            raise SpecError(
                f"{self._name} has no chat template",
                hint="give the prompt as text (--raw on the command line)",
            )
        rendered = chat.render(
            backend.chat_template,
            messages,
            bos_token=self._special(backend.bos_id),
            eos_token=self._special(backend.eos_id),
            tools=tools,
        )
        ids = self._tokenizer.encode(rendered, add_special=False, parse_special=True, most_tokens=most_tokens)
        bos = backend.bos_id
        if backend.add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    def _checked(self, tokens: Sequence[object]) -> list[int]:
        ids = []
        for token in tokens:
            if type(token) is not int or not 0 <= token < self._backend.vocab_size:
                raise ValueError(f"token {token!r} is outside the vocabulary of {self._backend.vocab_size}")
            ids.append(token)
        return ids

    def _special(self, token: int | None) -> str:
        return "" if token is None else self._backend.token_text(token)
