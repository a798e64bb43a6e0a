"""What the UNet reads of prompts: their conditioning, with the concepts' rows in the slots of one call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.concept.bank import EditRows
from perfusion.concept.edit import Conditioning, condition
from perfusion.concept.emphasis import Floats, over_columns
from perfusion.concept.settings import DEFAULT_GATES, DEFAULT_LOCK

__all__ = ["PromptState", "conditioned", "gates_of", "reopened", "readings_joined", "unet_feeds", "weighed"]

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptState:
    """One prompt, ready for the UNet: nothing here changes from step to step."""

    conditioning: Conditioning  # its gates are (tokens, J)
    rows: EditRows  # J of them


def conditioned(
    encodings: Array,
    rows: EditRows,
    lock: str = DEFAULT_LOCK,
    superclass_encodings: Array | None = None,
    gates: str = DEFAULT_GATES,
) -> PromptState:
    """`encodings` (tokens, text_dim) with the edit of some rows; of none, as they are. See `edit.condition`."""
    conditioning = condition(
        encodings,
        direction=rows.direction,
        dual=rows.dual,
        energy=rows.energy,
        bias=rows.bias,
        temperature=rows.temperature,
        strength=rows.strength,
        lock=lock,
        superclass_encodings=superclass_encodings,
        gates=gates,
    )
    return PromptState(conditioning=conditioning, rows=rows)


def reopened(state: PromptState, rows: EditRows, lock: str) -> PromptState:
    """The same prompt where only biases and temperatures of its rows have changed."""
    conditioning = state.conditioning.reopened(rows.bias, rows.temperature, rows.strength, lock)
    return PromptState(conditioning=conditioning, rows=rows)


def gates_of(state: PromptState, rows: EditRows) -> Array:
    """(tokens, J): how far its concepts are let through at these settings, before the weights of the prompt."""
    return state.conditioning.opened(rows.bias, rows.temperature, rows.strength)


def readings_joined(states: Sequence[PromptState], rows: EditRows) -> PromptState:
    """Several readings of one prompt, one after another on the tokens axis; `rows` are those of all of them."""
    columns = {slot: column for column, slot in enumerate(rows.slots)}
    conditionings = [state.conditioning for state in states]
    own = [state.rows for state in states]

    def spread(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        pairs = zip(arrays, own, strict=True)
        return np.concatenate([_in_slots(array, rows, columns) for array, rows in pairs])

    return PromptState(
        conditioning=Conditioning(
            key_states=np.concatenate([reading.key_states for reading in conditionings]),
            value_states=np.concatenate([reading.value_states for reading in conditionings]),
            key_gate=spread([reading.key_gate for reading in conditionings]),
            value_gate=spread([reading.value_gate for reading in conditionings]),
            response=spread([reading.response for reading in conditionings]),
            weight=_weights_joined(conditionings),
        ),
        rows=rows,
    )


def weighed(state: PromptState, factor: Floats | None, widths: Sequence[int]) -> PromptState:
    """The same prompt with what its weights multiply each token by, (tokens, encoders); None: nothing.

    The gates have been opened by what is not weighted. A concept's target belongs to the whole encoding, so it is
    multiplied by the mean over the text encoders.
    """
    if factor is None:
        return state
    weight = np.average(factor, axis=1, weights=widths)
    conditioning = state.conditioning.weighted(over_columns(factor, widths), weight)
    return PromptState(conditioning=conditioning, rows=state.rows)


def unet_feeds(states: Sequence[PromptState]) -> dict[str, Array]:
    """The UNet's inputs of one call, a row a prompt; gates are 0 for concepts it does not name.

    `encoder_hidden_states`, `key_hidden_states` (batch, tokens, text_dim); `key_gate`, `value_gate`
    (batch, tokens, concepts); `concept_keys` (concepts, Σ d_K), `concept_values` (concepts, Σ d_V). Without a concept
    there is one of zeros: onnxruntime up to 1.19 leaves a product over no concepts at whatever its memory held.
    """
    slots = dict.fromkeys(slot for state in states for slot in state.rows.slots)
    columns = {slot: column for column, slot in enumerate(slots)}
    keys = np.zeros((max(len(columns), 1), states[0].rows.keys.shape[1]), np.float32)
    values = np.zeros((len(keys), states[0].rows.values.shape[1]), np.float32)
    for state in states:
        own = [columns[slot] for slot in state.rows.slots]
        keys[own], values[own] = state.rows.keys, state.rows.values
    conditionings = [state.conditioning for state in states]
    return {
        "encoder_hidden_states": np.stack([conditioning.value_states for conditioning in conditionings]),
        "key_hidden_states": np.stack([conditioning.key_states for conditioning in conditionings]),
        "key_gate": np.stack(
            [_in_slots(state.conditioning.key_gate, state.rows, columns) for state in states]
        ),
        "value_gate": np.stack(
            [_in_slots(state.conditioning.value_gate, state.rows, columns) for state in states]
        ),
        "concept_keys": keys,
        "concept_values": values,
    }


def _weights_joined(conditionings: Sequence[Conditioning]) -> Floats | None:
    """(tokens of all,): what their gates have been multiplied by; None where none has."""
    if all(conditioning.weight is None for conditioning in conditionings):
        return None
    return np.concatenate(
        [np.ones(len(each.value_states)) if each.weight is None else each.weight for each in conditionings]
    )


def _in_slots(gate: NDArray[Any], rows: EditRows, columns: Mapping[tuple[str, int], int]) -> NDArray[Any]:
    """(tokens, J) spread over all slots of the call, (tokens, concepts)."""
    spread = np.zeros((len(gate), max(len(columns), 1)), gate.dtype)
    spread[:, [columns[slot] for slot in rows.slots]] = gate
    return spread
