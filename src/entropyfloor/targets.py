"""Entropy targets: rules, units, feasibility and calibration. Plain floats, no framework.

Entropies are in nats; `target_entropy` is that of the whole action vector. Equation numbers are those of
arXiv 2510.08549; what is marked *ours* is not in the paper.
"""

import math
import re
from functools import cache

from entropyfloor.checks import check_number, check_whole, is_finite

LOG_SQRT_2PIE = 0.5 * math.log(2 * math.pi * math.e)
"""Entropy of a standard normal."""

TRUNCATED_LOG_STD_RANGE = (-50.0, 3.0)
"""Range of log(σ / half-width) that the truncated head solves in. At the upper end the policy is within
1e-5 nats per dimension of the uniform one, so that single precision cannot resolve a wider σ."""

_RULE = re.compile(r"(?P<sign>[+-]?)\s*(?P<factor>\d*\.?\d*)\s*\*?\s*A\s*(?:/\s*(?P<divisor>\d+\.?\d*))?")


# --- rules -----------------------------------------------------------------------------------------------


def resolve(rule: str | float, action_dim: int) -> float:
    """Target entropy of the whole action vector from a rule in the action dimension `A`.

    Args:
        rule: A number of nats, or text such as `"-A/2"`, `"-A"`, `"-0.3A"`, `"0.25*A"`, `"-3"`.
        action_dim: `A`.

    Returns:
        `target_entropy` in nats.

    Raises:
        ValueError: The rule cannot be read or is not finite.

    Examples:
        >>> from entropyfloor import targets
        >>> targets.resolve("-A/2", action_dim=6)
        -3.0
    """
    if isinstance(rule, str):
        text = rule.strip()
        match = _RULE.fullmatch(text)
        try:
            if match is None:
                target = float(text)
            else:
                factor = float(match["factor"] or 1.0) / float(match["divisor"] or 1.0)
                target = -factor * action_dim if match["sign"] == "-" else factor * action_dim
        except (ValueError, ZeroDivisionError):
            raise ValueError(
                f"target entropy rule {rule!r} cannot be read: write a number of nats or a multiple of A, "
                "such as -A/2 or 0.25*A"
            ) from None
    else:
        check_number("target_entropy", rule)
        target = float(rule)
    check_finite(target)
    return target


def resolve_discrete(floor: str | float, num_actions: int) -> float:
    """Floor of discrete actions in nats, from a number or its text.

    Raises:
        ValueError: It is no number between 0 and log n, such as a rule in A, the number of action dimensions.

    Examples:
        >>> from entropyfloor import targets
        >>> targets.resolve_discrete("0.1", num_actions=4)
        0.1
    """
    if not isinstance(floor, str):
        check_number("target_entropy", floor)
    try:
        number, problem = float(floor), "out of reach"
    except ValueError:
        number, problem = math.nan, "no number"
    if not 0.0 <= number < math.log(num_actions):
        raise ValueError(
            f"target_entropy={floor!r} is {problem}: with {num_actions} discrete actions give the floor in nats, "
            f"between 0 and log {num_actions} = {math.log(num_actions):.4g}, such as 0.1"
        )
    return number


# --- continuous targets ----------------------------------------------------------------------------------


def gaussian_entropy_max(action_dim: int, log_std_max: float) -> float:
    """Largest entropy of a diagonal Gaussian: Eq. 10 with every σ at its maximum.

    Examples:
        >>> from entropyfloor import targets
        >>> round(targets.gaussian_entropy_max(action_dim=6, log_std_max=0.0), 4)
        8.5136
    """
    return action_dim * (log_std_max + LOG_SQRT_2PIE)


def truncated_normal_entropy(loc: float, log_std: float, low: float = -1.0, high: float = 1.0) -> float:
    """Entropy of one coordinate of a Gaussian truncated to [low, high] (Eq. 5), for `loc` inside.

    Examples:
        >>> from entropyfloor import targets
        >>> round(targets.truncated_normal_entropy(loc=1.0, log_std=0.0), 4)
        0.5661
    """
    std = math.exp(log_std)
    a, b = (loc - low) / std, (high - loc) / std
    mass = 0.5 * (math.erf(a / math.sqrt(2)) + math.erf(b / math.sqrt(2)))
    edge = (a * math.exp(-0.5 * a * a) + b * math.exp(-0.5 * b * b)) / math.sqrt(2 * math.pi)
    return LOG_SQRT_2PIE + log_std + math.log(mass) - 0.5 * edge / mass


def truncated_entropy_max(action_dim: int, log_std_max: float, low: float = -1.0, high: float = 1.0) -> float:
    """Largest entropy that a truncated Gaussian reaches in *every* state, also with `loc` on a bound.

    Examples:
        >>> from entropyfloor import targets
        >>> round(targets.truncated_entropy_max(action_dim=6, log_std_max=0.0), 4)
        3.3966
    """
    return action_dim * truncated_normal_entropy(high, log_std_max, low, high)


def truncated_entropy_polynomial(log_std: float, tolerance: float) -> tuple[float, ...] | None:
    """Coefficients c_k of `H(μ, σ) = Σ c_k μ^2k` for |μ| ≤ 1, of the Gaussian truncated to [-1, 1] (*ours*).

    The entropy is even in μ, and σ is a constant where it is the upper bound of the exact head. The polynomial
    interpolates at Chebyshev's points in μ². With σ = 1, degree 4 is exact to 9e-9 and degree 9 to 1e-15.

    Args:
        log_std: log σ.
        tolerance: Largest error in nats.

    Returns:
        The coefficients, lowest first, or None where degree 10 has a larger error, as for σ < 0.3.

    Examples:
        >>> from entropyfloor import targets
        >>> len(targets.truncated_entropy_polynomial(log_std=0.0, tolerance=1e-8))
        5
    """
    return _entropy_polynomial(float(log_std), float(tolerance))


def check_finite(target_entropy: float | None) -> None:
    """Raise `ValueError` unless the target is a finite number, or None where it is an array. Rules are refused.

    Examples:
        >>> from entropyfloor import targets
        >>> targets.check_finite(float("nan"))
        Traceback (most recent call last):
        ValueError: target_entropy=nan must be a finite number of nats
    """
    if target_entropy is None:
        return
    check_number("target_entropy", target_entropy)
    if not is_finite(target_entropy):
        raise ValueError(f"target_entropy={target_entropy} must be a finite number of nats")


def check_log_std_bounds(log_std_min: float, log_std_max: float) -> None:
    """Raise `ValueError` unless both bounds of log σ are finite and in order.

    Examples:
        >>> from entropyfloor import targets
        >>> targets.check_log_std_bounds(0.0, -8.0)
        Traceback (most recent call last):
        ValueError: log_std_min=0.0 must be finite and below log_std_max=-8.0: swap or widen the bounds
    """
    check_number("log_std_min", log_std_min)
    check_number("log_std_max", log_std_max)
    if not (is_finite(log_std_min) and is_finite(log_std_max) and log_std_min < log_std_max):
        raise ValueError(
            f"log_std_min={log_std_min} must be finite and below log_std_max={log_std_max}: "
            "swap or widen the bounds"
        )


def check_gaussian(target_entropy: float | None, action_dim: int, log_std_min: float, log_std_max: float) -> None:
    """Raise `ValueError` unless Eq. 11 can meet the target within its bounds.

    Args:
        target_entropy: Nats; None where the target is an array, which is clamped instead of checked.
        action_dim: Number of action dimensions.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.

    Examples:
        >>> from entropyfloor import targets
        >>> targets.check_gaussian(9.0, 6, -8.0, 0.0)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: target_entropy=9.0 nats is above 8.51363, the largest entropy of 6 dimension(s) ...
    """
    check_whole("action_dim", action_dim, 1)
    check_log_std_bounds(log_std_min, log_std_max)
    if target_entropy is not None:
        most = gaussian_entropy_max(action_dim, log_std_max)
        _feasible(target_entropy, most, action_dim, log_std_max)


def check_truncated_normal(
    target_entropy: float | None, action_dim: int, log_std_min: float, log_std_max: float, low: float, high: float
) -> None:
    """Raise `ValueError` unless the truncated policy can meet the target in every state.

    Args:
        target_entropy: Nats; None where the target is an array, which is clamped instead of checked.
        action_dim: Number of action dimensions.
        log_std_min: Lower bound of log σ.
        log_std_max: Upper bound of log σ.
        low: Lower bound of the action.
        high: Upper bound of the action.

    Examples:
        >>> from entropyfloor import targets
        >>> targets.check_truncated_normal(4.0, 6, -8.0, 0.0, -1.0, 1.0)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: target_entropy=4.0 nats is above 3.39656, the largest entropy of 6 dimension(s) ...
    """
    check_whole("action_dim", action_dim, 1)
    check_log_std_bounds(log_std_min, log_std_max)
    check_number("low", low)
    check_number("high", high)
    if not (is_finite(low) and is_finite(high) and low < high):
        raise ValueError(f"low={low} must be finite and below high={high}: swap or widen the action bounds")
    least, most = (limit + math.log((high - low) / 2) for limit in TRUNCATED_LOG_STD_RANGE)
    if log_std_min < least or log_std_max > most:
        raise ValueError(
            f"log σ in [{log_std_min}, {log_std_max}] leaves [{least:.4g}, {most:.4g}], the range in which the "
            f"entropy on [{low}, {high}] can be resolved: beyond it the policy is a point or uniform, so "
            "narrow the bounds"
        )
    if target_entropy is not None:
        reachable = truncated_entropy_max(action_dim, log_std_max, low, high)
        _feasible(target_entropy, reachable, action_dim, log_std_max, " and loc on a bound")


@cache
def _entropy_polynomial(log_std: float, tolerance: float) -> tuple[float, ...] | None:
    count = 32
    angles = [math.pi * (j + 0.5) / count for j in range(count)]
    values = [truncated_normal_entropy(math.cos(0.5 * angle), log_std) for angle in angles]

    def chebyshev(k: int) -> float:
        return 2 / count * math.fsum(v * math.cos(k * a) for v, a in zip(values, angles, strict=True))

    series = [0.5 * chebyshev(0), *(chebyshev(k) for k in range(1, count))]
    degree = next(k for k in range(count) if math.fsum(map(abs, series[k + 1 :])) <= tolerance)
    if degree > 10:
        return None
    # T_k(2x - 1) in powers of x = μ²: T_0 = 1, T_1 = 2x - 1, T_k = 2 (2x - 1) T_{k-1} - T_{k-2}.
    older, old = [-1.0, 2.0] + [0.0] * degree, [1.0] + [0.0] * (degree + 1)  # T_{-1} = T_1
    total = [0.0] * (degree + 2)
    for weight in series[: degree + 1]:
        total = [t + weight * c for t, c in zip(total, old, strict=True)]
        below = [0.0, *old[:-1]]
        older, old = old, [4 * b - 2 * s - o for b, s, o in zip(below, old, older, strict=True)]
    return tuple(total[:-1])


# --- discrete targets ------------------------------------------------------------------------------------
#
# Eq. 15 is κ_i = least + (T - least) softmax(z)_i with T = log τ / τ and `least` = (C - T)/(n - 1): a line from
# `least` at probability 0 to T at probability 1. A floor determines `least` only.


def softmax_kappa_range(
    num_classes: int, min_entropy: float, tau: float, floor: str, inverse: str = "exact"
) -> tuple[float, float]:
    """Both ends of κ in Eq. 15: (value at probability 0, value at probability 1).

    Args:
        num_classes: n ≥ 2.
        min_entropy: Floor in nats.
        tau: τ > e.
        floor: `"paper"` for the constant of the paper, whose true floor is far above `min_entropy`;
            `"calibrated"` (*ours*) for the constant whose one-hot limit has exactly `min_entropy`.
        inverse: `"exact"` or `"paper"`, the h⁻¹ that the constant is calibrated for.

    Raises:
        ValueError: n < 2, τ ≤ e, an unknown option, or a floor out of reach.

    Examples:
        >>> from entropyfloor import targets
        >>> [round(kappa, 4) for kappa in targets.softmax_kappa_range(10, 0.6, 4.0, "calibrated")]
        [0.0199, 0.3466]
    """
    check_whole("num_classes", num_classes, 2)
    check_number("min_entropy", min_entropy)
    check_number("tau", tau)
    if not (is_finite(tau) and tau > math.e):
        raise ValueError(f"tau={tau} must be finite and above e = 2.71828…: the paper uses 4")
    if inverse not in INVERSES:
        raise ValueError(f"inverse={inverse!r} must be 'exact' or 'paper'")
    top = math.log(tau) / tau
    if floor == "calibrated":
        least, most = 0.0, math.log(num_classes)
    elif floor == "paper":
        least, most = max(0.0, 1 + math.log(top)), 1 + math.log(num_classes * top)
    else:
        raise ValueError(f"floor={floor!r} must be 'calibrated' or 'paper'")
    if not (least < min_entropy < most or (floor == "paper" and min_entropy == least)):
        raise ValueError(
            f"min_entropy={min_entropy} nats is outside ({least:.6g}, {most:.6g}), what {num_classes} classes "
            f"allow with floor={floor!r} and tau={tau}: choose a floor inside"
        )
    if floor == "paper":
        return (math.exp(min_entropy - 1) - top) / (num_classes - 1), top
    return _calibrated_kappa(int(num_classes), float(min_entropy), float(tau), inverse), top


def softmax_kappa_table(
    num_classes: int, min_entropy: float, tau: float, floor: str, inverse: str = "exact"
) -> tuple[float, ...]:
    """κ of Eq. 15 at probability 0 for each number of classes that a mask may leave (*ours*).

    Where the classes are too few for the floor, it is the κ at probability 1, which makes them equally likely.

    Args:
        num_classes: n, for which the floor must be feasible.
        min_entropy: Floor in nats.
        tau: τ > e.
        floor: `"paper"` or `"calibrated"`.
        inverse: `"exact"` or `"paper"`.

    Returns:
        n + 1 values, for 0 to n classes.

    Raises:
        ValueError: As `softmax_kappa_range`.

    Examples:
        >>> from entropyfloor import targets
        >>> [round(kappa, 4) for kappa in targets.softmax_kappa_table(4, 0.6, 4.0, "calibrated")]
        [0.3466, 0.3466, 0.2315, 0.0995, 0.0637]
    """
    check_whole("num_classes", num_classes, 2)
    check_number("min_entropy", min_entropy)
    check_number("tau", tau)
    return _kappa_table(int(num_classes), float(min_entropy), float(tau), floor, inverse)


def top1_cap(
    num_classes: int, min_entropy: float, tau: float = 4.0, floor: str = "calibrated", inverse: str = "exact"
) -> float:
    """Largest top-1 probability under the floor: that of the one-hot limit.

    Examples:
        >>> from entropyfloor import targets
        >>> round(targets.top1_cap(10, 0.6), 4), round(targets.top1_cap(10, 0.6, floor="paper"), 4)
        (0.8872, 0.7916)
    """
    gap = _one_hot_gap(num_classes, min_entropy, tau, floor, inverse)
    return 1 / (1 + (num_classes - 1) * math.exp(-gap))


def mean_keeps_floor(
    num_classes: int, min_entropy: float, tau: float = 4.0, floor: str = "calibrated", inverse: str = "exact"
) -> bool:
    """Whether a mean of floored logit vectors keeps their floor too (*ours*).

    Floored logits lie between the two logits of the one-hot limit, and so does a mean of them. As a function of
    one logit the entropy rises and then falls, so among all logits between two bounds the least entropy is at a
    corner: k logits at the upper bound, the others at the lower one. The floor is kept unless some k > 1 has less
    entropy than k = 1. The floors in use are kept (n = 10, 0.6: the next corner has 0.975), high ones are not.

    Examples:
        >>> from entropyfloor import targets
        >>> targets.mean_keeps_floor(10, 0.6)
        True
    """
    gap = _one_hot_gap(num_classes, min_entropy, tau, floor, inverse)
    lowest = _k_hot_entropy(num_classes, 1, gap)
    return all(_k_hot_entropy(num_classes, k, gap) >= lowest for k in range(2, num_classes))


def min_entropy_for_top1(num_classes: int, top1: float) -> float:
    """Largest calibrated floor that still reaches the top-1 probability `top1`, for any τ.

    Label smoothing ε asks for `top1 = 1 - ε + ε/n`.

    Raises:
        ValueError: n < 2, or `top1` is not between 1/n and 1.

    Examples:
        >>> from entropyfloor import targets
        >>> round(targets.min_entropy_for_top1(10, top1=1 - 0.1 + 0.1 / 10), 4)
        0.5003
    """
    check_whole("num_classes", num_classes, 2)
    if not 1 / num_classes < top1 < 1:
        raise ValueError(f"top1={top1} must lie between 1/n = {1 / num_classes:.6g} and 1")
    return _k_hot_entropy(num_classes, 1, math.log(top1 * (num_classes - 1) / (1 - top1)))


def inverse_kappa(kappa: float) -> float:
    """h⁻¹(κ) = W₋₁(-κ), the x ≤ -1 with -x eˣ = κ, for 0 < κ ≤ 1/e.

    Kept by design: SciPy has it, but this module needs nothing beyond the standard library.

    Examples:
        >>> from entropyfloor import targets
        >>> round(targets.inverse_kappa(0.3), 4)
        -1.7813
    """
    t = max(-1 - math.log(kappa), 0.0)
    y = t + math.sqrt(2 * t)  # an upper bound of the root of y - log(1 + y) = t, with x = -1 - y
    for _ in range(60):
        if y <= 0:
            break
        step = (y - math.log1p(y) - t) * (1 + y) / y
        y -= step
        if abs(step) <= 1e-16 * y:
            break
    return -1 - y


def inverse_kappa_paper(kappa: float) -> float:
    """The paper's approximation of h⁻¹(κ), below Eq. 15.

    Examples:
        >>> from entropyfloor import targets
        >>> round(targets.inverse_kappa_paper(0.3), 4)
        -1.7917
    """
    return -0.25 - math.sqrt(2 * max(-1 - math.log(kappa), 0.0)) + 0.75 * math.log(kappa)


INVERSES = {"exact": inverse_kappa, "paper": inverse_kappa_paper}


def _one_hot_gap(num_classes: int, min_entropy: float, tau: float, floor: str, inverse: str) -> float:
    """Distance between the largest floored logit and the others in the one-hot limit."""
    least, top = softmax_kappa_range(num_classes, min_entropy, tau, floor, inverse)
    return INVERSES[inverse](top) - INVERSES[inverse](least)


@cache
def _calibrated_kappa(num_classes: int, min_entropy: float, tau: float, inverse: str) -> float:
    """Solve for the κ at probability 0 with which the one-hot limit has entropy `min_entropy`."""
    solve, log_top = INVERSES[inverse], math.log(math.log(tau) / tau)
    highest = solve(math.exp(log_top))
    below, above = -700.0, log_top  # log κ: entropy 0, and that of equal probabilities
    for _ in range(100):
        middle = 0.5 * (below + above)
        if _k_hot_entropy(num_classes, 1, highest - solve(math.exp(middle))) < min_entropy:
            below = middle
        else:
            above = middle
    return math.exp(above)


@cache
def _kappa_table(num_classes: int, min_entropy: float, tau: float, floor: str, inverse: str) -> tuple[float, ...]:
    _, top = softmax_kappa_range(num_classes, min_entropy, tau, floor, inverse)
    shift = 1 + math.log(top) if floor == "paper" else 0.0
    fewest = next(m for m in range(2, num_classes + 1) if min_entropy < math.log(m) + shift)
    reached = [softmax_kappa_range(m, min_entropy, tau, floor, inverse)[0] for m in range(fewest, num_classes + 1)]
    return (*[top] * fewest, *reached)


def _k_hot_entropy(num_classes: int, k: int, gap: float) -> float:
    """Entropy of k equal logits that are `gap` above n - k equal ones, in nats."""
    others = (num_classes / k - 1) * math.exp(-gap)
    return math.log(k) + math.log1p(others) + others * gap / (1 + others)


# --- checks ----------------------------------------------------------------------------------------------


def _feasible(target_entropy: float, most: float, action_dim: int, log_std_max: float, under: str = "") -> None:
    check_finite(target_entropy)
    if target_entropy > most:  # the message is made only here: compilers cannot make text of a dynamic number
        raise ValueError(
            f"target_entropy={target_entropy} nats is above {most:.6g}, the largest entropy of {action_dim} "
            f"dimension(s) with log_std_max={log_std_max}{under}: lower the target or raise log_std_max"
        )
