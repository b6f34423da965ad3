"""Engines that run an ONNX model: one MatMul whose second operand is the weight."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from .base import Library, Prepared, Problem

OPSET, IR_VERSION = 13, 8  # which all of them read


def model_bytes(problem: Problem) -> bytes:
    """``y[tokens, out] = x[tokens, in] @ w[in, out]`` as a serialised ONNX model.

    Raises:
        ImportError: the package onnx is not installed.
    """
    from onnx import TensorProto, helper, numpy_helper

    out_features, in_features = problem.weight.shape
    tokens = len(problem.x)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [tokens, in_features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [tokens, out_features])],
        [numpy_helper.from_array(np.ascontiguousarray(problem.weight.T), "w")],
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION).SerializeToString()


class _Engine(Library):
    own_process = True

    def load(self) -> None:
        import onnx  # noqa: F401

        super().load()


class OnnxRuntime(_Engine):
    """CPU execution provider; its threads stop spinning when a run ends, so that they leave others alone."""

    name, kind = "onnxruntime", "dense"
    module = package = "onnxruntime"
    install = "onnx onnxruntime"

    def prepare(self, problem: Problem) -> Prepared:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = problem.threads, 1
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(model_bytes(problem), options, providers=["CPUExecutionProvider"])
        return Prepared(lambda: session.run(None, {"x": problem.x})[0])


class OpenVino(_Engine):
    """Latency mode, one stream, float32; input and output stay where they are."""

    name, kind = "openvino", "dense"
    module = package = "openvino"
    install = "onnx openvino"

    def prepare(self, problem: Problem) -> Prepared:
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": problem.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        core = openvino.Core()
        request = core.compile_model(core.read_model(model_bytes(problem)), "CPU", settings).create_infer_request()
        inputs = {0: problem.x}

        def call() -> np.ndarray:
            request.infer(inputs, share_inputs=True, share_outputs=True)
            return request.get_output_tensor().data

        return Prepared(call)


class DeepSparse(_Engine):
    """The last release, on the weight's zeros."""

    name, kind = "deepsparse", "sparse"
    module = package = "deepsparse"
    install = "deepsparse==1.8.0"
    own_environment = True  # it needs onnx < 1.15
    licence = "Neural Magic community licence: evaluation in development and test only"

    def prepare(self, problem: Problem) -> Prepared:
        import deepsparse

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "linear.onnx"
            path.write_bytes(model_bytes(problem))
            engine = deepsparse.Engine(str(path), batch_size=len(problem.x), num_cores=problem.threads)
        return Prepared(lambda: engine.run([problem.x], val_inp=False)[0])


class Mnn(_Engine):
    """The converter decides which weights are worth its sparse kernels, if it is asked to look for zeros.

    Args:
        kind: "sparse" asks it to.
    """

    module, package = "MNN", "MNN"
    install = "onnx MNN"

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.name = f"mnn_{kind}"

    def prepare(self, problem: Problem) -> Prepared:
        # Not the command mnnconvert: it reports to a server, and installs a package for that.
        import _tools
        import MNN.expr
        import MNN.nn

        runtime = MNN.nn.create_runtime_manager(
            ({"backend": "CPU", "numThread": problem.threads, "precision": "high"},)
        )
        with tempfile.TemporaryDirectory() as folder:
            source, converted = Path(folder) / "linear.onnx", Path(folder) / "linear.mnn"
            source.write_bytes(model_bytes(problem))
            arguments = ["mnnconvert", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(converted)]
            if self.kind == "sparse":
                arguments.append("--detectSparseSpeedUp")
            _tools.mnnconvert(arguments)
            found = converted.stat().st_size < 0.9 * problem.weight.nbytes
            module = MNN.nn.load_module_from_file(str(converted), ["x"], ["y"], runtime_manager=runtime)
        x = MNN.expr.const(problem.x, list(problem.x.shape), MNN.expr.NCHW)
        variant = "" if self.kind == "dense" else "sparse kernel" if found else "kept dense by its converter"
        return Prepared(lambda: module.forward(x).read(), variant)
