"""Peers for the tests, in a file of their own: a worker imports them too."""

from __future__ import annotations

import os

import numpy as np
from runtimes.base import Library, Prepared, Problem


class Right(Library):
    name, kind = "right", "sparse"
    module = package = "numpy"

    def prepare(self, problem: Problem) -> Prepared:
        print("libraries print what they like")
        return Prepared(lambda: problem.x @ problem.weight.T, "a variant")


class Wrong(Right):
    name = "wrong"

    def prepare(self, problem: Problem) -> Prepared:
        return Prepared(lambda: problem.x @ problem.weight.T + np.float32(0.1))


class OfAnotherShape(Right):
    name = "of_another_shape"

    def prepare(self, problem: Problem) -> Prepared:
        return Prepared(lambda: (problem.x @ problem.weight.T)[:1])


class Failing(Right):
    name = "failing"

    def prepare(self, problem: Problem) -> Prepared:
        raise ValueError("cannot do this\nfor a reason told at length")


class FailingLater(Right):
    name = "failing_later"
    calls = 0

    def prepare(self, problem: Problem) -> Prepared:
        def call() -> np.ndarray:
            self.calls += 1
            if self.calls > 4:
                raise ValueError("tired")
            return problem.x @ problem.weight.T

        return Prepared(call)


class Refusing(Right):
    name = "refusing"

    def refusal(self, problem: Problem) -> str | None:
        return "not of this shape"


class Dying(Right):
    name = "dying"

    def prepare(self, problem: Problem) -> Prepared:
        os._exit(3)


class NotInstalled(Right):
    name = "not_installed"
    module = package = "a_library_that_nobody_has"
    own_environment = True
    licence = "for reading only"
