"""HTML pages that need nothing else: templates filled by Jinja2, in one look (report.css)."""

import math
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cxr_records.trainers.evaluation.summary import digits, interval, number
from cxr_records.urls import redacted_text

_FOLDER = Path(__file__).parent
_MOST_TICKS = 6
_LONG_CELL = re.compile("<td>(?=[^<]{29,}</td>)")  # of words, not of a number with its interval
_BREAK = "\x1f"  # stands in no text of ours


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
    environment.filters |= {"in_hundred": _in_hundred, "breakable": breakable, "marked": _marked}
    environment.globals |= {"ticks": ticks, "tick_text": tick_text}
    environment.globals["style"] = (_FOLDER / "report.css").read_text()
    page = environment.get_template(template).render(**values)
    return redacted_text(_LONG_CELL.sub('<td class="long">', page)).encode()


def ticks(start: float, end: float) -> list[float]:
    """Returns the round numbers from start to end at which a scale has its ticks: 3 to 6, evenly spaced."""
    least = (end - start) / 6
    power = 10.0 ** math.floor(math.log10(least))
    step = next(
        power * nice for nice in (1, 2, 5, 10, 20) if (end - start) / (power * nice) <= _MOST_TICKS - 1 + 1e-9
    )
    first, last = math.ceil(start / step - 1e-9), math.floor(end / step + 1e-9)
    return [round(place * step, 10) for place in range(first, last + 1)]


def tick_text(value: float, signed: bool = False) -> str:
    """Returns a tick's number as short as it can be, such as "0.5", "1" or "+0.02"."""
    return f"{value:+g}" if signed and value else f"{value:g}"


def _count(value: int) -> str:
    return f"{value:,}"


def _in_hundred(share: float) -> str:
    """A share as so many of 100."""
    return f"{100 * share:.0f}"


def breakable(text: str) -> Markup:
    """Returns text in which long paths, names and digests may be broken behind their parts alone."""

    def broken(long: re.Match[str]) -> str:
        word = re.sub(r"(?<=[/_.=-])(?=\w)", _BREAK, long[0])
        return re.sub(r"([0-9a-f]{16})(?=[0-9a-f]{16})", rf"\1{_BREAK}", word)

    return Markup("<wbr>").join(re.sub(r"\S{20,}", broken, text).split(_BREAK))  # which escapes the parts


def _marked(page: str, mark: str) -> Markup:
    """A part of a page with words added to each heading of a section."""
    words = Markup(" <small>{}</small>").format(mark) if mark else Markup()
    return Markup(str(page).replace("</h2>", f"{words}</h2>"))  # noqa: S704  # of our own templates
