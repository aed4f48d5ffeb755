"""One function checks and casts a network and a problem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lintensor_jax as lt
from lintensor_jax.networks.pair import check_pair, check_problem, same_dtype

NETWORK = lt.DiagonalNetwork(np.ones((2, 3)))


@pytest.mark.parametrize("outputs", [(), (2,)])
def test_a_pair_that_fits_gives_the_shape_of_its_coefficients(outputs):
    network = lt.FullyConnectedNetwork((np.ones((3, 2)), np.ones((2, *outputs))))
    problem = lt.Regression(np.eye(3), np.ones((3, *outputs)))
    assert check_pair(network, problem) == (3, *outputs)


@pytest.mark.parametrize(
    ("network", "problem", "message"),
    [
        (NETWORK, np.eye(3), "problem: must be an object such as"),
        (np.ones(3), lt.Regression(np.eye(3), np.ones(3)), r"network: must be an equinox\.Module"),
        (NETWORK, lt.Regression(np.eye(2), np.ones(2)), r"have shape \(3,\), but Regression needs"),
    ],
)
def test_every_function_refuses_alike(network, problem, message):
    functions = [check_pair, lt.gradient_flow, lt.predict, lt.landscape_point, lt.gradient_descent]
    for function in functions:
        with pytest.raises(ValueError, match=message):
            function(network, problem)


def test_check_problem():
    with pytest.raises(ValueError, match="problem: must be an object such as"):
        check_problem("data")


def test_the_wider_dtype_counts():
    network = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), NETWORK)
    cast, problem = same_dtype(network, lt.Regression(np.eye(3), np.ones(3)))
    assert cast.weights.dtype == problem.y.dtype == np.float64
