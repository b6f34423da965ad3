"""Our layers against other people's: python bench/peers.py --python deepsparse=.venv-ds/bin/python --out peers.jsonl

For every case, all peers multiply the same activations by the same weight, on as many threads as we. Each is
compared with float64 first; a wrong result is not timed. Then ours and theirs take turns. A call takes
row-major activations as they come, so a peer's packing of them counts. Dense peers get the weight before
pruning, once a shape. A peer that is not installed, refuses the pattern or fails is recorded as such.
docs/peers.md says how to install them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import command_line, environment, fma_peak, pair, parsed, threads, write
from runtimes import mkl, onnx_engines, pytorch, scipy_sparse
from runtimes.base import Contestant, Library, Local, Peer, Prepared, Problem
from runtimes.worker import CALM, Remote
from torch import nn

import sparsekern as sk
from sparsekern.layouts import parse
from sparsekern.plan import Request, Sample, interleave, kernel_name

PEERS: tuple[Library, ...] = (
    pytorch.Eager(),
    pytorch.Compiled(),
    onnx_engines.OnnxRuntime(),
    onnx_engines.OpenVino(),
    onnx_engines.Mnn("dense"),
    pytorch.Zentorch(),
    pytorch.Sparse("bsr", "linear"),
    pytorch.Sparse("bsr", "matmul"),
    pytorch.Sparse("csr", "linear"),
    pytorch.Sparse("csr", "matmul"),
    mkl.Bsr(),
    mkl.Csr(),
    scipy_sparse.Bsr(),
    onnx_engines.DeepSparse(),
    onnx_engines.Mnn("sparse"),
)
OURS = "sparsekern"
SHAPES = ((768, 3072), (3072, 768), (384, 1536), (1536, 384), (4096, 4096))  # (in, out)
GRANULARITIES = (sk.Block(16, 16), sk.Block(16, 1), sk.NM(2, 4), sk.Unstructured())
DENSITIES = (0.5, 0.25, 0.1)
TOKENS = (1, 128)
ALLOWED = 1e-5  # error relative to the largest output
TRIAL_ROUNDS = 5
PATIENCE = 10.0  # seconds for all rounds of one peer; a slower one keeps its trial rounds
PAUSE = 0.003  # seconds until the threads of whoever ran before are asleep


class Turn:
    """One contestant's turn within a round; of one that fails, the first failure is kept and no time."""

    def __init__(self, contestant: Contestant, pause: float) -> None:
        self.contestant, self.pause = contestant, pause
        self.times: list[float] = []
        self.failure: str | None = None

    def __call__(self) -> None:
        if self.failure is None:
            time.sleep(self.pause)
            try:
                self.times.append(self.contestant.seconds())
            except Exception as failure:
                self.failure = describe(failure)


def race(contestants: Mapping[str, Contestant], rounds: int, pause: float) -> dict[str, tuple[Sample, Sample] | str]:
    """Time all in turn.

    Returns:
        By name, the peer's seconds and ours of the same rounds, or how it failed.

    Raises:
        RuntimeError: ours failed.
    """
    results: dict[str, tuple[Sample, Sample] | str] = {}
    for count in (TRIAL_ROUNDS, rounds):
        turns = {name: Turn(contestant, pause) for name, contestant in contestants.items()}
        interleave(turns, count)
        if turns[OURS].failure is not None:
            raise RuntimeError(turns[OURS].failure)
        # Two calls come before the rounds.
        samples = {name: Sample(tuple(turn.times[2:])) for name, turn in turns.items() if turn.failure is None}
        results |= {name: turn.failure for name, turn in turns.items() if turn.failure is not None}
        results |= {name: (sample, samples[OURS]) for name, sample in samples.items()}
        quick = [name for name, sample in samples.items() if 2 * rounds * sample.median < PATIENCE]
        contestants = {name: contestants[name] for name in dict.fromkeys([OURS, *quick])}
    return results


def enter(peer: Peer, problem: Problem, neighbour: Problem) -> Contestant | dict[str, str]:
    """A contestant whose output is right, or why there is none."""
    if reason := peer.refusal(problem):
        return {"refused": reason}
    try:
        contestant = peer.enter(problem, neighbour)
        error = relative_error(contestant, problem)
    except Exception as failure:
        return {"error": describe(failure)}
    return contestant if error < ALLOWED else {"error": f"wrong result: relative error {error:.1e}"}


def relative_error(contestant: Contestant, problem: Problem) -> float:
    """Largest difference from the float64 product, relative to its largest element."""
    expected = torch.from_numpy(problem.x).double() @ torch.from_numpy(problem.weight).double().T
    found = torch.from_numpy(contestant.output())
    if found.shape != expected.shape:
        raise RuntimeError(f"expected an output of shape {tuple(expected.shape)}, found {tuple(found.shape)}")
    return float((found - expected).abs().max() / expected.abs().max())


def describe(failure: Exception) -> str:
    """In one line."""
    return f"{type(failure).__name__}: {str(failure).strip().splitlines()[0] if str(failure).strip() else ''}"


def cases(options: argparse.Namespace, peers: Sequence[Peer]) -> Iterator[dict[str, Any]]:
    absent = {peer.name: reason for peer in peers if (reason := peer.absent()) is not None}
    for name, reason in absent.items():
        print(f"{name}: absent: {reason}", flush=True)
    present = [peer for peer in peers if peer.name not in absent]
    env = environment() | {"peers": {peer.name: peer.version() for peer in present}}
    for count in options.threads:
        with threads(count), torch.inference_mode():
            for tokens in options.tokens:
                for in_features, out_features in options.shapes:
                    for record in shape_cases(options, present, count, tokens, in_features, out_features):
                        record["peers"] |= {name: {"absent": reason} for name, reason in absent.items()}
                        yield {"suite": "peers", **record, "env": env, "seed": options.seed}


def shape_cases(
    options: argparse.Namespace, peers: Sequence[Peer], count: int, tokens: int, in_features: int, out_features: int
) -> Iterator[dict[str, Any]]:
    torch.manual_seed(options.seed)
    # The second one passes through the caches between two timed calls.
    linears = [nn.Linear(in_features, out_features, bias=False) for _ in range(2)]
    x = torch.randn(tokens, in_features)
    whole = [Problem(linear.weight.detach().numpy(), x.numpy(), (1, 1), count) for linear in linears]
    dense = {peer.name: enter(peer, *whole) for peer in peers if peer.kind == "dense"}
    for granularity in options.granularities:
        implied = granularity.implied_sparsity
        for density in options.densities if implied is None else (1 - implied,):
            layers = [sk.SparseLinear.from_dense(linear, granularity, sparsity=1 - density) for linear in linears]
            pruned = [
                Problem(layer.to_dense().weight.detach().numpy(), x.numpy(), block_of(granularity), count)
                for layer in layers
            ]
            ours = Local(*(Prepared(partial(layer, x)) for layer in layers))
            if not (error := relative_error(ours, pruned[0])) < ALLOWED:
                raise AssertionError(f"{layers[0]}: relative error {error:.2e} at {tokens} tokens")
            entries = dense | {peer.name: enter(peer, *pruned) for peer in peers if peer.kind == "sparse"}
            contestants = {name: entry for name, entry in entries.items() if not isinstance(entry, dict)}
            results = race({OURS: ours, **contestants}, options.rounds, PAUSE if count > 1 else 0.0)
            times, _ = results.pop(OURS)
            request = Request(granularity, (out_features, in_features), torch.float32, "cpu")
            yield {
                "case": {
                    "in": in_features,
                    "out": out_features,
                    "tokens": tokens,
                    "threads": count,
                    "dtype": "float32",
                    "granularity": granularity.label,
                    "density": density,
                    "kernel": kernel_name(request, layers[0].packed.values.numel(), tokens),
                },
                "t": times.record(),
                "dense_equivalent_gflops": 2e-9 * tokens * in_features * out_features / times.median,
                "stored": layers[0].packed.density,
                "peak_gflops": fma_peak(count, 0.05),
                "error": error,
                "peers": {peer.name: outcome(peer, entries[peer.name], results.get(peer.name)) for peer in peers},
            }


def block_of(granularity: sk.Granularity) -> tuple[int, int]:
    """Rows and columns of the weight that are kept or dropped together."""
    return getattr(granularity, "rows", 1), getattr(granularity, "cols", 1)


def outcome(
    peer: Peer, entry: Contestant | dict[str, str], result: tuple[Sample, Sample] | str | None
) -> dict[str, Any]:
    """A peer's part of a record."""
    if isinstance(entry, dict):
        return {"kind": peer.kind, **entry}
    if not isinstance(result, tuple):
        return {"kind": peer.kind, "error": result}
    theirs, ours = result
    facts = {"variant": entry.variant, "licence": peer.licence}
    return {
        "kind": peer.kind,
        **{name: fact for name, fact in facts.items() if fact},
        "t": theirs.record(),
        "ratio": theirs.over(ours).record(),
    }


def line(record: dict[str, Any]) -> str:
    case = record["case"]
    found = sorted((peer["ratio"]["median"], name) for name, peer in record["peers"].items() if "ratio" in peer)
    failed = [f"{name}: {peer['error']}" for name, peer in record["peers"].items() if "error" in peer]
    return "\n    ".join(
        [
            f"{case['threads']}t M={case['tokens']:<4d} {case['in']:>5d}->{case['out']:<5d} {case['granularity']:>12s} "
            f"d={case['density']:<5.3g} {record['t']['median'] * 1e6:8.1f} us  "
            f"{record['dense_equivalent_gflops']:7.1f} GFLOP/s if dense; "
            + ", ".join(f"{ratio:.2f}x {name}" for ratio, name in found),
            *failed,
        ]
    )


def chosen(options: argparse.Namespace) -> list[Peer]:
    """The peers asked for, in a worker where they need one."""
    pythons = dict(options.python)
    return [
        Remote(peer, pythons.get(peer.name)) if peer.own_process or peer.name in pythons else peer
        for peer in PEERS
        if peer.name in options.peers
    ]


def environment_of(text: str) -> tuple[str, Path]:
    """``NAME=PYTHON`` from the command line."""
    name, _, python = text.partition("=")
    if name not in {peer.name for peer in PEERS} or not python:
        raise argparse.ArgumentTypeError(f"expected NAME=PYTHON with the name of a peer, found {text!r}")
    return name, Path(python)


def main() -> None:
    parser = command_line(__doc__)
    names = [peer.name for peer in PEERS]
    parser.add_argument("--peers", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--python", type=environment_of, action="append", default=[], metavar="NAME=PYTHON",
        help="the interpreter of the environment that a peer is installed in",
    )  # fmt: skip
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--shapes", type=pair, nargs="+", default=SHAPES, help="INxOUT")
    parser.add_argument(
        "--granularities", type=parse, nargs="+", default=GRANULARITIES, help="such as block(16,1) or nm(2,4,1)"
    )
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--seed", type=int, default=0)
    options = parsed(parser)
    if any(os.environ.get(name) != value for name, value in CALM.items()):
        # An OpenMP runtime reads them once, when it is loaded.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **CALM})
    peers = chosen(options)
    try:
        write(cases(options, peers), line, options.out)
    finally:
        for peer in peers:
            if isinstance(peer, Remote):
                peer.close()


if __name__ == "__main__":
    main()
