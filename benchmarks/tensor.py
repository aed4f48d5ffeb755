"""A general data tensor's contraction with all its leave-one-out forms: three programs.

Run from the repository root; `hot_path.py` runs it with everything else:

    python benchmarks/tensor.py [--repeats 9]

`contractions.data_tensor_network` shares intermediates between the forms; "einsum" contracts the
tensor anew for each of them, along the path that opt_einsum finds best; "autodiff" is
`jax.value_and_grad` of the loss through the einsum of beta. All return the loss
|X beta - y|^2 / 2 and its gradient for a batch of factors, and are checked against NumPy.
"""

import argparse
import string
from collections.abc import Callable

import jax
import jax.numpy as jnp
import measure
import numpy as np
from measure import Effort, Row, Variant, WrongAnswer

from lintensor_jax.networks import contractions

SAMPLES = 4
# Depth: length of every axis. About 30,000 numbers in each tensor.
SIZES = {2: 32, 3: 13, 4: 8}
# Enough evaluations in one program that its dispatch (10 us) is negligible.
INNER = 20
ROUNDING = 1e-10


def programs(tensor, X, y) -> dict[str, Callable]:
    """Loss and gradient as functions of factors (L, k)."""
    depth = tensor.ndim - 1
    axes = string.ascii_lowercase[:depth]
    whole = f"{axes}z,{','.join(axes)}->z"

    def einsum(spec, *arrays):
        return jnp.einsum(spec, *arrays, optimize="optimal")

    def loss_of(factors):
        return 0.5 * jnp.sum((X @ einsum(whole, tensor, *factors) - y) ** 2)

    def ours(factors):
        beta, leave_one_out = contractions.data_tensor_network(tensor, factors)
        r = X @ beta - y
        return 0.5 * jnp.sum(r**2), jnp.stack(leave_one_out(X.T @ r))

    def one_by_one(factors):
        r = X @ einsum(whole, tensor, *factors) - y
        g = X.T @ r
        gradient = []
        for layer, axis in enumerate(axes):
            others = [f for k, f in enumerate(factors) if k != layer]
            spec = f"{axes}z,{','.join(a for a in axes if a != axis)},z->{axis}"
            gradient.append(einsum(spec, tensor, *others, g))
        return 0.5 * jnp.sum(r**2), jnp.stack(gradient)

    def autodiff(factors):
        return jax.value_and_grad(loss_of)(factors)

    return {"einsum": one_by_one, "autodiff": autodiff, "ours": ours}


def reference(tensor, X, y, factors) -> np.ndarray:
    """The gradient of one lane in NumPy, with one full sum for each layer."""
    axes = string.ascii_lowercase[: tensor.ndim - 1]
    g = X.T @ (X @ np.einsum(f"{axes}z,{','.join(axes)}->z", tensor, *factors) - y)
    return np.stack(
        [
            np.einsum(
                f"{axes}z,{','.join(a for a in axes if a != axis)},z->{axis}",
                tensor,
                *np.delete(factors, layer, axis=0),
                g,
            )
            for layer, axis in enumerate(axes)
        ]
    )


def rows_of(effort: Effort) -> list[Row]:
    """The rows of L = 2, 3, 4, each for one network and for a batch of 64."""
    rng = np.random.default_rng(0)
    rows = []
    for depth, size in SIZES.items():
        size = size // 2 if effort.quick else size
        tensor = rng.standard_normal((size,) * (depth + 1)) / size ** (depth / 2)
        X, y = rng.standard_normal((SAMPLES, size)) / np.sqrt(size), rng.standard_normal(SAMPLES)
        for lanes in (1, 64):
            factors = rng.standard_normal((lanes, depth, size))
            expected = reference(tensor, X, y, factors[0])
            given = [jnp.asarray(a) for a in (tensor, X, y)]

            def variant(name, function, factors=factors, expected=expected):
                # A descent step between two evaluations: otherwise XLA moves them out of the loop.
                def many(factors):
                    def step(_, carry):
                        factors, _ = carry
                        gradient = jax.vmap(function)(factors)[1]
                        return factors - 1e-3 * gradient, gradient

                    first = jax.vmap(function)(factors)[1]
                    end, _ = jax.lax.fori_loop(1, INNER, step, (factors, first))
                    return end, first

                program, start = jax.jit(many), jnp.asarray(factors)

                def check(answer):
                    error = np.max(np.abs(answer[1][0] - expected)) / np.max(np.abs(expected))
                    if not error <= ROUNDING:
                        raise WrongAnswer(f"{name}: the gradient is wrong by {error:.1e}")
                    return {"error": float(error)}

                return Variant(name, lambda: program(start), check)

            variants = [variant(name, f) for name, f in programs(*given).items()]
            title = f"L = {depth}, k = d = {size}, {lanes} lanes"
            rows += measure.compare("tensor", title, variants, 3 * effort.repeats, "einsum")
    return rows


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    measure.set_up()
    print(measure.markdown(rows_of(Effort(repeats=options.repeats))))


if __name__ == "__main__":
    main()
