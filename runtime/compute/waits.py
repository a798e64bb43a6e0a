"""The log of what takes so long that somebody who waits for a picture wants to know: `perfusion.waits`, level INFO."""

import logging

__all__ = ["waits"]

waits = logging.getLogger("perfusion.waits")
