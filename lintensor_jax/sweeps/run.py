"""`sweep`, `resume` and `work`: compute many flows and write them to a labelled store."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import diffrax
import jax

from ..dynamics.batch.programs import AbstractCompilation
from ..dynamics.clocks import AbstractClock
from ..dynamics.gauss_newton import GaussNewton
from ..dynamics.stopping import AbstractStop
from ..messages import in_words
from ..versions import library_versions
from .descent import Descent
from .execution import drive
from .execution.chunks import unfinished_chunks
from .execution.drive import Progress, Watched
from .execution.reopen import grid_of, plan_facts, plan_of
from .execution.worker import Worker
from .grid import Grid
from .observables.base import AbstractObservable
from .observables.catalogue import DEFAULT
from .plan import Options, Plan
from .store import atomic_files
from .store.dataset import open_dataset
from .store.description import describe, differences, digest
from .store.errors import SweepError, UnknownName
from .store.links import refuse_links
from .store.names import FORMAT
from .store.store import Store, create, holds_sweep

Watch = Callable[[Progress], None]


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
    descent: Descent | None = None,
    devices: Sequence[Any] | None = None,
    client: Any = None,
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
    - `stop`, `finish`, `rtol`, `atol`, `clock`: as in `batched_flow`, the same for all lanes. If
      lanes have different targets, the default is `StopAtResidual` at 1e-9 times the smallest.
    - `solver`: an explicit method with the FSAL property; default as in `batched_flow`.
    - `max_steps`: the most explicit steps of a lane. `stiff_max_steps`: the most steps after that.
      If None, a lane that exceeds `max_steps` fails.
    - `width`, `chunk_lanes`: the number of lanes in flight, and of lanes in a chunk. Both are
      stored with the results. At a fixed width a lane's result does not depend on other lanes.
    - `compilation`: as in `lintensor_jax.dynamics.batch.batched_flow.batched_flow`.
    - `descent`: a `lintensor_jax.sweeps.Descent`. Then every lane is a gradient descent in place of
      a flow, and takes all its steps (status `time`, or `non_finite` if it diverges). Options of
      flows are not allowed. `EffectiveLimit()` records the exact limits of two-layer networks.
    - `devices`: default `jax.local_devices()`. A device computes whole chunks with its own program.
    - `client`: a `dask.distributed.Client`, whose workers compute the chunks in place of this
      process (`pip install lintensor_jax[cluster]`). All of them must see the folder `path`. If a
      worker dies, the chunks that it was computing are computed again.
    - `watch`: a function that is called with a `Progress` after every chunk.

    **Returns** the results. If `path` is given, arrays are read from the store when they are used.

    **Raises** ValueError for bad input, before any flow is compiled; `SweepError` (a RuntimeError)
    for a store that cannot be made or written to.
    """
    if not isinstance(grid, Grid):
        raise ValueError(
            "grid: must be a lintensor_jax.sweeps.Grid(axes=..., start=..., problem=...), got "
            f"{in_words(grid)}; lintensor_jax.batched_flow takes networks and a problem."
        )
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
        descent=descent,
    )
    return run(grid, options, path, devices=devices, client=client, watch=watch)


def run(
    grid: Grid,
    options: Options,
    path: str | os.PathLike | None,
    *,
    devices: Sequence[Any] | None = None,
    client: Any = None,
    watch: Watch | None = None,
    config: dict[str, Any] | None = None,
    source: str | None = None,
) -> Any:
    """As `sweep`; the store also holds `config`, the user's settings, and `source`, their text."""
    if path is None:
        if client is not None:
            raise ValueError("path: a cluster needs a folder that all its workers see; name one.")
        with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
            return run(grid, options, Path(folder, "store"), devices=devices, watch=watch).load()
    path = Path(path)
    plan = make_store(grid, options, path, config, source, None if client is not None else devices)
    finish(plan, path, devices, client, watch)
    return open_dataset(path)


def make_store(
    grid: Grid,
    options: Options,
    path: Path,
    config: dict[str, Any] | None = None,
    source: str | None = None,
    devices: Sequence[Any] | None = None,
) -> Plan:
    """Make a new store without chunks, and return its plan. Arguments as in `run`."""
    plan = Plan(grid, options, devices)
    whole, arrays = described_sweep(plan, config, source)
    _require_no_sweep(path, grid, options, config)
    create(path, plan, whole["about"], arrays, whole["attributes"])
    return plan


def resume(
    path: str | os.PathLike,
    grid: Grid | None = None,
    *,
    observables: Sequence[AbstractObservable] | None = None,
    devices: Sequence[Any] | None = None,
    client: Any = None,
    watch: Watch | None = None,
) -> Any:
    """Finish an interrupted sweep. A finished sweep is checked and returned.

    Labels, metadata and every finished chunk are compared with their checksums. Damaged files are
    written or computed again. On the same machine the results are equal, bit by bit, to those of an
    uninterrupted run. Other processes may compute chunks of the same store at the same time.

    **Arguments**

    - `path`: the folder given to `sweep`.
    - `grid`: the grid given to `sweep`, with the same code. It is needed if it has user-defined
      functions or classes, which a store cannot hold. Otherwise it is read from the store.
    - `observables`: as given to `sweep`; needed if some of them are user-defined.
    - `devices`, `client`, `watch`: as in `sweep`.

    **Raises** `SweepError` if there is no store, if a newer version wrote it, or if the grid is
    another one.
    """
    path = Path(path)
    plan = plan_of(Store(path), grid, observables)
    finish(plan, path, devices, client, watch)
    return open_dataset(path)


def work(
    path: str | os.PathLike,
    chunks: Iterable[int] | None = None,
    grid: Grid | None = None,
    *,
    observables: Sequence[AbstractObservable] | None = None,
    devices: Sequence[Any] | None = None,
    watch: Watch | None = None,
) -> None:
    """Compute chunks of an existing store. Any number of processes may do so at the same time.

    They share the work without a scheduler. A chunk that another process is computing is skipped.
    If that process dies, this process computes the chunk at the end.

    **Arguments**

    - `path`: the folder of a sweep, which all processes see.
    - `chunks`: numbers of chunks, such as `range(100)`; finished chunks are skipped. Default: all
      chunks.
    - `grid`, `observables`, `devices`, `watch`: as in `resume`.

    **Raises** `SweepError`, as `resume` does; ValueError if there is no chunk with such a number.
    """
    store = Store(Path(path))
    count = store.description["plan"]["chunks"]
    wanted = None if chunks is None else {int(number) for number in chunks}
    if wanted and not 0 <= min(wanted) <= max(wanted) < count:
        raise ValueError(
            f"chunks: must be numbers from 0 to {count - 1}, got {min(wanted)} to {max(wanted)}; "
            "lintensor-jax status shows how many there are."
        )
    plan = plan_of(store, grid, observables)
    numbers = [n for n in unfinished_chunks(store) if wanted is None or n in wanted]
    if numbers:
        _compute(plan, store, numbers, devices, None, watch)


def finish(plan: Plan, path: Path, devices, client: Any, watch: Watch | None) -> None:
    """Repair labels, remove the manifests of damaged chunks, and compute the remaining chunks."""
    store = Store(path)
    refuse_links(path, path, deep=True)
    store.prepare_folders()
    store.restore_skeleton()
    for number in sorted(store.finished()):
        if store.damage(number):
            store.forget(number)
    _compute(plan, store, unfinished_chunks(store), devices, client, watch)


def _compute(plan: Plan, store: Store, numbers: Iterable[int], devices, client, watch) -> None:
    devices = list(jax.local_devices() if devices is None else devices)
    if not devices:
        raise ValueError("devices: must not be empty; leave it out for jax.local_devices().")
    _note_run(store, devices if client is None else [str(client)])
    watched = Watched(store, watch or _no_progress, len(devices))
    if client is None:
        drive.compute_here(Worker(plan), store, numbers, devices, watched)
    else:
        drive.in_cluster(client, store, numbers, _for_workers(store, plan), watched)


def _for_workers(store: Store, plan: Plan) -> tuple[Grid, Options] | None:
    """The grid and options, if workers cannot build them from the store."""
    try:
        grid_of(store)
    except UnknownName:
        raise
    except SweepError:
        return plan.grid, plan.options
    return None


def described_sweep(plan: Plan, config: dict[str, Any] | None, source: str | None):
    """The data of a sweep in a store: ({"about": entries, "attributes": ...}, long arrays)."""
    description, arrays = _described(plan.grid, plan.options, FORMAT)
    about = {
        "sweep": description,
        "digest": digest(description),
        "config": _as_json_values(config),
        "source": source,
        "dtype": str(plan.dtype),
        "plan": plan_facts(plan),
        "versions": library_versions(),
    }
    return {"about": about, "attributes": _attributes(about, plan.grid)}, arrays


def _described(grid: Grid, options: Options, store_format: int):
    description, arrays = describe({"grid": grid, "options": options}, store_format)
    return description["map"], arrays


def _as_json_values(config: dict[str, Any] | None) -> dict[str, Any] | None:
    """A configuration with the types of JSON, as it will be read from the store."""
    return config and json.loads(json.dumps(config))


def _require_no_sweep(
    path: Path, grid: Grid, options: Options, config: dict[str, Any] | None
) -> None:
    """Raise a `SweepError` if `path` holds a sweep already; it says whether it is the same one."""
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


def _note_run(store: Store, devices) -> None:
    facts = {
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "chunks_to_do": store.description["plan"]["chunks"] - len(store.finished()),
        "host": platform.node(),
        "devices": [str(device) for device in devices],
        "versions": library_versions(),
    }
    existing = len(store.notes("runs"))
    store.write_note(f"runs/{existing:04d}-{atomic_files.unique('run').split('.')[1]}.json", facts)


def _attributes(whole: dict[str, Any], grid: Grid) -> dict[str, Any]:
    return {
        "title": "Gradient flows of linear tensor networks, swept over " + ", ".join(grid.dims),
        "config": json.dumps(whole["config"] or whole["sweep"]),
        "digest": whole["digest"],
        "seed": grid.seed,
        "dtype": whole["dtype"],
        "lanes_in_flight": whole["plan"]["width"],
        "versions": json.dumps(whole["versions"]),
        "device": whole["versions"]["device"],
        "format": FORMAT,
    }
