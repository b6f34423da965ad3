import shutil
from pathlib import Path

import pytest
from emulator import COMPILER, Emulator, build, compile_machine


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    if shutil.which(COMPILER[0]) is None:
        pytest.skip(f"no C++ compiler: {COMPILER[0]}")
    return compile_machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="session")
def emulator(machine: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return Emulator(build(tmp_path_factory.mktemp("emulator"), machine))
