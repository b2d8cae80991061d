"""From scores to measures: per class and macro, with intervals, for runs and for any table of predictions."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from hashlib import sha256

import numpy as np

from cxr_records import storage
from cxr_records.dataset import Dataset, open_dataset
from cxr_records.drawings import NONE, drawn_share
from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS
from cxr_records.metadata import read_metadata
from cxr_records.progress import say
from cxr_records.quiet import load_tensorflow
from cxr_records.splits import TEST, VALIDATION, read_list
from cxr_records.tasks import Task, as_task
from cxr_records.trainers import digests, runs, seeds
from cxr_records.trainers.evaluation import baselines, calibration, claims, ensembles, metrics, published
from cxr_records.trainers.evaluation.bootstrap import DIGITS, DRAWS, check_draws, intervals
from cxr_records.trainers.evaluation.comparisons import compare
from cxr_records.trainers.evaluation.curves import curves_of
from cxr_records.trainers.evaluation.decisions import decisions
from cxr_records.trainers.evaluation.given_labels import match_labels, read_labels, relabel
from cxr_records.trainers.evaluation.label_noise import label_noise
from cxr_records.trainers.evaluation.mistakes import mistakes
from cxr_records.trainers.evaluation.model_card import card
from cxr_records.trainers.evaluation.operating_points import FEW_PATIENTS, opened, operating_points
from cxr_records.trainers.evaluation.predictions import Predictions, read_run_predictions
from cxr_records.trainers.evaluation.results import (
    CardItem,
    ClassMeasures,
    Difference,
    Evaluation,
    Identity,
    ImageTable,
    Interval,
    Measures,
    Multiclass,
    OperatingPoint,
    PrecisionInterval,
    SplitClaim,
)
from cxr_records.trainers.evaluation.subgroups import groups, subgroups
from cxr_records.trainers.evaluation.tables import listed_images, match, read_score_table
from cxr_records.urls import name_of

_FEW = 0.1  # of all scores: more are logits, percents and the like


def evaluate(
    scored: Predictions,
    validation: Predictions | None = None,
    run: runs.Run | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    training: baselines.Training | None = None,
) -> Measures:
    """Measures scores against labels.

    Args:
        scored: what is measured.
        validation: of the same model, for choosing operating points; None where there is none, and then they
            are chosen on `scored` itself, which is said.
        run: the one that scored, for calibration; None for other tables.
        draws: of the bootstrap; 0 for none.
        seed: of the draws.
        training: what baselines are fitted on; None for `scored` itself, cross-fitted by patient.

    Raises:
        UsageError: fewer than 0 draws.
    """
    names, count = scored.names, len(scored.names)
    rankings = [metrics.Ranking(y, s) for y, s in zip(scored.labels.T, scored.scores.T, strict=True)]
    beside = baselines.Beside(scored, training)

    def measure(weights: np.ndarray) -> np.ndarray:
        """AUROC, average precision, sensitivity at 90% and 95% specificity, by class; what stands beside."""
        columns, weights = [], weights.astype(np.float64)  # once for all classes
        for ranking in rankings:
            counts = ranking.counts(weights)
            at = [counts.sensitivity(0.90), counts.sensitivity(0.95)]
            columns.append([counts.auroc(), counts.average_precision(), *at])
        each = np.array(columns).transpose(2, 1, 0)  # [draws, 4, k]
        each[:, 1][np.isnan(each[:, 0])] = np.nan  # both means are over the same classes
        return np.concatenate([each.reshape(len(each), -1), beside.columns(weights, each[:, 0])], axis=1)

    means = [range(count), range(count, 2 * count), *beside.means(4 * count)]
    found = intervals(measure, scored.patient_ids, draws, seed, means)
    each, (macro_auroc, macro_auprc, *of_beside) = found[: -len(means)], found[-len(means) :]
    auroc, auprc, at_90, at_95 = (each[place * count : (place + 1) * count] for place in range(4))
    alone, within_view = beside.results(auroc, each[4 * count :], of_beside)
    rows = [rows for _, _, rows in groups(scored)]
    points, of_groups = operating_points(scored, validation, rows, draws, seed)
    classes = {
        name: _class_measures(scored, place, at_90[place], at_95[place], points[place])
        for place, name in enumerate(names)
    }
    lacks = {*scored.lacking, *(name for name, each in zip(names, auroc, strict=True) if each.value is None)}
    measured = dict(zip(names, auroc, strict=True))
    calibrated, curves = None, None
    if scored.are_probabilities:
        calibrated, probabilities = calibration.calibrate(scored, validation, run)
        curves = decisions(scored, probabilities, calibrated, draws, seed)
    return Measures(
        macro_auroc=macro_auroc,
        macro_auprc=macro_auprc,
        macro_lacks=tuple(
            name for name in dict.fromkeys((*FINDINGS, *names, *scored.lacking)) if name in lacks
        ),
        auroc=measured,
        auprc={
            name: PrecisionInterval(**vars(interval), prevalence=classes[name].prevalence)
            for name, interval in zip(names, auprc, strict=True)
        },
        classes=classes,
        multiclass=_multiclass(scored, run, draws, seed) if scored.kind == "multiclass" else None,
        calibration=calibrated,
        decisions=curves,
        baselines=alone,
        within_view=within_view,
        label_noise=label_noise(measured, classes, scored.kind == "multilabel" and not scored.labels_from),
        subgroups=subgroups(scored, of_groups, draws, seed),
        mistakes=tuple(mistakes(scored, validation)),
        curves={name: curves_of(ranking) for name, ranking in zip(names, rankings, strict=True)},
        warnings=(*_warnings(scored, classes, run), *baselines.warnings_of(alone, macro_auroc)),
    )


def _class_measures(
    scored: Predictions, place: int, at_90: Interval, at_95: Interval, point: OperatingPoint | None
) -> ClassMeasures:
    labels = scored.labels[:, place]
    images, positives = int((labels >= 0).sum()), int((labels == 1).sum())
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
        sensitivity_at_90_specificity=opened(at_90, patients),
        sensitivity_at_95_specificity=opened(at_95, patients),
        operating_point=point,
        warnings=tuple(warnings),
    )


def _warnings(scored: Predictions, classes: dict[str, ClassMeasures], run: runs.Run | None) -> Iterator[str]:
    """What is to be said of the scores, the classes, the loss."""
    yield from scored.warnings
    if scored.num_patients < FEW_PATIENTS:
        patients = "1 patient" if scored.num_patients == 1 else f"{scored.num_patients} patients"
        yield f"{patients}, fewer than {FEW_PATIENTS}: no comparison of these scores with others is decided"
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


def _multiclass(scored: Predictions, run: runs.Run | None, draws: int, seed: int) -> Multiclass:
    """Accuracy of the largest score, and of the largest after scores were divided by their means.

    The division takes the classes' frequencies, as the model sees them, out of the choice; where training has
    done so already there is none.
    """
    truth = scored.labels.argmax(axis=1)
    balanced = calibration.balanced_by(run) if run else None
    chosen = [scored.scores.argmax(axis=1)]
    if balanced is None:
        chosen.append((scored.scores / np.maximum(scored.mean_scores, 1e-12)).argmax(axis=1))
    classes = len(np.unique(truth))

    def measure(weights: np.ndarray) -> np.ndarray:
        recalls = [metrics.recall_per_class(truth, each == truth, weights) for each in chosen]
        return np.concatenate(recalls, axis=1)

    def confusion(chosen: np.ndarray) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(row) for row in metrics.confusion(truth, chosen, len(scored.names)).tolist())

    means = [range(place * classes, (place + 1) * classes) for place in range(len(chosen))]
    accuracies = intervals(measure, scored.patient_ids, draws, seed, means)[-len(chosen) :]
    return Multiclass(
        class_names=scored.names,
        balanced_accuracy=accuracies[0],
        confusion=confusion(chosen[0]),
        prior_corrected_balanced_accuracy=None if balanced else accuracies[1],
        prior_corrected_confusion=None if balanced else confusion(chosen[1]),
        not_prior_corrected=f"{balanced} has made the classes count alike" if balanced else None,
        accuracy=round(float((chosen[0] == truth).mean()), DIGITS),
    )


def evaluate_run(
    path: str,
    split: str = TEST,
    draws: int = DRAWS,
    seed: int = 0,
    dataset: Dataset | None = None,
    labels: str | None = None,
    date: str | None = None,
) -> Evaluation:
    """Evaluates a trained run on a split of its dataset; scores it first where that has not been done.

    Args:
        path: the run directory.
        split: of its dataset.
        draws: of the bootstrap; 0 for none.
        seed: of the draws.
        dataset: the run's, where it is open already.
        labels: a table as `given_labels.read_labels` takes it, whose labels count in place of NIH's.
        date: of the evaluation, for whoever reads it.

    Returns:
        The evaluation; `leaks` are not empty where scored images or patients were trained on.

    Raises:
        UsageError: the folder holds no run, the run is not finished, or the split has no scores; or `labels`
            have nothing to do with them.
    """
    check_draws(draws)
    run = ensembles.open_run(path)
    warnings = ensembles.combine(path) if seeds.is_of_seeds(path) else []
    scored, validation, given = *_scores_of(run, split), None
    if labels:
        scored, given = relabel(scored, read_labels(labels), run.task)
        run = _of_classes(run, scored.names)
        if validation:  # what is chosen and fitted on it is so by the labels that the run was trained with
            validation = dataclasses.replace(
                validation.of_classes(scored.names), split=f"{VALIDATION}, by the labels of the dataset"
            )
    table, training = None, None
    leaks: tuple[str, ...] = ()
    try:
        dataset = runs.dataset_of(run, dataset)
        table = ImageTable(dataset.manifest.table.dialect, dataset.manifest.table.sha256)
        claim = claims.claim_of_run(dataset, split)
        leaks = claims.find_leaks(dataset, scored)
        training = baselines.training_of(dataset, scored.names)
    except (CxrError, OSError) as error:
        dataset = table = None
        claim = SplitClaim(False, f"images of a split that is not known: {error}", list_sha256=None)
        warnings.append(
            f"the run's dataset is not at hand ({error}): leaks were not looked for, "
            "and baselines are fitted on the scored images, cross-fitted by patient"
        )
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
        labels=given,
        drawn=run.drawn,
        date=date,
    )
    if given:
        claim = claims.claim_of_labels(given.file, len(scored.labels))
    measures = evaluate(scored, validation, run, draws, seed, training)
    described = card(identity, claim, scored, run, dataset)
    evaluation = complete(measures, identity, claim, leaks, warnings, described)
    if seeds.is_of_seeds(path):
        return dataclasses.replace(evaluation, seeds=ensembles.over_seeds(path, split, labels))
    return evaluation


def _of_classes(run: runs.Run, names: Sequence[str]) -> runs.Run:
    """The run as one of some of its classes."""
    return dataclasses.replace(run, classes={name: run.classes[name] for name in names})


def evaluate_table(
    predictions: str,
    metadata: str | None,
    task: Task | str = "multilabel",
    test_list: str | None = None,
    trained_on: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    labels: str | None = None,
    date: str | None = None,
) -> Evaluation:
    """Evaluates scores from anywhere against NIH's labels, or others.

    Args:
        predictions: a table as `cxr_records.trainers.evaluation.tables.read_score_table` takes it.
        metadata: NIH's table of images; None with `labels`, for images that are not in it.
        task: multilabel, or one that `cxr_records.trainers.evaluation.tables.match` can derive.
        test_list: list of the images to evaluate; all that were scored otherwise.
        trained_on: dataset that the model was trained on, in which to look for leaks.
        draws: of the bootstrap; 0 for none.
        seed: of the draws.
        labels: a table as `given_labels.read_labels` takes it, whose labels count in place of NIH's.
        date: of the evaluation, for whoever reads it.

    Raises:
        UsageError, CxrError: a file is missing or is not what it should be; see the functions named.
    """
    check_draws(draws)
    task = as_task(task)
    given_table, given = read_labels(labels) if labels else None, None
    nih = read_metadata(metadata) if metadata else None
    images = nih or (given_table.images if given_table else None)
    if images is None:
        raise UsageError("found neither `metadata` nor `labels`; scores need a table of labels")
    table = read_score_table(predictions, images)
    only = listed_images(read_list(test_list, "test_list"), images) if test_list else None
    split = "test list" if only else "all scored images"
    if given_table:
        scored, given = match_labels(table, nih, given_table, task, split, only)
    else:
        scored = match(table, images, task, split, only)
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
        table=ImageTable(nih.dialect, nih.digest) if nih else None,
        kind=scored.kind,
        split=scored.split,
        images=len(scored.labels),
        patients=scored.num_patients,
        draws=draws,
        seed=seed,
        labels=given,
        drawn=drawn_share(images.drawn, len(images)),
        date=date,
    )
    listed = set((scored if task.kind == "multilabel" else table).image_ids.tolist())
    if only is not None:
        listed &= set(only)
    claim = claims.claim_of_table(sorted(listed), only)
    if (count := len(scored.labels)) < len(listed):
        text = f"{claim.text}; {count:,} of them take part in task {task.name}"
        claim = dataclasses.replace(claim, text=text)
    if given:
        claim = claims.claim_of_labels(given.file, len(scored.labels))
    leaks = claims.find_leaks(dataset, scored) if dataset else ()
    asked = card(identity, claim, scored)
    return complete(evaluate(scored, None, None, draws, seed), identity, claim, leaks, images.warnings, asked)


def complete(
    measures: Measures,
    identity: Identity,
    claim: SplitClaim,
    leaks: tuple[str, ...],
    warnings: Sequence[str],
    model_card: tuple[CardItem, ...] = (),
) -> Evaluation:
    """Returns an evaluation of what was measured, with what may be compared with it.

    Args:
        measures: of the scores.
        identity: what was measured.
        claim: which images were scored.
        leaks: what was trained on of them.
        warnings: to be said before those of the measures.
        model_card: of what was measured.
    """
    everything = vars(measures) | {"warnings": (*warnings, *measures.warnings)}
    return Evaluation(
        **everything,
        identity=identity,
        split_claim=claim,
        comparison=published.comparison(
            claim.official,
            identity.task,
            set(measures.auroc) - set(measures.macro_lacks),
            scored=claim.text,
            leaks=bool(leaks),
            drawn=identity.drawn != NONE,
        ),
        leaks=leaks,
        model_card=model_card,
    )


def compare_runs(
    paths: Sequence[str],
    split: str = TEST,
    draws: int = DRAWS,
    seed: int = 0,
    labels: str | None = None,
) -> tuple[Difference, ...]:
    """Returns the differences in AUROC of every two runs, by class and macro, on the images both scored.

    The draws of patients are the same for both runs, so what is hard for both falls out of the difference.
    `labels` are a table as for `evaluate_run`.

    Raises:
        UsageError: runs of different classes, or without a common image.
    """
    check_draws(draws)
    opened = {path: ensembles.open_run(path) for path in paths}
    scored = {path: _scores_of(run, split)[0] for path, run in opened.items()}
    if labels:
        table = read_labels(labels)
        scored = {path: relabel(each, table, opened[path].task)[0] for path, each in scored.items()}
    return compare(scored, list(itertools.combinations(paths, 2)), draws, seed)


def _scores_of(run: runs.Run, split: str) -> tuple[Predictions, Predictions | None]:
    """What a run predicted for a split, and for validation; scores it first where that has not been done."""
    if not storage.exists(run.file(runs.PREDICTIONS_FILE)):
        try:
            _predict(run)
        except (CxrError, OSError) as trouble:
            raise CxrError(
                f"{run.path} holds no scores ({runs.PREDICTIONS_FILE}), and they cannot be made: {trouble}"
            ) from trouble
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
