"""HTML pages that need nothing else: templates filled by Jinja2, in one look (report.css)."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cxr_records.trainers.evaluation.summary import digits, interval, number
from cxr_records.urls import redacted_text

_FOLDER = Path(__file__).parent


def render(template: str, **values: Any) -> bytes:
    """Returns a page. Text is escaped; the same values give the same bytes.

    Args:
        template: a file in templates/.
        values: what it names; a name without a value is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"interval": interval, "number": number, "count": _count, "digits": digits}
    environment.globals["style"] = (_FOLDER / "report.css").read_text()
    return redacted_text(environment.get_template(template).render(**values)).encode()


def _count(value: int) -> str:
    return f"{value:,}"
