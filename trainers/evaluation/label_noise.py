"""What an AUROC seen on noisy labels means: NIH's labels were read from reports by a program.

If labels err independently of the score, given the truth, an AUROC A of the truth is seen as

    0.5 + (A - 0.5) (PPV + NPV - 1),

for of the images that are labelled positive only the share PPV is so, and of those labelled negative the
share NPV; a pair of two images that are truly alike is ordered by chance. PPV and NPV follow from the labels'
sensitivity and specificity and from the prevalence. Labels that err where the model errs hide more than this.
"""

import dataclasses
from collections.abc import Mapping

from cxr_records.trainers.evaluation.bootstrap import rounded
from cxr_records.trainers.evaluation.results import (
    ClassMeasures,
    Interval,
    LabelNoise,
    NoisyLabels,
    TrueAuroc,
)

# Sensitivity and specificity that are assumed of the labels of every class.
ASSUMED = ((0.99, 0.99), (0.90, 0.99), (0.80, 0.95))

# NIH's labels against those that radiologists agreed on for 4,376 of its images (Majkowska et al., Radiology
# 294:421, 2020): sensitivity and PPV, of each group of findings that was judged as one.
EXPERTS = {
    ("Pneumothorax",): (0.458, 0.458),
    ("Mass", "Nodule"): (0.423, 0.563),
    ("Consolidation", "Infiltration", "Pneumonia"): (0.419, 0.760),
}
_LEAST = 0.02  # PPV + NPV - 1, below which labels tell next to nothing of the truth

# Why no true AUROC can be given.
TOO_FEW_POSITIVES = "impossible: too few positives"  # fewer than the false ones alone
TOO_FEW_NEGATIVES = "impossible: too few negatives"
ABOVE_1, BELOW_0 = "impossible: above 1", "impossible: below 0"
TELL_NOTHING = "such labels tell nothing"


@dataclasses.dataclass(frozen=True)
class Noise:
    """How the labels of a class err.

    Attributes:
        ppv: share of the images that are labelled positive which are so.
        npv: share of the images that are labelled negative which are so.
    """

    ppv: float
    npv: float

    def seen(self, true: float) -> float:
        """Returns the AUROC that is seen, of a true one."""
        return 0.5 + (true - 0.5) * (self.ppv + self.npv - 1)

    def true(self, seen: float) -> float | None:
        """Returns the true AUROC of a seen one, of any size; None where the labels tell nothing."""
        told = self.ppv + self.npv - 1
        return 0.5 + (seen - 0.5) / told if told >= _LEAST else None


def of_true_prevalence(sensitivity: float, specificity: float, prevalence: float) -> Noise:
    """Returns how labels err where `prevalence` of the images are truly positive; 0 < it < 1."""
    labelled = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
    return Noise(sensitivity * prevalence / labelled, specificity * (1 - prevalence) / (1 - labelled))


def of_specificity(sensitivity: float, specificity: float, labelled: float) -> Noise | str:
    """Returns how labels err where `labelled` of the images are labelled positive, or why that cannot be."""
    if sensitivity + specificity <= 1:
        return TELL_NOTHING
    if labelled <= 1 - specificity:
        return TOO_FEW_POSITIVES
    if labelled >= sensitivity:
        return TOO_FEW_NEGATIVES
    prevalence = (labelled - (1 - specificity)) / (sensitivity + specificity - 1)
    return of_true_prevalence(sensitivity, specificity, prevalence)


def of_ppv(sensitivity: float, ppv: float, labelled: float) -> Noise | str:
    """The same for a PPV that was measured in place of a specificity."""
    missed = labelled * ppv * (1 - sensitivity) / sensitivity
    return Noise(ppv, 1 - missed / (1 - labelled)) if missed < 1 - labelled else TOO_FEW_NEGATIVES


def label_noise(
    areas: Mapping[str, Interval], classes: Mapping[str, ClassMeasures], nih_multilabel: bool
) -> LabelNoise:
    """Returns what the AUROC of each class that has one would mean.

    Args:
        areas: seen, by class.
        classes: with prevalences.
        nih_multilabel: whether labels are NIH's, each finding against all other images, so that what experts
            have found of them holds.
    """
    experts = {name: told for group, told in EXPERTS.items() for name in group} if nih_multilabel else {}
    found = {}
    for name, area in areas.items():
        if area.value is None:
            continue
        labelled = classes[name].positives / classes[name].images
        each = [
            _meaning(area.value, NoisyLabels(sensitivity, specificity, None), labelled)
            for sensitivity, specificity in ASSUMED
        ]
        if name in experts:
            sensitivity, ppv = experts[name]
            each.append(_meaning(area.value, NoisyLabels(sensitivity, None, ppv), labelled))
        found[name] = tuple(each)
    return LabelNoise(found)


def _meaning(seen: float, labels: NoisyLabels, labelled: float) -> TrueAuroc:
    if labels.specificity is not None:
        noise = of_specificity(labels.sensitivity, labels.specificity, labelled)
    elif labels.ppv is not None:
        noise = of_ppv(labels.sensitivity, labels.ppv, labelled)
    else:
        noise = TELL_NOTHING
    if isinstance(noise, str):
        return TrueAuroc(labels, None, noise)
    true = noise.true(seen)
    if true is None:
        return TrueAuroc(labels, None, TELL_NOTHING)
    if not 0 <= true <= 1:
        return TrueAuroc(labels, None, ABOVE_1 if true > 1 else BELOW_0)
    return TrueAuroc(labels, rounded(true), None)
