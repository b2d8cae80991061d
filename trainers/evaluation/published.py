"""Published results on NIH ChestX-ray14, and when they may be set beside one's own.

All are means of the AUROC of the 14 findings. A random split of the images or patients is easier than NIH's
own: the same model has .841 on one and .807 on the other (Guendel et al. 2018).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from cxr_records.findings import FINDINGS


@dataclass(frozen=True)
class Published:
    """A published mean AUROC.

    Attributes:
        name: authors or model.
        year: of publication.
        macro_auroc: mean over the 14 findings.
        split: "official" (NIH's lists, 25,596 test images) or "random".
        source: where it stands.
    """

    name: str
    year: int
    macro_auroc: float
    split: str
    source: str


RESULTS = (
    Published(
        "Wang, ResNet-50",
        2017,
        0.745,
        "official",
        "Wang et al., ChestX-ray8, CVPR 2017, arXiv 1705.02315 (version 5)",
    ),
    Published("Yao", 2018, 0.761, "official", "Yao et al., arXiv 1803.07703"),
    Published(
        "Baltruschat, ResNet-38-large-meta",
        2019,
        0.806,
        "official",
        "Baltruschat et al., Scientific Reports 9:6381 (2019)",
    ),
    Published("Guan and Huang", 2020, 0.816, "official", "Pattern Recognition Letters 130 (2020)"),
    Published(
        "medical_mae, DenseNet-121",
        2023,
        0.822,
        "official",
        "Xiao et al., Delving into Masked Autoencoders, WACV 2023, arXiv 2210.12843",
    ),
    Published(
        "medical_mae, ViT-B",
        2023,
        0.830,
        "official",
        "Xiao et al., Delving into Masked Autoencoders, WACV 2023, arXiv 2210.12843",
    ),
    Published(
        "CheXNet, DenseNet-121", 2017, 0.841, "random", "Rajpurkar et al., arXiv 1711.05225 (random split)"
    ),
    Published(
        "Guendel, DNetLoc",
        2018,
        0.841,
        "random",
        "Guendel et al., arXiv 1803.04565 (random by patient; the same model has .807 officially)",
    ),
    Published("zoogzog/chexnet", 2018, 0.851, "random", "github.com/zoogzog/chexnet (CheXNet's split)"),
    Published("SynthEnsemble", 2023, 0.854, "random", "Ashraf et al., arXiv 2311.07750 (own split)"),
)

# Of CheXNet and the many repositories after it, and of MedMNIST's ChestMNIST: a random split by patient.
RANDOM_SPLIT_SIZES = (78_468, 11_219, 22_433)


@dataclass(frozen=True)
class Comparison:
    """Published results, and whether they may be set beside one's own.

    Attributes:
        comparable: whether they may.
        reasons: why not, a sentence each.
        published: the results.
    """

    comparable: bool
    reasons: tuple[str, ...]
    published: tuple[Published, ...]


def comparison(
    official: bool,
    task: str,
    classes: Iterable[str],
    *,
    scored: str = "other images",
    leaks: bool = False,
    drawn: bool = False,
) -> Comparison:
    """Returns what a report says of published results.

    Args:
        official: whether exactly the official test images were scored.
        task: all published results are of multilabel.
        classes: that one's own mean is over; theirs is over the 14 findings.
        scored: which images were, as `claims` says it.
        leaks: whether the model has trained on any of them, or of their patients.
        drawn: whether any of them are drawings.
    """
    reasons, classes = list[str](), set(classes)
    lacking = [name for name in FINDINGS if name not in classes]
    if not official:
        reasons.append(f"It is measured on {scored}.")
    if drawn:
        reasons.append("Its images are drawings, and theirs are X-rays of patients.")
    if leaks:
        reasons.append("Its model was trained on some of the test images, or of their patients.")
    if task != "multilabel":
        reasons.append(f"Its task is {task}, and theirs is multilabel.")
    elif lacking:
        told = ", ".join(lacking[:3]) + (f" and {len(lacking) - 3} more" if len(lacking) > 3 else "")
        reasons.append(
            f"Its mean is over {len(FINDINGS) - len(lacking)} of the 14 findings, without {told}; theirs is "
            "over all."
        )
    elif extra := sorted(classes - set(FINDINGS)):
        reasons.append(f"Its mean is also over {', '.join(extra)}; theirs is over the 14 findings.")
    return Comparison(not reasons, tuple(reasons), RESULTS)
