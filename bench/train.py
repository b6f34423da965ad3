"""Training steps of packed layers against dense PyTorch: python bench/train.py --out results.jsonl

The gradients of one layer, each alone, and a whole step (forward, backward, SGD) of a two-layer perceptron. For every
case: correctness against float64 first; then ours and the fastest dense PyTorch, interleaved, and ours and eager. Ten
rounds of eager, compiled and by oneDNN (dense.py) before decide which is the fastest. What is timed is what autograd
calls: transposing gradients and activations, tails and output layout are all inside. Efficiency is speed-up x density.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from dense import OneDnnLinear, onednn
from harness import (
    TRIAL_ROUNDS,
    against_dense,
    against_peak,
    command_line,
    environment,
    fma_peak,
    pair,
    parsed,
    threads,
    write,
)
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.layouts import Granularity, parse
from sparsekern.plan import Request, interleave, select

SHAPES = ((1024, 4096), (4096, 1024))  # (in, out)
MLP = (1024, 4096, 1024)
GRANULARITIES = (sk.Block(16, 16), sk.Block(16, 1), sk.Block(4, 1), sk.NM(2, 4), sk.Unstructured())


def with_gradients(call: Callable[[], object]) -> Callable[[], object]:
    """``call`` with autograd, which the timer turns off around everything."""

    def run() -> object:
        with torch.inference_mode(False), torch.enable_grad():
            return call()

    return run


def close(found: Tensor, expected: Tensor, what: str) -> float:
    """Largest error relative to the largest number, if it is small enough."""
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error < 1e-5:
        raise AssertionError(f"{what}: relative error {error:.2e}")
    return error


def gradient_cases(options: argparse.Namespace, count: int, sides: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """The gradient of the input and that of the values, each alone."""
    in_features, out_features = sides
    torch.manual_seed(options.seed)
    weight = torch.randn(out_features, in_features)
    x, grad = torch.randn(options.tokens, in_features), torch.randn(options.tokens, out_features)
    functions: dict[str, Callable[[], Tensor]] = {"input": lambda: grad @ weight, "values": lambda: grad.T @ x}
    dense: dict[str, dict[str, Callable[[], object]]] = {of: {"eager": call} for of, call in functions.items()}
    if options.compiled:
        torch._dynamo.reset()
        for of, call in functions.items():
            dense[of]["compiled"] = torch.compile(call, dynamic=False)
        dense["input"]["onednn"] = lambda: onednn(grad, weight.t())
        dense["values"]["onednn"] = lambda: onednn(grad.t(), x.t())
        dense["values"]["onednn transposed"] = lambda: onednn(x.t(), grad.t()).t()
    for granularity in options.granularities:
        packed = pack(weight, granularity, options.density)
        shape = (out_features, in_features)
        backend = select(Request(granularity, shape, torch.float32, "cpu"))
        unpacked = packed.to_dense().double()
        weight_arguments = (granularity, shape, packed.tensors)
        ours: dict[str, Callable[[], Tensor]] = {
            "input": partial(backend.grad_input, grad, *weight_arguments),
            "values": partial(backend.grad_values, grad, x, *weight_arguments),
        }
        expected = {
            "input": grad.double() @ unpacked,
            "values": granularity.gather(grad.double().T @ x.double(), packed.parts),
        }
        for of, call in ours.items():
            error = close(call(), expected[of], f"{granularity.label}, gradient of the {of}")
            peak = fma_peak(count, 0.05)
            trial = interleave(dense[of], TRIAL_ROUNDS)
            record = against_dense(call, dense[of], trial, options.rounds, packed.density)
            yield {
                "case": {
                    "what": f"grad_{of}",
                    "in": in_features,
                    "out": out_features,
                    "granularity": granularity.label,
                },
                **record,
                **against_peak(record, weight.numel(), options.tokens, peak),
                "error": error,
            }


def pack(weight: Tensor, granularity: Granularity, density: float) -> sk.PackedWeight:
    """Pruned by magnitude to the density that the granularity implies, or else to ``density``."""
    implied = granularity.implied_sparsity
    return sk.pack(weight, granularity, sk.make_mask(weight, granularity, 1 - density if implied is None else None))


def dense_perceptron(layer: type[nn.Linear] = nn.Linear) -> nn.Sequential:
    """Two layers with a gelu between them."""
    return nn.Sequential(layer(MLP[0], MLP[1]), nn.GELU(), layer(MLP[1], MLP[2]))


def perceptron(granularity: Granularity, density: float) -> nn.Sequential:
    """The same pruned; all weights train."""
    dense = [layer for layer in dense_perceptron() if isinstance(layer, nn.Linear)]
    layers = [sk.SparseLinear(pack(layer.weight, granularity, density), layer.bias) for layer in dense]
    for layer in layers:
        layer.values.requires_grad_()
    return nn.Sequential(layers[0], nn.GELU(), layers[1])


def training_step(model: nn.Module, trained: list[Tensor], x: Tensor, target: Tensor) -> Callable[[], object]:
    """Forward, backward and SGD; what a step makes is let go at its end, as in a loop."""
    optimizer = torch.optim.SGD(trained, lr=1e-4)

    def step() -> object:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return None

    return with_gradients(step)


def check_step(model: nn.Sequential, x: Tensor) -> float:
    """The gradients of a perceptron's values against those of the same one, dense and in float64."""
    dense = nn.Sequential(*(m.to_dense() if isinstance(m, sk.SparseLinear) else m for m in model)).double()
    model(x).square().sum().backward()
    dense(x.double()).square().sum().backward()
    errors = []
    for ours, theirs in zip(model, dense, strict=True):
        if isinstance(ours, sk.SparseLinear):
            expected = ours.granularity.gather(theirs.weight.grad, ours.packed.parts)
            errors.append(close(ours.values.grad, expected, str(ours)))
            ours.values.grad = ours.bias.grad = None
    return max(errors)


def step_cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A whole training step of the perceptron."""
    torch.manual_seed(options.seed)
    x, target = torch.randn(options.tokens, MLP[0]), torch.randn(options.tokens, MLP[2])
    variants = {}
    for name in ("eager", "compiled", "onednn") if options.compiled else ("eager",):
        model = dense_perceptron(OneDnnLinear if name == "onednn" else nn.Linear)
        run = torch.compile(model, dynamic=False) if name == "compiled" else model
        variants[name] = training_step(run, list(model.parameters()), x, target)
    for granularity in options.granularities:
        model = perceptron(granularity, options.density)
        layers = [layer for layer in model if isinstance(layer, sk.SparseLinear)]
        error = check_step(model, x)
        trained = [*model.parameters(), *(layer.values for layer in layers)]
        density = sum(layer.packed.density for layer in layers) / len(layers)
        step = training_step(model, trained, x, target)
        yield {
            "case": {"what": "step", "mlp": list(MLP), "granularity": granularity.label},
            **against_dense(step, variants, interleave(variants, TRIAL_ROUNDS), options.rounds, density),
            "error": error,
        }


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    env = environment()
    for count in options.threads:
        with threads(count):
            for sides in options.shapes:
                yield from (finished(record, options, count, env) for record in gradient_cases(options, count, sides))
            yield from (finished(record, options, count, env) for record in step_cases(options))


def finished(record: dict[str, Any], options: argparse.Namespace, count: int, env: dict[str, Any]) -> dict[str, Any]:
    """With what all cases share."""
    case = {
        **record["case"],
        "tokens": options.tokens,
        "threads": count,
        "dtype": "float32",
        "density": round(record["stored"], 2),
    }
    return {"suite": "train", **record, "case": case, "env": env, "seed": options.seed}


def line(record: dict[str, Any]) -> str:
    case = record["case"]
    sides = "-".join(map(str, case["mlp"])) if "mlp" in case else f"{case['in']}->{case['out']}"
    share = f"  peak share {record['share_of_peak']:.2f}" if "share_of_peak" in record else ""
    return (
        f"{case['threads']}t M={case['tokens']:<4d} {case['what']:>11s} {sides:>14s} {case['granularity']:>12s} "
        f"stored {record['stored']:<5.3g} "
        f"dense {record['baseline']['median'] * 1e3:7.2f} ms ({record['baseline']['name']:8s}) "
        f"sparse {record['t']['median'] * 1e3:7.2f} ms  {record['speedup']:6.2f}x  "
        f"eff {record['efficiency']:.2f}{share}"
    )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--shapes", type=pair, nargs="+", default=SHAPES, help="INxOUT, of the single gradients")
    parser.add_argument(
        "--granularities", type=parse, nargs="+", default=GRANULARITIES, help="such as block(16,1) or nm(2,4,1)"
    )
    parser.add_argument("--density", type=float, default=0.1, help="of granularities that imply none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager-only", dest="compiled", action="store_false", help="only eager dense PyTorch")
    options = parsed(parser)
    write(cases(options), line, options.out)


if __name__ == "__main__":
    main()
