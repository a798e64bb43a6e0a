"""The names that bundle.json and the files beside it go by: export writes them, all others read them. No imports."""

__all__ = [
    "CONTROLNET",
    "FORMAT",
    "FORMAT_VERSION",
    "FORMAT_VERSIONS",
    "KARRAS",
    "KEY_PROJECTIONS",
    "MANIFEST",
    "SAMPLERS",
    "TAKE_KARRAS",
    "TOKENIZER",
    "UNET_INPUTS",
    "UNET_INPUTS_1",
    "UNET_CONTROLNET",
    "residual_names",
]

FORMAT = "perfusion-bundle"
FORMAT_VERSION = 2
FORMAT_VERSIONS = (1, 2)
"""Those that are read. In 2 the UNet takes `regions` and a timestep for each row; in 1 one timestep for all."""

MANIFEST = "bundle.json"
TOKENIZER = "tokenizer.json"
KEY_PROJECTIONS = "key_projections.safetensors"

SAMPLERS = ("ddim", "plms", "euler", "euler_ancestral", "dpmpp_2m", "heun", "lcm")
"""How a scheduler gets from one noise level to the next, as bundle.json names it."""
TAKE_KARRAS = ("euler", "dpmpp_2m", "heun")
"""The samplers that also exist on the noise levels of Karras et al. 2022, as `<name>_karras`."""
KARRAS = "_karras"

UNET_INPUTS = (
    "sample", "timestep", "encoder_hidden_states", "key_hidden_states",
    "key_gate", "value_gate", "concept_keys", "concept_values", "regions",
)  # fmt: skip
"""The UNet's inputs that every base model has, in the graph's order."""
UNET_INPUTS_1 = UNET_INPUTS[:-1]
"""The same in a bundle of format version 1."""

CONTROLNET = "controlnet"
"""The graph of the ControlNet that draws; its file is `controlnet_<name>.onnx`."""
UNET_CONTROLNET = "unet_controlnet"
"""The UNet's second graph, which takes a ControlNet's residuals too."""


def residual_names(count: int) -> tuple[str, ...]:
    """What a ControlNet gives and the second UNet takes: the way down's residuals in order, and the middle's."""
    return (*(f"down_residual_{number}" for number in range(count - 1)), "mid_residual")
