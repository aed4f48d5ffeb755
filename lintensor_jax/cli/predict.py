"""The command `predict`: the predictions of theory for a sweep's flows, without running one."""

import json
import math
import textwrap
from pathlib import Path
from typing import Any

from ..messages import without_rounding
from .sweep_words import library_errors_as_usage_errors
from .terminal import configure_jax

_WIDTH = 80
_MOST_SHOWN = 12
# Limits that differ by less than this are equal up to rounding.
_SAME = 1e-9
_MOST_ENTRIES = 4


def add_commands(commands: Any) -> None:
    """Add the subparser of `predict` to `commands`."""
    predict = commands.add_parser(
        "predict",
        help="which theorem applies to a sweep's flows, and their predicted limits",
        description="For each network and data set of a sweep: the theorem that applies, its "
        "assumptions one by one with their measured values, the limit that it predicts and how "
        "the limit changes over the initial scales. No flow is run.",
    )
    predict.add_argument("config", metavar="CONFIG", type=Path, help="a sweep's TOML file")
    predict.add_argument(
        "--all",
        action="store_true",
        help=f"explain every combination of network and data (default: the first {_MOST_SHOWN})",
    )
    predict.add_argument("--json", action="store_true", help="print only JSON, about all of them")
    predict.set_defaults(command=predict_command)


def predict_command(arguments: Any) -> int:
    """`lintensor-jax predict CONFIG`."""
    from ..config import load
    from ..sweeps.from_toml import configuration

    load(
        arguments.config, configuration.Sweep
    )  # errors of the file are raised before JAX is started
    configure_jax()
    from ..sweeps.from_toml.predictions import combinations

    with library_errors_as_usage_errors(arguments.config):
        _, grid, _ = configuration.read(arguments.config)
        found = combinations(grid)
        if arguments.json:
            _print_json(found, arguments.config, grid.size)
            return 0
        total = grid.size
        for number, combination in enumerate(found, 1):
            if number == 1:
                total //= combination.num_starts
                _print_wrapped(
                    f"{arguments.config}: {_count(grid.size, 'flow')}, that is "
                    f"{_count(total, 'combination')} of network and data with "
                    f"{_count(combination.num_starts, 'start')} each. No flow is run here."
                )
            _print_combination(combination)
            if number == _MOST_SHOWN < total and not arguments.all:
                print()
                _print_wrapped(
                    f"{total - number:,} more combinations: lintensor-jax predict "
                    f"{arguments.config} --all"
                )
                break
    return 0


def _print_combination(combination):
    print()
    title = ", ".join(f"{name} = {value}" for name, value in combination.point.items())
    if title:
        _print_wrapped(title)
        print("-" * min(len(title), _WIDTH))
    chosen = ", ".join(f"{k} = {_short(v)}" for k, v in combination.starts[0].items())
    _print_wrapped(f"At the first of its starts ({chosen}):")
    for line in str(combination.predictions[0]).splitlines():
        _print_wrapped(line)
    _print_scales(combination)


def _print_scales(combination):
    predictions, distances = combination.predictions, combination.distances
    alphas = [start["alpha"] for start in combination.starts]
    if len(alphas) == 1:
        return
    fixed = len({_short(start.get("direction")) for start in combination.starts}) == 1
    span = f"{len(alphas)} alphas from {alphas[0]:.4g} to {alphas[-1]:.4g}"
    claims = {(p.theorem, p.kind) for p in predictions}
    if len(claims) == 1 and predictions[0].limit is None:
        _print_wrapped(f"Over the initial scale: no limit is predicted at {span}.")
        return
    if len(claims) == 1 and all(d is not None and d < _SAME for d in distances):
        _print_wrapped(f"Over the initial scale: the same limit at {span}.")
        return
    _print_wrapped(
        f"Over the initial scale, at {span}"
        + (", all other settings equal:" if fixed else " (each with another direction):")
    )
    rows = [
        (
            f"{alpha:.4g}",
            str(p.kind or "-").replace("_", " "),
            "-" if distance is None else f"{distance:.2e}",
            _short(None if p.limit is None else p.limit.tolist()),
        )
        for alpha, p, distance in zip(alphas, predictions, distances, strict=True)
    ]
    # "moved": the distance of a limit from the first one, in the l2 norm.
    print(f"  {'alpha':10s}{'claim':15s}{'moved (l2)':12s}limit")
    for row in rows:
        print(f"  {row[0]:10s}{row[1]:15s}{row[2]:12s}{row[3]}".rstrip())
    if any(p.kind == "open" for p in predictions):
        _print_wrapped('  "open": the limit is exact if the assumptions that are open hold.')
    if len({p.theorem for p in predictions}) > 1:
        for alpha, p in zip(alphas, predictions, strict=True):
            _print_wrapped(f"  at {alpha:.4g}: {p.theorem or 'no theorem applies'}")


def _print_json(found, path, size):
    listed = [
        {
            "combination": c.point,
            "starts_in_grid": c.num_starts,
            "start": c.starts[0],
            **_as_json(c.predictions[0]),
            "over_starts": [
                {
                    **start,
                    "theorem": p.theorem,
                    "kind": p.kind,
                    "is_proved": p.is_proved,
                    "limit": None if p.limit is None else p.limit.tolist(),
                    "distance_to_first": distance,
                }
                for start, p, distance in zip(c.starts, c.predictions, c.distances, strict=True)
            ],
        }
        for c in found
    ]
    whole = {"config": str(path), "flows": size, "combinations": listed}
    print(json.dumps(_finite(whole), allow_nan=False))


def _as_json(p):
    rate = p.rate and {
        "formula": p.rate.formula,
        "c": p.rate.value,
        "log_initial_loss": p.rate.log_initial_loss,
        "source": p.rate.source,
    }
    return {
        "subject": p.subject,
        "theorem": p.theorem,
        "kind": p.kind,
        "is_proved": p.is_proved,
        "open": [a.statement for a in p.open],
        "limit": None if p.limit is None else p.limit.tolist(),
        "assumptions": _listed(p.assumptions),
        "rate": rate,
        "notes": list(p.notes),
        "rejected": [{"theorem": r.theorem, "violated": _listed(r.violated)} for r in p.rejected],
    }


def _listed(assumptions):
    return [
        {"statement": a.statement, "value": a.value, "holds": a.holds, "source": a.source}
        for a in assumptions
    ]


def _finite(value):
    """The value with infinities and NaN as text, because JSON has no such numbers."""
    match value:
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case None | bool() | str() | int():
            return value
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _short(value):
    """A value as short text: a list of up to four entries, or the number of its entries."""
    if value is None:
        return "-"
    if not isinstance(value, list):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    if len(value) > _MOST_ENTRIES or any(isinstance(entry, list) for entry in value):
        return f"{len(value)} entries"
    return f"[{', '.join(f'{entry:.4g}' for entry in without_rounding(value))}]"


def _count(number, noun):
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _print_wrapped(line):
    body = line.lstrip()
    indent = " " * (len(line) - len(body))
    # Long words are formulas and paths. They are not broken, so that they can be copied.
    print(
        textwrap.fill(
            body,
            _WIDTH,
            initial_indent=indent,
            subsequent_indent=indent + " " * (8 if body.startswith("[") else 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
    )
