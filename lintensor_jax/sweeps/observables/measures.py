"""Observables of implicit bias: rank, sparsity, held-out loss, tangent kernel."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ...networks.measures import effective_rank, kernel_alignment, num_nonzero, tangent_kernel
from ...networks.pair import check_pair
from ...problems import AbstractProblem
from .base import AbstractObservable, Ending, Variable, refuse


class EffectiveRank(AbstractObservable):
    """The effective rank of beta at the flow's end: `effective_rank`; see `lt.effective_rank`."""

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variable `effective_rank`."""
        words = "exp of the entropy of the normalised singular values of beta (Roy & Vetterli 2007)"
        return (Variable("effective_rank", (), "1", words),)

    def measure(self, end: Ending) -> tuple[Array, ...]:
        """The effective rank of the coefficients after the finish."""
        return (effective_rank(end.coefficients),)

    def check(self, network: Any, problem: AbstractProblem) -> None:
        """Raises a ValueError for coefficients that are a vector: their rank is 1."""
        if len(problem.coefficient_shape) < 2:
            shape = problem.coefficient_shape
            refuse("EffectiveRank", "needs a matrix of coefficients", shape, "NonzeroCoefficients")


class NonzeroCoefficients(AbstractObservable):
    """The number of entries of beta that are not small compared with the largest: `num_nonzero`.

    - `tolerance`: relative to the largest entry; default 1e-3.
    """

    tolerance: float = eqx.field(static=True, default=1e-3)

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variable `num_nonzero`."""
        words = f"coefficients larger than {self.tolerance:g} times the largest one"
        return (Variable("num_nonzero", (), "1", words),)

    def measure(self, end: Ending) -> tuple[Array, ...]:
        """The number of such coefficients after the finish."""
        return (num_nonzero(end.coefficients, self.tolerance),)


class TestLoss(AbstractObservable):
    """The loss on held-out data at the flow's end: `log_test_loss`.

    - `problem`: the held-out data with their loss, any problem whose coefficients have the shape
      of the flow's. The loss is summed over its samples.
    """

    __test__ = False  # for pytest: this class is not a test

    problem: AbstractProblem

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variable `log_test_loss`."""
        words = "natural logarithm of the loss on held-out data, summed over samples"
        return (Variable("log_test_loss", (), "1", words),)

    def measure(self, end: Ending) -> tuple[Array, ...]:
        """The log of the held-out loss after the finish."""
        return (self.problem.log_loss(end.coefficients),)

    def check(self, network: Any, problem: AbstractProblem) -> None:
        """Raises a ValueError unless the held-out data fit the network."""
        check_pair(network, self.problem)


class KernelAlignment(AbstractObservable):
    """The tangent kernel K at the flow's end, compared with the targets and with the start.

    `kernel_alignment` is the cosine between K and y y^T. `kernel_similarity` is the cosine between
    K and the kernel at the start; it is 1 in the lazy regime. K is that of the network before the
    finish.
    """

    @property
    def variables(self) -> tuple[Variable, ...]:
        """The variables `kernel_alignment` and `kernel_similarity`."""
        return (
            Variable("kernel_alignment", (), "1", "cosine between the tangent kernel and y y^T"),
            Variable(
                "kernel_similarity", (), "1", "cosine between the tangent kernels at end and start"
            ),
        )

    def measure(self, end: Ending) -> tuple[Array, ...]:
        """`kernel_alignment` and `kernel_similarity`."""
        last = tangent_kernel(end.unfinished_network, end.problem)
        first = tangent_kernel(end.initial, end.problem)
        targets = jnp.ravel(end.problem.y)  # pyright: ignore[reportAttributeAccessIssue]
        with_targets = kernel_alignment(last, jnp.outer(targets, targets))
        return with_targets, kernel_alignment(last, first)
