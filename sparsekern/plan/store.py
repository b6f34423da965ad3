"""What has been measured on this host, kept from process to process in one SQLite file.

    <cache folder>/sparsekern/plan.sqlite, or $SPARSEKERN_CACHE/plan.sqlite

Whatever is wrong with the file, no product may fail for it and nothing is lost: what cannot be read or written is kept
in memory, ``trouble`` says why, and ``doctor`` shows it. Reading never changes the disk. A damaged file is renamed
when something is to be written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import astuple, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._native import native
from .target import cpu_identity

if TYPE_CHECKING:
    import sqlite3  # otherwise where it is needed: some Pythons lack it

ENV_CACHE = "SPARSEKERN_CACHE"
FILE = "plan.sqlite"

APPLICATION = 0x534B504C
"""SQLite's mark of whose file it is: "SKPL"."""
SCHEMA = 1

READ_SECONDS, WRITE_SECONDS = 0.2, 10.0
"""For which to wait for another process: a product must not, a measurement may."""


@dataclass(frozen=True)
class Entry:
    """One case as it was measured: the fastest kernel, beside the one that the kernel table names first.

    Attributes:
        granularity: the weight's, as ``Granularity.spec`` gives it.
        dtype: of the weight, such as ``float32``.
        out_features: outputs.
        in_features: inputs.
        density: share of the weights that are stored.
        tokens: rows of the activation.
        threads: of torch's pool.
        kernel: the fastest, or the first one where nothing is faster by more than the measurements scatter.
        seconds: of a call with it.
        first: the first line of the table that fits.
        first_seconds: of a call with that one.
        predicted: seconds that the cost model gave for ``kernel``; 0 if it does not know it.
    """

    granularity: str
    dtype: str
    out_features: int
    in_features: int
    density: float
    tokens: int
    threads: int
    kernel: str
    seconds: float
    first: str
    first_seconds: float
    predicted: float


_COLUMNS = [field.name for field in fields(Entry)]
_KINDS = [{"str": str, "int": int, "float": float}[str(field.type)] for field in fields(Entry)]
_CASE = _COLUMNS[: _COLUMNS.index("kernel")]


@dataclass
class Known:
    """All that is known of a host.

    Attributes:
        rates: a record of :class:`sparsekern.plan.Rates`; None where the host has not been tuned.
        entries: the cases that were measured.
    """

    rates: Any = None
    entries: list[Entry] = field(default_factory=list)


class _UnusableError(Exception):
    """A file that is no store of ours."""


def cache_folder() -> Path:
    """Where the store lies, whether or not it exists.

    Raises:
        RuntimeError: neither a variable says so nor is there a home.
    """
    if folder := os.environ.get(ENV_CACHE):
        return Path(folder).absolute()
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache").absolute() / "sparsekern"


def host_key(isa: str) -> str:
    """What measurements are valid for: processor, instruction set in use, cores, and this very build of the kernels."""
    return f"{cpu_identity()}, {isa}, {os.cpu_count() or 1} cores, kernels {_build()}"


@cache
def _build() -> str:
    """A digest of the native library: other code has other speeds."""
    try:
        return hashlib.blake2b(Path(native.__file__).read_bytes(), digest_size=8).hexdigest()
    except (AttributeError, OSError):
        return "unknown"


class Store:
    """The file, or memory in its place.

    Args:
        path: of the file; the usual one if None.

    Attributes:
        path: of the file; None if there is no place for one.
        trouble: why what is known is kept in memory only, or None.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path: Path | None = path
        self.trouble: str | None = None
        self._memory: dict[str, Known] = {}
        if path is None:
            try:
                self.path = cache_folder() / FILE
            except RuntimeError as error:
                self._give_up(error)

    def is_empty(self) -> bool:
        """Whether nothing was ever kept, so that there is nothing to read; never raises."""
        if self._memory:
            return False
        try:
            return self.path is None or not self.path.exists()
        except OSError:
            return False  # reading says what is wrong

    def read(self, host: str) -> Known:
        """What is known of a host: by the file, and by this process, which may have been unable to write; never raises.

        For a process that has measured a case itself, its own measurement counts.
        """
        known, own = Known(), self._memory.get(host, Known())
        if self.path is not None:
            try:
                known = self._read(self.path, host)
            except Exception as error:
                self._give_up(error)
        measured = {_case(entry): entry for entry in (*known.entries, *own.entries)}
        return Known(known.rates if own.rates is None else own.rates, list(measured.values()))

    def keep_rates(self, host: str, rates: dict[str, Any]) -> None:
        """Remember the host's rates; never raises."""
        self._memory.setdefault(host, Known()).rates = rates
        row = (host, json.dumps(rates))
        self._write(lambda db: db.execute("INSERT OR REPLACE INTO hosts VALUES (?, ?)", row))

    def keep(self, host: str, entry: Entry) -> None:
        """Remember one measured case, in place of what was known of it; never raises."""
        known = self._memory.setdefault(host, Known())
        known.entries = [other for other in known.entries if _case(other) != _case(entry)] + [entry]
        marks = ", ".join("?" * (1 + len(_COLUMNS)))
        row = (host, *astuple(entry))
        self._write(lambda db: db.execute(f"INSERT OR REPLACE INTO entries VALUES ({marks})", row))

    def forget(self, host: str) -> None:
        """Forget a host; never raises."""
        self._memory.pop(host, None)

        def forget(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM hosts WHERE host = ?", (host,))
            db.execute("DELETE FROM entries WHERE host = ?", (host,))

        self._write(forget)

    def _read(self, path: Path, host: str) -> Known:
        if not path.exists():
            return Known()
        import sqlite3

        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=READ_SECONDS)) as db:
            if not _is_ours(db, path):
                return Known()
            known = Known()
            for (rates,) in db.execute("SELECT rates FROM hosts WHERE host = ?", (host,)):
                known.rates = json.loads(rates)
            rows = db.execute(f"SELECT {', '.join(_COLUMNS)} FROM entries WHERE host = ? ORDER BY rowid", (host,))
            known.entries = [Entry(*(kind(value) for kind, value in zip(_KINDS, row, strict=True))) for row in rows]
            return known

    def _write(self, change: Callable[[sqlite3.Connection], object]) -> None:
        if self.path is None:
            return
        try:
            import sqlite3

            self.path.parent.mkdir(parents=True, exist_ok=True)
            found = _identity(self.path)
            try:
                self._change(self.path, change)
            except sqlite3.DatabaseError as error:
                # Its subclasses are of another kind: locked, read-only, full.
                if type(error) is not sqlite3.DatabaseError:
                    raise
                # Another process may have put it aside already, and written a new one.
                if _identity(self.path) == found:
                    _set_aside(self.path)
                self._change(self.path, change)
            self.trouble = None
        except Exception as error:
            self._give_up(error)

    def _change(self, path: Path, change: Callable[[sqlite3.Connection], object]) -> None:
        import sqlite3

        with closing(sqlite3.connect(path, timeout=WRITE_SECONDS, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            if not _is_ours(db, path):
                db.execute("CREATE TABLE hosts (host TEXT PRIMARY KEY, rates TEXT NOT NULL)")
                columns = ", ".join(f"{name} NOT NULL" for name in _COLUMNS)
                db.execute(f"CREATE TABLE entries (host TEXT, {columns}, PRIMARY KEY (host, {', '.join(_CASE)}))")
                db.execute(f"PRAGMA application_id = {APPLICATION}")
                db.execute(f"PRAGMA user_version = {SCHEMA}")
            change(db)
            db.execute("COMMIT")

    def _give_up(self, error: Exception) -> None:
        what = f"{self.path} cannot be used" if self.path else "there is no place for a file"
        self.trouble = (
            f"{what} ({error}), so what is measured is kept in memory only: set {ENV_CACHE} to a folder to write to, "
            "or tune again, which puts a damaged file aside."
        )


def _is_ours(db: sqlite3.Connection, path: Path) -> bool:
    """Whether a file holds our tables; False if it is still empty.

    Raises:
        _UnusableError: it is another program's, or of another version of this one.
    """
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (schema,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables and not application:
        return False
    if application != APPLICATION:
        raise _UnusableError("a database of another program")
    if schema != SCHEMA:
        raise _UnusableError(f"expected schema {SCHEMA}, found {schema}, of another version of sparsekern")
    return True


def _identity(path: Path) -> tuple[int, ...]:
    """What tells a file from another one of the same name; empty if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _set_aside(path: Path) -> None:
    """Rename a damaged file, with what SQLite keeps beside it, to a name that is free."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    for suffix in ("-journal", "-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.rename(aside.with_name(aside.name + suffix))


def _case(entry: Entry) -> tuple[object, ...]:
    return astuple(entry)[: len(_CASE)]
