"""Inputs that are adversarial to the floors. Plain NumPy: benchmarks on accelerators use them too."""

import numpy as np


def structured(size, rng):
    """Rows of raw outputs or logits, adversarial to the floor."""
    one_hot, two_hot = np.zeros(size), np.zeros(size)
    one_hot[size // 2] = two_hot[0] = two_hot[-1] = 1e4
    return np.stack(
        [
            np.zeros(size),
            np.full(size, 1e4),
            np.full(size, -1e4),
            one_hot,
            -one_hot,
            two_hot,
            -two_hot,
            np.linspace(-1e4, 1e4, size),
            np.linspace(-10, 10, size),
            rng.normal(size=size),
            1e4 * rng.choice([-1.0, 1.0], size=size),
            30 * rng.standard_t(2, size=size).clip(-300, 300),
        ]
    )


def locations(rows, size, rng):
    """Means inside, near, on and outside the bounds."""
    loc = np.tanh(2 * rng.normal(size=(rows, size)))
    loc[1::5], loc[2::5], loc[3::5], loc[4::5] = 1.0, -1.0, 0.0, rng.choice([-1.0, 1.0, 0.999, 7.0], size=size)
    return loc
