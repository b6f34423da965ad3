"""The facts of each stage, as plain data: what is printed and what ``--json`` gives are both made from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from .. import plan
from ..layouts import PackedWeight, dtype_name, pack
from ..listings import Code, UnreadableError
from . import pictures
from .subject import Subject


@dataclass(frozen=True)
class WeightStage:
    """The numbers of the weight, before the mask where that is known.

    Attributes:
        shape: ``(out, in)``.
        dtype: such as ``float32``.
        mean: of all weights; so the next two.
        std: their standard deviation.
        abs_max: the largest absolute value.
        zeros: share of weights that are zero.
        histogram: numbers of weights in bins from ``-abs_max`` to ``abs_max``, zeros left out.
    """

    shape: tuple[int, int]
    dtype: str
    mean: float
    std: float
    abs_max: float
    zeros: float
    histogram: list[int]


@dataclass(frozen=True)
class MaskStage:
    """Which weights are kept.

    Attributes:
        granularity: its text form.
        label: its short name.
        groups: how many there are.
        kept_groups: of which a weight is kept.
        density: share of the weights that are kept.
        group_rows: rows of groups, each of which a kernel walks along; None where groups form no rows.
        kept_in_row: the fewest, the median and the most groups kept in one of them.
        magnitude: share of the sum of absolute values that is kept.
        map: share of kept weights in each cell of a map.
    """

    granularity: str
    label: str
    groups: int
    kept_groups: int
    density: float
    group_rows: int | None
    kept_in_row: tuple[int, int, int] | None
    magnitude: float
    map: list[list[float]]


@dataclass(frozen=True)
class Part:
    """A packed tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class LayoutStage:
    """The packed form.

    Attributes:
        parts: its tensors.
        bytes: of all of them.
        dense_bytes: of the weight unpacked.
        padding: stored places that lie beyond the matrix.
        law: whether unpacking gives the masked weight, and packing that again the same tensors, bit for bit.
        order: for the first outputs and inputs, where in the values each weight lies; -1 where none is stored.
    """

    parts: list[Part]
    bytes: int
    dense_bytes: int
    padding: int
    law: bool
    order: list[list[int]]


@dataclass(frozen=True)
class PlanStage:
    """Which kernel runs, and why.

    Attributes:
        tokens: rows of the activation.
        device: where the weight is thought to be.
        backend: the one that serves the weight.
        refusals: why those before it do not.
        kernel: the one that is chosen.
        why: ``measured``, ``predicted`` or ``table``, as ``plan.Choice`` has it.
        candidates: names of the kernels that could serve it.
        costs: what the model says about them: microseconds on one thread, and what most of that goes to.
        measured: the measurement that decided.
    """

    tokens: int
    device: str
    backend: str
    refusals: dict[str, str]
    kernel: str
    why: str
    candidates: list[str]
    costs: dict[str, tuple[float, str]]
    measured: dict[str, Any] | None


@dataclass(frozen=True)
class CodeStage:
    """The code of the chosen kernel.

    Attributes:
        code: its listings; None if there are none to show.
        unavailable: why not, and what to do.
        expected: whether there should have been some.
    """

    code: Code | None
    unavailable: str | None
    expected: bool


def weight_stage(subject: Subject) -> WeightStage:
    """Statistics of the weight."""
    weight = subject.weight.double()
    return WeightStage(
        shape=subject.packed.shape,
        dtype=dtype_name(subject.weight.dtype),
        mean=float(weight.mean()),
        std=float(weight.std(correction=0)),
        abs_max=float(weight.abs().max()),
        zeros=float((weight == 0).double().mean()),
        histogram=pictures.histogram(weight[weight != 0]),
    )


def mask_stage(subject: Subject) -> MaskStage:
    """What is kept, in the groups of the granularity."""
    granularity, mask = subject.packed.granularity, subject.mask
    kept = granularity.group_sums(mask.float()) > 0
    in_rows = kept.sum(1) if kept.dim() == 2 else None
    magnitudes = subject.weight.double().abs()
    return MaskStage(
        granularity=granularity.spec,
        label=granularity.label,
        groups=kept.numel(),
        kept_groups=int(kept.sum()),
        density=float(mask.double().mean()),
        group_rows=None if in_rows is None else in_rows.numel(),
        kept_in_row=None if in_rows is None else (int(in_rows.min()), int(in_rows.median()), int(in_rows.max())),
        magnitude=float(magnitudes[mask].sum() / magnitudes.sum().clamp_min(torch.finfo(torch.float64).tiny)),
        map=pictures.density_map(mask).tolist(),
    )


def layout_stage(subject: Subject) -> LayoutStage:
    """The packed tensors, and whether they keep the law."""
    packed = subject.packed
    parts = [
        Part(name, tuple(tensor.shape), dtype_name(tensor.dtype), tensor.nbytes)
        for name, tensor in packed.parts.items()
    ]
    return LayoutStage(
        parts=parts,
        bytes=packed.nbytes,
        dense_bytes=subject.weight.nbytes,
        padding=packed.values.numel() - packed.granularity.stored(packed.parts, packed.shape),
        law=keeps_law(subject),
        order=pictures.storage_order(packed).tolist(),
    )


def keeps_law(subject: Subject) -> bool:
    """Whether ``unpack(pack(w, mask)) == w * mask``, and the packed form is the one that packing it again gives."""
    packed = subject.packed
    masked = torch.where(subject.mask, subject.weight, 0)
    again = pack(masked, packed.granularity, subject.mask)
    return torch.equal(packed.to_matrix(), masked) and _same_parts(packed, again)


def _same_parts(one: PackedWeight, other: PackedWeight) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.tensors, other.tensors, strict=True))


def request_of(subject: Subject, target: str | None) -> plan.Request:
    """What is asked of the plan: a weight on a GPU if code for one is wanted."""
    packed = subject.packed
    return plan.Request(packed.granularity, packed.shape, packed.dtype, "cuda" if target else "cpu")


def plan_stage(subject: Subject, tokens: int, target: str | None) -> PlanStage:
    """The choice of the plan for a number of tokens."""
    if subject.packed.kernel is not None:
        return _plan_conv(subject, tokens, target)
    request = request_of(subject, target)
    stored = subject.packed.values.numel()
    backend = plan.select(request).serving(request, stored, tokens)
    choice = plan.host_plan().choose(backend, request, stored, tokens)
    cheapest_first = sorted(choice.costs.items(), key=lambda item: item[1].seconds)
    return PlanStage(
        tokens=tokens,
        device=request.device,
        backend=backend.name,
        refusals=plan.refusals(request),
        kernel=choice.kernel or backend.kernel_name(request, tokens),
        why=choice.why,
        candidates=[record.name for record in backend.candidates(request)],
        costs={name: (cost.seconds * 1e6, cost.bound) for name, cost in cheapest_first},
        measured=None if choice.entry is None else dataclasses.asdict(choice.entry),
    )


def _plan_conv(subject: Subject, tokens: int, target: str | None) -> PlanStage:
    """The choice for a convolution, which does not depend on the number of pixels."""
    outputs, inputs, height, width = subject.packed.dense_shape
    device = "cuda" if target else "cpu"
    # How many groups there are is not in a file: it belongs to the model.
    shape, dtype = (outputs, inputs, height, width), subject.packed.dtype
    request = plan.ConvRequest(subject.packed.granularity, shape, 1, dtype, device)
    return PlanStage(
        tokens=tokens,
        device=device,
        backend=plan.select_conv(request).name,
        refusals=plan.refusals(request),
        kernel=plan.conv_kernel_name(request),
        why="table",
        candidates=[],
        costs={},
        measured=None,
    )


def code_stage(subject: Subject, tokens: int, target: str | None) -> CodeStage:
    """The code of the kernel that the plan chooses; for a GPU that is not here, of the first back end that has some."""
    chosen, request = plan_stage(subject, tokens, target), request_of(subject, target)
    if subject.packed.kernel is not None:
        return CodeStage(None, f"{chosen.kernel}: the code of convolutions is not shown", False)
    asked = plan.backends() if target else [plan.select(request)]
    try:
        for backend in asked:
            kernel = chosen.kernel if backend.name == chosen.backend else ""
            if code := backend.code(kernel, request, tokens, target):
                return CodeStage(code, None, True)
    except UnreadableError as error:
        return CodeStage(None, str(error), True)
    if target:
        names = ", ".join(backend.name for backend in asked)
        return CodeStage(None, f"no back end has compiled code for {target} here (asked: {names})", True)
    return CodeStage(None, f"{chosen.kernel} has no code of its own: PyTorch multiplies", False)
