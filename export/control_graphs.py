"""The graphs of control: each ControlNet, and the UNet once more, with what a ControlNet gives it as inputs.

docs/controlnet.md describes them for a reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from perfusion.base.base_model import BaseModel
from perfusion.base.controlnet import residual_ends
from perfusion.bundle.names import CONTROLNET, UNET_CONTROLNET, residual_names
from perfusion.export.graph_modules import (
    End,
    Graph,
    UNet,
    conditions_of,
    downscale,
    graphs_of,
    size_multiple,
)

if TYPE_CHECKING:
    from diffusers import ControlNetModel

__all__ = ["control_conditions_of", "control_graphs_of"]

_USUAL_RESIDUAL = 0.2
"""The deviation of a residual in trials: real ones are smaller than what they are added to."""


class ControlledUNet(UNet):
    """The UNet with a ControlNet's residuals behind its other inputs."""

    def __init__(self, unet: Any, conditions: tuple[str, ...], residuals: int) -> None:
        super().__init__(unet, conditions)
        self.residuals = residuals

    def forward(self, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        """The prediction, as large as ``sample``; ``inputs`` are those of `UNet`, and the residuals."""
        own, residuals = inputs[: -self.residuals], inputs[-self.residuals :]
        return super().forward(*own, down=residuals[:-1], middle=residuals[-1])


class ControlNet(nn.Module):
    """A picture, and what the UNet reads, to residuals for the UNet."""

    def __init__(self, controlnet: ControlNetModel, conditions: tuple[str, ...]) -> None:
        super().__init__()
        self.controlnet = controlnet
        self.conditions = conditions

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        control_image: Tensor,
        control_scale: Tensor,
        *conditions: Tensor,
    ) -> Any:
        """The residuals times each row's ``control_scale``."""
        down, middle = self.controlnet(
            sample,
            timestep,
            encoder_hidden_states,
            control_image,
            added_cond_kwargs=dict(zip(self.conditions, conditions, strict=True)) or None,
            return_dict=False,
        )
        scale = control_scale[:, None, None, None]
        return tuple(residual * scale for residual in (*down, middle))


def control_conditions_of(controlnet: ControlNetModel, base: BaseModel) -> dict[str, int]:
    """A ControlNet's inputs beside noise, time, prompt and picture: SDXL's pooled encodings and sizes."""
    if controlnet.config.addition_embed_type is None:
        return {}
    return {name: width for name, width in conditions_of(base).items() if name != "timestep_cond"}


def control_graphs_of(base: BaseModel, controlnets: Mapping[str, ControlNetModel]) -> tuple[Graph, ...]:
    """The second UNet, and the ControlNets by their names; none where there are no ControlNets."""
    if not controlnets:
        return ()
    named = [_controlnet(base, name, controlnet) for name, controlnet in controlnets.items()]
    return (_controlled_unet(base), *named)


def _residuals(base: BaseModel, scale: float = 1.0) -> tuple[End, ...]:
    ends = residual_ends(base.unet)
    return tuple(
        End(name=name, dims=("batch", channels, _side("height", factor), _side("width", factor)), scale=scale)
        for name, (channels, factor) in zip(residual_names(len(ends)), ends, strict=True)
    )


def _side(name: str, factor: int) -> str:
    return name if factor == 1 else f"{name}_{factor}"


def _example(base: BaseModel) -> dict[str, int]:
    """Sizes of which no two are alike at any level."""
    multiple = size_multiple(base.unet)
    return {"batch": 2, "tokens": 35, "height": 4 * multiple, "width": 6 * multiple}


def _controlled_unet(base: BaseModel) -> Graph:
    plain = next(graph for graph in graphs_of(base) if graph.name == "unet")
    residuals = _residuals(base, _USUAL_RESIDUAL)
    return Graph(
        name=UNET_CONTROLNET,
        module=ControlledUNet(base.unet, tuple(conditions_of(base)), len(residuals)),
        inputs=(*plain.inputs, *residuals),
        outputs=plain.outputs,
        example=plain.example | _example(base),
        widens=True,
    )


def _controlnet(base: BaseModel, name: str, controlnet: ControlNetModel) -> Graph:
    plain = {end.name: end for graph in graphs_of(base) if graph.name == "unet" for end in graph.inputs}
    conditions, scale = control_conditions_of(controlnet, base), downscale(base.vae)
    sizes = _example(base)
    return Graph(
        name=f"{CONTROLNET}_{name}",
        module=ControlNet(controlnet, tuple(conditions)),
        inputs=(
            plain["sample"],
            plain["timestep"],
            plain["encoder_hidden_states"],
            End(name="control_image", dims=("batch", 3, "picture_height", "picture_width")),
            End(name="control_scale", dims=("batch",)),
            *(plain[condition] for condition in conditions),
        ),
        outputs=_residuals(base),
        example=sizes | {"picture_height": sizes["height"] * scale, "picture_width": sizes["width"] * scale},
    )
