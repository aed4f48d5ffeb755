"""Stores that try to run code, or to read or write outside their folder: all are refused.

Run from the repository root:

    python benchmarks/hostile_stores.py [--record]

Every case is a copy of one small store, half of whose chunks are missing, with one change. All
checksums that the change affects are computed again, as an attacker would do. Then `status`,
`verify`, `resume` and `write_report` are called. A case has failed if a file beside the store was
opened, changed or removed, if a module of the attacker was imported, if a program was started, or
if the report's page contains a script. An audit hook of Python records these events. The exit code
is 1 if a case has failed.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np

import lintensor_jax as lt
from lintensor_jax.sweeps import status, verify, write_report
from lintensor_jax.sweeps.store import sealed

# The imports compute nothing, so float64 can still be set here.
jax.config.update("jax_enable_x64", True)
mpl.use("agg")

EVIL = "attacker_module"
SCRIPT = "<script>alert(1)</script>"
Change = Callable[[Path, Path], None]  # arguments: a store, and a folder beside it
CASES: dict[str, Change] = {}
_events: list[str] = []
_watched: list[str] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pickle.find_class"):
        _events.append(f"{event} {arguments[:2]}")
    if event in ("open", "os.remove", "os.rename", "os.listdir", "os.scandir", "import"):
        text = str(arguments[0])
        if EVIL in text or any(text.startswith(folder) for folder in _watched):
            _events.append(f"{event} {text}")


def case(function: Change) -> Change:
    """Register a case by the first line of its docstring."""
    CASES[(function.__doc__ or "").splitlines()[0].rstrip(".")] = function
    return function


def description(store: Path) -> dict[str, Any]:
    return sealed.read(store / ".sweep" / "sweep.json")


def write(store: Path, about: dict[str, Any]) -> None:
    """Write a description with matching checksums."""
    files = about["skeleton"]
    about["skeleton"] = {name: _checksum(store / name, kept) for name, kept in files.items()}
    about["arrays"] = _checksum(store / ".sweep" / "arrays.npz", about["arrays"])
    (store / ".sweep" / "sweep.json").write_bytes(sealed.sealed(about))


def _checksum(path: Path, kept: str) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else kept


def in_sweep(value: Any, *path: Any) -> Change:
    """A change of one entry of the described sweep."""

    def change(store: Path, _: Path) -> None:
        about = description(store)
        inner = about["sweep"]
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value
        write(store, about)

    return change


_GRID, _OPTIONS = ("grid", "fields"), ("options", "fields")
_PARTIAL = {
    "is": "lintensor_jax.sweeps.plan:eqx.Partial",
    "fields": {
        "func": {"function": "lintensor_jax.sweeps.plan:np.testing.rundocs"},
        "args": {"tuple": []},
        "keywords": {"map": {}},
    },
}
CASES |= {
    "start is os.system": in_sweep({"function": "os:system"}, *_GRID, "start"),
    "start is an attribute chain": in_sweep(_PARTIAL, *_GRID, "start"),
    "start is a module of the attacker": in_sweep({"function": f"{EVIL}:run"}, *_GRID, "start"),
    "start reads a file": in_sweep({"function": "lintensor_jax:load"}, *_GRID, "start"),
    "start writes a file": in_sweep({"function": "lintensor_jax:save"}, *_GRID, "start"),
    "start runs a sweep": in_sweep({"function": "lintensor_jax.sweeps:work"}, *_GRID, "start"),
    "problem is eval": in_sweep({"is": "builtins:eval", "fields": {}}, *_GRID, "problem"),
    "stop is a class of the attacker": in_sweep(
        {"is": f"{EVIL}:Stop", "fields": {}}, *_OPTIONS, "stop"
    ),
    "an observable calls os.system": in_sweep(
        {
            "is": "lintensor_jax.sweeps:Measured",
            "fields": {"name": "x", "function": {"function": "os:system"}},
        },
        *_OPTIONS,
        "observables",
        "tuple",
        0,
    ),
    "a field is __class__": in_sweep({"function": "os:system"}, *_GRID, "__class__"),
    "a compilation is a module": in_sweep(
        {"is": f"{EVIL}:Native", "fields": {}}, *_OPTIONS, "compilation"
    ),
}


class _Pickled:
    def __reduce__(self):
        return os.system, ("true",)


@case
def arrays_are_pickled(store: Path, beside: Path) -> None:
    """Long arrays are pickled objects."""
    np.savez(store / ".sweep" / "arrays.npz", x=np.array([_Pickled()], object))
    write(store, description(store))


@case
def arrays_are_a_pickle(store: Path, beside: Path) -> None:
    """The file of arrays is a pickle."""
    (store / ".sweep" / "arrays.npz").write_bytes(pickle.dumps(_Pickled()))
    write(store, description(store))


def _metadata(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    root = json.loads((store / "zarr.json").read_text())
    change(root["consolidated_metadata"]["metadata"]["limit"])
    (store / "zarr.json").write_text(json.dumps(root))
    own = json.loads((store / "limit" / "zarr.json").read_text())
    change(own)
    (store / "limit" / "zarr.json").write_text(json.dumps(own))
    write(store, description(store))


@case
def codec_pickle(store: Path, beside: Path) -> None:
    """A codec is pickle."""
    _metadata(store, lambda about: about.update(codecs=[{"name": "numcodecs.pickle"}]))


@case
def codec_of_the_attacker(store: Path, beside: Path) -> None:
    """A codec inside of a shard is the attacker's."""

    def change(about: dict[str, Any]) -> None:
        about["codecs"][0]["configuration"]["codecs"].append({"name": f"{EVIL}.codec"})

    _metadata(store, change)


@case
def storage_transformer(store: Path, beside: Path) -> None:
    """Metadata ask for a storage transformer."""
    _metadata(store, lambda about: about.update(storage_transformers=[{"name": EVIL}]))


@case
def manifest_outside(store: Path, beside: Path) -> None:
    """A manifest names a file outside."""
    for name in ("../beside/secret", str(beside / "secret")):
        path = next(iter(sorted((store / ".sweep" / "chunks").glob("*.json"))))
        manifest = sealed.read(path)
        manifest["files"][name] = hashlib.sha256((beside / "secret").read_bytes()).hexdigest()
        path.write_bytes(sealed.sealed(manifest))


@case
def skeleton_outside(store: Path, beside: Path) -> None:
    """The list of labels names a file outside."""
    about = description(store)
    about["skeleton"]["../beside/secret"] = "0" * 64
    (store / ".sweep" / "sweep.json").write_bytes(sealed.sealed(about))


@case
def coordinate_outside(store: Path, beside: Path) -> None:
    """A coordinate that is to be made again has a name outside."""
    about = description(store)
    about["coordinates"][0]["name"] = "../beside/alpha"
    about["coordinates"][0]["dims"] = ["../beside/alpha"]
    (store / "zarr.json").unlink()
    write(store, about)


@case
def variable_outside(store: Path, beside: Path) -> None:
    """A variable that is to be made again has a name outside."""
    about = description(store)
    about["variables"][0]["name"] = "../beside/status"
    (store / "zarr.json").unlink()
    write(store, about)


@case
def notes_outside(store: Path, beside: Path) -> None:
    """Notes about a report name a file outside."""
    (store / ".sweep" / "files").mkdir(exist_ok=True)
    note = {"files": {"../beside/secret": "0" * 64, str(beside / "secret"): "0" * 64}}
    (store / ".sweep" / "files" / "report.json").write_bytes(sealed.sealed(note))


def _link(store: Path, name: str, target: Path) -> None:
    path = store / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@case
def arrays_are_a_link(store: Path, beside: Path) -> None:
    """The file of long arrays is a link."""
    _link(store, ".sweep/arrays.npz", beside / "secret.npz")


@case
def description_is_a_link(store: Path, beside: Path) -> None:
    """The description is a link."""
    shutil.copy(store / ".sweep" / "sweep.json", beside / "sweep.json")
    _link(store, ".sweep/sweep.json", beside / "sweep.json")


@case
def hidden_is_a_link(store: Path, beside: Path) -> None:
    """The hidden folder is a link."""
    shutil.copytree(store / ".sweep", beside / "hidden")
    _link(store, ".sweep", beside / "hidden")


LINKS = {
    "a chunk's file": "limit/c/0/0/0",
    "an array's folder": "limit",
    "the folder of manifests": ".sweep/chunks",
    "the folder of unfinished files": ".sweep/scratch",
    "the folder of claims": ".sweep/claims",
    "the folder of notes": ".sweep/runs",
    "the folder of the report": "report",
}
for _words, _name in LINKS.items():
    target = "secret" if _name.count("/") > 1 else "."
    CASES[f"{_words} is a link"] = lambda store, beside, n=_name, t=target: _link(
        store, n, beside / t
    )


@case
def script_in_a_page(store: Path, beside: Path) -> None:
    """Texts of the store are scripts for the page of the report."""
    about = description(store)
    about["source"] = SCRIPT
    about["config"] = {SCRIPT: SCRIPT}
    about["versions"][SCRIPT] = SCRIPT
    write(store, about)
    for path in (store / ".sweep" / "chunks").glob("*.json"):
        manifest = sealed.read(path)
        manifest["notes"], manifest["compilation"] = {"0": SCRIPT}, SCRIPT
        path.write_bytes(sealed.sealed(manifest))


def _configuration(folder: Path) -> Path:
    """A store that needs no code of a user, with two of four chunks."""
    from lintensor_jax.cli import main

    (folder / "c.toml").write_text(
        "[data]\nX = [[1, 2]]\ny = [1]\n[start]\nnum_alphas = 6\nnum_directions = 20\n"
        "[record]\nlanes_per_chunk = 30\nlanes_in_flight = 8\n"
    )
    store = folder / "good"
    with contextlib.redirect_stdout(io.StringIO()):
        main(["sweep", str(folder / "c.toml"), "--out", str(store), "--no-work"])
        main(["work", str(store), "--chunks", "0-1"])
    return store


def snapshot(folder: Path) -> dict[str, bytes]:
    """Names and contents of everything in a folder."""
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[None]:
    """Record accesses to a folder, and programs and modules that run."""
    _events.clear()
    _watched.append(str(folder))
    try:
        yield
    finally:
        _watched.clear()


def attempt(name: str, change: Change, good: Path, folder: Path) -> tuple[bool, list[str]]:
    """Whether nothing ran and nothing outside was touched; and the outcomes of the calls."""
    store, beside = folder / "store", folder / "beside"
    beside.mkdir(parents=True)
    (beside / "secret").write_text("a secret")
    np.savez(beside / "secret.npz", x=np.ones(2))
    (beside / "zarr.json").write_text("{}")
    (beside / f"x.0123456789ab.{os.uname().nodename}.999999").write_text("not the store's")
    (beside / "00000000.json").write_text('{"pid": 1, "host": "x"}')
    shutil.copytree(good, store)
    change(store, beside)
    before, report_lines = snapshot(beside), []
    calls = {
        "status": status,
        "verify": verify,
        "resume": lt.resume,
        "report": write_report,
    }
    for label, call in calls.items():
        with watching(beside), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                call(store)
                outcome = "went on"
            except (lt.sweeps.SweepError, ValueError) as error:
                outcome = f"refused: {' '.join(str(error).split())[:150]}"
        report_lines.append(f"{label} {outcome}")
        if _events:
            report_lines.append(f"  TOUCHED by {label}: {sorted(set(_events))[:4]}")
    pages = "".join(p.read_text() for p in store.rglob("*.html"))
    passed = not any("TOUCHED" in line for line in report_lines) and snapshot(beside) == before
    return passed and EVIL not in sys.modules and SCRIPT not in pages, report_lines


def main() -> int:
    """Run all cases; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="keep the numbers in a file")
    options = parser.parse_args()
    num_passed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "path").mkdir()
        (folder / "path" / f"{EVIL}.py").write_text("raise SystemExit('it ran')")
        sys.path.insert(0, str(folder / "path"))
        good = _configuration(folder)
        first = shutil.copytree(good, folder / "first")
        lt.resume(first)
        write_report(first)  # imports libraries before the hook: some of them unpickle tables
        sys.addaudithook(_hook)
        for number, (words, change) in enumerate(CASES.items()):
            fine, report_lines = attempt(words, change, good, folder / str(number))
            num_passed += fine
            print(f"{'passed' if fine else 'FAILED':6s} {words}")
            for line in report_lines:
                print(f"         {line}")
    print(f"{num_passed} of {len(CASES)} hostile stores ran nothing and touched nothing outside")
    if options.record:
        from sweep_shared import record

        passed = num_passed == len(CASES)
        numbers = {"passed": passed, "cases": len(CASES), "refused": num_passed}
        record("hostile", numbers, "hostile_stores.py")
    return 0 if num_passed == len(CASES) else 1


if __name__ == "__main__":
    sys.exit(main())
