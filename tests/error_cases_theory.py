"""Mistakes as in `error_cases.py`: wrong arguments of predictions, norms, margins and rates."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from error_cases import Cases, OwnNetwork, classification, diagonal, regression, traced

import lintensor_jax as lt
from lintensor_jax.networks import AssumptionFails
from lintensor_jax.theory import yun_rate_bound
from lintensor_jax.theory.least_norm.max_margin import NonSeparableError
from lintensor_jax.theory.least_norm.min_norm import InconsistentEquationsError
from lintensor_jax.theory.rates import stable_sets
from lintensor_jax.theory.rates.wide_networks import theorem_12
from lintensor_jax.theory.regression.yun_theorem_5 import diagonal_limit
from lintensor_jax.theory.regression.yun_theorem_6 import limit_point_two_layer

Y, ONE = np.array([1.0, -1.0]), np.array([[1.0, 2.0]])


class Bare(eqx.Module):
    """A network with all that `certify` needs except a depth."""

    beta: Any

    def linear_coefficients(self):
        """The parameters themselves."""
        return self.beta


class _Signed:
    coefficient_shape = (2,)
    is_convex = False
    signed_data = np.array([[np.nan, 1.0]])


def _tensor(depth=2, dimension=2):
    shape = (dimension,) * depth
    return lt.TensorNetwork(np.ones((*shape, dimension)), [np.ones(dimension)] * depth)


def _two_layer(network: Any, problem: Any) -> Any:
    """Theorem 6, called with arguments of any type."""
    return limit_point_two_layer(network, problem)


THEORY: Cases = {
    "max_margin, superfluous start": (
        lambda: lt.max_margin(classification(), lt.L2Norm(), start=np.ones(2)),
        ValueError,
        ("max_margin: start must be left out", "L2Norm"),
    ),
    "max_margin, start of another shape": (
        lambda: lt.max_margin(classification(), lt.LpNorm(0.5), start=np.ones(3)),
        ValueError,
        ("max_margin: start", "(2,)", "got shape (3,)", "linear coefficients"),
    ),
    "max_margin, start that does not separate": (
        lambda: lt.max_margin(classification(), lt.LpNorm(0.5), start=np.array([-1.0, -1.0])),
        ValueError,
        ("max_margin: start must separate", "got a smallest normalised margin", "L2Norm()"),
    ),
    "max_margin, zero sample": (
        lambda: lt.max_margin(lt.Classification([[1.0, 0.0], [0.0, 0.0]], Y), lt.L2Norm()),
        NonSeparableError,
        ("max_margin: the data must be separable", "sample 1 is zero", "remove that sample"),
    ),
    "signed data": (
        lambda: lt.max_margin(_Signed(), lt.L2Norm()),
        ValueError,
        ("max_margin: signed_data must be finite", "got shape (1, 2)", "samples come first"),
    ),
    "min_norm, traced": (
        lambda: traced(lambda p: lt.min_norm(p, lt.L1Norm()), regression()),
        ValueError,
        ("min_norm: problem must hold concrete arrays", "L1Norm", "outside jit"),
    ),
    "min_norm, contradiction": (
        lambda: lt.min_norm(lt.Regression([[1.0, 0.0], [1.0, 0.0]], [1.0, 2.0]), lt.L2Norm()),
        InconsistentEquationsError,
        ("min_norm: y must lie in the range", "relative inconsistency", "remove contradictory"),
    ),
    "p": (
        lambda: lt.LpNorm(-1.5),
        ValueError,
        ("LpNorm: p must be positive", "got -1.5", "p = 2/L"),
    ),
    "p in the Fourier domain": (
        lambda: lt.FourierLpNorm(1.5),
        ValueError,
        ("FourierLpNorm: p must lie strictly between 0 and 1", "got 1.5", "FourierL1Norm()"),
    ),
    "bias with one class": (
        lambda: lt.max_margin(lt.Classification([[1.0, 2.0]], [1.0], bias=True), lt.L2Norm()),
        ValueError,
        ("max_margin: a problem with a free bias", "got one", "leave the bias out"),
    ),
    "weights of a norm": (
        lambda: lt.WeightedL2Norm([1.0, 0.0]),
        ValueError,
        ("weights must be positive and finite", "got 0.0 at index [1]", "pass bias=True"),
    ),
    "certify without depth": (
        lambda: lt.certify(Bare(jnp.array([0.1, 1.0])), classification()),
        ValueError,
        ("certify: network_or_coefficients must state its depth", "Bare", "set depth = L"),
    ),
    "certify something else": (
        lambda: lt.certify({"beta": [0.1] * 30}, classification()),  # pyright: ignore
        ValueError,
        ("certify: network_or_coefficients must be a network", "got a value of type dict."),
    ),
    "the class of a norm": (
        lambda: lt.min_norm(regression(), lt.L1Norm),  # pyright: ignore[reportArgumentType]
        ValueError,
        ("min_norm: norm must be a norm object", "got the class L1Norm itself"),
    ),
    "diagonal limit of other data": (
        lambda: diagonal_limit(diagonal(2, 3), regression()),
        ValueError,
        ("network, problem: the input dimensions must agree", "(3,)", "change one of the two"),
    ),
    "Yun's bound where nothing applies": (
        lambda: yun_rate_bound(lt.DiagonalNetwork(np.zeros((2, 2))), regression()),
        ValueError,
        ("yun_rate_bound:", "violated", "lintensor_jax.initialization.matching"),
    ),
    "Theorem 12 without data": (
        lambda: theorem_12(lt.Regression(0 * ONE, [1.0]), 100),
        ValueError,
        ("theorem_12: X must not be zero", "without data"),
    ),
    "Theorem 6, network": (
        lambda: _two_layer(OwnNetwork(beta=jnp.ones(2)), lt.Regression(ONE, [1.0])),
        ValueError,
        ("network:", "OwnNetwork lacks", "add them"),
    ),
    "Theorem 6, depth": (
        lambda: _two_layer(_tensor(3), lt.Regression(ONE, [1.0])),
        ValueError,
        ("network:", "L = 2 layers", "got L = 3", "simulate deeper networks"),
    ),
    "Theorem 6, problem": (
        lambda: _two_layer(_tensor(), classification()),
        ValueError,
        ("problem:", "got Classification", "directions"),
    ),
    "Theorem 6, samples": (
        lambda: _two_layer(_tensor(), regression()),
        ValueError,
        ("problem:", "a single sample", "got n = 2", "keep one row"),
    ),
    "Theorem 6, outputs": (
        lambda: _two_layer(
            lt.FullyConnectedNetwork.zeros((2, 2), 2), lt.Regression(ONE, [[1.0, 2]])
        ),
        ValueError,
        ("network, problem:", "a scalar output", "(d_L,)"),
    ),
    "Theorem 6, inputs": (
        lambda: _two_layer(_tensor(2, 3), lt.Regression(ONE, [1.0])),
        ValueError,
        ("network, problem: the input dimensions must agree", "(3,)", "change one of the two"),
    ),
    "stable sets of a classification": (
        lambda: stable_sets.rank_one_target(classification()),  # pyright: ignore
        ValueError,
        ("problem: the stable sets are for Regression", "got Classification", "pass"),
    ),
    "stable sets without a target": (
        lambda: stable_sets.rank_one_target(lt.Regression(np.eye(2), [0.0, 0.0])),
        AssumptionFails,
        ("the largest singular value", "not unique"),
    ),
    "alpha of a stable set": (
        lambda: stable_sets.stable_set(lt.Regression(np.eye(2), Y), 2.0),
        ValueError,
        ("alpha: must lie in (gamma_Z, 1)", "got 2.0", "half way"),
    ),
    "upper of a stable set": (
        lambda: stable_sets.stable_set(lt.Regression(np.eye(2), Y), 0.5, 1.0),
        ValueError,
        ("upper: must be > 1", "got 1.0", "leave it out"),
    ),
    "depth of the nearby rates": (
        lambda: stable_sets.nearby_rates(lt.Regression(np.eye(2), Y), 1),
        ValueError,
        ("depth: must be an int >= 2", "got 1", "linear regression"),
    ),
    "coefficients in a stable set": (
        lambda: stable_sets.stable_set(lt.Regression(np.eye(2), Y), 0.5).contains(jnp.ones(3)),
        ValueError,
        ("coefficients: must have shape", "got (3,)", "those of the problem"),
    ),
}
