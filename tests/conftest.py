"""What all tests share."""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from sparsekern import _native, layouts
from sparsekern.plan import registry
from sparsekern.plan.store import ENV_CACHE

# The first call of a kernel or of the compiler takes as long as it takes.
settings.register_profile("default", deadline=None, max_examples=60)
settings.load_profile("default")

ISAS = _native.native.isa_supported() if _native.native else ["none"]
"""Every instruction set that kernels exist for and this machine has."""


def pytest_configure(config: pytest.Config) -> None:
    """CI asks for the library: without it most tests would be skipped, and the rest would pass."""
    # What this machine was tuned for must not choose the kernels that are tested.
    os.environ[ENV_CACHE] = tempfile.mkdtemp(prefix="sparsekern-tests-")
    config.add_cleanup(partial(shutil.rmtree, os.environ[ENV_CACHE], ignore_errors=True))
    if _native.native is None and os.environ.get("SPARSEKERN_REQUIRE_NATIVE", "0") not in ("", "0"):
        raise pytest.UsageError(f"SPARSEKERN_REQUIRE_NATIVE is set, but there are no native kernels: {_native.failure}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What tests the compiled kernels says, in a pure-Python installation, why they are missing."""
    if item.get_closest_marker("needs_native") and _native.native is None:
        pytest.skip(f"no native kernels: {_native.failure}")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def registries_as_they_were() -> Iterator[None]:
    """Granularities and back ends that a test adds are gone after it."""
    granularities, backends = dict(layouts.granularity._REGISTRY), dict(registry._BACKENDS)
    yield
    for known, before in ((layouts.granularity._REGISTRY, granularities), (registry._BACKENDS, backends)):
        known.clear()
        known.update(before)


@pytest.fixture(autouse=True, scope="module")
def one_thread_where_matrices_are_small(request: pytest.FixtureRequest) -> Iterator[None]:
    """In demo/ and prune/: they gain nothing from more threads, and lose a lot to busy neighbours."""
    before = torch.get_num_threads()
    if request.path.parent.name in ("demo", "prune"):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on each instruction set."""
    if _native.native is None:
        yield request.param
        return
    before = _native.native.isa()
    _native.native.set_isa(request.param)
    yield request.param
    _native.native.set_isa(before)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone, which ends after what the test made with it.

    A wrapped model that outlives its group destroys it under the interpreter's lock, for which the group's own thread
    may be waiting.
    """
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    gc.collect()
    torch.distributed.destroy_process_group()


@pytest.fixture
def threads() -> Iterator[None]:
    """The test may change the number of PyTorch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
