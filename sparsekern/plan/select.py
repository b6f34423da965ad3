"""Which back end serves a packed weight, and why the others do not."""

from __future__ import annotations

import torch

from ..layouts import parse
from .convolutions import ConvCall, ConvRequest
from .registry import Backend, Request, backend_named, backends


def select(request: Request) -> Backend:
    """The preferred back end for a request; the reference serves what nobody else does.

    Raises:
        NotImplementedError: no back end serves it, with each one's reason.
        RuntimeError: only the last resort does, for want of an installation: what to install.
    """
    if torch.compiler.is_compiling():
        return backend_named(_name_as_constant(request.granularity.spec, request.shape, request.dtype, request.device))
    return _first_willing(request)


def select_conv(request: ConvRequest) -> Backend:
    """The preferred back end for a convolution; the reference serves what nobody else does.

    Raises:
        NotImplementedError: no back end serves it, with each one's reason.
        RuntimeError: only the last resort does, for want of an installation: what to install.
    """
    if torch.compiler.is_compiling():
        name = _conv_name_as_constant(
            request.granularity.spec, request.shape, request.groups, request.dtype, request.device
        )
        return backend_named(name)
    return _first_willing(request)


def _first_willing(request: Request | ConvRequest) -> Backend:
    for backend in _concerned(request):
        if _refusal(backend, request) is None:
            if backend.is_last_resort:
                _refuse_what_an_installation_would_serve(request)
            return backend
    reasons = "; ".join(f"{b.name}: {_refusal(b, request)}" for b in _concerned(request))
    raise NotImplementedError(
        f"no back end for {request.granularity.label} {request.dtype} on {request.device} "
        f"({reasons or 'none registered'})"
    )


def _refusal(backend: Backend, request: Request | ConvRequest) -> str | None:
    return backend.refusal(request) if isinstance(request, Request) else backend.conv_refusal(request)


def _missing(backend: Backend, request: Request | ConvRequest) -> str | None:
    return backend.missing(request) if isinstance(request, Request) else backend.conv_missing(request)


def willing(request: Request) -> list[Backend]:
    """Those that serve a request, the most preferred first."""
    return [backend for backend in _concerned(request) if backend.refusal(request) is None]


def _refuse_what_an_installation_would_serve(request: Request | ConvRequest) -> None:
    """Raise for a device whose kernels are not installed: there, nobody wants the last resort without being told."""
    install = [missing for backend in _concerned(request) if (missing := _missing(backend, request))]
    if install:
        raise RuntimeError(
            f"{request.granularity.label} {request.dtype} on {request.device}: the kernels are not installed; "
            f"{', or '.join(install)}; or move the layer to the CPU, or call densify_ on the model"
        )


def _concerned(request: Request | ConvRequest) -> list[Backend]:
    """Those that are for the weight's device and granularity.

    So no report says of a weight on a CPU that it is not on a GPU.
    """
    device, kind = request.device.partition(":")[0], request.granularity.kind
    return [
        backend
        for backend in backends()
        if (not backend.devices or device in backend.devices) and (not backend.kinds or kind in backend.kinds)
    ]


def _name_as_constant(spec: str, shape: tuple[int, int], dtype: torch.dtype, device: str) -> str:
    return _first_willing(Request(parse(spec), shape, dtype, device)).name


def _conv_name_as_constant(
    spec: str, shape: tuple[int, int, int, int], groups: int, dtype: torch.dtype, device: str
) -> str:
    return _first_willing(ConvRequest(parse(spec), shape, groups, dtype, device)).name


# The compiler cannot look into a back end's native code and need not: the choice depends on no
# tensor. Plain data goes in and out, which it can guard and keep as a constant. This is what
# torch.compiler.assume_constant_result does after importing the compiler, which takes a second.
_name_as_constant._dynamo_marked_constant = True  # type: ignore[attr-defined]
_conv_name_as_constant._dynamo_marked_constant = True  # type: ignore[attr-defined]


def refusals(request: Request | ConvRequest) -> dict[str, str]:
    """Reasons of the back ends that come before the selected one and refused."""
    reasons: dict[str, str] = {}
    for backend in _concerned(request):
        reason = _refusal(backend, request)
        if reason is None:
            break
        reasons[backend.name] = reason
    return reasons


def conv_kernel_name(request: ConvRequest, call: ConvCall | None = None) -> str:
    """Name of the kernel that runs a convolution, on the back end that serves it, for reports.

    Args:
        request: the weight.
        call: how it is called; without it the name is that of a usual call.
    """
    return select_conv(request).conv_kernel_name(request, call)
