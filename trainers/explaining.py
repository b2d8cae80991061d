"""The work of the command explain: maps over images, and whether they point into boxes."""

import base64
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from cxr_records import progress, storage
from cxr_records.boxes import Box, BoxTable, read_boxes
from cxr_records.drawings import drawn_words
from cxr_records.errors import CxrError, FoundProblems, UsageError
from cxr_records.findings import nearest
from cxr_records.manifest import ManifestError
from cxr_records.names import ImageNames, base_name, patient_in_name, stem
from cxr_records.quiet import load_tensorflow
from cxr_records.seeding import keyed_hash

if TYPE_CHECKING:
    from cxr_records.trainers import runs

_FIRST_SPLIT = "test"
_PAGE_SIDE = 320  # pixels of a picture on the page


@dataclass(frozen=True, eq=False)
class _Images:
    """The images that are explained, by name.

    Attributes:
        pixels: uint8 [size, size], as the model takes them.
        shown: uint8 [height, width], for the pictures.
        patients: by name; those of whom nobody knows are called as their image.
        where: what they are, for messages.
        warnings: to be said.
    """

    pixels: dict[str, np.ndarray]
    shown: dict[str, np.ndarray]
    patients: dict[str, str]
    where: str
    warnings: tuple[str, ...] = ()


def explain_images(
    run: str,
    images: Sequence[str],
    out: str,
    finding: Sequence[str],
    top: int,
    boxes: str | None,
    split: str | None,
    tolerance: float,
    pictures: int,
    draws: int,
    seed: int,
    as_json: bool,
) -> None:
    """Does what the command `explain` says, with its options."""
    _check(images, boxes, split, top, tolerance, pictures)
    table = read_boxes(boxes) if boxes else None
    load_tensorflow()
    from cxr_records.trainers import localisation, predict, runs
    from cxr_records.trainers.devices import deterministic_kernels
    from cxr_records.trainers.evaluation.bootstrap import check_draws

    check_draws(draws)
    trained = runs.open_run(run)
    chosen = _findings(finding, trained.score_names)
    model = predict.load_model(trained)
    problems: dict[str, str] = {}
    if images:
        at_hand, problems = _of_files(images, trained)
    elif table is not None:
        at_hand = _of_dataset(trained, split or _FIRST_SPLIT, table)
    warnings = [*at_hand.warnings]
    boxed: dict[tuple[str, str], list[Box]] = {}
    if table is not None:
        boxed, said = _matched(table, at_hand, chosen, trained.score_names)
        warnings += [*table.warnings, *said]
    thresholds, said = _operating_points(trained)
    warnings += said
    drawn_images = drawn_words(trained.drawn)
    if images and drawn_images:
        drawn_images = f"by a run that was trained {drawn_images}"
    with deterministic_kernels():
        scores = _scores(model, trained, at_hand)
        drawn = _to_draw(scores, trained.score_names, chosen, top, boxed, None if images else pictures, seed)
        files = _files(out, drawn, table is not None)
        storage.make_folder(out)
        pairs = list(dict.fromkeys([*boxed, *drawn]))
        work = _Work(trained.score_names, at_hand, scores, boxed, thresholds, tolerance, drawn_images)
        pointed, figures = work.run(model, pairs, drawn, files)
    progress.warn(warnings)
    for path, problem in problems.items():
        click.echo(f"{path}: {problem}", err=True)
    found: dict[str, Any] = {"run": run, "out": out, "pictures": list(files.values()), "warnings": warnings}
    measures = {}
    if table is not None:
        measures = localisation.measure(pointed, draws, seed)
        about = {
            "run": run,
            "dataset_id": trained.dataset_id,
            "images": at_hand.where,
            "drawn": drawn_images,
            "boxes": table.path,
            "boxes_digest": table.digest,
            "method": work.method,
            "tolerance": tolerance,
            "draws": draws,
            "seed": seed,
            "warnings": warnings,
        }
        content = localisation.to_json(measures, pointed, about)
        _write_measures(out, content, measures, figures, by_chance=not images)
        found |= {key: value for key, value in content.items() if key not in ("maps", "format", "version")}
    if as_json:
        click.echo(json.dumps(found))
    else:
        _tell(found, measures, out)
    if problems:
        raise FoundProblems(f"{len(problems)} of {len(images)} files could not be read")


def _check(
    images: Sequence[str], boxes: str | None, split: str | None, top: int, tolerance: float, pictures: int
) -> None:
    if not images and not boxes:
        raise UsageError("give images, or --boxes TABLE for those of the run's dataset")
    if images and split:
        raise UsageError("--split goes with --boxes and no images: it chooses those of the run's dataset")
    if top < 1:
        raise UsageError(f"found `top={top}`; expected 1 or more")
    if pictures < 0:
        raise UsageError(f"found `pictures={pictures}`; expected 0 or more")
    if not (tolerance >= 0 and math.isfinite(tolerance)):
        raise UsageError(f"found `tolerance={tolerance:g}`; expected 0 or more pixels")


def _findings(names: Sequence[str], scored: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in scored:
            raise UsageError(
                f"found `finding={name}`{nearest(name, scored)}; the run scores {', '.join(scored)}"
            )
    return tuple(dict.fromkeys(names))


def _of_files(paths: Sequence[str], trained: "runs.Run") -> tuple[_Images, dict[str, str]]:
    """Reads files; returns also what is wrong with those that cannot be read."""
    from cxr_records.images import ImageFormat
    from cxr_records.trainers.overlays import SIDE
    from cxr_records.trainers.predict import read_files

    by_stem: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        if (other := by_stem.setdefault(stem(path), path)) != path:
            raise UsageError(f"{other} and {path} are called the same, and so would their pictures be")
    read, problems = read_files(list(by_stem.values()), trained.image_format)
    if not read:
        path, problem = next(iter(problems.items()))
        raise CxrError(f"none of the {len(problems)} files could be read; {path}: {problem}")
    larger, _ = read_files(list(read), ImageFormat(SIDE, "raw", trained.image_format.resample))
    patients, unknown = {}, 0
    for path in read:
        patient = patient_in_name(path)
        unknown += patient is None
        patients[base_name(path)] = base_name(path) if patient is None else str(patient)
    said = (f"the patients of {unknown:,} of {len(read):,} images are unknown: each counts as one",)
    pixels, shown = ({base_name(path): held for path, held in some.items()} for some in (read, larger))
    where = f"the {len(read):,} files given" if len(read) > 1 else f"the file {next(iter(read))}"
    return _Images(pixels, shown, patients, where, said * (unknown > 0 and len(read) > 1)), problems


def _of_dataset(trained: "runs.Run", split: str, table: BoxTable) -> _Images:
    """Reads those images of the run's dataset that have a box."""
    import pyarrow.compute as pc

    from cxr_records.record_table import VERIFY
    from cxr_records.trainers.runs import dataset_of

    try:
        dataset = dataset_of(trained)
    except ManifestError as error:
        raise CxrError(f"the run's dataset: {error}; name the images themselves, beside --boxes") from None
    records = dataset.split(split)
    names = ImageNames(records.image_ids.tolist())
    wanted = {names.find(box.image_id) for box in table.boxes}
    places = [
        place
        for place, (name, copy) in enumerate(zip(records.image_ids, records.copies, strict=True))
        if name in wanted and copy == 0
    ]
    rows = dataset.records.filter(pc.field("split") == split).take(np.flatnonzero(records.takes_part)[places])
    pixels = {}
    for place, values in zip(places, dataset.examples(rows), strict=True):
        name = records.image_ids[place]
        try:
            pixels[name] = dataset.image_format.decode(values["image"][0])
        except ValueError as error:
            raise CxrError(f"{dataset.path}: the image of {name!r}: {error}; {VERIFY}") from None
    patients = {records.image_ids[place]: str(records.patient_ids[place]) for place in places}
    return _Images(pixels, pixels, patients, f"split {split} of {dataset.path}")


def _matched(
    table: BoxTable, at_hand: _Images, chosen: Sequence[str], scored: Sequence[str]
) -> tuple[dict[tuple[str, str], list[Box]], list[str]]:
    """Returns the boxes by image and finding, and what is to be said of those that are left out."""
    names = ImageNames(at_hand.pixels)
    matched: dict[tuple[str, str], list[Box]] = defaultdict(list)
    elsewhere: dict[str, int] = defaultdict(int)
    unscored: dict[str, int] = defaultdict(int)
    for box in table.boxes:
        name = names.find(box.image_id)
        if name is None:
            elsewhere[box.image_id] += 1
        elif box.finding not in scored:
            unscored[box.finding] += 1
        elif not chosen or box.finding in chosen:
            matched[name, box.finding].append(box)
    said = [
        f"{table.path}: {count:,} boxes are of {name}, which the run does not score{nearest(name, scored)}"
        for name, count in sorted(unscored.items())
    ]
    if elsewhere:
        said.append(
            f"{table.path}: {sum(elsewhere.values()):,} of {len(table.boxes):,} boxes are of "
            f"{len(elsewhere):,} images that are not in {at_hand.where}"
        )
    if not matched:
        of = f" of {', '.join(chosen)}" if chosen else ""
        raise CxrError(
            f"{table.path}: found none of its {len(table.boxes):,} boxes{of} that is of an image in "
            f"{at_hand.where} and of a finding that the run scores ({', '.join(scored)})"
        )
    return dict(matched), said


def _operating_points(trained: "runs.Run") -> tuple[dict[str, tuple[float, str]], list[str]]:
    """Returns threshold and what it was chosen on, by class, as the run's evaluation has them."""
    from cxr_records.trainers.evaluation.predictions import evaluation_of

    found, why = evaluation_of(trained)
    if found is None:
        return {}, [f"the pictures show no operating points: {why}; cxr-records evaluate makes it"]
    points = {name: about.get("operating_point") for name, about in found["classes"].items()}
    return {name: (point["threshold"], point["chosen_on"]) for name, point in points.items() if point}, []


def _scores(model: Any, trained: "runs.Run", at_hand: _Images) -> dict[str, np.ndarray]:
    from cxr_records.trainers.evaluation.predictions import check_scores
    from cxr_records.trainers.predict import BATCH_SIZE
    from cxr_records.trainers.runs import MODEL_FILE

    names, stacked = list(at_hand.pixels), np.stack(list(at_hand.pixels.values()))[..., np.newaxis]
    scores = np.asarray(model.predict(stacked, batch_size=BATCH_SIZE, verbose=0), np.float64)
    check_scores(trained.file(MODEL_FILE), names, trained.score_names, scores)
    return dict(zip(names, scores, strict=True))


def _to_draw(
    scores: Mapping[str, np.ndarray],
    names: Sequence[str],
    chosen: Sequence[str],
    top: int,
    boxed: Mapping[tuple[str, str], Sequence[Box]],
    most: int | None,
    seed: int,
) -> list[tuple[str, str]]:
    """Returns images and findings to draw.

    Of files: the findings chosen, or else those that have a box, or else the highest scores. Of a dataset:
    as many of those with a box as `most` says, drawn by chance and in turn from all findings.
    """
    if most is not None:
        ranked: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for pair in sorted(boxed, key=lambda pair: keyed_hash(seed, "explain pictures", "\n".join(pair))):
            ranked[pair[1]].append(pair)
        turns = [(turn, pair[1], pair) for held in ranked.values() for turn, pair in enumerate(held)]
        return sorted(pair for *_, pair in sorted(turns)[:most])
    drawn = []
    for image, row in scores.items():
        with_box = [finding for name, finding in boxed if name == image]
        highest = [names[place] for place in np.argsort(-row, kind="stable")[:top]]
        drawn += [(image, finding) for finding in chosen or with_box or highest]
    return drawn


def _files(out: str, drawn: Sequence[tuple[str, str]], with_page: bool) -> dict[tuple[str, str], str]:
    """Returns the file of each picture; refuses to replace what this command did not write."""
    from cxr_records.trainers import localisation, overlays

    files = {pair: storage.join(out, f"{stem(pair[0])}-{pair[1].replace(' ', '_')}.png") for pair in drawn}
    strangers = [
        path
        for path in files.values()
        if storage.exists(path) and not overlays.is_ours(storage.read_bytes(path))
    ]
    if with_page:
        path, page = (storage.join(out, name) for name in (localisation.JSON_FILE, localisation.PAGE_FILE))
        ours = False
        if storage.exists(path):
            try:
                ours = json.loads(storage.read_bytes(path))["format"] == localisation.FORMAT
            except (ValueError, KeyError, TypeError):
                strangers.append(path)
        if not ours and storage.exists(page):
            strangers.append(page)
        if not ours and storage.exists(path):
            strangers.append(path)
    if strangers:
        raise UsageError(f"{strangers[0]} is there and was not written by this command; name another folder")
    return files


class _Work:
    """Makes the maps, measures them and draws them, a few at a time."""

    def __init__(
        self,
        names: Sequence[str],
        images: _Images,
        scores: Mapping[str, np.ndarray],
        boxed: Mapping[tuple[str, str], Sequence[Box]],
        thresholds: Mapping[str, tuple[float, str]],
        tolerance: float,
        drawn_images: str,
    ):
        self._names, self._images, self._scores = names, images, scores
        self._boxed, self._thresholds, self._tolerance = boxed, thresholds, tolerance
        self._note = f" Measured {drawn_images}." * bool(drawn_images)
        self.method = ""

    def run(
        self,
        model: Any,
        pairs: Sequence[tuple[str, str]],
        drawn: Sequence[tuple[str, str]],
        files: Mapping[tuple[str, str], str],
    ) -> tuple[list[Any], list[dict[str, str]]]:
        """Returns what was measured, in the order of `pairs`, and the pictures for the page."""
        from cxr_records.trainers import explain, localisation

        explainer = explain.Explainer(model)
        self.method = explainer.method
        fixed = localisation.fixed_places(self._boxed, self._images.patients, explain.GRID)
        pointed, figures, to_draw = [], [], set(drawn)
        with progress.progress("explain", "maps", len(pairs)) as shown:
            for start in range(0, len(pairs), explain.BATCH):
                some = pairs[start : start + explain.BATCH]
                pixels = np.stack([self._images.pixels[name] for name, _ in some])[..., np.newaxis]
                heats = explainer.maps(pixels, [self._names.index(finding) for _, finding in some])
                for pair, heat in zip(some, heats, strict=True):
                    found = None
                    if pair in self._boxed:
                        found = self._measured(pair, heat, fixed[pair])
                        pointed.append(found)
                    if pair in to_draw:
                        figures.append(self._draw(pair, heat, found, files[pair]))
                shown.update(start + len(some))
        return pointed, figures

    def _measured(self, pair: tuple[str, str], heat: np.ndarray, fixed: bool | None) -> Any:
        from cxr_records.trainers import localisation

        name, finding = pair
        boxes = self._boxed[pair]
        cover = localisation.covered(boxes, len(heat))
        return localisation.Pointed(
            image_id=name,
            patient=self._images.patients[name],
            finding=finding,
            score=self._score(pair),
            boxes=len(boxes),
            # Where nothing adds to the score, nothing is pointed at.
            hit=float(heat.max()) > 0
            and localisation.is_inside(*localisation.point(heat), boxes, self._tolerance),
            mass_in_box=localisation.mass_in(heat, cover),
            box_share=float(cover.mean()),
            fixed_place=fixed,
        )

    def _score(self, pair: tuple[str, str]) -> float:
        return float(self._scores[pair[0]][self._names.index(pair[1])])

    def _draw(self, pair: tuple[str, str], heat: np.ndarray, found: Any, path: str) -> dict[str, str]:
        """Writes a picture; returns what the page shows of it."""
        from cxr_records.trainers import overlays

        (name, finding), boxes, pixels = pair, self._boxed.get(pair, []), self._images.shown[pair[0]]
        score, title = self._score(pair), f"{finding.replace('_', ' ')}: score {self._score(pair):.3f}"
        if finding in self._thresholds:
            threshold, chosen_on = self._thresholds[finding]
            side = "at or above" if score >= threshold else "below"
            title += f", {side} its operating point {threshold:.3f} (chosen on {chosen_on})"
        told = []
        if found is not None:
            where = "inside" if found.hit else "outside"
            these = "the box" if found.boxes == 1 else f"the {found.boxes} boxes"
            told.append(
                f"The largest value is {where} {these}. Inside: {found.mass_in_box:.1%} of the map on "
                f"{found.box_share:.1%} of the area."
            )
        if float(heat.max()) > 0:
            told.append("Warm: what adds to the score; line: half of the largest value; cross: the largest.")
        else:
            told.append("Nothing in the image adds to this score: no place to show.")
        told[0] += self._note
        drawn = overlays.overlay(pixels, heat, boxes)
        told.append(f"{name}; {self.method}. It shows where a score comes from and outlines no disease.")
        storage.write_bytes(path, overlays.sheet(pixels, drawn, boxes, [title, *told]))
        small = io.BytesIO()
        drawn.resize((_PAGE_SIDE, _PAGE_SIDE)).save(small, "JPEG", quality=85)
        source = f"data:image/jpeg;base64,{base64.b64encode(small.getvalue()).decode()}"
        return {"source": source, "title": title, "image": name, "told": told[0]}


def _write_measures(
    out: str,
    content: Mapping[str, Any],
    measures: Mapping[str, Any],
    figures: Sequence[Mapping[str, str]],
    by_chance: bool,
) -> None:
    from cxr_records.trainers import localisation
    from cxr_records.trainers.evaluation import pages, results
    from cxr_records.trainers.evaluation.operating_points import FEW_PATIENTS

    storage.write_bytes(storage.join(out, localisation.JSON_FILE), results.json_bytes(content))
    page = pages.render(
        "localisation.html",
        title=f"Where {base_name(str(content['run']).rstrip('/'))} looks",
        about=content,
        measures=measures,
        figures=figures,
        by_chance=by_chance,
        few_patients=FEW_PATIENTS,
    )
    storage.write_bytes(storage.join(out, localisation.PAGE_FILE), page)


def _tell(found: Mapping[str, Any], measures: Mapping[str, Any], out: str) -> None:
    from cxr_records.trainers import localisation

    if measures:
        drawn = f"; {found['drawn']}" * bool(found["drawn"])
        click.echo(f"\n{found['method']}; {found['images']}; 95% intervals over patients{drawn}\n")
        click.echo("\n".join(localisation.table_lines(measures)))
        click.echo(
            "points into a box: the map's largest value is in a box of the finding"
            f" (tolerance {found['tolerance']:g} pixels of 1024); by chance: boxes' area; fixed place: what"
            " the place gives that most boxes of other patients share"
        )
        click.echo(f"report: {storage.join(out, localisation.PAGE_FILE)}")
        click.echo(f"all numbers: {storage.join(out, localisation.JSON_FILE)}")
    count = len(found["pictures"])
    click.echo(f"{count:,} picture{'s' * (count != 1)} in {out}")
