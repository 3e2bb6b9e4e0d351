"""The paper in float64 NumPy and SciPy: short, slow, one function per equation. Everything is judged against it.

Section and equation numbers are those of arXiv 2510.08549. This file never imports the package.
"""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import erf, lambertw, logsumexp, softmax

SQRT_2PI = math.sqrt(2 * math.pi)
LOG_SQRT_2PIE = 0.5 * math.log(2 * math.pi * math.e)


# --- entropies -------------------------------------------------------------------------------------------


def categorical_entropy(logits, axis=-1):
    """Eq. 3."""
    log_p = np.asarray(logits, np.float64)
    log_p = log_p - logsumexp(log_p, axis, keepdims=True)
    p = np.exp(log_p)
    return -np.where(p > 0, p * np.where(p > 0, log_p, 0), 0).sum(axis)


def gaussian_entropy(log_std, axis=-1):
    """Eq. 10."""
    return (np.asarray(log_std, np.float64) + LOG_SQRT_2PIE).sum(axis)


@np.vectorize
def tanh_normal_entropy(loc, log_std):
    """Eq. 4, one coordinate, by adaptive quadrature."""
    std = math.exp(log_std)

    def bounding(x):
        u = abs(loc + std * x)
        return math.exp(-x * x / 2) / SQRT_2PI * 2 * (math.log(2) - u - math.log1p(math.exp(-2 * u)))

    kink = -loc / std
    pieces = [-12.0, *([kink] if abs(kink) < 12 else []), 12.0]
    value = sum(quad(bounding, a, b, limit=400, epsabs=1e-13, epsrel=1e-13)[0] for a, b in pairwise(pieces))
    return LOG_SQRT_2PIE + log_std + value


def truncated_normal_entropy(loc, log_std, low=-1.0, high=1.0):
    """Eq. 5, one coordinate, for loc inside [low, high]."""
    loc, std = np.clip(np.asarray(loc, np.float64), low, high), np.exp(np.asarray(log_std, np.float64))
    alpha, beta = (low - loc) / std, (high - loc) / std
    mass = (erf(beta / math.sqrt(2)) - erf(alpha / math.sqrt(2))) / 2
    edge = (alpha * np.exp(-(alpha**2) / 2) - beta * np.exp(-(beta**2) / 2)) / SQRT_2PI
    return LOG_SQRT_2PIE + np.log(std * mass) + edge / (2 * mass)


@np.vectorize
def truncated_normal_entropy_by_quadrature(loc, log_std, low=-1.0, high=1.0):
    """`-∫ p log p` over [low, high]."""
    std = math.exp(log_std)
    points = [p for p in (loc - 5 * std, loc, loc + 5 * std) if low < p < high] or None

    def density(x):
        return math.exp(-0.5 * ((x - loc) / std) ** 2)

    mass = quad(density, low, high, points=points, limit=400, epsabs=0, epsrel=1e-12)[0]
    return (
        math.log(mass)
        + quad(lambda x: density(x) / mass * 0.5 * ((x - loc) / std) ** 2, low, high, points=points, limit=400)[0]
    )


# --- continuous ERA --------------------------------------------------------------------------------------


def released(raw, slack=-3.0, axis=-1):
    """Share of K that `mode="floor"` keeps: 1 - g with g = sigmoid(slack - mean raw)."""
    mean = np.asarray(raw, np.float64).mean(axis, keepdims=True)
    return 1 - 1 / (1 + np.exp(np.clip(mean - slack, -700, 700)))


def era_gaussian(raw, target, log_std_min=-8.0, log_std_max=0.0, mode="pin", slack=-3.0, axis=-1):
    """Eq. 11, and its floor mode."""
    raw = np.asarray(raw, np.float64)
    gap = np.minimum(target - raw.shape[axis] * (log_std_max + LOG_SQRT_2PIE), 0)
    gap = np.expand_dims(gap, axis) if np.ndim(gap) else gap
    if mode == "floor":
        gap = gap * released(raw, slack, axis)
    return np.maximum(log_std_max + gap * softmax(raw, axis), log_std_min)


def era_gaussian_batch(raw, target, log_std_min=-8.0, log_std_max=0.0, log_mean_exp_sum=None):
    """Eq. 36."""
    raw = np.asarray(raw, np.float64)
    gap = target - raw.shape[-1] * (log_std_max + LOG_SQRT_2PIE)
    if log_mean_exp_sum is None:
        log_mean_exp_sum = logsumexp(raw) - math.log(raw.size // raw.shape[-1])
    return np.maximum(log_std_max + gap * np.exp(np.minimum(raw - log_mean_exp_sum, 600)), log_std_min)


def era_truncated_normal(
    loc, raw, target, log_std_min=-8.0, log_std_max=0.0, low=-1.0, high=1.0, mode="pin", slack=-3.0
):
    """The exact truncated head of MATHS.md 2, solved by Brent's method."""
    loc, raw = np.clip(np.asarray(loc, np.float64), low, high), np.asarray(raw, np.float64)
    most = truncated_normal_entropy(loc, log_std_max, low, high)
    gap = np.minimum(target - most.sum(-1), 0)[..., None]
    if mode == "floor":
        gap = gap * released(raw, slack)
    wanted = most + gap * softmax(raw, -1)

    def solve(mu, entropy):
        def excess(log_std):
            return truncated_normal_entropy(mu, log_std, low, high) - entropy

        if excess(log_std_min) >= 0:
            return log_std_min
        if excess(log_std_max) <= 0:
            return log_std_max
        return brentq(excess, log_std_min, log_std_max, xtol=1e-14, rtol=1e-14)

    return np.vectorize(solve)(loc, wanted)


def project_gaussian(log_std, target, axis=-1):
    """The projection baseline of MATHS.md 2."""
    missing = np.maximum(target - gaussian_entropy(log_std, axis), 0)
    return log_std + np.expand_dims(missing, axis) / np.shape(log_std)[axis]


# --- discrete ERA ----------------------------------------------------------------------------------------


def inverse_exact(kappa):
    """h⁻¹(κ) = W₋₁(-κ)."""
    return lambertw(-np.asarray(kappa), k=-1).real


def inverse_paper(kappa):
    """The approximation below Eq. 15."""
    return -0.25 - np.sqrt(2 * (-1 - np.log(kappa))) + 0.75 * np.log(kappa)


def era_softmax_from_constant(logits, constant, tau=4.0, inverse=inverse_exact, axis=-1):
    """Eq. 15 as printed, with C given."""
    logits = np.asarray(logits, np.float64)
    n, top = logits.shape[axis], math.log(tau) / tau
    kappa = np.maximum(top + (constant - n * top) / (n - 1) * (1 - softmax(logits, axis)), 0)
    return inverse(kappa)


def calibrated_constant(n, floor, tau=4.0, inverse=inverse_exact):
    """The C whose one-hot limit has entropy `floor` under the inverse in use."""
    top = math.log(tau) / tau
    one_hot = np.full(n, -np.inf)
    one_hot[0] = 0.0

    def excess(constant):
        return categorical_entropy(era_softmax_from_constant(one_hot, constant, tau, inverse)) - floor

    return brentq(excess, top * (1 + 1e-9), n * top * (1 - 1e-12), xtol=1e-15, rtol=1e-14)


def era_softmax(logits, min_entropy, tau=4.0, floor="calibrated", inverse="exact", axis=-1, mask=None):
    """Eq. 15, with either constant and either inverse. Of masked rows, that of the classes that are left."""
    if mask is not None:
        out = np.full(np.shape(logits), -np.inf)
        for row, z, allowed in zip(out, logits, mask, strict=True):
            left, top = allowed.sum(), math.log(tau) / tau
            most = math.log(left) if floor == "calibrated" else 1 + math.log(left * top)
            alone = era_softmax(z[allowed], min_entropy, tau, floor, inverse) if min_entropy < most else None
            row[allowed] = (
                (inverse_exact if inverse == "exact" else inverse_paper)(top) if alone is None else alone
            )
        return out
    n = np.shape(logits)[axis]
    solve = inverse_exact if inverse == "exact" else inverse_paper
    constant = math.exp(min_entropy - 1) if floor == "paper" else calibrated_constant(n, min_entropy, tau, solve)
    return era_softmax_from_constant(logits, constant, tau, solve, axis)


# --- token ERA -------------------------------------------------------------------------------------------


def response_entropy(token_entropy, mask, top_fraction=0.2):
    """H_resp of Eq. 16, one response after the other."""
    values = []
    for entropy, belongs in zip(np.asarray(token_entropy, np.float64), np.asarray(mask, bool), strict=True):
        ranked = np.sort(entropy[belongs])[::-1]
        count = max(1, math.floor(Fraction(str(top_fraction)) * len(ranked)))
        values.append(ranked[:count].mean() if len(ranked) else 0.0)
    return np.array(values)


def era_token_scale(
    response_entropy, advantages, omega_low=0.45, omega_high=3.0, k=2.0, min_advantage=0.0, signs="positive"
):
    """The scale of Eq. 16, [B, T]."""
    scale = np.ones(np.shape(advantages))
    low = omega_low if np.ndim(omega_low) else [omega_low] * len(scale)
    for b, t in np.ndindex(scale.shape):
        size = abs(advantages[b, t]) if signs == "both" else advantages[b, t]
        if size > 0 and size >= min_advantage:
            scale[b, t] = k if response_entropy[b] < low[b] else scale[b, t]
            scale[b, t] = 1 / k if response_entropy[b] > omega_high else scale[b, t]
    return scale


def renyi_entropy(logits, order):
    """H_s of one row of logits, of order s ≠ 1, in nats."""
    logits = np.asarray(logits, np.float64)
    return logsumexp(order * (logits - logsumexp(logits))) / (1 - order)


def top_k_logits(logits, k, row=True, target=None):
    """One row of logits, without those below the k-th largest."""
    if not row:
        return logits
    kept = np.argsort(logits)[::-1][:k]
    keep = np.isin(np.arange(len(logits)), kept if target is None else [*kept, target])
    return np.where(keep, logits, -np.inf)


def token_log_probs(
    hidden, weight, targets, bias=0.0, scale=1.0, temperature=1.0, softcap=None, top_k=None, top_k_rows=True
):
    """Log-probs under the logits of Eq. 16, and entropies of the policy that samples."""
    log_probs, entropies = np.zeros(len(targets)), np.zeros(len(targets))
    scale, rows = np.broadcast_to(scale, len(targets)), np.broadcast_to(top_k_rows, len(targets))
    for i, target in enumerate(targets):
        if target == -100:
            continue
        z = np.asarray(weight, np.float64) @ np.asarray(hidden, np.float64)[i] + bias
        z = (z if softcap is None else softcap * np.tanh(z / softcap)) / temperature
        kept = scale[i] * (z if top_k is None else top_k_logits(z, top_k, rows[i], target))
        log_probs[i] = kept[target] - logsumexp(kept)
        entropies[i] = categorical_entropy(z)
    return log_probs, entropies
