"""From a store back to its grid, options and plan."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

from ...versions import library_versions
from ..grid import Grid
from ..observables.base import AbstractObservable
from ..plan import Options, Plan
from ..store.description import (
    NameNotInRegistry,
    NotRebuildable,
    describe,
    differences,
    rebuild,
)
from ..store.errors import SweepError, UnknownName
from ..store.store import Store

_LONGEST_NAME = 200  # the most characters of a name from a store in a message


def plan_of(
    store: Store, grid: Grid | None = None, observables: Sequence[AbstractObservable] | None = None
) -> Plan:
    """The plan of a store, with its stored chunk sizes. Raises `SweepError` as `grid_of` does."""
    plan = Plan(*grid_of(store, grid, observables))
    require_same(store, plan)
    return plan


def grid_of(
    store: Store, grid: Grid | None = None, observables: Sequence[AbstractObservable] | None = None
) -> tuple[Grid, Options]:
    """The grid and options of a store; `SweepError` that names a missing or different part."""
    kept = store.description["sweep"]
    fields = kept["options"]["fields"]
    given = {"grid": grid, "observables": observables and tuple(observables)}
    described = {"grid": kept["grid"], "observables": fields["observables"]}
    for name, value in given.items():
        if value is None:
            advice = f"pass the {name} that it was made with: resume(path, {name}=...)."
            given[name] = _rebuilt(store, described[name], advice)
        elif (found := describe(value, store.format)[0]) != described[name]:
            where = ", ".join(differences(described[name], found, name)[:4])
            raise SweepError(
                f"{store.path}: was made with another {name}, which differs in {where}; pass that "
                "one, or start a new sweep in another folder. Nothing was changed."
            )
    rest = {name: item for name, item in fields.items() if name != "observables"}
    options = _rebuilt(
        store, {**kept["options"], "fields": rest}, "start a new sweep in another folder."
    )
    for value, kind in ((given["grid"], Grid), (options, Options)):
        if not isinstance(value, kind):
            raise SweepError(f"{store.path}: its description holds no {kind.__name__}.")
    try:
        # `dataclasses.replace` runs the checks of the fields.
        return dataclasses.replace(given["grid"]), dataclasses.replace(
            options, observables=given["observables"]
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise SweepError(
            f"{store.path}: its description is not valid ({' '.join(str(error).split())})."
        ) from None


def _rebuilt(store: Store, description: Any, advice: str) -> Any:
    """The described value; `SweepError` for a part that cannot or must not be rebuilt."""
    try:
        return rebuild(description, store.arrays, store.format)
    except NotRebuildable as missing:
        raise SweepError(
            f"{store.path}: its sweep uses {_printable(missing).replace(':', '.')}, which a store "
            f"cannot hold; {advice}"
        ) from None
    except NameNotInRegistry as unknown:
        versions = store.description["versions"]
        by = versions.get("lintensor_jax", "an unknown version")
        raise UnknownName(
            f"{store.path}: names {_printable(unknown)}, which is no class, function or field that "
            f"a store may name. It was neither imported nor called. According to the store, "
            f"lintensor_jax {by} wrote it; open it with that version if you trust it."
        ) from None
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SweepError(
            f"{store.path}: its description cannot be read ({type(error).__name__}: "
            f"{_printable(error)}); copy the folder again."
        ) from None


def _printable(error: Exception) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(error))[:_LONGEST_NAME]


def plan_facts(plan: Plan) -> dict[str, Any]:
    """How a plan cuts its grid: the entries that a store keeps of a plan."""
    return {
        "box": list(plan.box),
        "width": plan.width,
        "padded": plan.padded,
        "lanes": plan.grid.size,
        "chunks": plan.num_chunks,
    }


def require_same(store: Store, plan: Plan) -> None:
    """Restore the stored plan; warn if versions differ. `SweepError` for another grid or dtype."""
    kept = store.description
    then, now = kept["dtype"], str(plan.dtype)
    if then != now:
        setting = f'jax.config.update("jax_enable_x64", {then == "float64"})'
        raise SweepError(
            f"{store.path}: was made in {then}, and this process computes in {now}; call {setting} "
            "before resuming. Nothing was changed."
        )
    wanted, found = kept["plan"], plan_facts(plan)
    if wanted != found:
        # Defaults depend on the device, so the stored plan is used.
        if len(wanted["box"]) != len(plan.box):
            raise SweepError(f"{store.path}: its plan is of another grid; copy the folder again.")
        plan.set_layout(tuple(wanted["box"]), wanted["width"], wanted["padded"])
        if plan_facts(plan) != wanted:
            raise SweepError(f"{store.path}: its plan is of another grid; copy the folder again.")
    then, now = kept["versions"], library_versions()
    changed = [
        f"{k} {then[k]} -> {now.get(k)}"
        for k in ("lintensor_jax", "jax", "jaxlib", "device")
        if then.get(k) != now.get(k)
    ]
    if changed:
        warnings.warn(
            f"{store.path}: was begun with other versions ({', '.join(changed)}); new chunks agree "
            "with finished ones to tolerance, not bit by bit.",
            stacklevel=4,
        )
