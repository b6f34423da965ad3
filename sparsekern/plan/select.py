"""Which back end serves a packed weight, and why the others do not."""

from __future__ import annotations

from .registry import Backend, Request, backends


def select(request: Request) -> Backend:
    """The preferred back end for a request; the reference serves what nobody else does.

    Raises:
        NotImplementedError: no back end serves it, with each one's reason.
    """
    for backend in backends():
        if backend.refusal(request) is None:
            return backend
    reasons = "; ".join(f"{b.name}: {b.refusal(request)}" for b in backends())
    raise NotImplementedError(
        f"no back end for {request.granularity.label} {request.dtype} on {request.device} ({reasons or 'none registered'})"
    )


def refusals(request: Request) -> dict[str, str]:
    """Reasons of the back ends that come before the selected one and refused."""
    reasons: dict[str, str] = {}
    for backend in backends():
        reason = backend.refusal(request)
        if reason is None:
            break
        reasons[backend.name] = reason
    return reasons
