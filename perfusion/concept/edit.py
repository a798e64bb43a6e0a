"""The algebra of the gated rank-1 edit, in numpy and in float64.

J is the number of active rows (usually one per concept). `direction` (i*), `dual` (w*) and `energy` (n) come
from concept files; the covariance C of the encodings, which defines the inner product <a, b> = aᵀ C⁻¹ b, is
inside them (w* = C⁻¹ i* / n, n = <i*, i*>) and is never needed here. docs/method.md has the formulas with
their reasons.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perfusion.concept.settings import DEFAULT_GATES, DEFAULT_LOCK, check_gates, check_lock
from perfusion.errors import RequestError

__all__ = [
    "SAME_DIRECTION",
    "Conditioning",
    "condition",
    "coordinates",
    "edited_projection",
    "gate",
    "locked_keys",
    "project",
    "similarity",
]

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

SAME_DIRECTION = 1e-6
"""Directions closer than this, as 1 − |cosine| under C⁻¹, count as one: files hold float32, so a smaller difference is
rounding, and solving for it would multiply that rounding."""


def similarity(encodings: Array, dual: Array) -> Float64:
    """How much of each concept an encoding holds: s(e) = e · w*, 1 at the concept's own direction.

    `encodings` (..., text_dim), `dual` (J, text_dim) -> (..., J).
    """
    return _wide(encodings) @ _wide(dual).T


def gate(similarity: Array | float, bias: Array | float, temperature: Array | float) -> Float64:
    """How far a target is let through: σ((s − β) / τ), 0.5 where s = β, without overflow for any argument.

    `similarity` (..., J); `bias` and `temperature` numbers or (J,) -> (..., J).

    Raises:
        RequestError: a temperature that is not above 0.
    """
    tau = _wide(temperature)
    if not np.all(tau > 0):
        raise RequestError(
            f"The temperature is {temperature}, expected a number above 0. Around 0.15 works well."
        )
    with np.errstate(over="ignore"):  # an infinite argument is a gate that is fully open or closed
        argument = (_wide(similarity) - _wide(bias)) / tau
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * argument), dtype=np.float64)


def gram(direction: Array, dual: Array, energy: Array) -> Float64:
    """The inner products of the concepts' directions: G_jk = <i_j, i_k> = n_k (i_j · w_k).

    `direction`, `dual` (J, text_dim), `energy` (J,) -> (J, J), symmetric up to the rounding of its inputs.
    """
    return _wide(direction) @ _wide(dual).T * _wide(energy)


def coordinates(
    encodings: Array, direction: Array, dual: Array, energy: Array, strength: Array | float | None = None
) -> Float64:
    """How much of each concept an encoding holds that the other concepts do not account for: c(e).

        c_j(e) = s_j(e) − Σ_{k≠j} λ_k s_j(i_k) c_k(e)

    At full strength these are the coordinates of e in the span of the directions, c = G⁻¹ (n ∘ W_d e): at
    e = i_1 all but the first are 0, however alike the concepts are. A concept of strength λ takes that share
    of its coordinate away from the others, so one of strength 0 counts for nobody. One concept: c = s.

    Directions that depend on each other (two copies of one concept) at strength 1 leave c undetermined; the
    pseudo-inverse then shares the similarity out among them.

    `encodings` (..., text_dim), `direction`, `dual` (J, text_dim), `energy` (J,), `strength` number or (J,)
    -> (..., J).
    """
    parts, scale, cosines, weights = _scaled(encodings, direction, dual, energy, strength)
    # what two different concepts have in common
    common = cosines - np.diag(np.diag(cosines))
    # each similarity without the others' shares of it, back from scaled units
    return np.asarray((parts - _shares(parts, cosines, weights) @ common) / scale, dtype=np.float64)


def project(
    encodings: Array, direction: Array, dual: Array, energy: Array, strength: Array | float | None = None
) -> Float64:
    """Take the concepts' directions out of encodings: e_perp = e − Iᵀ (Λ G + (1 − Λ) N)⁻¹ Λ (n ∘ W_d e).

    I and W_d have the rows i_j and w_j, N = diag(n), Λ = diag(strength). At full strength, where none is
    given, this is e − Iᵀ G⁻¹ (n ∘ W_d e), the projection off the span. Each strength leads steadily from
    there to the projection without that concept: e_perp = e − Iᵀ Λ c with the `coordinates` c. Directions
    that depend on each other (two copies of one concept) are singular at strength 1 alone; the pseudo-inverse
    removes their span once, which is also where the smaller strengths lead.

    `encodings` (..., text_dim), `direction`, `dual` (J, text_dim), `energy` (J,), `strength` number or (J,)
    -> (..., text_dim).
    """
    parts, scale, cosines, weights = _scaled(encodings, direction, dual, energy, strength)
    # Λ c: how much of each direction goes
    shares = _shares(parts, cosines, weights) / scale
    # Iᵀ Λ c: that much of it, out of the encodings
    return np.asarray(_wide(encodings) - shares @ _wide(direction), dtype=np.float64)


def edited_projection(
    encodings: Array,
    weight: Array,
    targets: Array,
    direction: Array,
    dual: Array,
    energy: Array,
    bias: Array | float,
    temperature: Array | float,
    strength: Array | float | None = None,
    gates: str = DEFAULT_GATES,
) -> Float64:
    """The edited key or value projection of one layer: h(e) = W e_perp + Σ_j λ_j σ((s_j − β_j) / τ_j) o*_j.

    The formula as it is written, to hold every faster path against. With `gates` "coordinates" the `coordinates`
    stand in the place of the similarities s_j.

    `encodings` (..., text_dim), `weight` (d_out, text_dim), `targets` (J, d_out), the rest as in `project`
    and `gate` -> (..., d_out).

    Raises:
        RequestError: unknown `gates`, or a temperature that is not above 0.
    """
    response = _response(gates, encodings, direction, dual, energy, strength)
    opened = gate(response, bias, temperature)
    if strength is not None:
        opened = opened * _wide(strength)
    e_perp = project(encodings, direction, dual, energy, strength)
    return np.asarray(e_perp @ _wide(weight).T + opened @ _wide(targets), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What cross-attention reads for one prompt: `K = W_K key_states + key_gate · o*_K`, and V likewise.

    `key_states`, `value_states` (tokens, text_dim); `key_gate`, `value_gate` (tokens, J); all float32. `response`
    (tokens, J) is what the gates read, 0 for a row that is absent. `weight` (tokens,), where a prompt has weights, is
    what the gates have been multiplied by; nothing in `response` is.
    """

    key_states: Float32
    value_states: Float32
    key_gate: Float32
    value_gate: Float32
    response: Float64
    weight: Float64 | None = None

    def reopened(
        self, bias: Array | float, temperature: Array | float, strength: Array | float, lock: str
    ) -> "Conditioning":
        """With the gates that another bias and temperature open; strengths and lock are those it was made with."""
        opened = self.opened(bias, temperature, strength)
        if self.weight is not None:
            opened = np.asarray(opened * self.weight[:, None], dtype=np.float32)
        return Conditioning(
            key_states=self.key_states,
            value_states=self.value_states,
            key_gate=opened if lock == "local" else np.zeros_like(opened),
            value_gate=opened,
            response=self.response,
            weight=self.weight,
        )

    def opened(self, bias: Array | float, temperature: Array | float, strength: Array | float) -> Float32:
        """(tokens, J): how far each concept is let through, before the weights of the prompt."""
        return np.asarray(gate(self.response, bias, temperature) * strength, dtype=np.float32)

    def weighted(self, factor: Float64, weight: Float64) -> "Conditioning":
        """With each token's keys and values multiplied, as a prompt's weights do it.

        `factor` (tokens, text_dim) multiplies the states, `weight` (tokens,) the gates. Keys of a global lock are left
        as they are: they come from another prompt, which has weights of its own.
        """
        value_states = np.asarray(self.value_states * factor, dtype=np.float32)
        own_keys = self.key_states is self.value_states  # not so under a global lock
        return Conditioning(
            key_states=value_states if own_keys else self.key_states,
            value_states=value_states,
            key_gate=np.asarray(self.key_gate * weight[:, None], dtype=np.float32),
            value_gate=np.asarray(self.value_gate * weight[:, None], dtype=np.float32),
            response=self.response,
            weight=weight,
        )


def condition(
    encodings: Array,
    *,
    direction: Array,
    dual: Array,
    energy: Array,
    bias: Array | float,
    temperature: Array | float,
    strength: Array | float,
    lock: str = DEFAULT_LOCK,
    superclass_encodings: Array | None = None,
    gates: str = DEFAULT_GATES,
) -> Conditioning:
    """Prepare one prompt's encodings for the edited cross-attention; keys and values depend on nothing else.

    `encodings` (tokens, text_dim); `direction`, `dual` (J, text_dim); `energy` (J,); `bias`, `temperature`,
    `strength` numbers or (J,). A row of strength 0 is absent, which is also where small strengths lead. With
    no row left the base model is met exactly: both states are the encodings and every gate is 0.

    `lock` "local": keys and values read the edit. "global": keys read `superclass_encodings` (tokens,
    text_dim), the prompt with the superclass in each concept's place, unedited, whatever the strengths. That
    is steady down to strength 0 as well when the caller then gives, as the runtime does, the superclass
    prompt's encodings for `encodings`.

    `gates` "similarity": a concept's gate reads its similarity. "coordinates": its coordinate (`coordinates`), so
    that a word opens its own gate and not those of concepts that resemble it.

    Raises:
        RequestError: an unknown lock or kind of gates, a temperature that is not above 0, or encodings of the
            superclass prompt that are missing or do not match.
    """
    check_lock(lock)
    check_gates(gates)
    plain = np.asarray(encodings, dtype=np.float32)
    keys = _global_keys(plain, lock, superclass_encodings)
    weights, beta, tau = (
        np.broadcast_to(_wide(value), (len(direction),)) for value in (strength, bias, temperature)
    )
    # a row of strength 0 is left out, so that with none left nothing is computed and the base model is met exactly
    active = np.flatnonzero(weights)
    rows, duals, energies = (np.asarray(array)[active] for array in (direction, dual, energy))
    # e_perp: the encodings without the concepts' directions
    states = plain
    if active.size:
        states = project(encodings, rows, duals, energies, weights[active]).astype(np.float32)
    # the gates: how far each concept's target is let through at each token
    response = np.zeros((len(plain), len(direction)))
    opened = np.zeros(response.shape, dtype=np.float32)
    if active.size:
        response[:, active] = _response(gates, encodings, rows, duals, energies, weights[active])
        opened[:, active] = gate(response[:, active], beta[active], tau[active]) * weights[active]
    if keys is None or not active.size:
        return Conditioning(
            key_states=states, value_states=states, key_gate=opened, value_gate=opened, response=response
        )
    # under the global lock the keys are the superclass prompt's, and no target is added to them
    return Conditioning(
        key_states=keys,
        value_states=states,
        key_gate=np.zeros_like(opened),
        value_gate=opened,
        response=response,
    )


def locked_keys(weight: Array, superclass_encoding: Array) -> Float32:
    """The keys a concept is locked to: o*_K = W_K ē_super, for all layers at once.

    `weight` (Σ d_K, text_dim), `superclass_encoding` (rows, text_dim) -> (rows, Σ d_K) float32.
    """
    encoding = _wide(superclass_encoding).T
    blocks = range(0, len(weight), 1024)  # a float64 copy of all of SDXL's weights would take 1.4 GB
    return np.concatenate([(_wide(weight[at : at + 1024]) @ encoding).T for at in blocks], axis=1).astype(
        np.float32
    )


def _scaled(
    encodings: Array, direction: Array, dual: Array, energy: Array, strength: Array | float | None
) -> tuple[Float64, Float64, Float64, Float64]:
    """The problem of `project` divided by √n on every side, so that one threshold fits concepts of any energy.

    √n s (..., J), √n (J,), the cosines G_jk / √(n_j n_k) (J, J) and the strengths (J,).
    """
    scale = np.sqrt(_wide(energy))
    cosines = gram(direction, dual, energy) / np.outer(scale, scale)
    weights = np.broadcast_to(_wide(1.0 if strength is None else strength), scale.shape)
    return similarity(encodings, dual) * scale, scale, cosines, weights


def _shares(parts: Float64, cosines: Float64, weights: Float64) -> Float64:
    """Λ c in scaled units, (..., J): how much of each direction is taken out.

    (Λ R + 1 − Λ)⁻¹ Λ = Λ^½ M⁻¹ Λ^½, where M is the cosines R with those of two different concepts times
    √(λ_j λ_k). M is symmetric, and singular only where dependent directions all have strength 1.
    """
    root = np.sqrt(weights)
    matrix = cosines * np.outer(root, root)
    np.fill_diagonal(matrix, np.diag(cosines))
    # Transposed, so that w_k · e_perp = 0 holds exactly for duals that were rounded to float32.
    return (parts * root) @ np.linalg.pinv(matrix, rcond=SAME_DIRECTION) * root


def _response(
    gates: str, encodings: Array, direction: Array, dual: Array, energy: Array, strength: Array | float | None
) -> Float64:
    """What the gates read, (..., J)."""
    check_gates(gates)
    if gates == "similarity":
        return similarity(encodings, dual)
    return coordinates(encodings, direction, dual, energy, strength)


def _global_keys(plain: Float32, lock: str, superclass_encodings: Array | None) -> Float32 | None:
    """The states that keys read under the global lock, None under the local one."""
    if lock == "local":
        return None
    if superclass_encodings is None:
        raise RequestError(
            "A global lock needs the encodings of the prompt with the superclass in it; none were given."
        )
    keys = np.asarray(superclass_encodings, dtype=np.float32)
    if keys.shape != plain.shape:
        raise RequestError(
            f"The superclass prompt has encodings of shape {keys.shape}, expected {plain.shape} as the "
            "concept's prompt has. Use a superclass with as many tokens as the concept has rows."
        )
    return keys


def _wide(array: Array | float) -> Float64:
    return np.asarray(array, dtype=np.float64)
