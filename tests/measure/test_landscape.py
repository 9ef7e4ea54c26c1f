"""The landscape along the gradient on functions whose derivatives are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ici.measure.landscape import landscape_along_gradient
from ici.measure.sharpness import hessian_sharpness


def quadratic(eigenvalues, seed=0):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((len(eigenvalues),) * 2))
    hessian = basis @ np.diag(eigenvalues) @ basis.T
    point = rng.standard_normal(len(eigenvalues))
    matrix = jnp.asarray(hessian, jnp.float32)

    def objective(params):
        p = jnp.concatenate([params["a"], params["b"]])
        return 0.5 * p @ matrix @ p

    params = {"a": jnp.asarray(point[:3], jnp.float32), "b": jnp.asarray(point[3:], jnp.float32)}
    return objective, params, hessian, point


def test_quadratic_has_its_closed_form():
    objective, params, hessian, point = quadratic(np.linspace(0.5, 4.0, 10))
    step_sizes = np.array([0.01, 0.1, 0.3])
    seen = jax.jit(lambda p: landscape_along_gradient(objective, p, jnp.asarray(step_sizes)))(
        params
    )
    gradient = hessian @ point
    moved = [point - s * gradient for s in step_sizes]
    # Float32 sums of ten products.
    close = dict(rtol=1e-5)
    np.testing.assert_allclose(seen.loss, 0.5 * point @ gradient, **close)
    np.testing.assert_allclose(seen.gradient_norm, np.linalg.norm(gradient), **close)
    np.testing.assert_allclose(seen.losses, [0.5 * p @ hessian @ p for p in moved], **close)
    distances = [s * np.linalg.norm(hessian @ gradient) for s in step_sizes]
    np.testing.assert_allclose(seen.gradient_distance, distances, **close)
    cosines = [
        gradient @ hessian @ p / np.linalg.norm(gradient) / np.linalg.norm(hessian @ p)
        for p in moved
    ]
    np.testing.assert_allclose(seen.gradient_cosine, cosines, **close)
    smoothness = np.linalg.norm(hessian @ gradient) / np.linalg.norm(gradient)
    np.testing.assert_allclose(seen.smoothness, smoothness, **close)
    low, high = seen.loss_range
    assert low == seen.losses.min() and high == seen.losses.max()


def test_the_whole_batch_of_step_sizes_is_one_loop():
    objective, params, _, _ = quadratic(np.ones(8))
    sizes = [
        len(
            str(
                jax.make_jaxpr(lambda p, n=n: landscape_along_gradient(objective, p, jnp.ones(n)))(
                    params
                )
            )
        )
        for n in (4, 40)
    ]
    assert sizes[1] < 1.1 * sizes[0]


@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.linspace(-3, 5, 40),
        np.linspace(-9, 1, 20),
        -np.arange(1.0, 9.0),
        np.ones(6),
        np.r_[np.zeros(30), 100.0],
        1e-6 * np.linspace(-1, 2, 12),
        np.r_[4.0, 4.0, 3.9, np.zeros(9)],
    ],
    ids=["spread", "most negative is larger", "all negative", "equal", "rank one", "tiny", "twin"],
)
def test_sharpness_is_the_largest_eigenvalue_within_its_error(eigenvalues):
    objective, params, _, _ = quadratic(eigenvalues)
    seen = jax.jit(lambda p: hessian_sharpness(objective, p, jax.random.key(3)))(params)
    assert seen.converged
    largest = eigenvalues.max()
    # The residual bound, and float32 rounding of the matrix itself (its norm times 1e-6).
    slack = seen.error + 2e-6 * np.abs(eigenvalues).max()
    assert abs(seen.value - largest) <= slack
    assert seen.error <= 1.01e-3 * abs(seen.value)


def test_sharpness_says_when_it_has_not_converged():
    objective, params, _, _ = quadratic(np.linspace(0.9, 1.0, 60))
    seen = hessian_sharpness(objective, params, jax.random.key(0), max_iterations=2, tolerance=1e-6)
    assert not seen.converged and seen.iterations == 2
    assert seen.error > 1e-6 * seen.value
    assert abs(seen.value - 1.0) <= seen.error * 3  # some eigenvalue is within the error


def test_sharpness_stops_early():
    objective, params, _, _ = quadratic(np.r_[np.linspace(0, 1, 59), 50.0])
    seen = hessian_sharpness(objective, params, jax.random.key(0), max_iterations=50)
    assert seen.converged and seen.iterations < 8
