"""A peer in a process of its own: ``python -m runtimes.worker`` in the folder bench/, with any interpreter.

Parent and worker exchange pickles over the worker's standard input and output, one answer for each request.
The worker times its own calls, so the exchange costs nobody anything. In between it is blocked in a read.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from .base import Array, Contestant, Library, Peer, Problem, aligned_copy

FOLDER = Path(__file__).resolve().parents[1]
CALM = {
    # Threads of an OpenMP runtime go to sleep soon after a call: milliseconds; and turns of a loop, about as long.
    "KMP_BLOCKTIME": "1",
    "GOMP_SPINCOUNT": "20000",
    # DeepSparse reports its use to a server otherwise.
    "NM_DISABLE_ANALYTICS": "1",
}


class WorkerError(RuntimeError):
    """What happened in the worker, or that it ended."""


class Remote(Peer):
    """A peer that runs in a worker, started when first needed.

    Args:
        peer: what the worker computes with.
        python: the interpreter of the environment where it is installed; by default this one.
    """

    def __init__(self, peer: Library, python: Path | None = None) -> None:
        self.peer, self.python = peer, python or Path(sys.executable)
        self.name, self.kind = peer.name, peer.kind
        self.licence = peer.licence
        self._process: subprocess.Popen[bytes] | None = None

    def absent(self) -> str | None:
        try:
            return self.ask("absent")
        except (OSError, WorkerError) as failure:
            return f"{self.python} cannot run it: {failure}"

    def version(self) -> str:
        return self.ask("version")

    def refusal(self, problem: Problem) -> str | None:
        return self.peer.refusal(problem)

    def enter(self, problem: Problem, neighbour: Problem) -> Contestant:
        """As ``Peer.enter``, in a new process; that of the contestant before it ends.

        Some libraries never recover from an earlier model, least of all from one on another number of threads.
        """
        self.close()
        return _RemoteContestant(self, self.ask("enter", problem, neighbour))

    def ask(self, request: str, *arguments: Any) -> Any:
        """The worker's answer.

        Raises:
            OSError: the interpreter cannot be started.
            WorkerError: the worker raised, or is gone.
        """
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump((request, arguments), process.stdin)
            process.stdin.flush()
            done, answer = pickle.load(process.stdout)
        except (BrokenPipeError, EOFError):
            self._process = None
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise WorkerError(f"the worker ended with status {process.wait()}: {' '.join(last)}") from None
        if not done:
            raise WorkerError(answer)
        return answer

    def close(self) -> None:
        """End the worker, if one runs."""
        if self._process is not None:
            self._process.communicate()  # closes its input, which ends it
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        # A file, as nobody reads while the worker writes: a full pipe would stop it.
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [self.python, "-m", "runtimes.worker"], cwd=FOLDER, env={**os.environ, **CALM},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        self.ask("serve", self.peer)
        return self._process


class _RemoteContestant:
    def __init__(self, remote: Remote, variant: str) -> None:
        self.variant = variant
        self._remote = remote

    def output(self) -> Array:
        return self._remote.ask("output")

    def seconds(self) -> float:
        return self._remote.ask("seconds")


class _Server:
    """The worker's side of each request."""

    def __init__(self) -> None:
        self.peer: Library
        self.contestant: Contestant

    def serve(self, peer: Library) -> None:
        self.peer = peer

    def absent(self) -> str | None:
        return self.peer.absent()

    def version(self) -> str:
        return self.peer.version()

    def enter(self, problem: Problem, neighbour: Problem) -> str:
        self.peer.load()
        # Arrays of a pickle lie anywhere, and their type objects are not the one that DeepSparse compares with.
        problems = (replace(p, weight=aligned_copy(p.weight), x=aligned_copy(p.x)) for p in (problem, neighbour))
        self.contestant = self.peer.enter(*problems)
        return self.contestant.variant

    def output(self) -> Array:
        return self.contestant.output()

    def seconds(self) -> float:
        return self.contestant.seconds()


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the input ends."""
    server = _Server()
    while True:
        try:
            request, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = True, getattr(server, request)(*arguments)
        except Exception as failure:
            traceback.print_exc()
            answer = False, f"{type(failure).__name__}: {failure}"
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    # What a library prints must not run into the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)
