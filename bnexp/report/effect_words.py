"""A comparison in words and units: what is compared, what is claimed, and how its numbers are shown."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bnexp.analysis.stats import Estimate
from bnexp.comparison import FACTORS, Comparison
from bnexp.metrics import NEEDS_TARGET, Unit, metric_of

# what a difference of two numbers of this unit is called; ratios and cosines have no name
UNITS: dict[Unit, str] = {
    "fraction": "points", "nats": "nats", "seconds": "s", "images/s": "images/s", "epochs": "epochs", "ratio": "",
    "cosine": "", "decades": "decades", "SDs": "SD",
}  # fmt: skip
SINGULAR = {"points": "point", "epochs": "epoch", "decades": "decade"}
# a measure inside a sentence, where its axis label without the unit would not do; {target} is a percentage
PHRASES = {
    "generalization_gap": "generalization gap (train − test accuracy)",
    "epochs_to_target": "epochs to {target} % validation accuracy",
    "seconds_to_target": "training seconds to {target} % validation accuracy",
    "shift_l2": "relative change of a layer's gradient by updates below it",
    "shift_cosine": "cosine of a layer's gradient before and after updates below it",
    "moment_drift": "drift of the means of layer inputs",
    "gradient_decades_start": "gap between first and last layer's gradient, at the start",
    "gradient_decades_later": "gap between first and last layer's gradient, later on",
    "accuracy_running": "test accuracy with running statistics",
    "accuracy_precise": "test accuracy with precise statistics",
    "accuracy_batch": "test accuracy with each batch's own statistics",
    "corruption_drop": "share of accuracy lost on corrupted images",
    "corruption_drop_adapted": "share of accuracy lost on corrupted images with their own statistics",
    "fgsm_drop": "share of accuracy lost under attack by FGSM",
    "step_cost": "time of a training step relative to no norm",
    "batch_mean_error": "error of a batch's means against those of the training set",
    "batch_std_error": "relative error of a batch's SDs against those of the training set",
    "loss_rise": "largest rise of the training loss from one epoch to the next",
    "norm_std_error": "largest distance of a channel's SD from 1, before gamma and beta",
    "output_std_error": "distance of a channel's SD from 1, after gamma and beta",
    "norm_mean_error": "largest channel mean, before gamma and beta",
    "output_mean": "channel mean, after gamma and beta",
}
OF_FAILURES = ("reach", "span")  # what they measure is where runs fail: there a failed run is no mishap
KEY_WORDS = {"lr": "learning rate", "data.train_limit": "number of training images"}


@dataclass(frozen=True)
class Scale:
    """How the per-seed numbers of a comparison are shown.

    Attributes:
        unit: behind a number; empty for a factor, a ratio or a cosine.
        times: a stored number times this is the shown one, where it is no factor.
        base: of the stored logarithm of a factor; None: the number is no factor.
        digits: decimals; of a factor, they follow from its size.
    """

    unit: str
    times: float = 1.0
    base: float | None = None
    digits: int = 2

    def shown(self, value: float) -> float:
        """A stored per-seed number as the axis has it."""
        return value * self.times if self.base is None else self.base**value

    def number(self, value: float) -> str:
        """`+1.20` or `×3.16`, without its unit."""
        if self.base is not None:
            return f"×{_factor(self.shown(value))}"
        return _minus(f"{self.shown(value):+.{self.digits}f}")

    def interval(self, estimate: Estimate, *, unit: bool = True) -> str:
        """`+1.20 points [+0.50, +1.90]`, `×3.16 [2.10, 4.76]`; without bounds where there are none."""
        mean = self.number(estimate.mean) + (f" {self.unit}" if unit and self.unit else "")
        if not math.isfinite(estimate.low):
            return mean
        bounds = (self.number(bound).removeprefix("×") for bound in (estimate.low, estimate.high))
        return f"{mean} [{', '.join(bounds)}]"

    def amount(self, size: float) -> str:
        """A margin in its own unit: `1 point`, `0.5 points per doubling`, `×3`."""
        if self.base is not None:
            return f"×{size:.3g}"
        return _amount(size * self.times, self.unit)


def scale_of(comparison: Comparison) -> Scale:
    """Decimals follow the margin: two digits of what would just matter, and no more than the measure has."""
    if comparison.shape in FACTORS:
        return Scale("", base=10.0 if comparison.shape == "reach" else math.e)
    if comparison.shape == "span":
        return Scale("decades")
    metric = metric_of(str(comparison.measure))
    unit = UNITS[metric.unit]
    if comparison.shape == "slope":
        unit = f"{unit} per doubling".lstrip()
    digits = metric.digits
    if comparison.margin:
        digits = min(digits, max(2, 1 - math.floor(math.log10(comparison.margin * metric.scale))))
    return Scale(unit, times=metric.scale, digits=digits)


def compared(comparison: Comparison) -> str:
    """`batch − no norm, test accuracy`; `epochs to 90 % validation accuracy, batch / no norm`."""
    what, who = measured(comparison), contrasted(comparison)
    if comparison.shape in ("difference", "matched", "interaction"):
        return f"{who}, {what}"
    if comparison.shape == "level":
        return f"{what}, {who}, against {reference_words(comparison)}"
    return f"{what}, {who}" if who else what


def measured(comparison: Comparison) -> str:
    """What the numbers are of, without the arms."""
    phrase = _phrase(str(comparison.measure), comparison.target)
    over = key_word(comparison.over) if comparison.over else ""
    match comparison.shape:
        case "difference" | "ratio" if comparison.control_measure is not None:
            other = _phrase(comparison.control_measure, comparison.target)
            if comparison.treatment == comparison.control:
                return f"{phrase} {_sign(comparison)} {other}"
            return f"{phrase} ({comparison.control}: {other})"
        case "matched":
            return f"{phrase} at the highest train accuracy that both reach"
        case "reach":
            return f"largest {over} {_good(comparison, 'that stays healthy')}"
        case "span":
            return f"decades of {over} {_good(comparison, 'that stay healthy')}"
        case "worst":
            return f"worst {phrase} at any {over}"
        case "slope" if comparison.levels:
            return f"{phrase}, from {comparison.levels[0][0]} to {comparison.levels[-1][0]}, per doubling"
        case "slope":
            return f"{phrase} per doubling of {over}"
        case "search":
            settings = "1 setting" if comparison.budget == 1 else f"{comparison.budget} settings"
            return f"{phrase} lost by trying {settings} instead of all"
        case _:
            return phrase


def contrasted(comparison: Comparison) -> str:
    """The arms: `batch − no norm`; empty where they are levels."""
    one, other = comparison.treatment, comparison.control
    if comparison.against is not None:
        return f"({one} − {other}) − ({' − '.join(comparison.against)})"
    if one is None:
        return ""
    return one if other in (None, one) else f"{one} {_sign(comparison)} {other}"


def claimed(comparison: Comparison) -> str:
    """`higher by at least 1 point`, `at most ×0.8`, `not lower by 1 point or more`; `premise: ...`, `context: ...`."""
    return _claimed(comparison) if comparison.role == "claim" else f"{comparison.role}: {_claimed(comparison)}"


def _claimed(comparison: Comparison) -> str:
    assert comparison.margin is not None
    size = scale_of(comparison).amount(comparison.margin)
    match comparison.shape:
        case "ratio" | "reach":
            low = scale_of(comparison).amount(1 / comparison.margin)
            words = {
                "higher": f"at least {size}", "lower": f"at most {low}", "same": f"between {low} and {size}",
                "not lower": f"above {low}",
            }  # fmt: skip
        case "level":
            where = reference_words(comparison)
            words = {
                "higher": f"above {where} by at least {size}", "lower": f"below {where} by at least {size}",
                "same": f"less than {size} from {where}", "not lower": f"not below {where} by {size} or more",
            }  # fmt: skip
        case "slope":
            words = {
                "higher": f"rises by at least {size}", "lower": f"falls by at least {size}",
                "same": f"changes by less than {size}", "not lower": f"does not fall by {size} or more",
            }  # fmt: skip
        case _:
            words = {
                "higher": f"higher by at least {size}", "lower": f"lower by at least {size}",
                "same": f"no difference beyond {size}", "not lower": f"not lower by {size} or more",
            }  # fmt: skip
    return words[comparison.direction]


def sides(comparison: Comparison) -> tuple[str, str]:
    """What lies to the left and to the right of no effect: `no norm higher`, `batch higher`."""
    one, other = comparison.treatment, comparison.control
    if comparison.shape == "level":
        return "below", "above"
    if comparison.shape == "slope":
        return ("falls", "rises") if other is None else (f"falls more with {one}", f"rises more with {one}")
    if one is None or other is None or comparison.against or one == other:
        return "lower", "higher"
    return f"{other} higher", f"{one} higher"


def reference_words(comparison: Comparison) -> str:
    """What a level is held against, as shown: `0`, `50 %`."""
    metric = metric_of(str(comparison.measure))
    return f"{(comparison.reference or 0) * metric.scale:g}" + (" %" if metric.unit == "fraction" else "")


def key_word(key: str) -> str:
    """`model.init_gain` as a reader says it: `init gain`."""
    return KEY_WORDS.get(key) or key.removesuffix(".name").rpartition(".")[2].replace("_", " ")


def _phrase(name: str, target: float | None) -> str:
    known = PHRASES.get(name)
    if known is None:
        return metric_of(name).label.rpartition(" (")[0] or metric_of(name).label
    return known.format(target=f"{100 * (target or 0):g}") if name in NEEDS_TARGET else known


def _sign(comparison: Comparison) -> str:
    return "/" if comparison.shape in FACTORS else "−"


def _good(comparison: Comparison, healthy: str) -> str:
    if comparison.within is None or comparison.within == "margin":  # which a tier has settled
        return healthy
    metric = metric_of(str(comparison.measure))
    near = _amount(comparison.within * metric.scale, UNITS[metric.unit])
    whose = "the pair's" if comparison.best == "pair" else "its own"
    return f"within {near} of {whose} best {_phrase(metric.name, comparison.target)}"


def _amount(number: float, unit: str) -> str:
    first, _, rest = unit.partition(" ")
    word = SINGULAR.get(first, first) if f"{number:g}" == "1" else first
    return " ".join(part for part in (f"{number:g}", word, rest) if part)


def _factor(value: float) -> str:
    if 0.095 <= value < 9.995:
        return f"{value:.2f}"
    return f"{value:.2g}" if value < 1 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _minus(text: str) -> str:
    return text.replace("-", "−")
