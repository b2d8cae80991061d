"""The command explain; its work, in `explaining`, is loaded when it runs, not for its --help."""

from collections.abc import Sequence

import click

from cxr_records.cli import PATH


@click.command()
@click.argument("run", type=PATH)
@click.argument("images", nargs=-1, type=PATH)
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Where the pictures and numbers go.")
@click.option("--finding", multiple=True, metavar="NAME", help="Explain this one; several times.")
@click.option(
    "--top", default=3, show_default=True, help="Without --finding: of each image, the highest scores."
)
@click.option(
    "--boxes", type=PATH, metavar="TABLE", help="Boxes around findings, such as BBox_List_2017.csv."
)
@click.option("--split", help="With --boxes and no images: which split of the run's dataset; default: test.")
@click.option(
    "--tolerance", default=0.0, show_default=True, help="Pixels of 1024 that a point may be beside a box."
)
@click.option("--pictures", default=24, show_default=True, help="How many to draw of a dataset, by chance.")
@click.option("--draws", default=1000, show_default=True, help="Of the bootstrap; 0 for no intervals.")
@click.option("--seed", default=0, show_default=True, help="Of the draws, and of which pictures are drawn.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def explain(
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
    debug: bool,
) -> None:
    """Draw over images where a run's scores come from, and measure whether that is in the finding's box.

    One PNG per image and finding: the image, and over it what each place adds to the score. With --boxes also
    the pointing game and the share of the map inside the boxes, with 95% intervals over patients, into
    localisation.json and localisation.html; without images, those of the run's dataset that have boxes. A map
    shows where a score comes from. It outlines no disease.

    \b
    Example:
      cxr-records explain runs/first 00000001_000.png --out maps
      cxr-records explain runs/first chest.dcm --finding Effusion --finding Mass --out maps
      cxr-records explain runs/first --boxes BBox_List_2017.csv --out pointing
    """
    from cxr_records.trainers.explaining import explain_images

    explain_images(run, images, out, finding, top, boxes, split, tolerance, pictures, draws, seed, as_json)
