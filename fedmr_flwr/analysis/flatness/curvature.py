"""The curvature of a loss: eigenvalues and trace of its Hessian, from products with vectors. Pure functions."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from fedmr_flwr.analysis.flatness.objective import Matrix, Vector

# [N, P] vectors to [N, P], the matrix's product with each.
Products = Callable[[Matrix], Matrix]

# Of an eigenvalue, relative: three digits are printed.
_TOLERANCE = 1e-3


def top_eigenvalues(products: Products, size: int, count: int, rng: np.random.Generator) -> Vector:
    """Return the largest eigenvalues of a symmetric matrix by Lanczos' method.

    Args:
        products: the matrix's products with vectors.
        size: P, its number of rows.
        count: how many eigenvalues, at most P.
        rng: draws the first vector.

    Returns:
        [count], the largest first.
    """
    if size <= 2 * count:  # a Krylov space as large as the matrix
        return np.sort(np.linalg.eigvalsh(products(np.eye(size))))[::-1][:count]
    operator = LinearOperator(
        (size, size), matvec=lambda vector: products(vector.reshape(1, -1))[0], dtype=np.float64
    )
    first = rng.standard_normal(size)
    found = eigsh(operator, count, which="LA", v0=first, tol=_TOLERANCE, return_eigenvectors=False)
    return np.sort(found)[::-1]


class Trace(NamedTuple):
    """An estimate of a trace. `mean`: the estimate. `error`: its standard error."""

    mean: float
    error: float


def trace(products: Products, size: int, probes: int, rng: np.random.Generator) -> Trace:
    """Estimate the trace of a matrix, without bias: the mean of v'Av over random signs v.

    Args:
        products: the matrix's products with vectors.
        size: P, its number of rows.
        probes: the number of vectors, at least 2.
        rng: draws the vectors.

    Source: Hutchinson, Communications in Statistics 1990.
    """
    signs = rng.choice([-1.0, 1.0], (probes, size))
    forms = np.einsum("np,np->n", signs, products(signs))
    return Trace(float(forms.mean()), float(forms.std(ddof=1) / np.sqrt(probes)))
