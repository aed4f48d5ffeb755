"""Every function refuses arguments that are not numbers, networks or keys, and names them."""

import jax
import numpy as np
import pytest

import lintensor_jax as lt

start = lt.initialization
DIAGONAL, CHAIN = lt.DiagonalNetwork.zeros(2, 2), lt.FullyConnectedNetwork.zeros((2, 2))
PROBLEM = lt.Regression(np.eye(2), np.ones(2))
SORT = lt.Classification(np.eye(2), np.ones(2))
KEY = jax.random.key(0)
NO_NUMBERS = {
    "a text": "abc",
    "None": None,
    "an object": object(),
    "a dict": {"a": 1.0},
    "texts": np.array([["1.0", "2.0"]]),
    "objects": np.ones((2, 2), object),
    "dates": np.array(["2020-01-01"], "datetime64[D]"),
    "a ragged list": [[1.0, 2.0], [3.0]],
    "a number too large": [10**400],
}
TAKE_ARRAYS = {
    "weights": lt.DiagonalNetwork,
    "filters[0]": lambda a: lt.ConvolutionalNetwork((a, np.ones(2))),
    "weights[1]": lambda a: lt.FullyConnectedNetwork((np.eye(2), a)),
    "weights[0]": lambda a: lt.MatrixFactorizationNetwork((a, np.eye(2))),
    "tensor": lambda a: lt.TensorNetwork(a, (np.ones(2),) * 2),
    "S": lambda a: lt.OrthogonalNetwork(a, (np.eye(2),) * 2, (np.ones(2),) * 2),
    "positive": lambda a: lt.DifferentialDiagonalNetwork(a, np.ones(2), 2),
    "X": lambda a: lt.Regression(a, np.ones(2)),
    "y": lambda a: lt.Classification(np.eye(2), a),
    "A": lambda a: lt.MatrixSensing(a, np.ones(2)),
    "t": lambda a: lt.potential.h(a, 3),
    "rho": lambda a: lt.potential.Q(a, 3, 1.0, 1.0),
    "tensor of decompose_tensor": lt.decompose_tensor,
    "coefficients of induced_flow": lambda a: lt.induced_flow(a, PROBLEM, 2),
    "weights of LinearNetwork": lt.LinearNetwork,
    "rows": lambda a: lt.MatrixCompletion(a, [0, 1], np.ones(2), (2, 2)),
    "columns": lambda a: lt.MatrixCompletion([0, 1], a, np.ones(2), (2, 2)),
    "values": lambda a: lt.MatrixCompletion([0, 1], [0, 1], a, (2, 2)),
    "weights of L1Norm": lt.L1Norm,
    "weights of WeightedL2Norm": lt.WeightedL2Norm,
    "start": lambda a: lt.min_norm(PROBLEM, lt.LpNorm(0.5), start=a),
    "start of max_margin": lambda a: lt.max_margin(SORT, lt.LpNorm(0.5), start=a),
    "coefficients": lambda a: start.balanced(DIAGONAL, a),
}


# For these arguments None is a valid value.
TAKES_NONE = ("weights of L1Norm", "start", "start of max_margin")


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("name", TAKE_ARRAYS)
def test_refuses_arguments_that_are_not_arrays_of_numbers(name, value):
    if name in TAKES_NONE and NO_NUMBERS[value] is None:
        return
    with pytest.raises(ValueError, match="must be an array of numbers, got") as caught:
        TAKE_ARRAYS[name](NO_NUMBERS[value])
    assert f": {name.split()[0]} must be" in str(caught.value)


NO_NUMBER = ("abc", b"1", None, object(), {}, [1.0, 2.0], np.ones(3), 1j, 10**400)
TAKE_NUMBERS = {
    "p": lt.LpNorm,
    "p of FourierLpNorm": lt.FourierLpNorm,
    "power": lt.PolynomialLoss,
    "delta": lt.HuberLoss,
    "gap": lambda b: start.matching(DIAGONAL, np.ones(2), gap=b),  # pyright: ignore[reportArgumentType]
    "scale": lambda b: start.gaussian(DIAGONAL, KEY, b),
    "first_scale": lambda b: start.imbalanced(CHAIN, KEY, first_scale=b, last_scale=1.0),
    "tolerance": lambda b: lt.certify(DIAGONAL, SORT, tolerance=b),
}


@pytest.mark.parametrize("name", TAKE_NUMBERS)
def test_refuses_arguments_that_are_not_numbers(name):
    for value in NO_NUMBER:
        if name == "tolerance" and value is None:
            continue  # None is valid: the precision decides
        with pytest.raises(ValueError, match=f": {name.split()[0]} must be a real number, got"):
            TAKE_NUMBERS[name](value)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("like", lambda b: start.gaussian(b, KEY)),
        ("like", lambda b: start.balanced(b, np.ones(2))),  # pyright: ignore[reportArgumentType]
        ("network", lt.conserved_quantities),
    ],
)
def test_refuses_arguments_that_are_not_networks(argument, call):
    for value in ("abc", 3, {}, object(), np.ones(2), len, int):
        with pytest.raises(ValueError, match=f": {argument} must be a network"):
            call(value)


def test_numbers_of_classes_and_labels_beyond_reason():
    for value in NO_NUMBERS.values():
        with pytest.raises(ValueError, match=r"labels must be (integers|an array of numbers)"):
            lt.MulticlassClassification(np.eye(2), value)
    for count in ("abc", 1, -3, 2.0, [2], True):
        with pytest.raises(ValueError, match="num_classes must be an int >= 2"):
            lt.MulticlassClassification(np.eye(2), [0, 1], count)  # pyright: ignore
    # A table of a billion classes would fill the memory before the message.
    with pytest.raises(ValueError, match=r"got none of \[1, 2\]"):
        lt.MulticlassClassification(np.eye(2), [0, 10**9])
    for label in (2**40, -(2**40), np.inf):
        with pytest.raises(ValueError, match="labels must be below 2\\^31"):
            lt.MulticlassClassification(np.eye(2), [0, label])


@pytest.mark.parametrize("weights", [np.zeros(0), np.ones(2, bool), True])
def test_refuses_weights_of_norms_that_are_not_numbers(weights):
    for norm in (lt.L1Norm, lt.WeightedL2Norm):
        with pytest.raises(ValueError, match=f"{norm.__name__}: weights must be real, got dtype"):
            norm(weights)


@pytest.mark.parametrize("tolerance", ["abc", [1.0], 1j, True, np.nan])
def test_the_tolerance_of_limit_directions_is_a_number(tolerance):
    with pytest.raises(ValueError, match="limit_direction: tolerance must"):
        lt.limit_direction(DIAGONAL, SORT, tolerance=tolerance)


def test_true_is_no_count():
    with pytest.raises(ValueError, match="max_steps: must be a positive int, got True"):
        lt.gradient_flow(DIAGONAL, PROBLEM, max_steps=True)
    with pytest.raises(ValueError, match="num_steps: must be a positive int, got True"):
        lt.gradient_descent(DIAGONAL, PROBLEM, None, True)
    with pytest.raises(ValueError, match="batch_size: must be an int from 1 to n"):
        lt.gradient_descent(DIAGONAL, PROBLEM, None, 5, batch_size=True)


def test_complex_weights_and_starts_of_norms_are_refused():
    for call in (
        lt.L1Norm,
        lt.WeightedL2Norm,
        lambda a: lt.min_norm(PROBLEM, lt.LpNorm(0.5), start=a),
        lambda a: lt.max_margin(SORT, lt.LpNorm(0.5), start=a),
    ):
        with pytest.raises(ValueError, match="must be real, got dtype complex128"):
            call(np.ones(2) + 1j)


def test_closed_forms_refuse_wrong_arguments():
    for ask in (lt.minimal_network, lt.induced_regularizer):
        for value in NO_NUMBERS.values():
            with pytest.raises(ValueError, match="beta must be an array of numbers"):
                ask(DIAGONAL, value)
        with pytest.raises(ValueError, match="beta must be real, got dtype complex128"):
            ask(DIAGONAL, np.ones(2) + 1j)
    for value in (len, 3, PROBLEM):
        with pytest.raises(ValueError, match="problem must be a MatrixSensing"):
            lt.sensing_decomposition(value)  # pyright: ignore


def test_refuses_options_of_flows_that_are_not_numbers():
    network = lt.DiagonalNetwork(np.ones((2, 2)))
    for value in ("abc", [1e-8, 1e-8], 1j, object()):
        for name in ("rtol", "atol"):
            with pytest.raises(ValueError, match=f"{name} must be a real number"):
                lt.gradient_flow(network, PROBLEM, **{name: value})  # pyright: ignore
    for value in ("abc", [[1.0], [1.0, 2.0]], {}):
        with pytest.raises(ValueError, match="saveat must be an array of numbers"):
            lt.gradient_flow(network, PROBLEM, saveat=value)  # pyright: ignore
    with pytest.raises(ValueError, match=r"saveat: must be a non-empty vector.*complex"):
        lt.gradient_flow(network, PROBLEM, saveat=[1j])  # pyright: ignore


def test_keys_sequences_and_numbers_that_are_not_finite():
    for key in ("abc", None, 1.5, {}, np.ones(2)):
        with pytest.raises(ValueError, match="key must be a PRNG key"):
            start.gaussian(DIAGONAL, key)  # pyright: ignore[reportArgumentType]
    start.gaussian(DIAGONAL, jax.random.PRNGKey(0))  # a key of JAX's old kind is valid
    for network in (
        lt.ConvolutionalNetwork,
        lt.FullyConnectedNetwork,
        lt.MatrixFactorizationNetwork,
    ):
        for layers in ("abc", 3, None):
            with pytest.raises(ValueError, match="must be a sequence of arrays"):
                network(layers)
    with pytest.raises(ValueError, match="gaussian: scale must be finite, got nan"):
        start.gaussian(DIAGONAL, KEY, np.nan)
    for first in (np.nan, 1j):
        with pytest.raises(ValueError, match="first and last must be real and finite"):
            start.spectral(CHAIN, PROBLEM, first, 1.0)
    with pytest.raises(ValueError, match="coefficients must be real"):
        start.lambda_balanced(CHAIN, np.ones(2) + 1j, 0.0)


def test_sizes_may_be_integers_of_any_kind_from_an_iterator():
    network = lt.FullyConnectedNetwork.zeros(size for size in (np.int64(3), jax.numpy.asarray(2)))  # pyright: ignore
    assert [w.shape for w in network.weights] == [(3, 2), (2,)]
    with pytest.raises(ValueError, match=r"zeros: depth must be a positive int, got True; pass"):
        lt.DiagonalNetwork.zeros(True, 2)
