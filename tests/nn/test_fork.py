"""A process that has used a layer may fork, as data loaders do."""

import os

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.layouts import Granularity

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@pytest.mark.parametrize("granularity", [sk.Block(16, 1), sk.NM(2, 4), sk.Unstructured()], ids=lambda g: g.label)
def test_a_child_computes_the_same(granularity: Granularity) -> None:
    layer = sk.SparseLinear.from_dense(nn.Linear(300, 400), granularity, 0.5)
    x = torch.randn(200, 300)
    with torch.inference_mode():
        expected = layer(x)  # on all threads: the pool has started
        child = os.fork()
        if child == 0:  # nothing but the exit status may leave the child, not even an exception
            same = False
            try:
                torch.set_num_threads(1)  # as in every worker of torch's data loader: no pool survives a fork
                same = torch.equal(layer(x), expected)
            finally:
                os._exit(0 if same else 1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
