"""From scores to measures: per class and macro, with intervals, for runs and for any table of predictions."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from hashlib import sha256

import numpy as np

from cxr_records import storage
from cxr_records.dataset import Dataset, open_dataset
from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS
from cxr_records.metadata import read_metadata
from cxr_records.progress import say
from cxr_records.quiet import load_tensorflow
from cxr_records.splits import TEST, VALIDATION, read_list
from cxr_records.tasks import Task, as_task
from cxr_records.trainers import digests, runs, seeds
from cxr_records.trainers.evaluation import calibration, claims, ensembles, metrics, published
from cxr_records.trainers.evaluation.bootstrap import DIGITS, DRAWS, check_draws, intervals, rounded
from cxr_records.trainers.evaluation.predictions import Predictions, read_run_predictions
from cxr_records.trainers.evaluation.results import (
    ClassMeasures,
    Curves,
    Difference,
    Evaluation,
    Identity,
    ImageTable,
    Interval,
    Measures,
    Mistake,
    Multiclass,
    OperatingPoint,
    PrecisionInterval,
    PrecisionRecallCurve,
    RocCurve,
    SplitClaim,
)
from cxr_records.trainers.evaluation.subgroups import FEW_PATIENTS, subgroups
from cxr_records.trainers.evaluation.tables import listed_images, match, read_score_table
from cxr_records.urls import name_of

_MISTAKES = 12  # of each kind, shared out among the classes, and at least one for each
_CURVE_POINTS = 200
_FEW = 0.1  # of all scores: more are logits, percents and the like


def evaluate(
    scored: Predictions,
    validation: Predictions | None = None,
    run: runs.Run | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Measures:
    """Measures scores against labels.

    Args:
        scored: what is measured.
        validation: of the same model, for choosing operating points; None where there is none, and then they
            are chosen on `scored` itself, which is said.
        run: the one that scored, for calibration; None for other tables.
        draws: of the bootstrap; 0 for none.
        seed: of the draws.

    Raises:
        UsageError: fewer than 0 draws.
    """
    names, count = scored.names, len(scored.names)
    rankings = [metrics.Ranking(y, s) for y, s in zip(scored.labels.T, scored.scores.T, strict=True)]

    def measure(weights: np.ndarray) -> np.ndarray:
        """float [draws, 4k + 2]: AUROC, average precision, sensitivity at 90% and 95% specificity; macros."""
        columns = []
        for ranking in rankings:
            counts = ranking.counts(weights)
            at = [counts.sensitivity(0.90), counts.sensitivity(0.95)]
            columns.append([counts.auroc(), counts.average_precision(), *at])
        each = np.array(columns).transpose(2, 1, 0)  # [draws, 4, k]
        each[:, 1][np.isnan(each[:, 0])] = np.nan  # both means are over the same classes
        macros = np.array([[metrics.macro(row) for row in draw[:2]] for draw in each])
        return np.concatenate([each.reshape(len(each), -1), macros], axis=1)

    *each, macro_auroc, macro_auprc = intervals(measure, scored.patient_ids, draws, seed)
    auroc, auprc, at_90, at_95 = (each[place * count : (place + 1) * count] for place in range(4))
    classes = {
        name: _class_measures(scored, validation, place, at_90[place], at_95[place])
        for place, name in enumerate(names)
    }
    lacks = {*scored.lacking, *(name for name, each in zip(names, auroc, strict=True) if each.value is None)}
    calibrated = calibration.calibrate(scored, validation, run) if scored.are_probabilities else None
    return Measures(
        macro_auroc=macro_auroc,
        macro_auprc=macro_auprc,
        macro_lacks=tuple(
            name for name in dict.fromkeys((*FINDINGS, *names, *scored.lacking)) if name in lacks
        ),
        auroc=dict(zip(names, auroc, strict=True)),
        auprc={
            name: PrecisionInterval(**vars(interval), prevalence=classes[name].prevalence)
            for name, interval in zip(names, auprc, strict=True)
        },
        classes=classes,
        multiclass=_multiclass(scored, draws, seed) if scored.kind == "multiclass" else None,
        calibration=calibrated,
        subgroups=subgroups(scored),
        mistakes=tuple(_mistakes(scored)),
        curves={name: _curves(ranking) for name, ranking in zip(names, rankings, strict=True)},
        warnings=tuple(_warnings(scored, classes, run)),
    )


def _class_measures(
    scored: Predictions, validation: Predictions | None, place: int, at_90: Interval, at_95: Interval
) -> ClassMeasures:
    labels = scored.labels[:, place]
    images, positives = len(labels), int(labels.sum())
    patients = len(np.unique(scored.patient_ids[labels == 1]))
    warnings = []
    if not 0 < positives < images:
        warnings.append(f"no {'negative' if positives else 'positive'} image, so no measure")
    elif patients < FEW_PATIENTS:
        warnings.append(f"{patients} positive patients, fewer than {FEW_PATIENTS}: do not rank by it")
    return ClassMeasures(
        images=images,
        positives=positives,
        negatives=images - positives,
        positive_patients=patients,
        prevalence=round(positives / images, DIGITS),
        sensitivity_at_90_specificity=at_90,
        sensitivity_at_95_specificity=at_95,
        operating_point=_operating_point(scored, validation, place),
        warnings=tuple(warnings),
    )


def _warnings(scored: Predictions, classes: dict[str, ClassMeasures], run: runs.Run | None) -> Iterator[str]:
    """What is to be said of the scores, the classes, the loss."""
    yield from scored.warnings
    few = []
    for name, each in classes.items():
        if not each.positives or not each.negatives:
            yield f"{name}: {each.warnings[0]}"
        elif each.positive_patients < FEW_PATIENTS:
            few.append(f"{name} ({each.positive_patients})")
    if not scored.are_probabilities:
        yield _no_probabilities(scored)
    elif run and (warning := calibration.warning_of_loss(run)):
        yield warning
    if few:
        yield f"fewer than {FEW_PATIENTS} positive patients, do not rank by: {', '.join(few)}"


def _no_probabilities(scored: Predictions) -> str:
    """What to say of scores outside 0 to 1; a few of them may be marks of missing values, such as -1."""
    outside = (scored.scores < 0) | (scored.scores > 1)
    count, (row, place) = int(outside.sum()), np.argwhere(outside)[0]
    first = f"{scored.scores[row, place]:g}, {scored.names[place]} of {scored.image_ids[row]}"
    few = "; if they mark missing scores, leave these cells empty" if count < _FEW * outside.size else ""
    return (
        f"{count:,} of {outside.size:,} scores are outside 0 to 1 (first: {first}), and so no probabilities: "
        f"ranked, but calibration is not measured{few}"
    )


def _operating_point(
    scored: Predictions, validation: Predictions | None, place: int
) -> OperatingPoint | None:
    """The threshold of the largest Youden index on validation, and what it does on what is scored."""
    chosen_on = validation or scored
    threshold = metrics.youden_threshold(chosen_on.labels[:, place], chosen_on.scores[:, place])
    if threshold is None:
        return None
    says, truth = scored.scores[:, place] >= threshold, scored.labels[:, place] == 1

    def share(of: np.ndarray, among: np.ndarray) -> float | None:
        return rounded((of & among).sum() / among.sum()) if among.any() else None

    return OperatingPoint(
        threshold=round(threshold, DIGITS),
        chosen_on=VALIDATION if validation else f"{scored.split} (no validation scores)",
        sensitivity=share(says, truth),
        specificity=share(~says, ~truth),
        ppv=share(truth, says),
        npv=share(~truth, ~says),
    )


def _multiclass(scored: Predictions, draws: int, seed: int) -> Multiclass:
    """Accuracy of the largest score, and of the largest after scores were divided by their means.

    The division takes the classes' frequencies, as the model sees them, out of the choice.
    """
    truth = scored.labels.argmax(axis=1)
    largest = scored.scores.argmax(axis=1)
    corrected = (scored.scores / np.maximum(scored.mean_scores, 1e-12)).argmax(axis=1)

    def measure(weights: np.ndarray) -> np.ndarray:
        each = [metrics.balanced_accuracy(truth, chosen == truth, weights) for chosen in (largest, corrected)]
        return np.stack(each, axis=1)

    def confusion(chosen: np.ndarray) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(row) for row in metrics.confusion(truth, chosen, len(scored.names)).tolist())

    accuracy, corrected_accuracy = intervals(measure, scored.patient_ids, draws, seed)
    return Multiclass(
        class_names=scored.names,
        balanced_accuracy=accuracy,
        confusion=confusion(largest),
        prior_corrected_balanced_accuracy=corrected_accuracy,
        prior_corrected_confusion=confusion(corrected),
        accuracy=round(float((largest == truth).mean()), DIGITS),
    )


def _mistakes(scored: Predictions) -> Iterator[Mistake]:
    """The negatives that score highest and the positives that score lowest, class by class."""
    each = max(1, _MISTAKES // len(scored.names))
    for place, name in enumerate(scored.names):
        scores = scored.scores[:, place]
        for kind, label, order in (("false positive", 0, -scores), ("false negative", 1, scores)):
            rows = np.flatnonzero(scored.labels[:, place] == label)
            for row in rows[np.argsort(order[rows], kind="stable")][:each]:
                yield Mistake(
                    class_name=name,
                    kind=kind,
                    image_id=str(scored.image_ids[row]),
                    patient_id=int(scored.patient_ids[row]),
                    score=round(float(scores[row]), DIGITS),
                )


def _curves(ranking: metrics.Ranking) -> Curves | None:
    """ROC and precision-recall curves, thinned to some 200 points."""
    counts = ranking.once
    (positives,), (negatives,) = counts.positives, counts.negatives
    if not positives or not negatives:
        return None
    true, false, before = counts.true[:, 0], counts.false[:, 0], counts.false_before[:, 0]
    kept = np.unique(np.linspace(0, len(true) - 1, _CURVE_POINTS).round().astype(int))
    gained_from = np.concatenate([[0], true])[kept]  # recall before each threshold: the corner of the step
    fpr = np.stack([before[kept], false[kept]], axis=1).ravel() / negatives
    tpr = np.stack([gained_from, true[kept]], axis=1).ravel() / positives

    def plain(values: np.ndarray) -> tuple[float, ...]:
        return tuple(np.round(values, 4).tolist())

    return Curves(
        roc=RocCurve(fpr=(0.0, *plain(fpr), 1.0), tpr=(0.0, *plain(tpr), 1.0)),
        pr=PrecisionRecallCurve(
            recall=plain(true[kept] / positives), precision=plain((true / (true + false))[kept])
        ),
    )


def evaluate_run(
    path: str, split: str = TEST, draws: int = DRAWS, seed: int = 0, dataset: Dataset | None = None
) -> Evaluation:
    """Evaluates a trained run on a split of its dataset; scores it first where that has not been done.

    Args:
        path: the run directory.
        split: of its dataset.
        draws: of the bootstrap; 0 for none.
        seed: of the draws.
        dataset: the run's, where it is open already.

    Returns:
        The evaluation; `leaks` are not empty where scored images or patients were trained on.

    Raises:
        UsageError: the folder holds no run, the run is not finished, or the split has no scores.
    """
    check_draws(draws)
    run = ensembles.open_run(path)
    warnings = ensembles.combine(path) if seeds.is_of_seeds(path) else []
    scored, validation = _scores_of(run, split)
    table = None
    leaks: tuple[str, ...] = ()
    try:
        dataset = runs.dataset_of(run, dataset)
        table = ImageTable(dataset.manifest.table.dialect, dataset.manifest.table.sha256)
        claim = claims.claim_of_run(dataset, split)
        leaks = claims.find_leaks(dataset, scored)
    except (CxrError, OSError) as error:
        table = None
        claim = SplitClaim(official=False, text=f"unknown which split: {error}", list_sha256=None)
        warnings.append(f"the run's dataset is not at hand ({error}): leaks were not looked for")
    if storage.exists(run.file(runs.HISTORY_FILE)):
        try:
            digests.check(run.file(runs.HISTORY_FILE), storage.read_bytes(run.file(runs.HISTORY_FILE)))
        except CxrError as error:
            warnings.append(f"{error}: the report shows no training curves")
    identity = Identity(
        name=path.rstrip("/").rsplit("/", 1)[-1],
        run=path,
        dataset=run.dataset,
        dataset_id=run.dataset_id,
        model=run.config.model,
        task=run.task.name,
        predictions_sha256=_digest(run.file(runs.PREDICTIONS_FILE)),
        versions=run.versions,
        table=table,
        kind=scored.kind,
        split=scored.split,
        images=len(scored.labels),
        patients=scored.num_patients,
        draws=draws,
        seed=seed,
    )
    evaluation = complete(evaluate(scored, validation, run, draws, seed), identity, claim, leaks, warnings)
    if seeds.is_of_seeds(path):
        return dataclasses.replace(evaluation, seeds=ensembles.over_seeds(path, split))
    return evaluation


def evaluate_table(
    predictions: str,
    metadata: str,
    task: Task | str = "multilabel",
    test_list: str | None = None,
    trained_on: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Evaluation:
    """Evaluates scores from anywhere against NIH's labels.

    Args:
        predictions: a table as `cxr_records.trainers.evaluation.tables.read_score_table` takes it.
        metadata: NIH's table of images.
        task: multilabel, or one that `cxr_records.trainers.evaluation.tables.match` can derive.
        test_list: list of the images to evaluate; all that were scored otherwise.
        trained_on: dataset that the model was trained on, in which to look for leaks.
        draws: of the bootstrap; 0 for none.
        seed: of the draws.

    Raises:
        UsageError, CxrError: a file is missing or is not what it should be; see the functions named.
    """
    check_draws(draws)
    task = as_task(task)
    images = read_metadata(metadata)
    table = read_score_table(predictions, images)
    only = listed_images(read_list(test_list, "test_list"), images) if test_list else None
    scored = match(table, images, task, "test list" if only else "all scored images", only)
    dataset = open_dataset(trained_on) if trained_on else None
    identity = Identity(
        name=name_of(predictions).rsplit("/", 1)[-1],
        run=None,
        dataset=trained_on,
        dataset_id=dataset.id if dataset else None,
        model=None,
        task=task.name,
        predictions_sha256=_digest(predictions),
        versions={},
        table=ImageTable(images.dialect, images.digest),
        kind=scored.kind,
        split=scored.split,
        images=len(scored.labels),
        patients=scored.num_patients,
        draws=draws,
        seed=seed,
    )
    listed = set((scored if task.kind == "multilabel" else table).image_ids.tolist())
    if only is not None:
        listed &= set(only)
    claim = claims.claim_of_table(sorted(listed), only)
    leaks = claims.find_leaks(dataset, scored) if dataset else ()
    return complete(evaluate(scored, None, None, draws, seed), identity, claim, leaks, images.warnings)


def complete(
    measures: Measures,
    identity: Identity,
    claim: SplitClaim,
    leaks: tuple[str, ...],
    warnings: Sequence[str],
) -> Evaluation:
    """Returns an evaluation of what was measured, with what may be compared with it.

    Args:
        measures: of the scores.
        identity: what was measured.
        claim: which images were scored.
        leaks: what was trained on of them.
        warnings: to be said before those of the measures.
    """
    everything = vars(measures) | {"warnings": (*warnings, *measures.warnings)}
    return Evaluation(
        **everything,
        identity=identity,
        split_claim=claim,
        comparison=published.comparison(
            claim.official and not leaks, identity.task, set(measures.auroc) - set(measures.macro_lacks)
        ),
        leaks=leaks,
    )


def compare_runs(
    paths: Sequence[str], split: str = TEST, draws: int = DRAWS, seed: int = 0
) -> tuple[Difference, ...]:
    """Returns the differences in AUROC of every two runs, by class and macro, on the images both scored.

    The draws of patients are the same for both runs, so what is hard for both falls out of the difference.

    Raises:
        UsageError: runs of different classes, or without a common image.
    """
    check_draws(draws)
    scored = {path: _scores_of(ensembles.open_run(path), split)[0] for path in paths}
    return tuple(_difference(scored, a, b, draws, seed) for a, b in itertools.combinations(paths, 2))


def _difference(scored: dict[str, Predictions], a: str, b: str, draws: int, seed: int) -> Difference:
    one, other = scored[a], scored[b]
    if one.names != other.names:
        raise UsageError(
            f"{a} and {b} cannot be compared: found classes {', '.join(one.names)} "
            f"and {', '.join(other.names)}"
        )
    common, rows, rows_of_other = np.intersect1d(one.image_ids, other.image_ids, return_indices=True)
    if not len(common):
        raise UsageError(f"{a} and {b} cannot be compared: they have scored no common image")
    labels = one.labels[rows]
    rankings = [
        [metrics.Ranking(y, s) for y, s in zip(labels.T, scores.T, strict=True)]
        for scores in (one.scores[rows], other.scores[rows_of_other])
    ]

    def measure(weights: np.ndarray) -> np.ndarray:
        areas = [np.array([ranking.counts(weights).auroc() for ranking in each]) for each in rankings]
        change = (areas[1] - areas[0]).T  # [draws, k]
        macros = [[metrics.macro(draw)] for draw in change]
        return np.concatenate([change, macros], axis=1)

    *each, macro = intervals(measure, one.patient_ids[rows], draws, seed)
    return Difference(
        a=a, b=b, images=len(common), macro_auroc=macro, auroc=dict(zip(one.names, each, strict=True))
    )


def _scores_of(run: runs.Run, split: str) -> tuple[Predictions, Predictions | None]:
    """What a run predicted for a split, and for validation; scores it first where that has not been done."""
    if not storage.exists(run.file(runs.PREDICTIONS_FILE)):
        _predict(run)
    try:
        scored = read_run_predictions(run, split)
    except digests.DamagedFileError as error:
        try:
            _predict(run)
        except (CxrError, OSError) as trouble:
            raise CxrError(f"{error}, and it cannot be made again: {trouble}") from trouble
        scored, said = read_run_predictions(run, split), f"{error}; it was made again"
        say(f"warning: {said}")
        scored = dataclasses.replace(scored, warnings=(said, *scored.warnings))
    if split == VALIDATION:
        return scored, None
    try:
        return scored, read_run_predictions(run, VALIDATION)
    except UsageError:  # the dataset has no validation split
        return scored, None


def _predict(run: runs.Run) -> None:
    load_tensorflow()
    from cxr_records.trainers.predict import predict_run

    predict_run(run.path)


def _digest(path: str) -> str:
    return sha256(storage.read_bytes(path)).hexdigest()
