"""Which convolutions have groups too narrow for sparse kernels to gain anything."""

from __future__ import annotations

from torch import nn

LEAST_CHANNELS = 16
"""Inputs and outputs of a group from which on it may become sparse.

A group is a product of its own, of its outputs with its inputs at each pixel of the kernel. Kernels hold 16 outputs (a
register of AVX-512) or a few of 8 (AVX2), so fewer leave most of a register empty, and inputs are read in runs that end
at each pixel: fewer than 16 float32 are not even a cache line. Depthwise convolutions have one of each; their time goes
to memory and not to multiplications that sparsity would skip.
"""


def too_narrow(conv: nn.Conv2d) -> str | None:
    """What is too narrow about the groups of a convolution, in words for a report; None if nothing."""
    if conv.groups == 1:
        return None
    inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    if inputs == 1:
        return f"is depthwise ({conv.groups} groups of one input): its time goes to memory, not to products"
    if min(inputs, outputs) < LEAST_CHANNELS:
        return (
            f"its {conv.groups} groups of {inputs} inputs and {outputs} outputs are too narrow for sparse kernels "
            f"(fewer than {LEAST_CHANNELS})"
        )
    return None
