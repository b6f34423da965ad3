"""Sparse models in files: safetensors, with the layouts described in the metadata."""

from .load import load_
from .save import save

__all__ = ["load_", "save"]
