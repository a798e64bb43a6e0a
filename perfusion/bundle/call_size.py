"""How large one call of a bundle's graphs is: what memory, time and engines depend on."""

from dataclasses import dataclass

__all__ = ["CallSize"]


@dataclass(frozen=True, kw_only=True)
class CallSize:
    """The pictures, prompts and concepts of one call of the UNet, and of the graphs before and after it."""

    width: int  # of a picture, pixels
    height: int
    batch: int = 1  # pictures in one call of the UNet
    guided: bool = True  # whether each has an unconditional row beside its own
    concepts: int = 1  # rows of concepts; the slots of an engine
    tokens: int = 77  # of a prompt, all its parts and readings together
    readings: int = 1  # of a prompt, one for each region of the picture
    image: bool = False  # whether pictures are drawn over, which the VAE's encoder encodes first
    control: bool = False  # whether a ControlNet runs before each call of the UNet

    @property
    def rows(self) -> int:
        """Rows in one call of the UNet."""
        return self.batch * (2 if self.guided else 1)

    @property
    def texts(self) -> int:
        """Texts to encode: every picture's readings and, with guidance, its negative prompt."""
        return self.batch * (self.readings + (1 if self.guided else 0))
