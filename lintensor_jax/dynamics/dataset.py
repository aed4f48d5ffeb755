"""Solutions as labelled datasets: named dimensions, units and words for every variable."""

import re
from typing import Any

import jax
import numpy as np

from .record import Record

#: Names of beta's own axes, as in the results of sweeps.
COEFFICIENT = ("coefficient", "output")
#: {variable: (units, words)}.
_WORDS = {
    "coefficients": ("y/x", "linear coefficients beta"),
    "direction": ("1", "beta over its l2 norm; 0 where beta is 0"),
    "log_loss": ("1", "natural logarithm of the loss, summed over samples"),
    "log_time": ("1", "natural logarithm of the physical time of the flow"),
    "log_norm": ("1", "natural logarithm of |Theta|, over all parameters"),
    "log_margin": ("1", "natural logarithm of the smallest margin; -inf below 0"),
    "log_smoothed_margin": ("1", "log of the smoothed margin over |Theta|^depth (Lyu & Li 2020)"),
    "invariant_drift": ("1", "change of the conserved quantities over the largest squared norm"),
    "step_size": ("1", "multiple of the gradient that the step to there has taken"),
    "balance_drift": ("1", "change of what gradient flow conserves over the largest squared norm"),
    "sharpness": ("1", "largest eigenvalue of the Hessian of the loss"),
    "reached": ("", "whether the flow lasted until this time"),
    "status": ("", "why the flow ended"),
    "num_steps": ("steps", "attempted steps"),
    "num_rejected_steps": ("steps", "rejected steps"),
    "num_implicit_steps": ("steps", "steps of the implicit method"),
    "finish_accepted": ("", "whether the Gauss-Newton finish was accepted"),
}
_OF_RECORD = (
    "coefficients",
    "log_loss",
    "log_time",
    "log_norm",
    "log_margin",
    "invariant_drift",
)


def arrays_of(record: Record) -> dict[str, Any]:
    """The variables of a record, without what `observe` returned."""
    return {name: getattr(record, name) for name in _OF_RECORD}


def dataset_of(
    arrays: dict[str, Any],
    observed: Any,
    leading: tuple[str, ...],
    *,
    coordinates: dict[str, Any],
    attributes: dict[str, Any],
) -> Any:
    """An `xarray.Dataset` of arrays that have the axes `leading` first; None is left out.

    `observed` is what `observe` returned. Each of its arrays is a variable, whose name is
    "observed" and the array's path in the pytree.
    """
    import xarray as xr

    variables = {
        name: _variable(value, leading, COEFFICIENT, *_WORDS[name])
        for name, value in arrays.items()
        if value is not None
    }
    for path, value in jax.tree_util.tree_flatten_with_path(observed)[0]:
        if not hasattr(value, "ndim"):
            continue
        tail = re.sub(r"\W+", "_", jax.tree_util.keystr(path)).strip("_")
        name = f"observed_{tail}" if tail else "observed"
        own = tuple(f"{name}_{axis}" for axis in range(value.ndim - len(leading)))
        variables[name] = _variable(value, leading, own, "", "returned by `observe`")
    # netCDF has no booleans.
    attributes = {k: int(v) if isinstance(v, bool) else v for k, v in attributes.items()}
    return xr.Dataset(variables, coords=coordinates, attrs=attributes)


def _variable(value, leading, own, units, words):
    array = np.asarray(value)
    dims = (*leading, *own[: array.ndim - len(leading)])
    return dims, array, {"units": units, "description": words}
