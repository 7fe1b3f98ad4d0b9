"""How a law is written: a name, and after a colon its numbers or the name of a file, such as ``zipf:1.05``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Form(NamedTuple):
    """One known law: how it is written, what makes it, and the least and most numbers after the colon.

    With ``text`` what follows the colon is no numbers but handed to ``make`` as it stands.
    """

    usage: str
    make: Callable[..., Any]
    least: int = 0
    most: int = 0
    text: bool = False


def parse_law(kind: str, known: Mapping[str, Form], spec: str) -> Any:
    """Return what the form that ``spec`` names makes of it.

    Raises ValueError, with the known laws or with how this one is written, for a text that is none of them or has
    impossible numbers.
    """
    name, _, rest = spec.partition(":")
    form = known.get(name)
    listing = ", ".join(f.usage for f in known.values())
    if form is None:
        raise ValueError(f"unknown {kind} law {spec!r}; known: {listing}")
    values: list[Any] = [rest] if form.text else _numbers(rest)
    fits = (
        bool(rest)
        if form.text
        else form.least <= len(values) <= form.most and all(map(math.isfinite, values))
    )
    if not fits:
        raise ValueError(f"{kind} law {spec!r} must be written {form.usage}; known: {listing}")
    try:
        return form.make(*values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{kind} law {spec!r}: {error}; it is written {form.usage}") from error


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        return [math.nan]


def require(holds: bool, rule: str) -> None:
    """Raise ValueError with the rule unless it holds."""
    if not holds:
        raise ValueError(rule)
