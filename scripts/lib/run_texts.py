"""Prompts for the benchmarks of the runtime; SmolLM2's greedy answers to them are long enough."""

from __future__ import annotations

import random
from collections.abc import Callable

STORY = "The lighthouse keeper climbed the stairs every evening, and this is the story of his life:"
CAPITAL = "What is the capital of France?"
CAPITAL_BEGINS = b"The"

_SUBJECTS = (
    "how bread is baked in a village", "how rivers shape a valley", "how a bicycle is repaired",
    "how bees keep their hive warm", "how a telescope shows far stars", "how a ship finds its harbour at night",
    "how seeds become trees", "how people told the time before clocks",
)  # fmt: skip
QUESTIONS = [
    f"This is chapter {i} of a long book for curious readers. The chapters before were about water, wind, fire and "
    f"stone, and each of them began with a small story, went on with what people have found out over the years, and "
    f"closed with something to try at home. In this chapter the author explains, slowly and with many examples, "
    f"{subject}. It begins like this:\n\n"
    for i, subject in enumerate(_SUBJECTS, start=1)
]

_REPORT = (
    "The footbridge over the Alder was closed on Monday morning after a routine inspection found two cracked timbers "
    "near the eastern bank. The council says that the cracks are old, that they were hidden by moss, and that the heavy "
    "rain in March probably made them worse. Nobody was hurt. Walkers can use the road bridge, which adds about twenty "
    "minutes to the way from the station to the school; a warden will help children across the road between eight and "
    "nine. New oak has been ordered from a sawmill in the next valley, but it has to dry for at least six weeks before "
    "it can be fitted. The engineer expects the bridge to open again in early July."
)
COPY = [
    {
        "role": "user",
        "content": f"Rewrite this text. Replace Monday by Friday and change nothing else.\n\n{_REPORT}",
    }
]
ORDINARY = [
    ("a story", STORY),
    ("an explanation", QUESTIONS[1]),
    ("a chat", [{"role": "user", "content": "Give me ideas for a rainy weekend with two children."}]),
    ("code", "# A Python module that parses dates, with tests\n\nimport re\n\n\ndef parse_date(text):\n"),
]

_WHO = (
    "the miller",
    "a teacher",
    "the old sailor",
    "my neighbour",
    "a young painter",
    "the baker's son",
    "Anna",
    "Tom",
)
_DID = (
    "walked to",
    "looked for",
    "wrote about",
    "dreamed of",
    "painted",
    "remembered",
    "asked about",
    "left",
)
_WHAT = (
    "the harbour",
    "a red house",
    "the long road",
    "an empty field",
    "the market",
    "a stone bridge",
    "the forest",
)
_WHEN = (
    "at noon",
    "before sunrise",
    "in the rain",
    "on a Tuesday",
    "after the war",
    "without a word",
    "in winter",
)


def long_text(n_tokens: int, seed: int, count: Callable[[str], int]) -> str:
    """Sentences of at least that many tokens; another seed gives other ones from the first on."""
    draw = random.Random(seed)
    text = f"Notes, number {seed}."
    while count(text) < n_tokens:
        text += "".join(
            f" {draw.choice(_WHO).capitalize()} {draw.choice(_DID)} {draw.choice(_WHAT)} {draw.choice(_WHEN)}."
            for _ in range(20)
        )
    return text
