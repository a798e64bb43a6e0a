"""The dozen calls of NVIDIA's driver that running an engine needs: memory, copies and one stream.

The driver's own library is there wherever a driver is, so this needs neither the CUDA toolkit nor a package. TensorRT
computes in the device's primary context, which is the one used here.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import c_char_p, c_int, c_size_t, c_uint64, c_void_p
from types import TracebackType
from typing import TYPE_CHECKING, Any

from perfusion.errors import DeviceError, PerfusionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CALLS", "Cuda", "load_driver"]

CALLS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_int,),
    "cuGetErrorString": (c_int, c_void_p),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemGetInfo_v2": (c_void_p, c_void_p),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (c_void_p, c_int),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
}
"""Name and argument types of each; all return a CUresult, 0 for success."""

_INTEGRATED = 18  # CU_DEVICE_ATTRIBUTE_INTEGRATED: the device shares the main memory
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream, nor it for this one
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


def load_driver() -> Any:
    """The driver's library. Raises DeviceError where there is none."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise DeviceError(
            f"NVIDIA's driver was not found ({name}). Install it, or use the provider 'cpu'."
        ) from error


class Cuda:
    """The first GPU: memory on it and one stream, in which everything happens in order.

    The driver knows for each thread which GPU its calls go to: `activate` says so before calls of another thread.
    """

    def __init__(self, library: Any = None, device: int = 0) -> None:
        """`library`: the driver's, by default the machine's own.

        Raises:
            DeviceError: there is no driver or no GPU.
            PerfusionError: the GPU has no room for anything more.
        """
        self._library = load_driver() if library is None else library
        for name, kinds in CALLS.items():
            getattr(self._library, name).argtypes = kinds
        self._context = c_void_p()
        self.stream = 0
        number = c_int()
        for call, *arguments in (
            ("cuInit", 0),
            ("cuDeviceGet", ctypes.byref(number), device),
        ):
            if code := self._raw(call, *arguments):
                raise DeviceError(
                    f"There is no usable NVIDIA GPU: {self._words(code)}. Look at nvidia-smi (on a Jetson: at the "
                    "installed JetPack), or use the provider 'cpu'."
                )
        self._device = number.value
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        stream = c_void_p()
        try:
            self.activate()
            self._do("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        except PerfusionError:
            self.close()
            raise
        self.stream = stream.value or 0

    def __enter__(self) -> Cuda:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def integrated(self) -> bool:
        """Whether the GPU computes in the machine's main memory, as a Jetson's does."""
        value = c_int()
        self._do("cuDeviceGetAttribute", ctypes.byref(value), _INTEGRATED, self._device)
        return bool(value.value)

    def activate(self) -> None:
        """Make the calls of this thread go to this GPU."""
        self._do("cuCtxSetCurrent", self._context)

    def free_memory(self) -> int:
        """Bytes free on the GPU."""
        self.activate()
        free, total = c_size_t(), c_size_t()
        self._do("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, size: int) -> int:
        """The address of `size` new bytes, aligned to 256 or more."""
        address = c_uint64()
        self._do("cuMemAlloc_v2", ctypes.byref(address), max(size, 1), wanted=size)
        return address.value

    def release(self, address: int) -> None:
        self._do("cuMemFree_v2", address)

    def upload(self, array: NDArray[Any], address: int) -> None:
        """Copy a contiguous array to the device; it must live until the next `wait`."""
        self._do("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, self.stream)

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Copy from the device into a contiguous array, which is filled after the next `wait`."""
        self._do("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self.stream)

    def wait(self) -> None:
        """Until everything asked for so far is done."""
        self._do("cuStreamSynchronize", self.stream)

    def close(self) -> None:
        """Give the stream and the context back; memory must have been released before."""
        if self.stream:
            self.activate()
            self._do("cuStreamDestroy_v2", self.stream)
            self.stream = 0
        if self._context:
            self._do("cuCtxSetCurrent", None)  # a thread must not be left with a context that may be gone
            self._do("cuDevicePrimaryCtxRelease_v2", self._device)
            self._context = c_void_p()

    def _do(self, call: str, *arguments: Any, wanted: int | None = None) -> None:
        code = self._raw(call, *arguments)
        if code == _OUT_OF_MEMORY and wanted is not None:
            raise PerfusionError(
                f"{wanted / 1e6:.0f} MB were asked of the GPU, which has {self.free_memory() / 1e6:.0f} MB left. Close "
                'other programs, draw a smaller picture, or open the runtime with memory="low".'
            )
        if code:
            raise PerfusionError(f"{call} failed on the GPU: {self._words(code)}.")

    def _raw(self, call: str, *arguments: Any) -> int:
        return int(getattr(self._library, call)(*arguments))

    def _words(self, code: int) -> str:
        text = c_char_p()
        self._library.cuGetErrorString(code, ctypes.byref(text))
        return text.value.decode() if text.value else f"error {code}"
