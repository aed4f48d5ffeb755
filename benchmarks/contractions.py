"""Circular convolution and its leave-one-out forms: index table against FFT, by length.

The result decides `lintensor_jax.networks.contractions.DIRECT_CONVOLUTION_MAX_LENGTH`. Both
variants are checked against each other, then timed in turn in one process; the ratio of medians is
printed.

    python benchmarks/contractions.py [--rounds 9]
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from lintensor_jax.networks import contractions

# Enough evaluations per timing that a dispatch (10 us) is negligible.
INNER = 50


def compiled(length, depth, lanes, direct):
    """INNER evaluations of beta and all leave-one-out forms in one program."""
    variant = contractions._convolution_direct if direct else contractions._convolution_by_fft

    def once(filters, g):
        beta, leave_one_out = variant(tuple(filters), length)
        return filters + 1e-3 * jnp.stack(leave_one_out(g + beta))

    def many(filters, g):
        return jax.lax.fori_loop(0, INNER, lambda _, f: jax.vmap(once)(f, g), filters)

    rng = np.random.default_rng(0)
    filters = jnp.asarray(rng.normal(size=(lanes, depth, length)) / length)
    g = jnp.asarray(rng.normal(size=(lanes, length)))
    return jax.jit(many).lower(filters, g).compile(), (filters, g)


def seconds(program, arguments):
    start = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timings per variant (default 9)")
    rounds = parser.parse_args().rounds
    jax.config.update("jax_enable_x64", True)
    print("| d | L | lanes | time by table / time by FFT |\n|---|---|---|---|")
    for lanes in (1, 64):
        for depth in (2, 3):
            for length in (8, 16, 32, 64, 128, 256):
                table, arguments = compiled(length, depth, lanes, direct=True)
                fft, _ = compiled(length, depth, lanes, direct=False)
                np.testing.assert_allclose(table(*arguments), fft(*arguments), rtol=1e-9)
                times = [
                    (seconds(table, arguments), seconds(fft, arguments)) for _ in range(rounds)
                ]
                ratio = statistics.median(a for a, _ in times) / statistics.median(
                    b for _, b in times
                )
                print(f"| {length} | {depth} | {lanes} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
