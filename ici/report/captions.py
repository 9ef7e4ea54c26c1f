"""What each figure is of: the constants behind it, its floor, what a band is."""

from __future__ import annotations

from ici.analysis.anatomy import LEAD, LOOKBACK_STEPS
from ici.analysis.digest import Digest


def captions(digest: Digest) -> dict[str, str]:
    """What each figure is of: the constants behind it, its floor, what a band is."""
    experiment, attrs = digest.experiment, digest.runs.attrs
    n = digest.n_seeds
    band = (
        f"Line: median of the running ones of {n} seeds; band: their range."
        if n > 1
        else "One seed: no interval."
    )
    probe = experiment.get("probe") or {}
    every = probe.get("every", "?")
    cells = f"Medians over {n} seeds." if n > 1 else "One seed."
    floor = (
        f"Reference batch of {experiment.get('reference_size', '?')} examples: a network that does "
        "not change has shift exactly 0, so there is no sampling noise."
    )
    window = f"final loss: mean of a run's last {attrs['final_window_steps']} steps"
    return {
        "phase": f"Median over seeds of the {window}. ✕ k/n: k of n seeds diverged; ▬: a seed "
        "ended no lower than its first loss; ▲: a seed spiked; ●: every seed reached the target.",
        "curves": f"Means over bins of {digest.curves.attrs['bin_steps']} steps. {band} Thin line: "
        f"largest single loss. ▲: peaks of spikes ({digest.spikes.rule.describe()}); ✕: "
        "divergence.",
        "sensitivity": f"Median and range over seeds of the {window}; diverged seeds are in no "
        "median, ✕ k/n counts them.",
        "inputs": "Percentiles 15, 50, 85 over the units of all running seeds, of each unit's "
        "mean and standard deviation on the training batch, as the training step saw it (every "
        f"{every} steps). Training batches differ: small movements are sampling noise. On a log "
        "scale, 0 (dead units) is drawn at the lower edge.",
        "trace": "The same percentiles at one layer input over training. A line ends where every "
        "seed has.",
        "shift": f"RMS over units of the mean shift, in standard deviations of the unit. {cells} "
        f"{floor}",
        "gradients": f"Norm of the gradient of each block on the training batch, every {every} "
        f"steps. {cells}",
        "growth": "Least squares line through the log norms of the repeated blocks; factor per "
        "layer towards the input, above 1 explodes, below 1 vanishes.",
        "gradientShift": f"Change of each layer's gradient when the layers below it take their "
        f"update, on the same batch (Santurkar et al. 2018, Def. 2.1). {cells}",
        "attribution": f"Shift at each layer input (columns) when only one block (row) takes its "
        f"update. {floor} Blank: exactly 0, the block is not upstream. {cells}",
        "landscape": "Along the gradient at one point, over step sizes of ½ to 4 learning rates: "
        f"range of the loss, and of the distance between gradients (Santurkar et al. 2018, §3.2). "
        f"{cells}",
        "sharpness": "Largest eigenvalue of the loss's Hessian on the training batch. Dotted: 2, "
        f"above which plain gradient descent leaves a quadratic. {cells}",
        "lossStep": "Loss after an update over the loss before it, on the same batch (Bjorck et "
        f"al. 2018); dotted: 1, above which the update made its own batch worse. {cells}",
        "survival": f"Kaplan–Meier: share of runs that have not met {attrs['target']} yet "
        f"({digest.target_source}); band: 95 % log-log interval; runs that never met it are "
        "censored at their end, diverged ones included.",
        "spikes": f"{digest.spikes.rule.describe()}. Movers: layer inputs whose mean shift between "
        f"probes rose {LEAD.k:g} standard deviations of its logarithm above the {LEAD.window} "
        f"probes before, within {LOOKBACK_STEPS} steps of the onset, first first.",
    }
