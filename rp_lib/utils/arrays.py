"""Scores, labels and predictions as checked numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray


def check_array(values: Any, name: str, ndim: tuple[int, ...] | None = (1,)) -> Array:
    """Convert numbers to a numpy array of float64 and check them.

    Args:
        values: Tensor (any device and dtype), array or sequence; at least one element, none of them NaN.
        name: What an error calls them.
        ndim: Allowed numbers of dimensions. None allows any but 0 and keeps integers and booleans as they are.

    Raises:
        ValueError: The values are no such numbers; the message says which check failed.
    """
    # float64 only after the move: some devices have none; and numpy knows no bfloat16, so not after the conversion.
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be numbers, one row of equal length per sample: {error}") from error
    if array.dtype.kind not in "fiub" and array.size:
        raise ValueError(f"{name} must be numbers, got dtype {array.dtype}")
    array = array.astype(np.float64) if array.dtype.kind == "f" else array
    if array.ndim == 0:
        raise ValueError(f"{name} must be an array, got a single number: pass one number per sample")
    if array.size == 0:
        raise ValueError(f"{name} is empty: pass at least one sample")
    if array.dtype.kind == "f" and (nan := int(np.isnan(array).sum())):
        raise ValueError(f"{name} has {nan} NaN of {array.size} values: find out which input produced them")
    if ndim is None:
        return array
    if array.ndim not in ndim:
        wanted = " or ".join(f"{d}-D" for d in ndim)
        raise ValueError(f"{name} must be {wanted}, got shape {array.shape}: pass one row per sample")
    return array.astype(np.float64)


def same_length(a: Array, b: Array) -> None:
    """Raise ``ValueError`` unless both arrays have the same length."""
    if len(a) != len(b):
        raise ValueError(f"lengths differ ({len(a)} and {len(b)}): pass one entry per sample in both")


def labels_in_range(labels: Array, classes: int) -> None:
    """Raise ``ValueError`` unless all labels are class indices."""
    if labels.min() < 0 or labels.max() >= classes or (labels % 1).any():
        raise ValueError(f"labels must be integers in 0 ... {classes - 1}: drop samples of other classes (OOD) first")
