"""Running normalisation of observations and rewards, in NumPy, on the host between environment and agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from numpy import ndarray

VARIANCE_FLOOR = 1e-8
"""Added to a variance before it divides, so that a feature that never varies stays near 0."""
CLIP = 10.0
"""Largest size of a normalised observation or a scaled reward."""


class RunningMoments:
    """Running mean and variance of each feature, exact, in float64: `update` merges batches (Chan et al. 1979).

    Two batches of n and m values have means μ, ν and population variances v, w. With `δ = ν - μ`, together they
    have the mean `μ + δ m/(n+m)` and the variance `(n v + m w + δ² n m/(n+m)) / (n+m)`.

    Args:
        shape: Shape of one value; `()` for scalars.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.count = 0
        self.mean = np.zeros(shape)
        self.variance = np.ones(shape)

    def update(self, batch: Float[ndarray, "n ..."]) -> None:
        """Merge a batch.

        Raises:
            ValueError: A value has another shape than this was built for, or is not finite, which would spoil the
                moments for good.
        """
        batch = np.asarray(batch, np.float64)
        if batch.shape[1:] != self.mean.shape or not batch.ndim:
            raise ValueError(f"a batch of shape {batch.shape} must be [n, *{self.mean.shape}]")
        if not np.isfinite(batch).all():
            raise ValueError("a batch holds NaN or infinite values: check the environment before normalising")
        if not (n := len(batch)):
            return
        total = self.count + n
        # One value at a time is the usual case, and its mean and variance need no computing.
        mean, variance = (batch[0], 0.0) if n == 1 else (batch.mean(axis=0), batch.var(axis=0))
        delta = mean - self.mean
        within = self.count * self.variance + n * variance
        self.variance = (within + delta**2 * (self.count * n / total)) / total
        self.mean = self.mean + delta * (n / total)
        self.count = total

    def normalise(self, x: Float[ndarray, "..."], clip: float = CLIP) -> Float[ndarray, "..."]:
        """`(x - mean) / √(variance + 1e-8)` within ±clip, in float32; `x` within ±clip before any update."""
        scaled = (np.asarray(x, np.float64) - self.mean) / np.sqrt(self.variance + VARIANCE_FLOOR)
        return scaled.clip(-clip, clip).astype(np.float32)

    def scaling(self) -> tuple[Float[ndarray, "..."], Float[ndarray, "..."]]:
        """Mean and deviation that `normalise` takes, in float32."""
        return self.mean.astype(np.float32), np.sqrt(self.variance + VARIANCE_FLOOR).astype(np.float32)

    def arrays(self) -> dict[str, ndarray]:
        """The moments, for a checkpoint."""
        return {"count": np.asarray(self.count), "mean": self.mean.copy(), "variance": self.variance.copy()}

    def load(self, arrays: dict[str, ndarray]) -> None:
        """Continue from the `arrays()` of another object.

        Raises:
            ValueError: The arrays have another shape.
        """
        for name in ("mean", "variance"):
            if arrays[name].shape != self.mean.shape:
                raise ValueError(f"{name} has shape {arrays[name].shape}, this run needs {self.mean.shape}")
        self.count = int(arrays["count"])
        self.mean, self.variance = (np.array(arrays[name], np.float64) for name in ("mean", "variance"))


class ObservationNormaliser:
    """Observations as the networks of a run take them: normalised by running moments, or as they are.

    Args:
        width: Width of an observation.
        enabled: Whether they are normalised.
    """

    def __init__(self, width: int, enabled: bool = True) -> None:
        self.width, self.moments = width, RunningMoments((width,)) if enabled else None

    def observe(self, observations: Float[ndarray, "n o"]) -> Float[ndarray, "n o"]:
        """Observations that are acted on: the moments are updated with them, then they are normalised."""
        if self.moments is not None:
            self.moments.update(observations)
        return self(observations)

    def __call__(self, observations: Float[ndarray, "... o"]) -> Float[ndarray, "... o"]:
        """Observations by the moments as they are."""
        return observations if self.moments is None else self.moments.normalise(observations)

    def scaling(self) -> tuple[Float[ndarray, " o"], Float[ndarray, " o"]]:
        """Mean and deviation, in float32; 0 and 1 where nothing is normalised."""
        return (self.moments or RunningMoments((self.width,))).scaling()

    def arrays(self) -> dict[str, ndarray]:
        """The moments, for a checkpoint; nothing where there are none."""
        moments = {} if self.moments is None else self.moments.arrays()
        return {f"moments/{name}": value for name, value in moments.items()}

    def load(self, arrays: dict[str, ndarray]) -> None:
        """Continue from the `arrays()` of another object, among others."""
        if self.moments is not None:
            self.moments.load({name: arrays[f"moments/{name}"] for name in self.moments.arrays()})


class RewardScaler:
    """Divides rewards by the running standard deviation of the discounted return `R ← γ R + r`.

    The mean stays: to shift a reward would change how long an episode should last. R is kept for each environment
    and starts again at 0 when an episode ends. As `VecNormalize` of Stable-Baselines3, which begins with
    1e-4 rewards of variance 1.

    Args:
        num_envs: N.
        discount: γ.
    """

    def __init__(self, num_envs: int, discount: float = 0.99) -> None:
        self.discount = discount
        self.returns = np.zeros(num_envs)
        self.moments = RunningMoments()

    @property
    def scale(self) -> float:
        """Factor of a reward now."""
        return float(1.0 / np.sqrt(self.moments.variance + VARIANCE_FLOOR))

    def __call__(
        self,
        reward: Float[ndarray, " N"],
        terminated: Bool[ndarray, " N"],
        truncated: Bool[ndarray, " N"],
    ) -> Float[ndarray, " N"]:
        """Merge one step of every environment; returns the scaled rewards in float32.

        Raises:
            ValueError: There are more or fewer rewards than environments.
        """
        if np.shape(reward) != self.returns.shape:
            raise ValueError(
                f"rewards of shape {np.shape(reward)} must be one per environment, {self.returns.shape}"
            )
        self.returns = self.discount * self.returns + np.asarray(reward, np.float64)
        self.moments.update(self.returns)
        scaled = reward * self.scale
        ended = np.asarray(terminated, bool) | np.asarray(truncated, bool)
        self.returns = np.where(ended, 0.0, self.returns)
        return scaled.clip(-CLIP, CLIP).astype(np.float32)

    def arrays(self) -> dict[str, ndarray]:
        """The moments and the returns, for a checkpoint."""
        return {"returns": self.returns.copy(), **self.moments.arrays()}

    def load(self, arrays: dict[str, ndarray]) -> None:
        """Continue from the `arrays()` of another object.

        Raises:
            ValueError: The number of environments differs.
        """
        if arrays["returns"].shape != self.returns.shape:
            raise ValueError(f"returns has shape {arrays['returns'].shape}, this run needs {self.returns.shape}")
        self.moments.load(arrays)
        self.returns = np.array(arrays["returns"], np.float64)
