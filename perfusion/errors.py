"""The errors a caller may want to catch.

    PerfusionError
    ├── ConceptError    a concept file that cannot be read, or a concept that cannot exist
    ├── BundleError     a bundle that is incomplete, damaged or of another format
    ├── ModelError      a base model folder that cannot be used
    ├── ExportError     a model that could not be turned into graphs or engines
    ├── TrainingError   a training that cannot start or went wrong
    ├── DeviceError     a device or an execution provider that was asked for and is not there
    ├── RequestError    a prompt, seed, size or other request that cannot be served
    │   └── PictureError    a picture or a mask that cannot be read
    ├── HubError        something named on the hub that cannot be fetched or published
    ├── BusyError       a queue that is full: the same request may be served later
    └── CancelledError  a drawing that was stopped because its caller asked for it

A message is a whole sentence or more: what was found, what was expected, what to do. Anything that is not a
`PerfusionError` and leaves this package is a bug in it.
"""

__all__ = [
    "BusyError",
    "BundleError",
    "CancelledError",
    "ConceptError",
    "DeviceError",
    "ExportError",
    "HubError",
    "ModelError",
    "PerfusionError",
    "PictureError",
    "RequestError",
    "TrainingError",
]


class PerfusionError(Exception):
    """The root of every error this package raises on purpose."""


class ConceptError(PerfusionError):
    """A concept file that cannot be read, or a concept that cannot exist."""


class BundleError(PerfusionError):
    """A bundle that is incomplete, damaged or of another format."""


class ModelError(PerfusionError):
    """A base model folder that cannot be used."""


class ExportError(PerfusionError):
    """A model that could not be turned into graphs or engines."""


class TrainingError(PerfusionError):
    """A training that cannot start or went wrong."""


class DeviceError(PerfusionError):
    """A device or an execution provider that was asked for and is not there."""


class RequestError(PerfusionError):
    """A prompt, seed, size or other request that cannot be served."""


class PictureError(RequestError):
    """A picture or a mask that cannot be read: no picture, too large, or of colours that are not known."""


class HubError(PerfusionError):
    """Something named on the hub that cannot be fetched or published."""


class BusyError(PerfusionError):
    """A queue that is full: the same request may be served later."""


class CancelledError(PerfusionError):
    """A drawing that was stopped because its caller asked for it."""
