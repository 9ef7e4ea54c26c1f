"""Spikes of a series: values far from the mean of the values just before them.

A value is a spike when it lies at least k standard deviations from the mean of the previous w
values, the value itself not among them. Two properties follow and are wanted: a run that diverges
smoothly has no spike, so show divergence beside the count; and a spike inflates the standard
deviation for the next w values, so a second spike soon after a first can stay hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from ici.errors import InputError, unknown_name

_BLOCK_VALUES = 1 << 20


@dataclass(frozen=True)
class SpikeRule:
    """What counts as a spike; travels with every count.

    Attributes:
      name: where the constants come from.
      window: number w of previous values that give the mean and the standard deviation.
      k: how many standard deviations from the mean a spike is, at least.
      two_sided: whether downward deviations count too.
      burn_in: previous values needed before a value is judged; below `window`, the mean and the
        standard deviation are those of the values there are.
      min_std: windows with a smaller standard deviation give no spike.
    """

    name: str
    window: int
    k: float
    two_sided: bool
    burn_in: int
    min_std: float = 0.0

    def __post_init__(self) -> None:
        if self.window < 2:
            raise InputError(f"spike window is {self.window}: wanted an integer >= 2.")
        if not self.k > 0:
            raise InputError(f"spike k is {self.k}: wanted a number of standard deviations > 0.")
        if not 2 <= self.burn_in <= self.window:
            raise InputError(
                f"spike burn_in is {self.burn_in}: wanted an integer from 2 to the window, "
                f"{self.window}."
            )

    def describe(self) -> str:
        """One line with every constant."""
        side = "from" if self.two_sided else "above"
        return (
            f"{self.name}: >= {self.k:g} std {side} the mean of the previous {self.window} values, "
            f"first {self.burn_in} not judged"
        )


PRESETS = {
    # OLMo Team, "2 OLMo 2 Furious" (2025), section 3.2. The paper does not say what happens
    # before there are 1000 values; here nothing is judged.
    "olmo2": SpikeRule("olmo2", window=1000, k=7.0, two_sided=True, burn_in=1000),
    # OLMo-core, StabilityMonitorCallback.
    "olmo_core": SpikeRule(
        "olmo_core", window=128, k=6.0, two_sided=False, burn_in=128, min_std=1e-10
    ),
}


def spike_rule(
    preset: str | None = "olmo2",
    *,
    window: int | None = None,
    k: float | None = None,
    two_sided: bool | None = None,
    burn_in: int | None = None,
) -> SpikeRule:
    """A preset, a preset with some constants changed, or with ``preset=None`` an own rule.

    A changed window takes the burn-in along unless that is given too.

    Raises:
      InputError: an unknown preset, an own rule without window or k, or impossible constants.
    """
    if preset is None:
        if window is None or k is None:
            raise InputError("a spike rule without preset needs both: give window and k.")
        return SpikeRule("custom", window, k, bool(two_sided), burn_in or window)
    if preset not in PRESETS:
        raise unknown_name("spike preset", preset, tuple(PRESETS))
    rule = PRESETS[preset]
    if window is not None:
        rule = replace(rule, window=window, burn_in=window)
    changes = {"k": k, "two_sided": two_sided, "burn_in": burn_in}
    rule = replace(rule, **{name: value for name, value in changes.items() if value is not None})
    return rule if rule == PRESETS[preset] else replace(rule, name=f"{preset}, changed")


@dataclass(frozen=True)
class SpikeScore:
    """Fraction of the values that are spikes, with what it was counted by.

    Attributes:
      value: float64 ``[...]``, spikes over recorded values; NaN where no value could be judged.
      n_spikes, n_judged, n_values: int ``[...]``: spikes, values with enough history, and values
        before the first one that is not finite.
      rule: the constants.
    """

    value: NDArray[np.float64]
    n_spikes: NDArray[np.int64]
    n_judged: NDArray[np.int64]
    n_values: NDArray[np.int64]
    rule: SpikeRule

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        return f"{self.value} ({self.rule.describe()})"


@dataclass(frozen=True)
class SpikeEvent:
    """One excursion of a series. Positions count values from the start of the series.

    Attributes:
      onset: the first spike value.
      peak: the value furthest from the level, up to the end of the event.
      level: mean of the window before the onset: the running level.
      height: value at the peak minus `level`, in units of the series; negative for a dip.
      end: first value back within k standard deviations of `level`, as both were at the onset;
        None if there is none.
      recovery_steps: ``end - onset``, inf for never.
      rule: the constants.
    """

    onset: int
    peak: int
    level: float
    height: float
    end: int | None
    rule: SpikeRule

    @property
    def recovery_steps(self) -> float:
        return math.inf if self.end is None else float(self.end - self.onset)


def _finite_start(series: ArrayLike) -> NDArray[np.float64]:
    """The series in float64, NaN from its first value on that is not finite."""
    values = np.array(series, dtype=np.float64)
    if values.ndim == 0:
        raise InputError("the series is a single number: wanted an array of values over steps.")
    values[~np.logical_and.accumulate(np.isfinite(values), axis=-1)] = np.nan
    return values


def band(values: NDArray[np.float64], rule: SpikeRule) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std ``[..., T]`` of the window before each of ``values[..., T]``; NaN where a value
    is not judged."""
    *lead, length = values.shape
    rows = values.reshape(-1, length)
    mean, std = np.full_like(rows, np.nan), np.full_like(rows, np.nan)
    padded = np.concatenate([np.full((len(rows), rule.window), np.nan), rows], axis=1)
    windows = sliding_window_view(padded, rule.window, axis=1)[:, :length]
    block = max(1, _BLOCK_VALUES // max(1, len(rows) * rule.window))
    for start in range(0, length, block):
        part = windows[:, start : start + block]
        known = np.isfinite(part)
        n = known.sum(axis=-1)
        judged = (n >= rule.burn_in) & np.isfinite(rows[:, start : start + block])
        n = np.maximum(n, 1)
        # Two passes: the series may sit far from zero, and E[x²] − E[x]² cancels there.
        centre = np.where(known, part, 0.0).sum(axis=-1) / n
        deviation = np.where(known, part - centre[..., None], 0.0)
        spread = np.sqrt(np.square(deviation).sum(axis=-1) / n)
        mean[:, start : start + block] = np.where(judged, centre, np.nan)
        std[:, start : start + block] = np.where(judged, spread, np.nan)
    return mean.reshape(*lead, length), std.reshape(*lead, length)


def outside(
    values: np.ndarray, level: np.ndarray | float, std: np.ndarray | float, rule: SpikeRule
) -> np.ndarray:
    """Whether values leave the band around `level`; never where an operand is NaN."""
    deviation = np.abs(values - level) if rule.two_sided else values - level
    # A deviation of zero is no spike, not even from a window without any spread.
    return (deviation >= rule.k * std) & (deviation > 0) & (std >= rule.min_std)


def spike_mask(series: ArrayLike, rule: SpikeRule) -> NDArray[np.bool_]:
    """Which values of ``series[..., T]`` are spikes, bool ``[..., T]``.

    A value that is not finite is divergence and no spike; nothing is judged from it on.
    """
    values = _finite_start(series)
    return outside(values, *band(values, rule), rule)


def spike_score(
    series: ArrayLike,
    preset: str | None = "olmo2",
    *,
    window: int | None = None,
    k: float | None = None,
    two_sided: bool | None = None,
    burn_in: int | None = None,
) -> SpikeScore:
    """Fraction of the values of ``series[..., T]`` that are spikes.

    Presets: ``"olmo2"`` (7 standard deviations either way from the previous 1000 values; OLMo 2,
    2025, section 3.2) and ``"olmo_core"`` (6 above the previous 128; OLMo-core). The other
    arguments change a preset, or with ``preset=None`` define a rule. Values count up to the first
    that is not finite.

    Raises:
      InputError: see `spike_rule`.
    """
    return score(
        series, spike_rule(preset, window=window, k=k, two_sided=two_sided, burn_in=burn_in)
    )


def score(series: ArrayLike, rule: SpikeRule) -> SpikeScore:
    """`spike_score` under a given rule."""
    values = _finite_start(series)
    mean, std = band(values, rule)
    n_spikes = outside(values, mean, std, rule).sum(axis=-1)
    n_judged = np.isfinite(mean).sum(axis=-1)
    n_values = np.isfinite(values).sum(axis=-1)
    value = np.where(n_judged > 0, n_spikes / np.maximum(n_values, 1), np.nan)
    return SpikeScore(value, n_spikes, n_judged, n_values, rule)


def find_spikes(
    series: ArrayLike,
    preset: str | None = "olmo2",
    *,
    window: int | None = None,
    k: float | None = None,
    two_sided: bool | None = None,
    burn_in: int | None = None,
) -> list[SpikeEvent]:
    """The spike events of one ``series[T]``, in order; arguments as for `spike_score`.

    An event lasts until the series is back within the band that it left, mean and standard
    deviation as they were at the onset. Spikes before that belong to the same event, so a series
    that settles on a new level outside the band gives one event without end.

    Raises:
      InputError: the series is not one-dimensional, or see `spike_rule`.
    """
    return events(
        series, spike_rule(preset, window=window, k=k, two_sided=two_sided, burn_in=burn_in)
    )


def events(series: ArrayLike, rule: SpikeRule) -> list[SpikeEvent]:
    """`find_spikes` under a given rule."""
    values = _finite_start(series)
    if values.ndim != 1:
        raise InputError(f"the series has shape {values.shape}: wanted one run, shape [steps].")
    mean, std = band(values, rule)
    onsets = np.flatnonzero(outside(values, mean, std, rule))
    length = int(np.isfinite(values).sum())
    found: list[SpikeEvent] = []
    clear_from = 0
    for onset in onsets.tolist():
        if onset < clear_from:
            continue
        level = float(mean[onset])
        rest = values[onset:length]
        back = np.flatnonzero(~outside(rest, level, float(std[onset]), rule))
        end = onset + int(back[0]) if back.size else None
        clear_from = length if end is None else end
        deviation = rest[: clear_from - onset] - level
        peak = int(np.argmax(np.abs(deviation) if rule.two_sided else deviation))
        found.append(SpikeEvent(onset, onset + peak, level, float(deviation[peak]), end, rule))
    return found
