"""HTML built from Python values, safe by default: whatever is not already `Html` is escaped on its way in.

Class names, file paths and error texts come from the user's disk and may hold anything. So the only way to get text
onto a page is through `element` and `join`, and the only way to mark text as markup is the type `Html`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_VOID = frozenset({"img", "meta", "br", "hr", "link"})
_LONGEST_TEXT = 5000  # longer than any path; a runaway message must not make the page unreadable


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | int | None


def text(value: object) -> Html:
    """Plain text as markup; very long text is cut, and lone surrogates (odd file names) are shown as `?`."""
    plain = str(value)
    if len(plain) > _LONGEST_TEXT:
        plain = plain[:_LONGEST_TEXT] + " …"
    return Html(escape(plain.encode("utf-8", "replace").decode("utf-8")))


def join(children: Iterable[Child]) -> Html:
    """Children side by side; `None` is left out, plain strings are escaped."""
    return Html("".join(child if isinstance(child, Html) else text(child) for child in children if child is not None))


def element(name: str, *children: Child, **attributes: str | int | bool | None) -> Html:
    """`<name attribute="…">children</name>`; `class_` and `data_chart` stand for `class` and `data-chart`."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{value if isinstance(value, Html) else text(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{written}>" if name in _VOID else f"<{name}{written}>{join(children)}</{name}>")


def table(header: Sequence[Child], rows: Iterable[Sequence[Child]], *, numbers_from: int = 1) -> Html:
    """A table whose first column heads its rows; columns from `numbers_from` on are figures, set to the right.

    It scrolls sideways inside its own box where the screen is narrower.
    """

    def side(column: int) -> str | None:
        return "n" if column >= numbers_from else None

    head = join(element("th", cell, scope="col", class_=side(column)) for column, cell in enumerate(header))
    body = join(
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell, class_=side(column)) for column, cell in enumerate(row[1:], start=1)),
        )
        for row in rows
    )
    return element(
        "div", element("table", element("thead", element("tr", head)), element("tbody", body)), class_="scroll"
    )


def section(title: str, *children: Child, id: str) -> Html:
    """A part of the page under its own heading."""
    return element("section", element("h2", title), *children, id=id)


def note(*children: Child) -> Html:
    """A remark in small print."""
    return element("p", *children, class_="note")


def badge(word: str) -> Html:
    """How a figure came about: `measured`, `modelled`, `unknown`, `so far`."""
    return element("span", word, class_=f"badge {word.replace(' ', '-')}")


def percent(share: float | None, digits: int = 1) -> str:
    """`91.2 %`; an em dash for unknown."""
    return "—" if share is None else f"{100 * share:.{digits}f} %"


def count(number: int | float | None) -> str:
    """`12,500`; an em dash for unknown."""
    return "—" if number is None else f"{number:,.0f}"
