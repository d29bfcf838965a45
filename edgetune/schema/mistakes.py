"""What a model gets wrong on labelled images, in figures and pictures."""

from __future__ import annotations

from edgetune.schema.base import Record


class Confusion(Record, frozen=True):
    """How many validation images of class `true` were taken for class `predicted`; indices into `Mistakes.classes`."""

    true: int
    predicted: int
    images: int


class WrongImage(Record, frozen=True):
    """One validation image the model got wrong, and how sure of itself it was."""

    path: str  # as found under the data folder
    true: int
    predicted: int
    confidence: float  # softmax probability of the predicted class
    thumbnail_jpeg: bytes | None = None  # base64 in JSON; 128 px on the longer side is enough


class Mistakes(Record, frozen=True, tag_field="schema", tag="edgetune/mistakes/1"):
    """What the best checkpoint gets wrong on the validation images: `mistakes.json` of a run folder, for its report."""

    images: int
    classes: list[str]
    confusion: list[Confusion]  # cells that are not zero, right answers (true == predicted) included
    most_confident: list[WrongImage]  # surest first, ten at most
    created: str
