"""From an engine's file to an engine: TensorRT's runtime, and what it says when it does not want one."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from perfusion.errors import DeviceError
from perfusion.tensorrt.interrupts import held_interrupts
from perfusion.tensorrt.logger import KeptErrors, make_logger

__all__ = ["load_engine", "make_runtime"]


def make_runtime(trt: Any) -> tuple[Any, KeptErrors]:
    """TensorRT's `Runtime`, and the logger that keeps its last error. Only where the driver works: it may crash.

    Raises:
        DeviceError: TensorRT and the driver do not go together.
    """
    logger = make_logger(trt)
    try:
        return trt.Runtime(logger), logger
    except TypeError as error:  # how the bindings say that the library gave nothing
        raise DeviceError(
            f"TensorRT {trt.__version__} does not go with this machine's driver: {logger.last or 'it gave no reason'}."
            " Install a newer driver, or use the provider 'cuda' or 'cpu'."
        ) from error


def load_engine(path: Path, trt: Any, runtime: Any, logger: KeptErrors) -> Any:
    """The engine in a file, which is read where it lies: an engine may be as large as the model."""
    try:
        with (
            held_interrupts(),
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            view = memoryview(data)
            try:
                engine = runtime.deserialize_cuda_engine(view)
            finally:
                view.release()
    except (OSError, ValueError) as error:
        raise DeviceError(f"{path} cannot be read: {error}. Build the engine again.") from error
    if engine is None:
        raise DeviceError(
            f"{path} cannot be used by TensorRT {trt.__version__} here: {logger.last or 'it gave no reason'}. An "
            "engine serves the release and the kind of GPU it was built for: build it again with perfusion-export "
            "--engine."
        )
    return engine
