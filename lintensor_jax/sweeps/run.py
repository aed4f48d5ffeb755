"""`sweep` and `resume`: many flows, into a labelled store, on every device."""

import contextlib
import dataclasses
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffrax
import jax

from ..dynamics.batch.programs import AbstractCompilation
from ..dynamics.clocks import AbstractClock
from ..dynamics.gauss_newton import GaussNewton
from ..dynamics.stopping import AbstractStop
from ..versions import library_versions
from .execution import schedule
from .execution.schedule import Progress, Run
from .grid import Grid
from .observables.base import AbstractObservable
from .observables.catalogue import DEFAULT
from .plan import Options, Plan
from .store import writer_lock
from .store.description import (
    NameNotInRegistry,
    NotRebuildable,
    describe,
    differences,
    digest,
    rebuild,
)
from .store.errors import SweepError, UnknownName
from .store.names import FORMAT
from .store.store import Store, create, holds_sweep, open_dataset

Watch = Callable[[Progress], None]

_LONGEST_NAME = 200  # characters of a store's name in a message


def _no_progress(progress: Progress) -> None:
    pass


def sweep(
    grid: Grid,
    path: str | os.PathLike | None = None,
    *,
    observables: AbstractObservable | Sequence[AbstractObservable] = DEFAULT,
    stop: AbstractStop | None = None,
    finish: GaussNewton | Any | None = ...,
    rtol: float | None = None,
    atol: float | None = None,
    clock: AbstractClock | None = None,
    solver: diffrax.AbstractERK | None = None,
    max_steps: int = 4096,
    stiff_max_steps: int | None = 20_000,
    width: int | None = None,
    chunk_lanes: int | None = None,
    compilation: AbstractCompilation | None = None,
    devices: Sequence[Any] | None = None,
    watch: Watch | None = None,
) -> Any:
    """Gradient flows at every point of a grid, as one labelled `xarray.Dataset`.

    A lane is one flow. Lanes are integrated by the batched explicit stepper, in chunks. A lane that
    exceeds its explicit budget is integrated separately: by `mirror_flow` if that exists, else by
    `gradient_flow`, which can switch to an implicit method. `status` holds the reason why a lane
    failed. A failed lane does not affect the others.

    **Arguments**

    - `grid`: axes, starts and problems; see `lintensor_jax.sweeps.Grid`.
    - `path`: a folder for the results, a Zarr store; None keeps them in memory. Each chunk is
      written in one piece, so that a run that is killed can be resumed (`lintensor_jax.resume`).
    - `observables`: the quantities that are recorded of every lane, besides `status`, `num_steps`
      and `method`. Default: `Limit()`, `LogLoss()`, `Drift()` of `lintensor_jax.sweeps`.
    - `stop`, `finish`, `rtol`, `atol`, `clock`: as in `gradient_flow`, the same for all lanes.
    - `solver`: an explicit method with the FSAL property; default as in `batched_flow`.
    - `max_steps`: the most explicit steps of a lane. `stiff_max_steps`: the most steps after that.
      If None, a lane that exceeds `max_steps` fails.
    - `width`, `chunk_lanes`: the number of lanes in flight, and of lanes in a chunk. Both are
      stored with the results. At a fixed width a lane's result does not depend on other lanes.
    - `compilation`: as in `lintensor_jax.dynamics.batch.batched_flow.batched_flow`.
    - `devices`: default `jax.local_devices()`. A device computes whole chunks with its own
      program. Of several processes (`jax.distributed`) each computes a share of the chunks. All
      must see the same folder.
    - `watch`: a function that is called with a `Progress` after every job.

    **Returns** the results. If `path` is given, arrays are read from the store when they are used.

    **Raises** ValueError for bad input, before any flow is compiled; `SweepError` (a RuntimeError)
    for a store that cannot be made or written to.
    """
    options = Options(
        observables=observables,  # pyright: ignore[reportArgumentType]
        stop=stop,
        finish=finish,
        rtol=rtol,
        atol=atol,
        clock=clock,
        solver=solver,
        max_steps=max_steps,
        stiff_max_steps=stiff_max_steps,
        width=width,
        chunk_lanes=chunk_lanes,
        compilation=compilation,
    )
    return run(grid, options, path, devices=devices, watch=watch)


def run(
    grid: Grid,
    options: Options,
    path: str | os.PathLike | None,
    *,
    devices: Sequence[Any] | None = None,
    watch: Watch | None = None,
    config: dict[str, Any] | None = None,
    source: str | None = None,
) -> Any:
    """As `sweep`; the store also keeps `config`, the user's settings, and `source`, their text."""
    if path is None:
        if jax.process_count() > 1:
            raise ValueError("path: several processes need a folder that all of them see.")
        with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
            return run(grid, options, Path(folder, "store"), devices=devices, watch=watch).load()
    path = Path(path)
    plan = Plan(grid, options)
    description, arrays = _described(grid, options, FORMAT)
    whole = {
        "sweep": description,
        "digest": digest(description),
        "config": _as_json_values(config),
        "source": source,
        "dtype": str(plan.dtype),
        "plan": _plan_facts(plan),
        "versions": library_versions(),
    }
    schedule.agree(
        lambda: _require_no_other(path, grid, options, config), f"{path} holds another sweep"
    )
    schedule.agree(
        lambda: create(path, plan, whole, arrays, _attributes(whole, grid)), f"{path} was not made"
    )
    _work(plan, path, devices, watch)
    return open_dataset(path)


def resume(
    path: str | os.PathLike,
    grid: Grid | None = None,
    *,
    observables: Sequence[AbstractObservable] | None = None,
    devices: Sequence[Any] | None = None,
    watch: Watch | None = None,
) -> Any:
    """Finish an interrupted sweep. A finished sweep is checked and returned.

    Every finished chunk is compared with its checksum; a damaged one is computed again. On the
    same machine the results are those of an uninterrupted run, bit by bit.

    **Arguments**

    - `path`: the folder given to `sweep`.
    - `grid`: the grid given to `sweep`, code included. It is needed if it has a user's functions or
      classes, which a store cannot hold. Otherwise it is read from the store.
    - `observables`: as given to `sweep`; needed if some of their classes or functions are a user's.
    - `devices`, `watch`: as in `sweep`.

    **Raises** `SweepError`: no store, a store of a newer version, another grid, another writer.
    """
    path = Path(path)
    store = Store(path)
    grid, options = grid_of(store, grid, observables)
    plan = Plan(grid, options)
    _require_same(store, plan)
    _work(plan, path, devices, watch)
    return open_dataset(path)


def grid_of(
    store: Store, grid: Grid | None = None, observables: Sequence[AbstractObservable] | None = None
) -> tuple[Grid, Options]:
    """The grid and options of a store, or a `SweepError` that names a missing or different part."""
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
    # `dataclasses.replace` runs the checks of the fields.
    return dataclasses.replace(given["grid"]), dataclasses.replace(
        options, observables=given["observables"]
    )


def _rebuilt(store: Store, description: Any, advice: str) -> Any:
    """The described value, or a `SweepError` for a part that cannot or must not be built."""
    try:
        return rebuild(description, store.arrays, store.format)
    except NotRebuildable as missing:
        raise SweepError(
            f"{store.path}: its sweep uses {_printable(missing).replace(':', '.')}, which a store "
            f"cannot hold; {advice}"
        ) from None
    except NameNotInRegistry as unknown:
        by = store.description.get("versions", {}).get("lintensor_jax", "an unknown version")
        raise UnknownName(
            f"{store.path}: names {_printable(unknown)}, which is no class, function or field that "
            f"a store may name. It was neither imported nor called. lintensor_jax {by} is said to "
            "have written the store; open it with that version if you trust it."
        ) from None


def _printable(error: Exception) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(error))[:_LONGEST_NAME]


def _described(grid: Grid, options: Options, store_format: int):
    description, arrays = describe({"grid": grid, "options": options}, store_format)
    return description["map"], arrays


def _as_json_values(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """A configuration with the types that JSON has, as it is read back."""
    return config and json.loads(json.dumps(config))


def _require_no_other(
    path: Path, grid: Grid, options: Options, config: dict[str, Any] | None
) -> None:
    """Raise a `SweepError` if `path` holds a sweep already; it names whether it is this one."""
    if not holds_sweep(path):
        return
    store = Store(path)
    kept = store.description
    description, _ = _described(grid, options, store.format)
    if kept["digest"] == digest(description):
        done, chunks = len(store.finished()), kept["plan"]["chunks"]
        if done < chunks:
            rest = (
                f"{done} of {chunks} chunks are finished; lintensor-jax resume {path} computes "
                "the rest"
            )
        else:
            rest = (
                f"it is finished; lintensor-jax report {path} shows the results, "
                "xarray.open_zarr reads them, and to run it again choose another folder (--out)"
            )
        raise SweepError(f"{path}: holds this sweep already, and {rest}. Nothing was changed.")
    pair = (kept["config"], _as_json_values(config))
    if None in pair or pair[0] == pair[1]:
        pair = (kept["sweep"], description)
    where = ", ".join(differences(*pair)[:4])
    raise SweepError(
        f"{path}: holds another sweep, which differs in {where}; choose another folder for this "
        "one. Nothing was changed."
    )


def _work(plan: Plan, path: Path, devices, watch: Watch | None) -> None:
    devices = list(jax.local_devices() if devices is None else devices)
    if not devices:
        raise ValueError("devices: must not be empty; leave it out for jax.local_devices().")
    store = Store(path)
    error = None
    with _writer(store):
        own_chunks = _pending(plan, store)
        try:
            _note_run(store, len(own_chunks), devices)
            worker = Run(plan, store, devices, watch or _no_progress)
            worker.resume_from(store.finished())
            worker.work(own_chunks)
        except Exception as caught:
            error = caught
        if schedule.any_process_failed(error is not None):
            raise error or SweepError(f"{path}: another process failed; see its message.")


def _pending(plan: Plan, store: Store) -> list[int]:
    """This process's share of the chunks that are missing or damaged."""

    def remove_damaged():
        for number in store.finished():
            if store.damage(number):
                store.forget(number)
        store.clear()

    schedule.agree(remove_damaged, "its store could not be checked")
    finished = store.finished()
    schedule.any_process_failed(False)  # no process writes before all processes have read the list
    left = [number for number in range(plan.num_chunks) if number not in finished]
    return left[jax.process_index() :: jax.process_count()]


@contextlib.contextmanager
def _writer(store: Store) -> Iterator[None]:
    """The lock; the first process holds it for all processes."""
    with contextlib.ExitStack() as stack:
        schedule.agree(
            lambda: stack.enter_context(writer_lock.held(store.hidden, store.path)),
            "it got no lock",
        )
        yield


def _note_run(store: Store, chunks: int, devices) -> None:
    facts = {
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "chunks_to_do": chunks,
        "host": platform.node(),
        "devices": [str(device) for device in devices],
        "versions": library_versions(),
    }
    existing = len(store.notes("runs"))
    store.write_note(f"runs/{existing:04d}-{jax.process_index()}.json", facts)


def _plan_facts(plan: Plan) -> dict[str, Any]:
    return {
        "box": list(plan.box),
        "width": plan.width,
        "padded": plan.padded,
        "lanes": plan.grid.size,
        "chunks": plan.num_chunks,
    }


def _require_same(store: Store, plan: Plan) -> None:
    """Restore the stored plan; warn if bits of the results may differ."""
    kept = store.description
    then, now = kept["dtype"], str(plan.dtype)
    if then != now:
        setting = f'jax.config.update("jax_enable_x64", {then == "float64"})'
        raise SweepError(
            f"{store.path}: was made in {then}, and this process computes in {now}; call {setting} "
            "before resuming. Nothing was changed."
        )
    wanted, found = kept["plan"], _plan_facts(plan)
    if wanted != found:
        # Defaults depend on the device. The stored plan is used.
        plan.restore(tuple(wanted["box"]), wanted["width"], wanted["padded"])
    then, now = kept["versions"], library_versions()
    changed = [
        f"{k} {then[k]} -> {now.get(k)}"
        for k in ("lintensor_jax", "jax", "jaxlib", "device")
        if then.get(k) != now.get(k)
    ]
    if changed:
        warnings.warn(
            f"{store.path}: was begun with other versions ({', '.join(changed)}); new chunks agree "
            "with its finished ones to tolerance, not bit by bit.",
            stacklevel=4,
        )


def _attributes(whole: dict[str, Any], grid: Grid) -> dict[str, Any]:
    return {
        "title": "Gradient flows of linear tensor networks, swept over " + ", ".join(grid.dims),
        "config": json.dumps(whole["config"] or whole["sweep"]),
        "digest": whole["digest"],
        "seed": grid.seed,
        "dtype": whole["dtype"],
        "width": whole["plan"]["width"],
        "versions": json.dumps(whole["versions"]),
        "device": whole["versions"]["device"],
        "format": FORMAT,
    }
