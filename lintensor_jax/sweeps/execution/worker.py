"""The computation of one chunk.

The batched stepper runs the explicit steps of all lanes together, and then the implicit steps of
stiff lanes together. If a flow in n dual variables exists, it integrates stiff lanes one by one.
Lanes for which the batched implicit steps fail are integrated one by one, too.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ...dynamics.batch import hardware
from ...dynamics.batch.batched_flow import batched_flow
from ...dynamics.flow import gradient_flow
from ...dynamics.reduced.mirror_coordinates import coordinates_of
from ...dynamics.reduced.mirror_flow import mirror_flow
from ...dynamics.statuses import STATUS_NAMES, STORED
from ...networks import split
from ..descent import parameter_norm, start_of
from ..grid import Cell
from ..observables.base import Ending, has_bad_input
from ..plan import METHODS, STATUSES, Chunk, Outcome, Plan

# The most lanes that are measured at once, on a CPU and on other devices. A GPU takes as long for
# 2^14 lanes as for 256.
_MOST_AT_ONCE, _MOST_ON_ACCELERATOR = 256, 2**14
_NETWORKS = 3  # the first fields of an `Ending`
# Statuses of stiff lanes that another method may still integrate to the end.
_UNFINISHED = ("max_steps", "solver_failed", "invariants_lost")


class Worker:
    """Computes the chunks of a plan; one worker serves all devices and threads."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self._observe = {id(c): self._observer(c) for c in plan.cells.values()}
        self._descend = {id(c): self._descender(c) for c in plan.cells.values()}
        self._codes = np.asarray([STORED[name] for name in STATUS_NAMES], np.int8)

    def chunk(self, chunk: Chunk, device: Any) -> Outcome:
        """Compute a chunk; `unfinished` are the places of lanes over their explicit budget."""
        if self.plan.options.descent is not None:
            found = self.descents(chunk, device)
            return found._replace(needed_steps=int(found.values["num_steps"].sum()))
        found = self.explicit(chunk, device)
        needed = int(found.values["num_steps"].sum())
        values = {name: array.copy() for name, array in found.values.items()}
        notes = {}
        ends = [STATUSES[code] for code in values["status"]]
        for place in (p for p in found.unfinished if ends[p] in _UNFINISHED):
            lane = self.stiff(chunk, place, device)
            notes |= lane.notes
            for name, array in lane.values.items():
                steps = values[name][place] if name == "num_steps" else 0
                values[name][place] = array[0] + steps
        return found._replace(values=values, needed_steps=needed, notes=notes)

    def descents(self, chunk: Chunk, device: Any) -> Outcome:
        """Run the descents of a chunk, with all their steps."""
        cell, count = chunk.cell, chunk.lanes.size
        descent: Any = self.plan.options.descent
        with jax.default_device(device):
            networks, problems = self._starts(chunk)
            run = self._descend[id(cell)]
            end, diverged_at = run(networks, problems, *cell.arguments(self._padded(chunk)))
            values, bad = self._measured(cell, end, count)
        diverged_at = np.asarray(diverged_at)[:count]
        num_steps = int(descent.num_steps)
        status = np.where(diverged_at >= 0, STATUSES.index("non_finite"), STATUSES.index("time"))
        status = np.where(bad, STATUSES.index("bad_input"), status)
        values["status"] = status.astype(np.int8)
        values["num_steps"] = np.where(diverged_at >= 0, diverged_at, num_steps).astype(np.int32)
        values["method"] = np.full(count, METHODS.index("gradient_descent"), np.int8)
        return Outcome(values, executed_steps=num_steps * self.plan.padded, compilation="xla")

    def explicit(self, chunk: Chunk, device: Any) -> Outcome:
        """Run the batched flows of a chunk; `unfinished` lanes exceeded their explicit budget."""
        options, cell = self.plan.options, chunk.cell
        with jax.default_device(device):
            networks, problems = self._starts(chunk)
            together = self._go_on_together(cell, networks, problems)
            flow = batched_flow(
                networks,
                cell.problem_of(problems),
                shared_problem=problems is None,
                shared_constants=not cell.constants_differ_by_lane,
                width=self.plan.width,
                stop=self.plan.stops[id(cell)],
                solver=options.solver,
                max_steps=options.max_steps,
                stiff_max_steps=options.stiff_max_steps if together else None,
                compilation=options.compilation,
                devices=[device],
                **options.flow,
            )
            end = Ending(
                networks,
                flow.network,
                flow.unfinished_network,
                problems,
                flow.coefficients,
                flow.log_loss,
                flow.log_time,
                flow.log_norm,
                flow.log_margin,
                flow.invariant_drift,
            )
            values, bad = self._measured(cell, end, chunk.lanes.size)
        count = chunk.lanes.size
        status = self._codes[np.asarray(flow.status._value)[:count]]
        status = np.where(bad, STATUSES.index("bad_input"), status).astype(np.int8)
        values["status"] = status
        values["num_steps"] = np.asarray(flow.num_steps)[:count].astype(np.int32)
        is_stiff = np.asarray(flow.num_implicit_steps)[:count] > 0
        method = np.where(is_stiff, METHODS.index("gradient_flow"), METHODS.index("explicit"))
        values["method"] = method.astype(np.int8)
        unfinished = ()
        if options.stiff_max_steps is not None:
            is_stiff |= status == STATUSES.index("max_steps")
            unfinished = tuple(np.flatnonzero(is_stiff).tolist())
        ran = ": ".join(filter(None, (flow.compilation, flow.fallback_reason)))
        return Outcome(values, unfinished, int(flow.executed_steps), compilation=ran)

    def _go_on_together(self, cell: Cell, networks: Any, problems: Any) -> bool:
        """Whether stiff lanes are integrated together, since no flow in n dual variables exists.

        The first lane of the chunk decides, so that the result does not depend on the run.
        """
        own: Any = problems and jax.tree.map(lambda leaf: leaf[0], problems)
        problem = cell.problem_of(own)
        if problem.has_margins or self.plan.options.finish is not ...:
            return True
        try:
            coordinates_of(cell.lane(networks, 0), problem)
        except ValueError:
            return True
        return False

    def stiff(self, chunk: Chunk, place: int, device: Any) -> Outcome:
        """Integrate one lane of a chunk: by `mirror_flow` if it exists, else `gradient_flow`."""
        options, cell = self.plan.options, chunk.cell
        with jax.default_device(device):
            networks, problems = self._starts(chunk)
            network = cell.lane(networks, place)
            own: Any = problems and jax.tree.map(lambda leaf: leaf[place], problems)
            problem = cell.problem_of(own)
            note, flow = "", None
            try:
                method, flow = _flow_of(network, problem, self.plan.stops[id(cell)], options)
            except (ValueError, ArithmeticError, jax.errors.JaxRuntimeError) as error:
                method, note = "gradient_flow", f"{type(error).__name__}: {error}"
            if flow is None:
                return Outcome(self._failed(method), notes={place: note})
            last: Any = jax.tree.map(
                lambda leaf: leaf[-1],
                (
                    flow.coefficients,
                    flow.log_loss,
                    flow.log_time,
                    flow.log_norm,
                    flow.log_margin,
                    flow.invariant_drift,
                ),
            )
            end = Ending(network, flow.network, flow.unfinished_network, own, *last)
            values, _ = self._measured(cell, _as_lanes(cell, end), 1)
        values["status"] = self._codes[np.asarray(flow.status._value)][None]
        values["num_steps"] = np.asarray(flow.stats["num_steps"], np.int32)[None]
        values["method"] = np.asarray([METHODS.index(method)], np.int8)
        return Outcome(values)

    def _failed(self, method: str) -> dict[str, np.ndarray]:
        values = {
            name: np.full(
                (1, *array.shape[len(self.plan.grid.dims) :]),
                np.nan if array.dtype.kind == "f" else 0,
                array.dtype,
            )
            for name, array in self.plan.arrays.items()
        }
        values["status"][:] = STATUSES.index("solver_failed")
        values["method"][:] = METHODS.index(method)
        return values

    def _starts(self, chunk: Chunk):
        return chunk.cell.starts(self._padded(chunk))

    def _padded(self, chunk: Chunk) -> np.ndarray:
        lanes = chunk.lanes
        return np.concatenate([lanes, np.repeat(lanes[-1:], self.plan.padded - lanes.size)])

    def _descender(self, cell: Cell):
        """A compiled function of starts, problems and points: (`Ending`, steps of divergence)."""
        descent: Any = self.plan.options.descent

        def of_lane(lane, rest):
            parameters, own, point = lane
            network, problem = eqx.combine(parameters, rest), cell.problem_of(own)
            point = cell.point(*point)
            solution = descent.run(network, problem, point)
            last: Any = jax.tree.map(
                lambda leaf: leaf[-1],
                (solution.coefficients, solution.log_loss, solution.log_margin),
            )
            beta, log_loss, log_margin = last
            final = cell.split_by_lane(solution.network)[0]
            time = jnp.log(jnp.asarray(descent.time(point), beta.dtype))
            drift = solution.balance_drift[-1]
            found = (
                beta,
                log_loss,
                time,
                parameter_norm(split(solution.network)[0]),
                log_margin,
                drift,
            )
            return final, found, start_of(solution), solution.divergence_step

        @functools.partial(jax.jit, static_argnames="at_once")
        def descend(parameters, problems, points, rest, at_once):
            lanes = parameters, problems, points
            return jax.lax.map(lambda lane: of_lane(lane, rest), lanes, batch_size=at_once)

        def run(networks, problems, numbers, index):
            parameters, rest = cell.split_by_lane(networks)
            points, at_once = (numbers, index), _at_once(parameters)
            final, found, start, diverged_at = descend(
                parameters, problems, points, rest, at_once=at_once
            )
            final = eqx.combine(final, rest)
            end = Ending(networks, final, final, problems, *found, effective_start=start)
            return end, diverged_at

        return run

    def _observer(self, cell: Cell):
        observables = self.plan.options.observables

        def of_lane(end):
            if end.problem is None:
                end = end._replace(problem=cell.shared)
            values = [o.measure_traced(end) if o.on_host else o.measure(end) for o in observables]
            return values, has_bad_input(end.initial, end.problem)

        @functools.partial(jax.jit, static_argnames="at_once")
        def observe(arrays, rest, at_once):
            return jax.lax.map(lambda end: of_lane(_whole(end, rest)), arrays, batch_size=at_once)

        def observed(end):
            arrays, rest = _lanes_and_rest(cell, end)
            return observe(arrays, rest, at_once=_at_once(arrays))

        return observed

    def _measured(self, cell: Cell, end: Ending, count: int):
        found, bad = self._observe[id(cell)](end)
        found = jax.tree.map(lambda array: np.asarray(array)[:count], found)
        values = {}
        for observable, measured in zip(self.plan.options.observables, found, strict=True):
            if observable.on_host:
                measured = _with_host(measured, observable, cell, end, count)
            for variable, value in zip(observable.variables, measured, strict=True):
                values[variable.name] = self._filled(variable.name, value)
        return values, np.asarray(bad)[:count]

    def _filled(self, name: str, value: np.ndarray) -> np.ndarray:
        """The value in the shape of its array; if axes of a cell are shorter, filled with NaN."""
        array = self.plan.arrays[name]
        extra = array.shape[len(self.plan.grid.dims) :]
        value = value.reshape(*value.shape, *(1,) * (len(extra) + 1 - value.ndim))
        if value.shape[1:] == extra:
            return value.astype(array.dtype, copy=False)
        filled = np.full(
            (value.shape[0], *extra), np.nan if array.dtype.kind == "f" else 0, array.dtype
        )
        filled[tuple(slice(0, n) for n in value.shape)] = value
        return filled


def _at_once(lanes: Any) -> int:
    """How many lanes to map at once: a divisor of their number.

    Otherwise the last batch would be smaller, and would be compiled separately.
    """
    leaf = jax.tree.leaves(lanes)[0]
    on_cpu = hardware.kind_of(hardware.device_of(leaf)) == "cpu"
    most, count = _MOST_AT_ONCE if on_cpu else _MOST_ON_ACCELERATOR, leaf.shape[0]
    return next(b for b in range(min(count, most), 0, -1) if count % b == 0)


def _flow_of(network, problem, stop, options):
    settings = {k: v for k, v in options.flow.items() if k != "finish"}
    settings |= {"stop": stop, "max_steps": options.stiff_max_steps, "throw": False}
    if problem.has_residuals and options.finish is ...:
        try:
            flow = mirror_flow(network, problem, **settings)
            # If nu grows without bound (a corner, inconsistent data), it loses its digits.
            if bool(flow.succeeded):
                return "mirror_flow", flow
        except ValueError:
            pass  # it does not exist for this network, or not in this precision
    return "gradient_flow", gradient_flow(network, problem, finish=options.finish, **settings)


def _lanes_and_rest(cell: Cell, end: Ending) -> tuple[Ending, tuple]:
    """(arrays with lanes on their first axis, the parts of the networks without lanes)."""
    arrays, rest = zip(*(cell.split_by_lane(network) for network in end[:_NETWORKS]), strict=True)
    return Ending._make((*arrays, *end[_NETWORKS:])), rest


def _whole(arrays: Ending, rest: tuple) -> Ending:
    """The inverse of `_lanes_and_rest`."""
    networks = [eqx.combine(*parts) for parts in zip(arrays, rest, strict=False)]
    return Ending._make((*networks, *arrays[_NETWORKS:]))


def _as_lanes(cell: Cell, end: Ending) -> Ending:
    """One lane with an added lane axis of length 1; shared parts of networks get no such axis."""
    arrays, rest = _lanes_and_rest(cell, end)
    return _whole(jax.tree.map(lambda leaf: leaf[None], arrays), rest)


def _with_host(traced, observable, cell: Cell, end: Ending, count: int) -> tuple[Any, ...]:
    """The values of all lanes: `traced` where these are known, else by `measure`, one by one."""
    if traced is None:
        return _one_by_one(observable, cell, end, np.arange(count))
    values, is_known = traced
    unknown = np.flatnonzero(~is_known)
    if not unknown.size:
        return values
    values = tuple(array.copy() for array in values)
    measured = _one_by_one(observable, cell, end, unknown)
    for array, rows in zip(values, measured, strict=True):
        array[unknown] = rows
    return values


def _one_by_one(observable, cell: Cell, end: Ending, lanes: np.ndarray) -> tuple[np.ndarray, ...]:
    arrays, rest = _lanes_and_rest(cell, end)
    shared = cell.shared
    arrays = jax.tree.map(np.asarray, arrays)
    rows = []
    for k in lanes:
        lane = jax.tree.map(lambda leaf: jnp.asarray(leaf[k]), arrays)  # noqa: B023
        lane = _whole(lane, rest)
        rows.append(observable.measure(lane if shared is None else lane._replace(problem=shared)))
    return tuple(np.stack([np.asarray(v) for v in column]) for column in zip(*rows, strict=True))
