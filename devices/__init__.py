"""What machine this is, what fits on it, and what to build for it. Imports nothing heavy.

from perfusion.devices import PROFILES, detect, find_profile, plan_device, plan_memory
"""

from typing import TYPE_CHECKING, Any

from perfusion.devices.detection import Detected, detect
from perfusion.devices.profiles import PROFILES, DeviceProfile, find_profile

if TYPE_CHECKING:
    from perfusion.devices.planning.device_plan import DevicePlan, plan_device
    from perfusion.devices.planning.memory_plan import MemoryPlan, plan_memory

__all__ = [
    "PROFILES",
    "Detected",
    "DevicePlan",
    "DeviceProfile",
    "MemoryPlan",
    "detect",
    "find_profile",
    "plan_device",
    "plan_memory",
]


def __getattr__(name: str) -> Any:
    """The plans, imported when they are asked for: they need numpy, and knowing the machine does not."""
    if name in ("MemoryPlan", "plan_memory"):
        from perfusion.devices.planning import memory_plan as memory

        return getattr(memory, name)
    if name in ("DevicePlan", "plan_device"):
        from perfusion.devices.planning import device_plan

        return getattr(device_plan, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
