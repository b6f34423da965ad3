"""What a compiler made of a kernel: listings of its code, and what is counted in them. Imports nothing else of ours."""

from .code import Code, Instruction, Listing, UnreadableError

__all__ = ["Code", "Instruction", "Listing", "UnreadableError"]
