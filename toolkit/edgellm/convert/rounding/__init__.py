"""Rounding of our own into ggml's standard blocks: better scales, and errors that later columns make up for."""

from edgellm.convert.rounding.compensate import Feedback, encode_compensated, encode_plain, feedback
from edgellm.convert.rounding.encoder import make_encoder
from edgellm.convert.rounding.scales import FORMATS

__all__ = ["FORMATS", "Feedback", "encode_compensated", "encode_plain", "feedback", "make_encoder"]
