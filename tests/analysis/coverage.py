"""How often intervals hold the truth, by simulation; as a program, prints the table of the docs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from scipy import stats

from ici.analysis.statistics import (
    Interval,
    bootstrap_interval,
    interquartile_mean,
    kaplan_meier,
    logrank,
    mean_interval,
    paired_effect,
    stratified_interval,
    unpaired_effect,
)

Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Coverage:
    """Of `n_simulations` intervals: shares that hold the truth, lie below it, lie above it."""

    held: float
    below: float
    above: float
    none: float
    n_simulations: int

    def __str__(self) -> str:
        if self.none == 1:
            return "none"
        text = f"{100 * self.held:.1f} ({100 * self.below:.1f}, {100 * self.above:.1f})"
        return text + (f", none {100 * self.none:.0f} %" if self.none else "")


def normal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(1.0, 1.0, n)


def lognormal(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.lognormal(0.0, 1.0, n)


def discrete(rng: np.random.Generator, n: int) -> np.ndarray:
    """Steps to a target that is looked for at every fiftieth step."""
    return 50.0 * np.ceil(rng.normal(300.0, 60.0, n) / 50.0)


DRAWS: dict[str, Draw] = {"normal": normal, "lognormal": lognormal, "discrete": discrete}
SIZES = (3, 5, 10, 20)


@cache
def truth(draw: Draw, statistic: Callable[..., np.ndarray]) -> float:
    """A statistic of the population: of a sample so large that its error does not matter."""
    return float(statistic(draw(np.random.default_rng(99), 2_000_000), axis=-1))


def counted(intervals: Iterator[Interval], true: float) -> Coverage:
    """Shares among the intervals that exist; `none` is the share without one."""
    bounds = np.array([(each.low, each.high) for each in intervals])
    exist = ~np.isnan(bounds[:, 0])
    if not exist.any():
        return Coverage(np.nan, np.nan, np.nan, 1.0, len(bounds))
    low, high = bounds[exist].T
    # Values on a grid meet their truth in more than one way of rounding.
    slack = 1e-9 * max(1.0, abs(true))
    below, above = float(np.mean(high < true - slack)), float(np.mean(low > true + slack))
    return Coverage(1 - below - above, below, above, float(np.mean(~exist)), len(bounds))


def of_mean(draw: Draw, n: int, sims: int, seed: int = 0) -> Coverage:
    rng = np.random.default_rng(seed)
    return counted((mean_interval(draw(rng, n)) for _ in range(sims)), truth(draw, np.mean))


def of_bootstrap(
    statistic: Callable[..., np.ndarray], draw: Draw, n: int, sims: int, seed: int = 0
) -> Coverage:
    rng = np.random.default_rng(seed)
    made = (
        bootstrap_interval(draw(rng, n), statistic, n_resamples=999, seed=i) for i in range(sims)
    )
    return counted(made, truth(draw, statistic))


def of_stratified(draw: Draw, n: int, sims: int, settings: int = 6, seed: int = 0) -> Coverage:
    """Interquartile mean over settings of unequal difficulty."""
    rng = np.random.default_rng(seed)
    levels = np.arange(settings)[:, None] * truth(draw, np.std)
    many = draw(np.random.default_rng(98), 300_000 * settings).reshape(settings, -1)
    true = float(interquartile_mean((many + levels).ravel()))
    made = (
        stratified_interval(
            draw(rng, settings * n).reshape(settings, n) + levels, n_resamples=999, seed=i
        )
        for i in range(sims)
    )
    return counted(made, true)


def of_paired(draw: Draw, n: int, sims: int, seed: int = 0) -> Coverage:
    """Difference of runs with a common effect of the seed and noise of their own."""
    rng = np.random.default_rng(seed)

    def one() -> Interval:
        common = 3 * rng.normal(size=n)
        return paired_effect(common + draw(rng, n), common + draw(rng, n)).difference

    return counted((one() for _ in range(sims)), 0.0)


def of_welch(draw: Draw, n: int, sims: int, seed: int = 0) -> Coverage:
    """Unequal spreads: the second side three times as wide."""
    rng = np.random.default_rng(seed)
    true = 2 * truth(draw, np.mean)
    made = (unpaired_effect(draw(rng, n), 3 * draw(rng, n)).difference for _ in range(sims))
    return counted(made, true)


def of_standardised(n: int, sims: int, effect: float = 1.0, seed: int = 0) -> Coverage:
    rng = np.random.default_rng(seed)
    made = (
        paired_effect(np.zeros(n), rng.normal(effect, 1.0, n)).standardised for _ in range(sims)
    )
    return counted(made, effect)


def of_kaplan_meier(n: int, sims: int, seed: int = 0) -> Coverage:
    """Share above the median time, with a third of the runs censored at the horizon."""
    rng = np.random.default_rng(seed)
    horizon, middle = float(stats.expon.ppf(2 / 3)), float(stats.expon.ppf(0.5))

    def one() -> Interval:
        steps = rng.exponential(size=n)
        curve = kaplan_meier(np.where(steps > horizon, np.inf, steps), horizon)
        at = int(np.searchsorted(curve.steps, middle, side="right")) - 1
        values = (float(v[at]) for v in (curve.survival, curve.low, curve.high))
        return Interval(*values, n=n, level=0.95, method="")

    return counted((one() for _ in range(sims)), 0.5)


def size_of_logrank(n: int, sims: int, seed: int = 0) -> float:
    """Share of p-values at most 0.05 where both sides are alike; a fifth misses the target."""
    rng = np.random.default_rng(seed)
    steps = np.ceil(rng.exponential(size=(sims, 2, n)) * 10)
    steps[steps > 16] = np.inf
    return float(np.mean([logrank(a, b, 16) <= 0.05 for a, b in steps]))


def proportion_coverage(p: float, n: int) -> float:
    """Exact, no simulation: the probability of those counts whose interval holds `p`."""
    from ici.analysis.statistics import proportion_interval

    held = [proportion_interval(k, n) for k in range(n + 1)]
    chance = stats.binom.pmf(np.arange(n + 1), n, p)
    return float(sum(c for c, each in zip(chance, held, strict=True) if each.low <= p <= each.high))


def main(sims: int = 2000) -> None:
    """Prints the table of docs/statistics.md."""
    kinds = {
        "`mean_interval`": of_mean,
        "`paired_effect`, difference": of_paired,
        "`unpaired_effect`, spreads 1 : 3": of_welch,
        "`bootstrap_interval`, median": partial(of_bootstrap, np.median),
        "`bootstrap_interval`, interquartile mean": partial(of_bootstrap, interquartile_mean),
        "`stratified_interval`, 6 settings": of_stratified,
    }
    print("| interval | values |" + "".join(f" n = {n} |" for n in SIZES))
    print("|---|---|" + "---|" * len(SIZES))
    for name, kind in kinds.items():
        for values, draw in DRAWS.items():
            cells = " | ".join(str(kind(draw, n, sims)) for n in SIZES)
            print(f"| {name} | {values} | {cells} |", flush=True)
    cells = " | ".join(str(of_standardised(n, sims)) for n in SIZES)
    print(f"| `paired_effect`, standardised | normal, d = 1 | {cells} |")
    cells = " | ".join(str(of_kaplan_meier(n, sims)) for n in SIZES)
    print(f"| `kaplan_meier` at the median | exponential, 1/3 censored | {cells} |")
    for p in (0.05, 0.3):
        cells = " | ".join(f"{100 * proportion_coverage(p, n):.1f}" for n in SIZES)
        print(f"| `proportion_interval` | share {p} (exact) | {cells} |")
    cells = " | ".join(f"{100 * size_of_logrank(n, sims):.1f}" for n in SIZES)
    print(f"| `logrank`, share of p <= 0.05 | no difference | {cells} |")


if __name__ == "__main__":
    main()
