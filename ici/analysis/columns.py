"""What the columns of the tables are, and in which units."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LOSS = "nats; squared units of the targets in regression"
_STEPS, _SIGMA, _ONE = "steps", "standard deviations", "1"


@dataclass(frozen=True)
class Column:
    """A column of a table: its unit (1 for pure numbers, "label" for what is none), and meaning."""

    unit: str
    meaning: str


LABELS = {
    "norm": Column("label", "normalization layers of the run"),
    "depth": Column("layers", "number of blocks"),
    "lr": Column(_ONE, "learning rate"),
    "weight_decay": Column(_ONE, "only where several were swept"),
    "warmup_steps": Column(_STEPS, "only where several were swept"),
    "beta1": Column(_ONE, "only where several were swept"),
    "beta2": Column(_ONE, "only where several were swept"),
    "seed": Column("label", "of initial weights and order of the data"),
}
POSITIONS = {
    "step": Column(_STEPS, "updates made before the measurement"),
    "block": Column("label", "a layer with its norm"),
    "site": Column("label", "a layer input"),
    "multiple": Column("learning rates", "length of the step along the gradient"),
    "feature": Column("label", "index of the feature, with `--features`"),
}
_INPUTS = {
    "count": Column("values", "values per feature: examples, times positions if there are any"),
    "mean": Column("units of x", "mean of a feature"),
    "std": Column("units of x", "standard deviation of a feature"),
    "minimum": Column("units of x", "smallest finite value"),
    "maximum": Column("units of x", "largest finite value"),
    "nonfinite_fraction": Column("share", "values that are not finite"),
    "skewness": Column(_ONE, "third standardised moment"),
    "excess_kurtosis": Column(_ONE, "fourth standardised moment minus 3"),
    "dead_fraction": Column("share", "units that are ≤ 0 on every example"),
    "effective_rank": Column("dimensions", "exponential of the entropy of the singular values"),
    "mean_standard_error": Column("units of x", "standard error of `mean`"),
    "log_std_standard_error": Column("nats", "standard error of ln `std`"),
    "percentile_Q": Column("units of x", "Q-th percentile of a feature over examples"),
    "attention_max_logit": Column(_ONE, "largest logit of a head"),
    "attention_entropy": Column("nats", "mean entropy of a head's weights"),
    "max_logit": Column(_ONE, "largest logit of the output"),
    "z_mean": Column("nats", "mean log-sum-exp of the output"),
    "z_max": Column("nats", "largest log-sum-exp of the output"),
}
COLUMNS: dict[str, dict[str, Column]] = {
    "runs": {
        "diverged_at": Column(_STEPS, "step whose update was refused; none if empty"),
        "going": Column("label", "whether steps are to come"),
        "final_loss": Column(_LOSS, "mean training loss of the last twentieth; none if diverged"),
        "first_loss": Column(_LOSS, "training loss before the first update"),
        "no_progress": Column("label", "whether `final_loss` is no lower than `first_loss`"),
        "validation_accuracy": Column("share", "at the last evaluation; none if diverged"),
        "best_validation_accuracy": Column("share", "at the best evaluation; none if diverged"),
        "validation_loss": Column(_LOSS, "at the last evaluation, unless classes are predicted"),
        "best_validation_loss": Column(_LOSS, "at the best one, unless classes are predicted"),
        "spikes": Column("events", "spikes of the training loss; none if too short to tell"),
        "steps_to_target": Column(_STEPS, "inf if missed, none if not met yet"),
        "shift": Column(_SIGMA, "mean shift of the deepest shared site since step 0, RMS"),
        "dead_features": Column("features", "of that site, left out for having no spread"),
        "cause": Column("label", "why the run diverged; empty if it did not"),
        "outcome": Column("label", "what became of the run"),
        "first_nonfinite": Column(
            "label", "what was not finite first; empty if all was or unknown"
        ),
    },
    "train": {
        "loss": Column(_LOSS, "training loss before the update"),
        "grad_norm": Column("units of loss per unit of weight", "norm of the whole gradient"),
    },
    "evaluation": {
        "loss": Column(_LOSS, "mean over the validation split"),
        "accuracy": Column("share", "of the validation split, unless targets are real numbers"),
        "ema_loss": Column(_LOSS, "`loss` of the averaged weights"),
        "ema_accuracy": Column("share", "`accuracy` of the averaged weights"),
    },
    "reference": _INPUTS,
    "probe": _INPUTS
    | {
        "cotangent_mean": Column("units of loss per unit of x", "mean of the loss gradient"),
        "cotangent_std": Column("units of loss per unit of x", "its standard deviation"),
    },
    "updates": {
        "block_gradient_norm": Column("units of loss per unit of weight", "gradient of a block"),
        "update_ratio": Column(_ONE, "norm of a block's update over that of its weights"),
        "total_update_ratio": Column(_ONE, "the same of all weights together"),
    },
    "spikes": {
        "onset": Column(_STEPS, "first step outside the band"),
        "peak": Column(_STEPS, "step furthest from `level`"),
        "level": Column(_LOSS, "mean loss of the window before"),
        "height": Column(_LOSS, "loss at the peak minus `level`"),
        "end": Column(_STEPS, "first step back in the band; none if it never was"),
        "recovery_steps": Column(_STEPS, "`end` − `onset`; inf for never"),
        "first_mover": Column("label", "site whose inputs left their band first; none if none did"),
        "lead_steps": Column(_STEPS, "from that to the onset; none without a mover"),
    },
    "gradient_shift": {
        "gradient_shift": Column("units of loss per unit of weight", "norm of the change"),
        "gradient_shift_relative": Column(_ONE, "the same over the norm of the gradient"),
        "gradient_shift_cosine": Column(_ONE, "cosine of the gradients before and after"),
        "block_gradient_norm": Column("units of loss per unit of weight", "gradient before"),
        "block_gradient_norm_shifted": Column("units of loss per unit of weight", "and after"),
        "nonfinite_parameters": Column("share", "parameters of the block that are not finite"),
    },
    "attribution": {
        "attribution": Column(_SIGMA, "shift of the site by the block's update alone, RMS"),
        "attribution_scale": Column("nats", "the same of the logarithm of the spread"),
        "attribution_path": Column(_SIGMA, "the block's part on the way from before to after"),
        "update_shift": Column(_SIGMA, "shift of the site by the whole update"),
        "update_scale_shift": Column("nats", "the same of the logarithm of the spread"),
        "interaction": Column(_SIGMA, "what the sum of the blocks leaves over"),
        "dead_features": Column("features", "left out for having no spread"),
    },
    "wasserstein1": {
        f"wasserstein1{since}{part}": Column("units of x", f"{what} of the distance {over}")
        for since, over in (("", "over the update"), ("_initial", "since step 0"))
        for part, what in (("", "mean"), ("_p50", "median"), ("_p95", "95th percentile"))
    },
    "landscape": {
        "loss_along": Column(_LOSS, "loss after that step along the gradient"),
        "gradient_distance": Column("units of loss per unit of weight", "change of the gradient"),
        "gradient_cosine": Column(_ONE, "cosine of the gradients here and there"),
        "effective_smoothness": Column("units of loss per squared unit of weight", "largest slope"),
    },
    "loss_step": {
        "loss_before": Column(_LOSS, "on the batch of the update, before it"),
        "loss_after": Column(_LOSS, "on the same batch, after it"),
        "relative_loss_step": Column(_ONE, "after over before"),
    },
    "sharpness": {
        "sharpness": Column("units of loss per squared unit of weight", "largest eigenvalue"),
        "sharpness_error": Column("units of loss per squared unit of weight", "its error bound"),
        "sharpness_iterations": Column("products", "Hessian-vector products used"),
        "sharpness_times_lr": Column(_ONE, "stable below 2"),
    },
}
UNKNOWN = Column("as its definition says", "of a statistic or measurement of your own")


def column(table: str, name: str) -> Column:
    """What the column `name` of a table is; `UNKNOWN` for what users added.

    Percentiles over the features of a site, ``mean_p50``, are in the units of ``mean``.
    """
    known = LABELS | POSITIONS | COLUMNS.get(table, {})
    if name in known:
        return known[name]
    over = re.fullmatch(r"(.+)_p(\d+)", name)
    if over and table in ("reference", "probe"):
        inner = column(table, over[1])
        return Column(inner.unit, f"{inner.meaning}: {over[2]}th percentile over features")
    if re.fullmatch(r"percentile_[\d.]+", name) and table in ("reference", "probe"):
        return known["percentile_Q"]
    return UNKNOWN
