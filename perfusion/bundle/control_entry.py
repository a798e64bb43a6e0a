"""What bundle.json says of ControlNets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from perfusion.bundle.description import ControlNet
from perfusion.bundle.fields import Fields
from perfusion.errors import BundleError

__all__ = ["read_controlnets"]

_CONDITIONS = ("text_embeds", "time_ids")
_MOST_RESIDUALS = 100


def read_controlnets(manifest: Fields, file: Callable[[Fields, str], Path]) -> dict[str, ControlNet]:
    """The ControlNets of a bundle by their names; none where it says nothing of them.

    Args:
        file: gives the file that a field names, among those that the bundle lists.

    Raises:
        BundleError: a wrong or missing value.
    """
    if "controlnets" not in manifest:
        return {}
    entry = manifest.inner("controlnets")
    residuals, unet_file = entry.whole("residuals", least=2), file(entry, "unet")
    if residuals > _MOST_RESIDUALS:
        raise BundleError(f"{entry.where}: 'residuals' is {residuals}, expected at most {_MOST_RESIDUALS}.")
    controlnets = [_controlnet(model, unet_file, residuals, file) for model in entry.inners("models")]
    return {controlnet.name: controlnet for controlnet in controlnets}


def _controlnet(
    entry: Fields, unet_file: Path, residuals: int, file: Callable[[Fields, str], Path]
) -> ControlNet:
    conditions = tuple(entry.inner("conditions").names()) if "conditions" in entry else ()
    if unknown := set(conditions) - set(_CONDITIONS):
        raise BundleError(
            f"{entry.where}: the ControlNet asks for {', '.join(sorted(unknown))}, and this version knows "
            f"{' and '.join(_CONDITIONS)}. Update perfusion-edge."
        )
    return ControlNet(
        name=entry.text("name"),
        file=file(entry, "file"),
        unet_file=unet_file,
        residuals=residuals,
        conditions=conditions,
    )
