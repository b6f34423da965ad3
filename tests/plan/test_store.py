"""The file of what was measured: whatever is wrong with it, nothing fails and nothing is lost."""

import dataclasses
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsekern.plan import Entry, Store, store as store_module
from sparsekern.plan.store import cache_folder

HOST = "some processor, avx2, 2 cores, kernels 0123"
RATES = {"latency": 1e-9}
ENTRY = Entry("block(16,1)", "float32", 3072, 768, 0.5, 24, 1, "b", 2e-6, "a", 3e-6, 2.5e-6)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "plan.sqlite"


def filled(path: Path) -> Store:
    store = Store(path)
    store.keep_rates(HOST, RATES)
    store.keep(HOST, ENTRY)
    assert store.trouble is None
    return store


def assert_kept_in_memory(store: Store, because: str) -> None:
    """What is measured now is known to this process, and the trouble is named with what to do."""
    store.keep_rates(HOST, RATES)
    store.keep(HOST, ENTRY)
    known = store.read(HOST)
    assert (known.rates, known.entries) == (RATES, [ENTRY])
    assert store.trouble is not None and because in store.trouble and "SPARSEKERN_CACHE" in store.trouble


def test_what_one_process_keeps_another_reads(path: Path) -> None:
    filled(path)
    known = Store(path).read(HOST)
    assert (known.rates, known.entries) == (RATES, [ENTRY])
    assert Store(path).read("another host").entries == []


def test_reading_creates_nothing(path: Path) -> None:
    known = Store(path).read(HOST)
    assert (known.rates, known.entries) == (None, []) and not path.parent.exists()


def test_a_case_measured_again_takes_its_own_place(path: Path) -> None:
    store = filled(path)
    again = dataclasses.replace(ENTRY, kernel="c", seconds=1e-6)
    other = dataclasses.replace(ENTRY, tokens=25)
    for entry in (again, other):
        store.keep(HOST, entry)
    assert sorted(e.tokens for e in Store(path).read(HOST).entries) == [24, 25]
    assert again in Store(path).read(HOST).entries


def test_a_host_is_forgotten_alone(path: Path) -> None:
    store = filled(path)
    store.keep("another host", ENTRY)
    store.forget(HOST)
    assert (Store(path).read(HOST).rates, Store(path).read(HOST).entries) == (None, [])
    assert Store(path).read("another host").entries == [ENTRY]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where a folder is wanted")
    store = Store(tmp_path / "cache" / "plan.sqlite")
    assert store.read(HOST).entries == []
    assert_kept_in_memory(store, "plan.sqlite")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; the next test is for root too")
def test_a_folder_that_cannot_be_written(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o500)
    assert_kept_in_memory(Store(path), "unable to open")


def test_a_folder_where_the_file_should_be(path: Path) -> None:
    path.mkdir(parents=True)
    assert_kept_in_memory(Store(path), "plan.sqlite cannot be used")
    assert path.is_dir()


def test_what_cannot_be_written_is_laid_over_what_the_file_has(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Store, "_change", full)
    store = Store(path)
    again, other = dataclasses.replace(ENTRY, kernel="c"), dataclasses.replace(ENTRY, tokens=25)
    store.keep(HOST, other)
    assert "full" in str(store.trouble)
    known = store.read(HOST)
    assert (known.rates, known.entries) == (RATES, [ENTRY, other])
    store.keep(HOST, again)
    assert store.read(HOST).entries == [again, other]


def test_a_store_says_whether_it_is_empty(path: Path) -> None:
    store = Store(path)
    assert store.is_empty()
    store.keep(HOST, ENTRY)
    assert not store.is_empty() and not Store(path).is_empty()


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database, but longer than the header of one" * 100)


def overwritten(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:200] + b"\xff" * (len(content) - 200))


@pytest.mark.parametrize("damage", [garbage, overwritten])
def test_a_damaged_file_is_set_aside_when_something_is_written(path: Path, damage: Callable[[Path], None]) -> None:
    filled(path)
    damage(path)
    damaged = path.read_bytes()
    store = Store(path)
    assert store.read(HOST).entries == [] and store.trouble is not None
    assert path.read_bytes() == damaged, "reading must not change the disk"
    store.keep(HOST, ENTRY)
    assert store.trouble is None and Store(path).read(HOST).entries == [ENTRY]
    assert path.with_name("plan.sqlite.damaged-1").read_bytes() == damaged
    damage(path)
    Store(path).keep(HOST, ENTRY)
    assert path.with_name("plan.sqlite.damaged-2").exists()


def test_a_file_that_another_process_has_written_anew_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path)
    garbage(path)
    change, tries = Store._change, iter(range(2))

    def while_another_mends(store: Store, *arguments: Any) -> None:
        if next(tries) == 0:
            path.unlink()
            with monkeypatch.context() as patch:
                patch.setattr(Store, "_change", change)
                filled(path)
            raise sqlite3.DatabaseError("file is not a database")
        change(store, *arguments)

    monkeypatch.setattr(Store, "_change", while_another_mends)
    other = dataclasses.replace(ENTRY, tokens=25)
    Store(path).keep(HOST, other)
    assert Store(path).read(HOST).entries == [ENTRY, other]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_another_program_s_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    before = path.read_bytes()
    store = Store(path)
    assert store.read(HOST).entries == []
    assert_kept_in_memory(store, "another program")
    assert path.read_bytes() == before


def test_another_version_s_database_is_left_alone(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 7")
    db.close()
    before = path.read_bytes()
    store = Store(path)
    assert store.read(HOST).entries == []
    assert_kept_in_memory(store, "expected schema 1, found 7")
    assert path.read_bytes() == before


@pytest.mark.parametrize("change", ["UPDATE hosts SET rates = '{'", "UPDATE entries SET tokens = 'many'"])
def test_rows_that_make_no_sense(path: Path, change: str) -> None:
    filled(path)
    with sqlite3.connect(path) as db:
        db.execute(change)
    db.close()
    store = Store(path)
    assert store.read(HOST).entries == [] and store.trouble is not None


def test_a_locked_file_is_not_waited_for_by_readers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "WRITE_SECONDS", 0.1)
    filled(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    store = Store(path)
    assert store.read(HOST).entries == [] and "locked" in str(store.trouble)
    assert_kept_in_memory(store, "locked")
    other.execute("ROLLBACK")
    other.close()
    assert Store(path).read(HOST).entries == [ENTRY]


WRITER = """
import dataclasses, sys
from pathlib import Path
from sparsekern.plan import Entry, Store
store = Store(Path(sys.argv[1]))
entry = Entry("block(16,1)", "float32", 3072, 768, 0.5, 24, 1, "b", 2e-6, "a", 3e-6, 2.5e-6)
for tokens in range(int(sys.argv[2]), int(sys.argv[2]) + 20):
    store.keep("host", dataclasses.replace(entry, tokens=tokens))
assert store.trouble is None, store.trouble
"""


def test_two_processes_write_at_once(path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(first)]) for first in (0, 100)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(Store(path).read("host").entries) == 40


def test_a_python_without_sqlite(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path)
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    store = Store(path)
    assert store.read(HOST).entries == []
    assert_kept_in_memory(store, "sqlite3")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("SPARSEKERN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    store = Store()
    assert store.read(HOST).entries == []
    assert_kept_in_memory(store, "no place for a file")


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPARSEKERN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "sparsekern"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "sparsekern"
    monkeypatch.setenv("SPARSEKERN_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


UNTUNED = """
import sys, torch, sparsekern as sk
assert "sqlite3" not in sys.modules
sk.linear(torch.randn(3, 32), sk.pack(torch.randn(32, 32), sk.Block(16, 1)))
assert "sqlite3" not in sys.modules
"""


def test_importing_reads_nothing_and_an_untuned_host_has_no_file(tmp_path: Path) -> None:
    environment = {**os.environ, "SPARSEKERN_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", UNTUNED], env=environment, check=True)
    assert not (tmp_path / "cache").exists()
