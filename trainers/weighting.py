"""What a loss weighs, and what that does to the odds that a model learns.

In numpy alone: the losses are made from these numbers, and an evaluation, which needs no Keras, undoes them.
"""

from collections.abc import Mapping

import numpy as np

from cxr_records.sampling import class_weights


def bce_weights(class_records: np.ndarray, num_records: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns what a positive and what a negative of each class counts in `weighted_bce`: float64 [k] each.

    Wang et al. ("ChestX-ray8", CVPR 2017, section 4.1) weight positives by (|P| + |N|) / |P| and negatives
    by (|P| + |N|) / |N|. There |P| and |N| are counted over all classes of a batch; here per class over the
    training records, as many have done since, and halved, so that weights are 1 where a class holds half.

    Args:
        class_records: [k], training records that hold each class, copies included.
        num_records: training records, copies included.
    """
    positives = np.clip(class_records, 1, max(1, num_records - 1))  # weights of empty classes stay finite
    return num_records / (2 * positives), num_records / (2 * (num_records - positives))


def ce_weights(class_records: np.ndarray, num_records: int) -> np.ndarray:
    """Returns what an image of each class counts in `weighted_ce`: float64 [k], inverse frequencies.

    The mean weight over the training records is 1; a class without records has weight 0.

    Args:
        class_records: [k], training records of each class, copies included.
        num_records: training records, copies included.
    """
    return np.array(class_weights(np.asarray(class_records).tolist(), num_records))


def logit_adjustment(class_records: np.ndarray, num_records: int, tau: float = 1.0) -> np.ndarray:
    """Returns what `logit_adjusted` adds to each logit in training: float64 [k], tau times the log share.

    A class without records is counted as half a record.

    Args:
        class_records: [k], training records of each class, copies included.
        num_records: training records, copies included.
        tau: how much of the shares is taken out.
    """
    adjustment: np.ndarray = tau * np.log(np.maximum(class_records, 0.5) / num_records)
    return adjustment


def shift_of_loss(
    loss: str, options: Mapping[str, float], class_records: np.ndarray, num_records: int
) -> np.ndarray | None:
    """Returns the log of what a loss multiplies each class's odds by: float64 [k].

    Of a loss over exclusive classes it is what it multiplies each class's probability by, before these are
    made to sum to 1. None for a loss that does not multiply by a constant, or of which nothing is known.

    A positive that counts w+ and a negative that counts w-: the expected loss is least where the model's odds
    are w+ p / (w- (1 - p)). The same holds of the classes' weights in a softmax. A model that was trained
    with its logits moved gives, without the move, odds that are divided by its power of e.

    Args:
        loss: its name.
        options: of the loss.
        class_records: [k], what the loss was made with: training records of each class.
        num_records: and all training records.
    """
    if loss in ("bce", "ce"):
        return np.zeros(len(class_records))
    if loss == "weighted_bce":
        positive, negative = bce_weights(class_records, num_records)
        shift: np.ndarray = np.log(positive / negative)
        return shift
    if loss == "weighted_ce":
        weights = ce_weights(class_records, num_records)
        # A class without records has none of the probability, whatever it is multiplied by.
        return np.log(np.where(weights > 0, weights, 1.0))
    if loss == "logit_adjusted":
        return -logit_adjustment(class_records, num_records, **options)
    return None
