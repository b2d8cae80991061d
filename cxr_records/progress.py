"""What a person sees while a job runs: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from cxr_records.urls import redacted_text

SECONDS_BETWEEN_LINES = 15.0


def say(text: str) -> None:
    """Prints one line for people, beside results on stdout and above a bar that may be on the screen.

    No URL in it has credentials.
    """
    if sys.stderr is not None:  # as it is in a process without a terminal or a log
        tqdm.write(redacted_text(text), file=sys.stderr)


def warn(warnings: Iterable[str]) -> list[str]:
    """Prints each warning on a line of its own; returns them."""
    told = list(warnings)
    for warning in told:
        say(f"warning: {warning}")
    return told


class Progress:
    """Counts of one phase, shown as a bar or as lines. Make it with `progress`."""

    def __init__(self, phase: str, unit: str, total: int):
        self._phase, self._unit, self._total = phase, unit, total
        self._started = self._said = time.monotonic()
        self._first: int | None = None
        self._bar = None
        if sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=phase, unit=f" {unit}", file=sys.stderr, dynamic_ncols=True)

    def update(self, done: int, note: str = "") -> None:
        """Shows that `done` of the total are finished, and a note behind it."""
        self._first = done if self._first is None else self._first
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN_LINES and self._first < done < self._total:
            self._said = now
            rate = (done - self._first) / (now - self._started)
            left = _duration((self._total - done) / rate)
            counts = f"{done:,} of {self._total:,} {self._unit}"
            say(f"{self._phase}: {counts}, {rate:,.0f} {self._unit}/s, {left} left{note and f', {note}'}")

    def close(self) -> None:
        """Takes the bar off the screen's last line."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def progress(phase: str, unit: str, total: int) -> Iterator[Progress]:
    """Shows a phase, for example ("decode", "images", 112120)."""
    shown = Progress(phase, unit, total)
    try:
        yield shown
    finally:
        shown.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
