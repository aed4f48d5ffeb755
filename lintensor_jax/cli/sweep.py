"""The commands that compute flows of a sweep: `sweep`, `resume`, `work`."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ..messages import counted
from .cluster import client_of
from .sweep_words import (
    command,
    folder_argument,
    library_errors_as_usage_errors,
    print_rows,
    print_status,
    shown_progress,
)
from .terminal import UsageError, configure_jax, quiet_argument

# Each device has its own threads, so 100,000 devices would stop a machine. More devices than cores
# are useful only to try on a small machine what a large one will do.
_ALWAYS_ALLOWED_DEVICES = 8
_CHUNKS = re.compile(r"(\d{1,12})(?:-(\d{1,12}))?")


def add_commands(commands: Any) -> None:
    """Add the subparsers of the commands that compute."""
    sweep = command(
        commands,
        "sweep",
        sweep_command,
        "run a grid of flows from a TOML file",
        "Run every flow of a grid and store the results, labelled, in a Zarr store that xarray "
        "opens (xarray.open_zarr). A run that was killed can be continued with resume.",
    )
    sweep.add_argument("config", metavar="CONFIG", type=Path, help="a TOML file")
    sweep.add_argument(
        "--out", metavar="DIR", type=Path, help="where to write (default: results/CONFIG's name)"
    )
    sweep.add_argument(
        "--dry-run",
        action="store_true",
        help="print the numbers of lanes (single flows) and compilations, memory and disk; "
        "run nothing",
    )
    sweep.add_argument(
        "--no-work",
        action="store_true",
        help="make the store and compute nothing: lintensor-jax work DIR computes its chunks",
    )
    quiet_argument(sweep)
    _devices(sweep)
    _cluster(sweep)
    resume = command(
        commands,
        "resume",
        resume_command,
        "finish a sweep that was interrupted",
        "Check every finished chunk of a sweep (flows that were saved together), compute what is "
        "missing or damaged, and give the results that an uninterrupted run would have given.",
    )
    folder_argument(resume)
    quiet_argument(resume)
    _devices(resume)
    _cluster(resume)
    work = command(
        commands,
        "work",
        work_command,
        "compute chunks of a sweep, together with other processes",
        "Compute the chunks of a sweep (flows that are saved together) that nobody has computed "
        "yet. Any number of these commands may run at once, on any machines that see the folder: "
        "they share the work, and if one dies the others compute its chunk.",
    )
    folder_argument(work)
    work.add_argument(
        "--chunks",
        metavar="A-B",
        help="only the chunks of these numbers, such as 0-99 or 7 or 0-9,20-29 (default: all)",
    )
    quiet_argument(work)
    _devices(work)


def _devices(parser):
    parser.add_argument(
        "--devices",
        metavar="N",
        type=int,
        help="CPU devices that compute side by side (default: 1; small networks use every core "
        "with one device; more are for large networks and for implicit methods)",
    )


def _cluster(parser):
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="compute in the workers of a Dask scheduler, such as tcp://host:8786, or in processes "
        "of this machine: local or local:N (needs lintensor_jax[cluster])",
    )


def sweep_command(arguments: Any) -> int:
    """`lintensor-jax sweep CONFIG`."""
    from ..config import load
    from ..sweeps.from_toml import configuration

    load(
        arguments.config, configuration.Sweep
    )  # errors of the file are raised before JAX is started
    devices = _set_devices(arguments.devices)
    configure_jax()
    from ..sweeps.plan import Plan
    from ..sweeps.run import make_store, run

    config, grid, options = configuration.read(arguments.config)
    path = arguments.out or Path("results") / arguments.config.stem
    with library_errors_as_usage_errors(arguments.config):
        if arguments.dry_run:
            return _print_plan(Plan(grid, options).summary(devices), path, arguments.json)
        source = arguments.config.read_text(encoding="utf-8")
        asked = {"config": dataclasses.asdict(config), "source": source}
        if arguments.no_work:
            make_store(grid, options, path, **asked)
        else:
            with (
                client_of(arguments.cluster) as client,
                shown_progress(arguments.json or arguments.quiet) as watch,
            ):
                run(grid, options, path, client=client, watch=watch, **asked)
    return print_status(path, arguments.json, wrote=True, quiet=arguments.quiet)


def resume_command(arguments: Any) -> int:
    """`lintensor-jax resume DIR`."""
    from ..sweeps.store.store import Store

    with library_errors_as_usage_errors(arguments.folder):
        Store(arguments.folder)  # errors of the file are raised before JAX is started
        _set_devices(arguments.devices)
        configure_jax()
        from ..sweeps.run import resume

        with (
            client_of(arguments.cluster) as client,
            shown_progress(arguments.json or arguments.quiet) as watch,
        ):
            resume(arguments.folder, client=client, watch=watch)
    return print_status(arguments.folder, arguments.json, wrote=True, quiet=arguments.quiet)


def work_command(arguments: Any) -> int:
    """`lintensor-jax work DIR`."""
    from ..sweeps.store.store import Store

    with library_errors_as_usage_errors(arguments.folder):
        count = Store(arguments.folder).description["plan"]["chunks"]
        chunks = None if arguments.chunks is None else _chunk_numbers(arguments.chunks, count)
        _set_devices(arguments.devices)
        configure_jax()
        from ..sweeps.run import work

        with shown_progress(arguments.json or arguments.quiet) as watch:
            work(arguments.folder, chunks, watch=watch)
    return print_status(arguments.folder, arguments.json, wrote=True, quiet=arguments.quiet)


def _chunk_numbers(text: str, count: int) -> list[int]:
    """The numbers in "0-99" or "0-9,20-29". A last number beyond the last chunk is reduced."""
    found: list[int] = []
    for part in text.split(","):
        match = _CHUNKS.fullmatch(part.strip())
        first, last = (match[1], match[2] or match[1]) if match else ("1", "0")
        if int(first) > int(last):
            raise UsageError(
                f"--chunks: must be numbers such as 0-99 or 7 or 0-9,20-29, got {text!r}."
            )
        if int(first) >= count:
            raise UsageError(
                f"--chunks: must start below {count}, the number of the sweep's chunks, got {part}."
            )
        found += range(int(first), min(int(last), count - 1) + 1)
    return found


def _set_devices(wanted: int | None) -> int:
    """Divide the CPU into devices, before JAX computes anything; returns their number."""
    import jax

    if wanted is not None and wanted < 1:
        raise UsageError(
            f"--devices: must be a whole number >= 1, got {wanted}; leave it out for 1."
        )
    count = wanted or 1
    cores = os.cpu_count() or 1
    most = max(_ALWAYS_ALLOWED_DEVICES, cores)
    if count > most:
        raise UsageError(
            f"--devices: must be at most {most} on this machine of {cores} cores, got {wanted}; "
            "more devices than cores are no faster."
        )
    given = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not given and count > 1:
        # A backend that is initialised already, as in tests, keeps its devices.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)
    return len(jax.local_devices())


def _print_plan(plan: dict[str, Any], path: Path, as_json: bool) -> int:
    from ..sweeps.store.status import in_bytes

    existing = path
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    plan = {**plan, "folder": str(path), "free_disk_bytes": free}
    if as_json:
        print(json.dumps(plan))
        return 0
    dims = " x ".join(f"{name} {size:,}" for name, size in plan["dimensions"].items())
    print_rows(
        [
            ("lanes", f"{plan['lanes']:,} ({dims}), a flow each"),
            (
                "chunks",
                f"{plan['chunks']:,}, saved one by one, of up to {plan['lanes_per_chunk']:,} "
                f"lanes, {plan['lanes_in_flight']} in flight",
            ),
            (
                "compilations",
                f"{plan['compilations']} ({counted(plan['shapes'], 'shape')} on "
                f"{counted(plan['devices'], 'device')})",
            ),
            (
                "memory",
                f"about {in_bytes(plan['memory_per_device_bytes'])} a device, besides JAX itself",
            ),
            (
                "disk",
                f"arrays of at most {in_bytes(plan['disk_bytes'])}, {plan['files']:,} files, "
                f"in {path}, besides labels and the report ({in_bytes(free)} are free)",
            ),
            ("variables", ", ".join(plan["variables"])),
        ]
    )
    return 0
