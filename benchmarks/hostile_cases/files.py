"""Configurations, data files, sweeps, command line: an error is one line that names its cause."""

import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import xarray

import lintensor_jax as lt
from lintensor_jax import cli

from .draws import Random, pick
from .flow_oracles import flow, regression_slope
from .outcomes import FAILED, REFUSED, RIGHT, WRONG, Case, Verdict, all_of, holds, within

_BASE = {
    "network": {"architecture": '"diagonal"', "depth": "2"},
    "data": {"task": '"regression"', "X": "[[1.0, 2.0]]", "y": "[1.0]"},
    "start": {"num_alphas": "2", "num_directions": "2"},
    "flow": {},
    "record": {},
}
_ODD = (
    "-1", "0", "1.5", "nan", "inf", "-inf", "1e400", "1e-400", "true", '""', '"ä"', '"abc"', "[]",
    "[[]]", "[1, 2]", '["x"]', "[[1.0], [1.0, 2.0]]", "{}", "2024-01-01", "1_000_000_000_000",
    '"\\u0000"', '"../../x"', "[nan]", "[[nan, 1.0]]", "[true]",
)  # fmt: skip
_KEYS = {
    "network": ("architecture", "depth", "width", "dpeth"),
    "data": ("task", "path", "X", "y", "num_samples", "dimension", "seed"),
    "start": (
        "initialization", "alphas", "alpha_from", "alpha_to", "num_alphas", "directions",
        "num_directions", "num_repeats", "together", "gap",
    ),
    "flow": ("rtol", "residual", "margin", "log_inverse_loss", "max_steps", "stiff_max_steps"),
    "record": ("observables", "trajectory_times", "lanes_in_flight", "lanes_per_chunk"),
}  # fmt: skip


def _text(tables):
    parts = []
    for name, entries in tables.items():
        parts.append(f"[{name}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()))
    return "\n".join(parts)


def _run(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(list(arguments))
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def _one_line(found, may_pass=True):
    code, _, err = found
    if code == 0 and may_pass:
        return Verdict(RIGHT, 0.0)
    if code == 2 and err.startswith("error: ") and err.count("\n") == 1:
        return Verdict(REFUSED, note=err)
    return Verdict(WRONG, note=f"exit code {code}, {err[-300:]}")


def odd_configuration(rng: Random) -> Case:
    """`predict` or a dry run of a sweep, with one odd entry in its configuration."""
    tables = {name: dict(entries) for name, entries in _BASE.items()}
    table = pick(rng, tuple(_KEYS))
    key, value = pick(rng, _KEYS[table]), pick(rng, _ODD)
    tables[table][key] = value
    text = _text(tables)
    if rng.random() < 0.1:  # broken text
        at = int(rng.integers(len(text)))
        text = text[:at] + pick(rng, ("\x00", "[", '"', "=", "\n[data]\n", "é")) + text[at + 1 :]
    command = pick(rng, (("predict",), ("sweep", "--dry-run")))

    def call():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "c.toml"
            path.write_text(text, encoding="utf-8")
            return _run(command[0], str(path), *command[1:])

    return Case(f"{' '.join(command)} {table}.{key} = {value}: {text!r}", call, _one_line)


_ODD_ARRAYS = (
    {"X": np.array(["a"])},
    {"X": np.ones(2), "y": np.ones(2)},
    {"y": np.ones(2)},
    {"X": np.array([["1", "2"]]), "y": np.ones(1)},
    {"X": np.array([["x", "2"]]), "y": np.ones(1)},
    {"X": 1j * np.ones((1, 2)), "y": np.ones(1)},
    {"X": np.ones((0, 2)), "y": np.ones(0)},
)
_CELLS = ("1", "-2.5", "1e-200", "1e200", "", "nan", "inf", "x", "1,5", '"1"', "0x10", "1_0", " 3 ")


def data_file(rng: Random) -> Case:
    """CSV and NPZ files: either all numbers are read, or one line says what is wrong."""
    kind = pick(rng, ("csv", "csv", "npz"))
    mild = rng.random() < 0.5
    numbers = rng.standard_normal((2, 3)) * 10.0 ** float(pick(rng, (0, -5, 5)))
    rows = [[repr(float(x)) for x in row] for row in numbers]
    if not mild:
        rows[int(rng.integers(2))][int(rng.integers(3))] = pick(rng, _CELLS)
        if rng.random() < 0.3:
            rows.append([])
        if rng.random() < 0.3:
            rows[0] = rows[0][:2]
    head = pick(rng, ("", "a,b,c\n", "\ufeffa,b,c\n"))
    text = head + "\n".join(",".join(row) for row in rows) + pick(rng, ("", "\n", "\r\n"))
    odd = pick(rng, _ODD_ARRAYS)

    def call():
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / f"d.{kind}"
            if kind == "csv":
                data.write_text(text, encoding="utf-8", newline="")
            elif mild:
                np.savez(data, X=numbers[:, :-1], y=numbers[:, -1])
            else:
                np.savez(data, **odd)
            config = Path(folder) / "c.toml"
            config.write_text(f'[data]\npath = "d.{kind}"\n[start]\nnum_alphas = 1\n')
            return _run("predict", str(config), "--json")

    def judge(found):
        verdict = _one_line(found)
        if mild and verdict.outcome == REFUSED:
            return Verdict(WRONG, note=f"refused: {verdict.note}")
        if mild:
            answer = json.loads(found[1])
            limit = answer["combinations"][0]["limit"]
            if limit is not None:
                X, y = numbers[:, :-1], numbers[:, -1]
                return within(X @ np.array(limit), y, 1e-6, np.max(np.abs(y)))
        return verdict

    words = f"{odd if kind == 'npz' else text!r}"
    return Case(f"{kind}, {'numbers' if mild else 'odd'}: {words}", call, judge)


_WORDS = ("predict", "sweep", "resume", "status", "verify", "plot", "report", "init", "reproduce",
          "work", "prdict", "--help", "--version", "")  # fmt: skip
_TAILS = ("", "nowhere", ".", "/dev/null", "c.toml", "--json", "--out", "--devices 0", "--all",
          "--jobs -1", "--kind x", "--dry-run", "a b c", "é", "'", "-", "--",
          "--cluster x")  # fmt: skip


def command_line(rng: Random) -> Case:
    """Odd arguments give an exit code and one line, never a traceback."""
    words = [pick(rng, _WORDS), *pick(rng, _TAILS).split(), *pick(rng, _TAILS).split()]
    words = [w for w in words if w]

    def call():
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            return _run(*words)

    return Case(f"lintensor-jax {' '.join(words)}", call, _one_line)


def sweep(rng: Random) -> Case:
    """A small sweep: every lane that succeeded is at the limit of SciPy's flow."""
    X = rng.choice([1.0, 2.0, -1.0], (1, 2))
    y = float(rng.choice([1.0, -1.0, 0.0, 1e3]))
    alphas = pick(rng, ([0.1, 1.0], [1e-3, 1.0], [1.0, 1e2]))
    z = rng.choice([1.0, -1.0, 0.0, 0.5], (2, 2))
    text = (
        f"[data]\nX = {X.tolist()}\ny = [{y}]\n[start]\nalphas = {alphas}\n"
        f"directions = {z.tolist()}\n"
    )

    def call():
        with tempfile.TemporaryDirectory() as folder:
            config, out = Path(folder) / "c.toml", Path(folder) / "out"
            config.write_text(text)
            found = _run("sweep", str(config), "--out", str(out), "--json")
            dataset = None
            if found[0] == 0:
                dataset = xarray.open_zarr(out, consolidated=True).load()
            return found, dataset

    def judge(pair):
        found, dataset = pair
        verdicts = [_one_line(found)]
        if dataset is None:
            return verdicts[0]
        for i, alpha in enumerate(alphas):
            for j, row in enumerate(z):
                like = lt.DiagonalNetwork.zeros(2, 2)
                layers = np.asarray(lt.initialization.matching(like, row).scaled(alpha).weights)
                rate = float(X[0] @ X[0]) * max(np.max(np.abs(layers)), abs(y) ** 0.5) ** 2
                slope = regression_slope(X, np.array([y]), "squared")
                right = flow(layers, slope, 1e4 / rate, implicit=True, rtol=1e-9)[0][0]
                limit = np.asarray(dataset["limit"])[i, j]
                if not np.isfinite(limit).all():
                    verdicts.append(Verdict(FAILED, note=f"{alpha}, {row}"))
                    continue
                size = max(np.max(np.abs(right)), 1e-9)
                verdicts.append(within(limit, right, 1e-4, size))
        return all_of(*verdicts, holds(True, ""))

    return Case(text, call, judge)
