"""What the best checkpoint gets wrong: classes, confusions, and the wrong answers it was surest of, as pictures."""

from __future__ import annotations

import base64

from edgetune.report.markup import Child, Html, count, element, join, note, percent, section, table
from edgetune.report.run import Run
from edgetune.schema import Mistakes, WrongImage

MATRIX_CLASSES = 20  # a larger matrix is not readable; it then shows the classes with the most mistakes
_CLASS_ROWS = 30
_CONFUSIONS = 12
_MOST_IMAGES = 10
_LARGEST_THUMBNAIL_BYTES = 40_000  # ten of them, in base64, stay well inside the page's megabyte


def mistakes(run: Run) -> Html | None:
    """The section, or None where neither mistakes nor accuracies by class are known."""
    by_class = _classes(run)
    found = run.mistakes
    if found is None:
        if by_class is None:
            return None
        return section("What it gets wrong", by_class, id="mistakes")
    valid = [
        cell
        for cell in found.confusion
        if min(cell.true, cell.predicted) >= 0 and max(cell.true, cell.predicted) < len(found.classes)
    ]
    counts = {(cell.true, cell.predicted): cell.images for cell in valid if cell.images > 0}
    wrong = sum(images for (true, predicted), images in counts.items() if true != predicted)
    intro = f"The best checkpoint is wrong on {wrong:,} of {found.images:,} validation images."
    return section(
        "What it gets wrong",
        element("p", intro),
        _matrix(found, counts),
        element("div", element("div", _confusions(found, counts)), element("div", by_class), class_="grid tables"),
        _pictures(run, found),
        id="mistakes",
    )


def _name(found: Mistakes, index: int) -> str:
    return found.classes[index] if 0 <= index < len(found.classes) else f"class {index}"


def _matrix(found: Mistakes, counts: dict[tuple[int, int], int]) -> Html | None:
    if not counts:
        return None
    errors = [0] * len(found.classes)
    totals = [0] * len(found.classes)
    for (true, predicted), images in counts.items():
        totals[true] += images
        if true != predicted:
            errors[true] += images
            errors[predicted] += images
    shown = sorted(sorted(range(len(errors)), key=lambda index: -errors[index])[:MATRIX_CLASSES])
    most_wrong = max((images for (true, predicted), images in counts.items() if true != predicted), default=1)
    head = element(
        "tr",
        element("th", element("span", "true ↓"), element("span", "taken for →"), scope="col"),
        *(_slanted(_name(found, index)) for index in shown),
    )
    body = [
        element(
            "tr",
            element("th", _name(found, true), scope="row"),
            *(
                _cell(
                    counts.get((true, predicted), 0),
                    true == predicted,
                    totals[true],
                    most_wrong,
                    f"{_name(found, true)} taken for {_name(found, predicted)}",
                )
                for predicted in shown
            ),
        )
        for true in shown
    ]
    rest = (
        ""
        if len(shown) == len(errors)
        else f" Of {len(errors)} classes, the {len(shown)} with the most mistakes are shown."
    )
    return join(
        [
            element("h3", "Confusion matrix"),
            element(
                "div",
                element("table", element("thead", head), element("tbody", *body), class_="matrix"),
                class_="scroll",
            ),
            note(
                f"Images of each class (row) by the answer they got (column). Right answers are on the diagonal.{rest}"
            ),
        ]
    )


def _slanted(name: str) -> Html:
    return element("th", element("span", name), scope="col", title=name)


def _cell(images: int, right: bool, total: int, most_wrong: int, about: str) -> Html:
    if not images:
        return element("td", class_="right" if right else None)
    strength = images / total if right else images / most_wrong
    return element(
        "td",
        count(images),
        class_="right" if right else "wrong",
        style=f"--a:{strength:.2f}",
        title=f"{about}: {images}",
    )


def _confusions(found: Mistakes, counts: dict[tuple[int, int], int]) -> Html | None:
    wrong = sorted(
        ((images, pair) for pair, images in counts.items() if pair[0] != pair[1]), key=lambda item: (-item[0], item[1])
    )
    if not wrong:
        return None
    totals: dict[int, int] = {}
    for (true, _), images in counts.items():
        totals[true] = totals.get(true, 0) + images
    rows: list[list[Child]] = [
        [_name(found, true), _name(found, predicted), count(images), percent(images / totals[true], 0)]
        for images, (true, predicted) in wrong[:_CONFUSIONS]
    ]
    more = (
        note(f"The {_CONFUSIONS} most frequent of {len(wrong):,} kinds of confusion.")
        if len(wrong) > _CONFUSIONS
        else None
    )
    return join(
        [
            element("h3", "Most frequent confusions"),
            table(["is", "taken for", "images", "of its class"], rows, numbers_from=2),
            more,
        ]
    )


def _pictures(run: Run, found: Mistakes) -> Html | None:
    if not found.most_confident:
        return None
    cards = [_picture(run, found, image) for image in found.most_confident[:_MOST_IMAGES]]
    return join(
        [
            element("h3", "Surest of all, and wrong"),
            element("ol", *cards, class_="pictures"),
            note("The wrong answers the model gave the highest probability to. Some may be mislabelled."),
        ]
    )


def _picture(run: Run, found: Mistakes, image: WrongImage) -> Html:
    path = image.path.removeprefix(run.plan.data.path.rstrip("/") + "/")
    jpeg = image.thumbnail_jpeg
    if jpeg is not None and jpeg[:3] == b"\xff\xd8\xff" and len(jpeg) <= _LARGEST_THUMBNAIL_BYTES:
        shown = element("img", src=Html(f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"), alt=path)
    else:
        shown = element("div", "no thumbnail", class_="blank")
    return element(
        "li",
        shown,
        element("b", _name(found, image.predicted)),
        element("span", f"{percent(image.confidence)} sure"),
        element("span", f"is {_name(found, image.true)}"),
        element("span", path, class_="path"),
    )


def _classes(run: Run) -> Html | None:
    if run.result is None or not run.result.accuracy.classes:
        return None
    known = sorted(run.result.accuracy.classes.items(), key=lambda item: (item[1] is None, item[1] or 0.0, item[0]))
    rows = [[name, percent(accuracy), _meter(accuracy)] for name, accuracy in known[:_CLASS_ROWS]]
    rest = note(f"The {_CLASS_ROWS} weakest of {len(known):,} classes.") if len(known) > _CLASS_ROWS else None
    return join([element("h3", "Accuracy by class, weakest first"), table(["class", "accuracy", ""], rows), rest])


def _meter(accuracy: float | None) -> Html | None:
    if accuracy is None:
        return None
    return element("div", element("i", style=f"width:{100 * min(max(accuracy, 0), 1):.1f}%"), class_="meter wide")
