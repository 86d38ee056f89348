"""A complete program (.onnx) on the device: loading it, an image for it, what it computes in, how often it is right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime

from fedcaptor.common.errors import DataError, ModelError

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


def content_of(path: Path) -> bytes:
    """Read a program's file. Raises ModelError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): give an .onnx file") from error


def load(content: bytes, threads: int, name: str) -> onnxruntime.InferenceSession:
    """Load a program on the processor. Raises ModelError, with `name`, for one that ONNX Runtime does not take."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's have no class in common
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{name} is no program that ONNX Runtime runs ({reason}): give an .onnx file") from error


def example(session: onnxruntime.InferenceSession, name: str) -> dict[str, np.ndarray]:
    """Draw a program's one input, the same each time; dimensions that may vary are 1. Raises ModelError."""
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _TYPES or len(inputs[0].shape) < 2:
        told = ", ".join(f"{value.name} {value.type} {value.shape}" for value in inputs)
        raise ModelError(f"{name} takes {told or 'nothing'}, must take images alone: give a program with its weights")
    shape = [size if isinstance(size, int) and size > 0 else 1 for size in inputs[0].shape]
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return {inputs[0].name: _as(pixels, inputs[0].type)}


def precision(session: onnxruntime.InferenceSession, content: bytes) -> str:
    """Tell the numbers that a program computes in: by its notes, or by operations that only eight bits need."""
    noted = session.get_modelmeta().custom_metadata_map.get("precision")
    if noted is not None:
        return str(json.loads(noted))
    return "int8" if b"DequantizeLinear" in content else "float32"


def accuracy(session: onnxruntime.InferenceSession, data: Path, name: str) -> float:
    """Return the share of right answers on the labelled images whose label a program knows. Raises DataError."""
    from fedcaptor.common.data.source import load as images_of  # Pillow, which nothing else needs

    found, given, made = images_of(str(data)), session.get_inputs()[0], session.get_outputs()[0]
    images, wanted = np.moveaxis(found.x, -1, 1), next(iter(example(session, name).values())).shape[1:]
    if images.shape[1:] != wanted:
        raise DataError(f"{data} has images {images.shape[1:]}, {name} takes {wanted}: give such images")
    noted = session.get_modelmeta().custom_metadata_map.get("labels")
    labels = np.arange(made.shape[-1]) if noted is None else np.array(json.loads(noted))
    known = np.isin(found.y, labels)
    if not known.any():
        raise DataError(f"{data} has no image of the {len(labels)} classes that {name} knows: give some")
    answers = [
        int(session.run([made.name], {given.name: _as(image[None], given.type)})[0].argmax()) for image in images[known]
    ]
    return float((labels[answers] == found.y[known]).mean())


def _as(pixels: np.ndarray, kind: str) -> np.ndarray:
    return pixels if kind == "tensor(uint8)" else (pixels / np.float32(255)).astype(_TYPES[kind])
