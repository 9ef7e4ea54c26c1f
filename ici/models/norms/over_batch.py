"""Norms whose statistics are taken over the examples of a batch, and the positions within them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import get_abstract_mesh

from ici.errors import InputError
from ici.models.norms.affine import AffineNorm, along_last, at_least_float32

BATCH_AXIS = "data"


class LpBatchNorm(AffineNorm):
    """``(x - mean) / (E|x|^p + epsilon)^(1/p)`` per channel of ``x[B, ..., D]``, then affine.

    With ``p=2`` and ``centred=True`` this is batch normalization (Ioffe & Szegedy 2015). Without
    ``centred`` the average is that of the values before their mean is subtracted, as in the l_p
    normalizations of Santurkar et al. 2018; ``p=inf`` takes the largest ``|x|``, plus epsilon.

    Running averages of the mean and of ``E|x|^p`` serve in evaluation. With ``ghost`` (Hoffer et
    al. 2017) or ``local`` the batch falls into parts, consecutive examples each, that are
    normalised by their own statistics; the running averages then move by the mean over the parts,
    so that no part counts more than another.

    Args:
      features: size of the last axis.
      p: 1 to 8, or infinity.
      centred: whether ``|x|`` is taken of the values after their mean is subtracted.
      epsilon: added before the root.
      momentum: weight of the old running average, per training step.
      affine: learned scale and bias.
      ghost: examples per part; None takes the whole batch.
      local: parts are what each device has of the batch: as many as the axis "data" of the mesh
        in force (``jax.set_mesh``) while the step is traced; one without a mesh.
      rngs: not used.

    Raises:
      InputError: when called in training: parts that do not divide the batch.
    """

    def __init__(
        self,
        features: int,
        *,
        p: float = 2.0,
        centred: bool = False,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        affine: bool = True,
        ghost: int | None = None,
        local: bool = False,
        rngs: nnx.Rngs | None = None,
    ):
        del rngs
        super().__init__(features, affine=affine)
        self.p, self.centred, self.epsilon, self.momentum = p, centred, epsilon, momentum
        self.ghost, self.local = ghost, local
        self.use_running_average = False
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.moment = nnx.BatchStat(jnp.ones(features))

    def __call__(self, x: Array) -> Array:
        return self.transform(self.normalise(at_least_float32(x)), x.dtype)

    def normalise(self, x: Array) -> Array:
        """``x[B, ..., D]`` normalised, before scale and bias. Training moves the averages."""
        if self.use_running_average:
            mean, moment = along_last(self.mean[...], x.ndim), along_last(self.moment[...], x.ndim)
            return (x - mean) / self._divisor(moment)
        parts = x.reshape(self._n_parts(x.shape[0]), -1, *x.shape[1:])
        axes = tuple(range(1, parts.ndim - 1))
        mean = jnp.mean(parts, axes, keepdims=True)
        moment = self._moment(parts - mean if self.centred else parts, axes)
        self._remember(self.mean, mean)
        self._remember(self.moment, moment)
        return ((parts - mean) / self._divisor(moment)).reshape(x.shape)

    def _n_parts(self, batch_size: int) -> int:
        n_devices = _n_devices() if self.local else 1
        if batch_size % (n_devices * (self.ghost or 1)):
            held = f" on each of {n_devices} devices" if n_devices > 1 else ""
            raise InputError(
                f"a batch of {batch_size} and ghost batches of {self.ghost or 1}{held}: wanted a "
                "batch that they divide."
            )
        return batch_size // self.ghost if self.ghost else n_devices

    def _moment(self, x: Array, axes: tuple[int, ...]) -> Array:
        size = jnp.abs(x)
        if self.p == float("inf"):
            return jnp.max(size, axes, keepdims=True)
        return jnp.mean(size if self.p == 1 else size**self.p, axes, keepdims=True)

    def _divisor(self, moment: Array) -> Array:
        if self.p in (1, float("inf")):
            return moment + self.epsilon
        return (moment + self.epsilon) ** (1 / self.p)

    def _remember(self, average: nnx.BatchStat, of_parts: Array) -> None:
        new = jax.lax.stop_gradient(of_parts).mean(0).reshape(average.shape)
        average[...] = self.momentum * average[...] + (1 - self.momentum) * new


def _n_devices() -> int:
    mesh = get_abstract_mesh()
    # Along a manual axis (shard_map) a device sees its own part only.
    return 1 if BATCH_AXIS in mesh.manual_axes else dict(mesh.shape).get(BATCH_AXIS, 1)


class NoisyBatchNorm(LpBatchNorm):
    """Batch normalization, then noise whose distribution changes at every step.

    Algorithm 1 in appendix A of Santurkar et al. 2018. In training only, of the output ``a`` of
    the batch norm (scale and bias included): each unit draws ``mu ~ U(-n_mu, n_mu)`` and
    ``sigma ~ U(1, n_sigma)`` at each step, then each example ``m ~ U(mu - r, mu + r)`` and
    ``s ~ N(sigma, r)``, where r is a standard deviation, and ``a`` becomes ``s a + m``. The unit
    of an image or a sequence is the channel: its m and s are drawn per example, and are the same
    at all positions.

    Args:
      features: size of the last axis.
      n_mu: half the width of the range of mu.
      n_sigma: largest sigma, >= 1.
      r: spread of the noise of one example around that of the step.
      epsilon: as of `LpBatchNorm`, and so are the others.
      momentum: likewise.
      affine: likewise.
      ghost: likewise.
      local: likewise.
      rngs: the noise has a random stream of its own, which is part of the module's state.
    """

    def __init__(
        self,
        features: int,
        *,
        n_mu: float = 0.5,
        n_sigma: float = 1.25,
        r: float = 0.1,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        affine: bool = True,
        ghost: int | None = None,
        local: bool = False,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            features,
            centred=True,
            epsilon=epsilon,
            momentum=momentum,
            affine=affine,
            ghost=ghost,
            local=local,
        )
        self.n_mu, self.n_sigma, self.r = n_mu, n_sigma, r
        self.noise = rngs["noise"].fork()

    def __call__(self, x: Array) -> Array:
        y = super().__call__(x)
        if self.use_running_average:
            return y
        keys = jax.random.split(self.noise(), 4)
        units, examples = x.shape[-1:], (x.shape[0], x.shape[-1])
        mu = jax.random.uniform(keys[0], units, minval=-self.n_mu, maxval=self.n_mu)
        sigma = jax.random.uniform(keys[1], units, minval=1.0, maxval=self.n_sigma)
        m = mu[None] + jax.random.uniform(keys[2], examples, minval=-self.r, maxval=self.r)
        s = sigma[None] + self.r * jax.random.normal(keys[3], examples)
        shape = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
        return (s.reshape(shape) * y + m.reshape(shape)).astype(y.dtype)
