"""Mistakes of users: the call, the exception's type and words that its message must contain.

Mistakes that another test provokes are not repeated here; `error_sites.txt` names that test.
"""

from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import lintensor_jax as lt
from lintensor_jax import problems
from lintensor_jax.limits.dual_flow import continue_direction
from lintensor_jax.networks import AssumptionFails
from lintensor_jax.sweeps import Axis, Grid, Limit, Measured, Options, Plan, Trajectory

X, Y = np.array([[1.0, 2.0], [0.5, -1.0]]), np.array([1.0, -1.0])
_SENSORS = np.array([[[1.0, 2.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 2.0]]])
_SYMMETRIC = np.array([[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]]])


class OwnNetwork(lt.AbstractNetwork):
    """A user's network without factors."""

    beta: Any
    depth: int = eqx.field(static=True, default=1)

    def linear_coefficients(self):
        """The parameters themselves."""
        return self.beta

    def __call__(self, x, activation=None):
        """The forward pass of the base class."""
        return super().__call__(x, activation)


class OwnProblem(problems.AbstractProblem):
    """A user's loss: |beta|^2."""

    def predictions(self, beta):
        """The coefficients."""
        return beta

    def adjoint(self, values):
        """The identity."""
        return values

    def residual(self, beta):
        """Half the gradient."""
        return beta

    def log_loss(self, beta):
        """log |beta|^2."""
        return jnp.log(jnp.sum(beta**2))

    @property
    def coefficient_shape(self):
        """The shape for two inputs."""
        return (2,)


def _matrix_regression():
    return lt.Regression(np.eye(2), np.eye(2))


def diagonal(depth=2, dimension=2):
    return lt.DiagonalNetwork(np.ones((depth, dimension)))


def regression():
    return lt.Regression(X, Y)


def classification():
    return lt.Classification(X, Y)


def _sensing(A=_SYMMETRIC):
    return lt.MatrixSensing(A, np.ones(2))


def _grid(**changes):
    given = {"axes": (Axis("alpha", [0.1]),), "start": lambda p: diagonal(), "problem": None}
    return Grid(**{**given, "problem": regression(), **changes})


def _plan(*observables):
    return Plan(_grid(), Options(observables=observables))


def traced(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function` under a transformation that traces the arrays of its arguments."""
    arrays, rest = eqx.partition(arguments, eqx.is_inexact_array)
    return jax.eval_shape(lambda a: function(*eqx.combine(a, rest)), arrays)


Cases = dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]]

CASES: Cases = {
    # Networks and problems.
    "rows": (
        lambda: lt.Regression(X, [1.0]),
        ValueError,
        ("Regression: X and y", "one row per sample", "2 and 1 rows", "X's 2 samples"),
    ),
    "columns": (
        lambda: lt.Regression([[1.0, 2.0]], [1.0, 2.0]),
        ValueError,
        ("one row per sample", "1 and 2 rows", "X has shape (1, 2)", "give y", "transpose X"),
    ),
    "depth and dimension": (
        lambda: lt.initialization.matching(lt.DiagonalNetwork.zeros(3, 2), jnp.ones(3)),
        ValueError,
        ("shape (2,)", "depth 3 and dimension 2", "zeros(depth=2, dimension=3)"),
    ),
    "coefficients of another dimension": (
        lambda: lt.initialization.matching(lt.DiagonalNetwork.zeros(3, 2), jnp.ones(5)),
        ValueError,
        ("got (5,)", "depth 3 and dimension 2; change one of the two"),
    ),
    "a width that is no int": (
        lambda: lt.FullyConnectedNetwork.zeros(cast(Any, (2, 2.5))),
        ValueError,
        ("FullyConnectedNetwork.zeros: widths[1]", "positive int", "got 2.5; pass"),
    ),
    "one number in place of lengths": (
        lambda: lt.ConvolutionalNetwork.zeros(2, cast(Any, 2)),
        ValueError,
        ("ConvolutionalNetwork.zeros: lengths", "tuple of positive ints", "got 2; pass"),
    ),
    "a product of three dimensions": (
        lambda: lt.MatrixFactorizationNetwork.zeros(2, cast(Any, (2, 3, 4))),
        ValueError,
        ("dimension must be d, or the shape (d, m)", "got (2, 3, 4); pass"),
    ),
    "empty data": (
        lambda: lt.Regression(np.ones((0, 2)), []),
        ValueError,
        ("Regression: X must not be empty", "(0, 2)", "at least one sample"),
    ),
    "labels": (
        lambda: lt.Classification(X, [1.0, 0.0]),
        ValueError,
        ("Classification: y", "-1 or +1", "0.0"),
    ),
    "empty weights": (
        lambda: lt.DiagonalNetwork(np.ones((2, 0))),
        ValueError,
        ("DiagonalNetwork: weights must not be empty", "(2, 0)", "at least one"),
    ),
    "linear only": (
        lambda: OwnNetwork(beta=jnp.ones(2))(jnp.ones(2), jnp.tanh),
        ValueError,
        ("activation: OwnNetwork", "only its linear form", "activation=None"),
    ),
    "asymmetric sensors": (
        lambda: lt.sensing_decomposition(_sensing(_SENSORS)),
        AssumptionFails,
        ("symmetric sensors", "A[0]", "(A + A^T) / 2"),
    ),
    "non-commuting sensors": (
        lambda: lt.sensing_decomposition(_sensing()),
        AssumptionFails,
        ("commuting sensors", "A[0] and A[1]", "gradient_flow does"),
    ),
    "coefficients out of reach": (
        lambda: lt.initialization.matching(
            lt.TensorNetwork(np.ones((2, 2, 2)), [np.ones(2)] * 2), jnp.array([1.0, -1.0])
        ),
        ValueError,
        ("matching: coefficients must be within reach", "got coefficients at distance", "key"),
    ),
    # Flows.
    "no default stop": (
        lambda: lt.gradient_flow(diagonal(), OwnProblem()),
        ValueError,
        ("stop: no default", "OwnProblem", "StopAtLoss(1e-10)"),
    ),
    "stop with a number": (
        lambda: lt.StopAtResidual(1e-6) | 3,  # pyright: ignore[reportOperatorIssue]
        TypeError,
        ("stop rules combine with stop rules", "got 3", "StopAtTime"),
    ),
    "max_steps": (
        lambda: lt.gradient_flow(diagonal(), regression(), max_steps=0),
        ValueError,
        ("max_steps: must be a positive int", "got 0", "leave it out"),
    ),
    "rtol": (
        lambda: lt.gradient_flow(diagonal(), regression(), rtol=2.0),
        ValueError,
        ("rtol: must lie in (0, 1)", "got 2.0", "1e-8"),
    ),
    "margin": (
        lambda: lt.StopAtMargin(-1.0),
        ValueError,
        ("StopAtMargin: value must be a positive finite number", "got -1.0", "1e8"),
    ),
    "mirror flow, traced": (
        lambda: traced(lt.mirror_flow, diagonal(), regression()),
        ValueError,
        ("network: mirror_flow", "not for jax.jit", "gradient_flow"),
    ),
    "mirror flow, unknown network": (
        lambda: lt.mirror_flow(OwnNetwork(beta=jnp.ones(2)), regression()),
        ValueError,
        ("network: OwnNetwork", "closed form", "use gradient_flow"),
    ),
    "mirror flow, dead coordinate": (
        lambda: lt.mirror_flow(lt.DiagonalNetwork([[1, 0.0], [1, 0.0], [0, 0]]), regression()),
        AssumptionFails,
        ("nonzero entries of U_l^T v_l", "never moves", "gradient_flow"),
    ),
    "mirror flow, matrices and vectors": (
        lambda: lt.mirror_flow(
            lt.MatrixFactorizationNetwork(np.stack([np.eye(2)] * 2)), _matrix_regression()
        ),
        ValueError,
        ("problem: ", "got Regression", "gradient_flow"),
    ),
    "continuation of a regression": (
        lambda: continue_direction(diagonal(), regression()),  # pyright: ignore
        ValueError,
        ("problem: continue_direction is for Classification", "got Regression", "mirror_flow"),
    ),
    "continuation, traced": (
        lambda: traced(continue_direction, diagonal(), classification()),
        ValueError,
        ("network: continue_direction", "concrete arrays", "loop over it"),
    ),
    "continuation without data": (
        lambda: continue_direction(
            lt.DiagonalNetwork([[1.0, 1.0], [0.5, 0.5]]), lt.Classification(0 * X, Y)
        ),
        ValueError,
        ("problem: the data must not be zero", "X = 0"),
    ),
    # Sweeps.
    "axis of arrays that changes shapes": (
        lambda: Axis("width", [[1, 2]], changes_shape=True),
        ValueError,
        ("Axis width:", "one number or word a point", "got shape (1, 2)", "name the points"),
    ),
    "no axes": (
        lambda: _grid(axes=()),
        ValueError,
        ("Grid: axes must be a non-empty tuple", "got ()"),
    ),
    "a start that is no function": (
        lambda: _grid(start=np.ones(2)),
        ValueError,
        ("Grid: start must be a function", "got ndarray", "lambda point: network"),
    ),
    "too many lanes": (
        lambda: _grid(axes=[Axis(f"a{i}", range(2**11)) for i in range(3)]),
        ValueError,
        ("Grid: at most 2^32 - 1 lanes", f"got {2**33}", "split the sweep"),
    ),
    "times of a trajectory": (
        lambda: Trajectory([1.0, 0.5]),
        ValueError,
        ("Trajectory: times must be", "got [1.0, 0.5]", "sort them"),
    ),
    "steps without end": (
        lambda: Options(max_steps=None),  # pyright: ignore[reportArgumentType]
        ValueError,
        ("max_steps: must be a positive int", "got None", "4096"),
    ),
    "width of a sweep": (
        lambda: Options(width=0),
        ValueError,
        ("width: must be a whole number >= 1", "got 0", "leave it out"),
    ),
    "unnamed axis of an observable": (
        lambda: _plan(Measured("b", lambda end: end.coefficients)),
        ValueError,
        ("observables: b has values of shape (2,)", "dims = ()"),
    ),
    "two trajectories": (
        lambda: _plan(Trajectory([1.0]), Trajectory([2.0])),
        ValueError,
        ("observables: two of them", "take one of them"),
    ),
    "no grid": (
        lambda: lt.sweep(cast(Any, lt.Regression(X, Y)), observables=Limit()),
        ValueError,
        ("grid: must be a lintensor_jax.sweeps.Grid", "type Regression", "batched_flow"),
    ),
    "no devices": (
        lambda: lt.sweep(_grid(), observables=Limit(), devices=()),
        ValueError,
        ("devices: must not be empty", "jax.local_devices()"),
    ),
}
