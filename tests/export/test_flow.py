"""Models of flow are refused when they are exported, not drawn as if they predicted noise."""

import dataclasses

import pytest

from perfusion.errors import ModelError
from perfusion.export.manifest import scheduler_settings


def test_a_scheduler_of_flow_matching_is_refused(base):
    """Its settings say nothing of betas; filled in, they would be those of another model."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    settings = dict(FlowMatchEulerDiscreteScheduler().config)
    with pytest.raises(ModelError, match=r"no betas, as those of flow matching .* Use another base model$"):
        scheduler_settings(dataclasses.replace(base, scheduler=settings))


@pytest.mark.parametrize(
    "more, message",
    [
        (
            {"prediction_type": "flow_prediction"},
            "prediction_type is 'flow_prediction', expected epsilon or v",
        ),
        ({"use_flow_sigmas": True}, "sets use_flow_sigmas"),
    ],
)
def test_a_scheduler_that_is_set_to_flow_is_refused(base, more, message):
    from diffusers import DPMSolverMultistepScheduler

    settings = {**DPMSolverMultistepScheduler().config, **more}
    with pytest.raises(ModelError, match=message):
        scheduler_settings(dataclasses.replace(base, scheduler=settings))
