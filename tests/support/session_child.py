"""Asks a saved or a new session of a real model one thing, and prints what came as JSON. Run as a process of its own.

python -m tests.support.session_child FILE SAID [isolate]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgellm import api


def main() -> None:
    path, said = Path(sys.argv[1]), sys.argv[2]
    with api.load("builtin:smollm2", context=512, threads=1, isolate="isolate" in sys.argv[3:]) as model:
        if path.exists():
            session = model.resume(path)
        else:
            session = model.session(
                system="You answer in one short sentence, and you never use more than twenty words for it, "
                "whatever the question is about.",
                temperature=0, max_tokens=24,
            )  # fmt: skip
        done = session.chat(said)
        restored = session.restored
        saved = session.save(path)
        print(
            json.dumps(
                {
                    "token_ids": done.token_ids,
                    "text": done.text,
                    "prompt_tokens": done.usage.prompt_tokens,
                    "cached_tokens": done.usage.cached_tokens,
                    "restored": restored is not None and restored.cache is not None,
                    "because": restored.recomputed_because if restored else None,
                    "saved": saved.cache.n_tokens if saved.cache else saved.recomputed_because,
                }
            )
        )


if __name__ == "__main__":
    main()
