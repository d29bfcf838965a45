"""Using what a run made: measure the best checkpoint on labelled images, or ask it what images show."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune.__about__ import __version__
from edgetune.data.folder import IMAGE_EXTENSIONS, is_utf8, natural_key, scan_for_evaluation
from edgetune.errors import InputError
from edgetune.model.checkpoint import Checkpoint, find_checkpoint
from edgetune.schema import Answer, Evaluation, Prediction, Predictions, now

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BATCH = 32
_PART = 8  # images that pass the model at a time, where no plan says
_MOST_CLASSES_AS_TABLE = 16
_MOST_LINES = 10


def evaluate(run: Path | str, data: Path | str, *, batch_size: int = _BATCH, threads: int | None = None) -> Evaluation:
    """Measure the best checkpoint of a run.

    Args:
        run: a run folder, or a weights file that edgetune wrote.
        data: an image folder; its `test/` is used where it has one, else `val/`, else all of it (for the very folder
            the run was trained on, only the images it had held out).
        batch_size: images at a time; no figure depends on it.
        threads: of the arithmetic; None leaves them alone.

    Raises:
        InputError: the run has no checkpoint, or the data no images, or a class that the run does not know.
    """
    checkpoint = find_checkpoint(Path(run))
    spec, classes, plan = checkpoint.spec, checkpoint.classes, checkpoint.plan
    trained_here = plan is not None and Path(plan.data.path).resolve() == Path(data).resolve()
    samples, part, warnings = scan_for_evaluation(data, classes, plan.seed if plan and trained_here else None)
    ask = _asking(checkpoint, threads)

    import numpy as np

    from edgetune.data.loader import Loader
    from edgetune.train.engine import Evaluation as Answers
    from edgetune.train.mistakes import class_accuracies, find_mistakes

    loader = Loader(
        samples,
        batch_size=batch_size,
        image_size=spec.image_size,
        mean=spec.mean,
        std=spec.std,
        augment=False,
        shuffle=False,
        seed=0,
    )
    loss, answers = 0.0, Answers(0.0, [], [], [], [])
    started = time.perf_counter()
    for batch in loader.epoch(0):
        log_probabilities = ask(batch.images)
        confidence, answer = np.exp(log_probabilities.max(1)), log_probabilities.argmax(1)
        loss -= float(log_probabilities[np.arange(len(batch.labels)), batch.labels].sum())
        answers.indices.extend(batch.indices.tolist() if batch.indices is not None else [])
        answers.labels.extend(batch.labels.tolist())
        answers.predictions.extend(answer.tolist())
        answers.confidences.extend(confidence.tolist())
    seconds = time.perf_counter() - started
    mistakes = find_mistakes(answers, samples, classes)
    return Evaluation(
        checkpoint=str(checkpoint.path),
        model=spec.name,
        data=str(data),
        part=part,
        images=len(answers.labels),
        skipped=loader.skipped,
        accuracy=answers.accuracy,
        loss=loss / len(answers.labels),
        classes=class_accuracies(answers, classes),
        confusion=mistakes.confusion,
        most_confident=mistakes.most_confident,
        seconds=seconds,
        warnings=warnings + loader.warnings,
        edgetune_version=__version__,
        created=now(),
    )


def predict(
    run: Path | str, images: Sequence[Path | str], *, top: int = 5, batch_size: int = _BATCH, threads: int | None = None
) -> Predictions:
    """Ask the best checkpoint of a run what images show.

    Args:
        run: a run folder, or a weights file that edgetune wrote.
        images: image files, and folders of them.
        top: classes per image.
        batch_size: images at a time.
        threads: of the arithmetic; None leaves them alone.

    Raises:
        InputError: the run has no checkpoint; an image is missing; or one named by itself can't be read (one from a
            folder is left out, with a warning).
    """
    checkpoint = find_checkpoint(Path(run))
    spec, classes = checkpoint.spec, checkpoint.classes
    warnings: list[str] = []
    paths = _expand([Path(image) for image in images], warnings)
    ask = _asking(checkpoint, threads)

    import numpy as np

    from edgetune.data.decode import UnreadableImageError
    from edgetune.data.preprocess import normalise, read

    predictions: list[Prediction] = []
    for start in range(0, len(paths), batch_size):
        pixels, read_paths = [], []
        for path, named in paths[start : start + batch_size]:
            try:
                pixels.append(read(str(path), spec.image_size))
                read_paths.append(path)
            except UnreadableImageError as error:
                if named:
                    raise InputError(f"{path} can't be read as an image ({error}); leave it out.") from None
                warnings.append(f"{path} was skipped: {error}.")
        if not pixels:
            continue
        for path, row in zip(read_paths, np.exp(ask(normalise(np.stack(pixels), spec.mean, spec.std))), strict=True):
            likeliest = np.argsort(-row, kind="stable")[: min(top, len(classes))]
            answers = [Answer(name=classes[label], probability=float(row[label])) for label in likeliest]
            predictions.append(Prediction(path=str(path), answers=answers))
    if not predictions:
        raise InputError(f"{images[0] if images else 'IMAGE'} holds no image that can be read; name image files.")
    return Predictions(
        checkpoint=str(checkpoint.path),
        model=spec.name,
        images=predictions,
        warnings=warnings,
        edgetune_version=__version__,
        created=now(),
    )


def print_evaluation(evaluation: Evaluation) -> None:
    """A page on how a model does: accuracy, per class, what is taken for what, and where it is surely wrong."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    names = list(evaluation.classes)
    console.print(
        f"[bold]{evaluation.accuracy:.1%}[/] of {evaluation.images} images right"
        f" ({escape(evaluation.data)}, {escape(evaluation.part)}; loss {evaluation.loss:.3f},"
        f" {evaluation.images / max(evaluation.seconds, 1e-9):.0f} images/s)"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    table.add_column("right", justify="right")
    cells = {(cell.true, cell.predicted): cell.images for cell in evaluation.confusion}
    as_matrix = len(names) <= _MOST_CLASSES_AS_TABLE
    for number in range(len(names) if as_matrix else 0):
        table.add_column(str(number), justify="right")
    for number, (name, accuracy) in enumerate(evaluation.classes.items()):
        row = [str(cells.get((number, other), "·")) for other in range(len(names))] if as_matrix else []
        table.add_row(f"{number:>2} {escape(name)}", "—" if accuracy is None else f"{accuracy:.0%}", *row)
    console.print(table)
    if as_matrix:
        console.print("rows: what images show; columns: what they were taken for")
    else:
        wrong = sorted((cell for cell in evaluation.confusion if cell.true != cell.predicted), key=lambda c: -c.images)
        for cell in wrong[:_MOST_LINES]:
            console.print(f"{cell.images:>4} x {escape(names[cell.true])} taken for {escape(names[cell.predicted])}")
    for image in evaluation.most_confident:
        console.print(
            f"{image.confidence:>4.0%} sure of {escape(names[image.predicted])}, is {escape(names[image.true])}:"
            f" {escape(image.path)}",
            soft_wrap=True,
        )
    for warning in evaluation.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def print_predictions(predictions: Predictions) -> None:
    """One line an image: the path, then classes with their probabilities, likeliest first."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for image in predictions.images:
        answers = ", ".join(f"{escape(answer.name)} {answer.probability:.1%}" for answer in image.answers)
        console.print(f"{escape(image.path)}: {answers}", soft_wrap=True)
    for warning in predictions.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def _asking(checkpoint: Checkpoint, threads: int | None) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """A function from images (B, 3, S, S) to log-probabilities (B, classes).

    The model lies on the device it was trained on where that is here; without torch, onnxruntime answers.
    """
    from importlib.util import find_spec

    if find_spec("torch") is None and find_spec("onnxruntime") is not None:
        from edgetune.train.onnx.answers import OnnxModel

        return OnnxModel(checkpoint.spec, checkpoint.path, threads or os.cpu_count() or 1).log_probabilities
    model = checkpoint.load()

    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if checkpoint.plan is not None and checkpoint.plan.device == "cuda" and torch.cuda.is_available():
        model = model.to("cuda")

    # no more at a time than training had room for
    part = _PART if checkpoint.plan is None else checkpoint.plan.micro_batch_size

    def ask(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found = [model(some.to(model.pos_embed.device)) for some in torch.from_numpy(images).split(part)]
            answers: NDArray[np.float32] = torch.cat(found).log_softmax(1).cpu().numpy()
            return answers

    return ask


def _expand(images: Sequence[Path], warnings: list[str]) -> list[tuple[Path, bool]]:
    """The files to look at, and whether each was named by itself, not found in a folder; adds to `warnings`."""
    paths: list[tuple[Path, bool]] = []
    for image in images:
        if image.is_dir():
            files = [path for path in image.iterdir() if path.suffix.lower() in IMAGE_EXTENSIONS and path.is_file()]
            named = [path for path in files if is_utf8(str(path))]
            if len(named) < len(files):
                unnamed = len(files) - len(named)
                warnings.append(f"{unnamed} images in folders were skipped: no answer could name what is not UTF-8.")
            paths += [(path, False) for path in sorted(named, key=lambda path: natural_key(path.name))]
        elif not is_utf8(str(image)):
            raise InputError(f"{str(image)!a} is no UTF-8, so no answer could name it; rename it.")
        elif image.exists():
            paths.append((image, True))
        else:
            raise InputError(f"{image} does not exist; check the path of the image.")
    return paths
