"""Whole MiniLM, sparse against dense PyTorch: python bench/model.py --out results.jsonl

The unmodified Hugging Face BertModel with its real weights and running text; all Linear layers of the
encoder are pruned. Correctness first: the sparse model's outputs against the same weights in dense
layers. Then every variant, dense and sparse, in one interleaved run: eager, compiled, and compiled
with constant folding of the weights ("frozen"). The speed-up is that of the fastest sparse variant
over the fastest dense one; eager over eager stands beside it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from dense import frozen
from harness import command_line, environment, fma_peak, pair, parsed, threads, write
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.demo import minilm
from sparsekern.plan import Sample, interleave


def check(model: nn.Module, batch: Tensor) -> float:
    """Largest difference from the densified model, relative to the largest output."""
    dense = copy.deepcopy(model)
    sk.densify_(dense)
    expected = dense(input_ids=batch).last_hidden_state
    error = (model(input_ids=batch).last_hidden_state - expected).abs().max() / expected.abs().max()
    if not error < 1e-4:
        raise AssertionError(f"sparse outputs differ from dense ones by {error:.2e}")
    return float(error)


def variants(kind: str, model: nn.Module, batch: Tensor, compiled: bool) -> dict[str, Callable[[], object]]:
    """Ways to run a model, each warmed up; what cannot be compiled here is left out, with a line that says so."""
    ways: dict[str, Callable[[], Callable[..., Any]]] = {"eager": lambda: model}
    if compiled:
        ways["compiled"] = lambda: torch.compile(model, dynamic=False)
        ways["frozen"] = lambda: frozen(model, input_ids=batch)
    functions: dict[str, Callable[[], object]] = {}
    expected = model(input_ids=batch).last_hidden_state
    for name, prepare in ways.items():
        try:
            way = prepare()
            found = way(input_ids=batch).last_hidden_state
        except Exception as failure:
            print(f"{kind} {name}: does not run here: {type(failure).__name__}: {str(failure).splitlines()[0]}")
            continue
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        functions[f"{kind} {name}"] = lambda way=way: way(input_ids=batch)
    return functions


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    env = environment()
    model = minilm.load_model()
    text = minilm.load_documents(minilm.load_tokenizer(), "lee_background.cor")
    batch = minilm.token_batch(text, *options.batch)
    for count in options.threads:
        # Each model has two pieces of code for the same functions; what is not compiled must not count as compiled.
        limit = torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True)
        with threads(count), torch.inference_mode(), limit:
            # Compiled code is made for one number of threads.
            torch._dynamo.reset()
            dense = variants("dense", model, batch, options.compiled)
            for block in options.blocks:
                for density in options.densities:
                    yield measure(options, env, count, model, dense, batch, block, density)


def measure(
    options: argparse.Namespace,
    env: dict[str, Any],
    count: int,
    model: nn.Module,
    dense: dict[str, Callable[[], object]],
    batch: Tensor,
    block: tuple[int, int],
    density: float,
) -> dict[str, Any]:
    pruned = copy.deepcopy(model)
    report = sk.sparsify_(pruned, sk.Sparse(sk.Block(*block), 1 - density))
    error = check(pruned, batch)
    sparse = variants("sparse", pruned, batch, options.compiled)
    peak = fma_peak(count)
    times = interleave({**dense, **sparse}, options.rounds)
    baseline, best = fastest(times, "dense"), fastest(times, "sparse")
    ratio = times[baseline].over(times[best])
    return {
        "suite": "model",
        "case": {
            "model": "all-MiniLM-L6-v2",
            "batch": list(options.batch),
            "threads": count,
            "dtype": "float32",
            "granularity": f"{block[0]}x{block[1]}",
            "density": density,
            "layers": report.sparse_layers,
            "kernels": sorted({row.kernel for row in report if row.kernel}),
        },
        "variant": best,
        "t": times[best].record(),
        "baseline": {"name": baseline, **times[baseline].record()},
        "ratio": ratio.record(),
        "speedup": ratio.median,
        "speedup_eager": times["dense eager"].over(times["sparse eager"]).median,
        "efficiency": ratio.median * density,
        "variants": {name: sample.record() for name, sample in times.items()},
        "peak_gflops": peak,
        "bytes": [report.bytes_before, report.bytes_after],
        "error": error,
        "env": env,
    }


def fastest(times: dict[str, Sample], kind: str) -> str:
    return min((name for name in times if name.startswith(kind)), key=lambda name: times[name].median)


def line(record: dict[str, Any]) -> str:
    case = record["case"]
    medians = ", ".join(f"{name} {sample['median'] * 1e3:.1f}" for name, sample in record["variants"].items())
    return (
        f"{case['threads']}t {case['granularity']:>6s} d={case['density']:<5.3g} {record['speedup']:.2f}x "
        f"({record['variant']} over {record['baseline']['name']}; eager over eager {record['speedup_eager']:.2f}x)  "
        f"ms: {medians}"
    )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--batch", type=pair, default=(8, 128), help="DOCUMENTSxTOKENS")
    parser.add_argument("--blocks", type=pair, nargs="+", default=[(16, 1)], help="ROWSxCOLS")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.25])
    parser.add_argument("--eager-only", dest="compiled", action="store_false", help="compile nothing")
    options = parsed(parser)
    if any(minilm.missing()):
        parser.error("the demo's packages are not installed; python -m sparsekern demo says how")
    write(cases(options), line, options.out)


if __name__ == "__main__":
    main()
