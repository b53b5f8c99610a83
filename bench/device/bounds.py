"""Compares the vectors of a device with those of the CPU. Pure functions on arrays."""

import dataclasses
from typing import Any

import numpy as np

from embedding_api.engine.backends.proof import are_finite, prove
from embedding_api.engine.work import Vectors

# The largest difference, as a share of a vector's length, or the smallest cosine. Products rounded as TF32 does change
# the vectors of the check's model by 1.5e-4, another order of the same arithmetic by 1.6e-7.
BOUNDS = {"float32": 1e-5, "float16": 0.9999, "bfloat16": 0.9995}


def compare(reference: Vectors, vectors: Vectors, precision: str) -> dict[str, Any]:
    """Return the measure, its value and bound, and `holds`: True if the value is within the bound.

    Args:
        reference: The CPU's vectors in float32, (n_texts, dim).
        vectors: The device's, float32. Another shape, NaN and infinity do not hold.
        precision: The arithmetic of the device.
    """
    proof = dataclasses.replace(prove(reference, vectors, precision), bound=BOUNDS[precision])
    # JSON has no infinity.
    value = proof.value if np.isfinite(proof.value) else None
    return {"measure": proof.measure, "value": value, "bound": proof.bound, "holds": proof.holds}


def broken(compared: dict[str, Any], vectors: Vectors) -> list[str]:
    """Return what is wrong with a comparison, as one message or none."""
    if compared["holds"]:
        return []
    if not are_finite(vectors):
        return ["its vectors hold NaN or infinity"]
    relation = "at most" if compared["measure"] == "largest_difference" else "at least"
    measure = compared["measure"].replace("_", " ")
    return [f"the {measure} to the CPU's vectors is {compared['value']}, and should be {relation} {compared['bound']}"]
