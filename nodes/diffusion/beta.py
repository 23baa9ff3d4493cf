"""The beta distribution, as far as a schedule needs it."""

from math import exp, lgamma, log, log1p

TINY = 1e-300
TERMS = 300


def beta_quantile(share: float, alpha: float, beta: float) -> float:
    """Return x for which a beta-distributed number is below x with probability `share`, in [0, 1]; to 1e-15."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high and high - low > 1e-16:
        low, high = (middle, high) if beta_cdf(middle, alpha, beta) < share else (low, middle)
    return 0.0 if share <= 0 else 1.0 if share >= 1 else (low + high) / 2


def beta_cdf(x: float, alpha: float, beta: float) -> float:
    """Return the probability that a beta-distributed number is below x: the regularised incomplete beta function."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (alpha + 1) / (alpha + beta + 2):
        return 1 - beta_cdf(1 - x, beta, alpha)
    scale = exp(lgamma(alpha + beta) - lgamma(alpha) - lgamma(beta) + alpha * log(x) + beta * log1p(-x))
    return scale / (alpha * _fraction(x, alpha, beta))


def _fraction(x: float, alpha: float, beta: float) -> float:
    """Return the continued fraction of NIST's DLMF 8.17.22, by Lentz's method."""
    value, above, below = 1.0, 1.0, 0.0
    for term in range(1, TERMS):
        half, odd = divmod(term, 2)
        if odd:
            step = -(alpha + half) * (alpha + beta + half) * x / ((alpha + term - 1) * (alpha + term))
        else:
            step = half * (beta - half) * x / ((alpha + term - 1) * (alpha + term))
        below = 1 / (1 + step * below or TINY)
        above = 1 + step / above or TINY
        value *= above * below
        if abs(above * below - 1) < 1e-16:
            break
    return value
