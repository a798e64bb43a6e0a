"""What computes the pictures, as every command that draws is told: `--provider` and `--precision`.

The words are the runtime's. Asking it for them would import numpy before --help is shown, so they stand here once more,
and a test holds both equal.
"""

import argparse
from collections.abc import Callable

__all__ = ["PRECISIONS", "PROVIDERS", "add_provider"]

PROVIDERS = ("auto", "cpu", "cuda", "trt", "trt-rtx", "openvino")
PRECISIONS = ("fp32", "bf16", "fp16")


def add_provider(add: Callable[..., object]) -> None:
    """Add both options by a parser's or a group's `add_argument`."""
    add(
        "--provider",
        type=_provider,
        default="auto",
        metavar="PROVIDER",
        help=f"{', '.join(PROVIDERS)}, or openvino:GPU and the like (default: %(default)s)",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default=PRECISIONS[0],
        help="with openvino: what to compute in, where the device has it (default: %(default)s)",
    )


def _provider(text: str) -> str:
    name, colon, device = text.partition(":")
    if name not in PROVIDERS or (colon and (name != "openvino" or not device)):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(PROVIDERS)}, openvino:DEVICE")
    return text
