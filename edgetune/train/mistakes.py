"""What the best checkpoint gets wrong: the confusion matrix and the surest wrong answers, for the report."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence

from edgetune.data.decode import UnreadableImageError, decode
from edgetune.data.folder import Sample
from edgetune.schema import Confusion, Mistakes, WrongImage, now
from edgetune.train.engine import Evaluation

_MOST_SHOWN = 10
_THUMBNAIL_PX = 128


def find_mistakes(evaluation: Evaluation, samples: Sequence[Sample], classes: Sequence[str]) -> Mistakes:
    """The record of an evaluation's mistakes.

    Args:
        evaluation: answers on labelled images.
        samples: the images its indices stand for.
        classes: names by label.
    """
    cells = Counter(zip(evaluation.labels, evaluation.predictions, strict=True))
    wrong = [
        (confidence, samples[index].path, label, prediction)
        for index, label, prediction, confidence in zip(
            evaluation.indices, evaluation.labels, evaluation.predictions, evaluation.confidences, strict=True
        )
        if label != prediction
    ]
    wrong.sort(key=lambda mistake: (-mistake[0], mistake[1]))
    return Mistakes(
        images=len(evaluation.labels),
        classes=list(classes),
        confusion=[
            Confusion(true=label, predicted=prediction, images=count)
            for (label, prediction), count in sorted(cells.items())
        ],
        most_confident=[
            WrongImage(
                path=path,
                true=label,
                predicted=prediction,
                confidence=confidence,
                thumbnail_jpeg=thumbnail(path),
            )
            for confidence, path, label, prediction in wrong[:_MOST_SHOWN]
        ],
        created=now(),
    )


def class_accuracies(evaluation: Evaluation, classes: Sequence[str]) -> dict[str, float | None]:
    """Share of right answers per class; None for a class without images."""
    right: Counter[int] = Counter()
    for label, prediction in zip(evaluation.labels, evaluation.predictions, strict=True):
        right[label] += label == prediction
    total = Counter(evaluation.labels)
    return {name: right[label] / total[label] if total[label] else None for label, name in enumerate(classes)}


def thumbnail(path: str) -> bytes | None:
    """A small JPEG of an image, or None where it can't be read any more."""
    try:
        small = decode(path, _THUMBNAIL_PX)  # as the model was shown it: upright, transparency over white
        small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    except (UnreadableImageError, MemoryError):
        return None
    written = io.BytesIO()
    small.save(written, "JPEG", quality=80)
    return written.getvalue()
