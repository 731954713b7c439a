"""The text model out of a Gemma 3 that also sees: its vision tower and projector are left out."""

from __future__ import annotations

import dataclasses

from edgellm.convert.architectures import gemma3
from edgellm.convert.architectures.hyper import Hyper
from edgellm.formats.plain_json import Fields


def _check(fields: Fields, hyper: Hyper) -> list[str]:
    return [*gemma3.FAMILY.check(fields, hyper), "only the text model is converted: it cannot see pictures"]


FAMILY = dataclasses.replace(
    gemma3.FAMILY,
    classes=("Gemma3ForConditionalGeneration",),
    section="text_config",
    prefixes={
        "language_model.": "",
        "model.language_model.": "model.",
    },
    ignored_prefixes=(
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ),
    check=_check,
)
