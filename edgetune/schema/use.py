"""Using a trained model: what `evaluate`, `predict` and `export` answer with."""

from __future__ import annotations

from edgetune.schema.base import Record
from edgetune.schema.mistakes import Confusion, WrongImage


class Evaluation(Record, frozen=True, tag_field="schema", tag="edgetune/evaluation/1"):
    """How a run's best checkpoint does on labelled images; answers `edgetune evaluate`."""

    checkpoint: str
    model: str
    data: str
    part: str  # of the data: "test", "val", or how a split was drawn
    images: int
    skipped: int  # images that could not be read
    accuracy: float  # top-1, 0 to 1
    loss: float  # mean cross-entropy
    classes: dict[str, float | None]  # accuracy per class; None for a class without images
    confusion: list[Confusion]
    most_confident: list[WrongImage]
    seconds: float
    warnings: list[str]
    edgetune_version: str
    created: str


class Answer(Record, frozen=True):
    """One class an image may show."""

    name: str
    probability: float


class Prediction(Record, frozen=True):
    """What one image shows: the likeliest classes first."""

    path: str
    answers: list[Answer]


class Predictions(Record, frozen=True, tag_field="schema", tag="edgetune/predictions/1"):
    """What images show; answers `edgetune predict`."""

    checkpoint: str
    model: str
    images: list[Prediction]
    warnings: list[str]
    edgetune_version: str
    created: str


class ExportReport(Record, frozen=True, tag_field="schema", tag="edgetune/export/1"):
    """What `edgetune export` wrote, and how far its answers are from torch's on real images; None: not compared."""

    format: str
    path: str
    size_bytes: int
    edgetune_version: str
    created: str
    images: int | None = None  # compared
    images_from: str | None = None
    max_abs_difference: float | None = None  # between logits
    same_answer: float | None = None  # share of the images that keep their class, 0 to 1
    compared_with: str = "torch"
    how_to_use: str | None = None

    @property
    def sentence(self) -> str:
        """For a terminal."""
        compared = ""
        if self.images:
            compared = (
                f"; on {self.images} images of {self.images_from} its logits differ from {self.compared_with}'s by at"
                f" most {self.max_abs_difference:.2g} and {self.same_answer:.0%} of the answers are the same"
            )
        use = f"; use it with {self.how_to_use}" if self.how_to_use else ""
        return f"written: {self.path} ({self.size_bytes / 1e6:.1f} MB{compared}){use}"


class OrtOptimizer(Record, frozen=True):
    """The update in `optimizer_model.onnx`. Its weight decay pulls at every trained parameter: it knows no groups."""

    kind: str
    weight_decay: float
    learning_rate: float | None  # the plan's highest; set at run time, None where there is no plan


class OrtTraining(Record, frozen=True, tag_field="schema", tag="edgetune/ort-training/1"):
    """What lies in a folder of artifacts for onnxruntime-training, and how they are fed; its `edgetune.json`."""

    model: str
    image_size: int
    classes: list[str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    preprocessing: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    trained: list[str]  # parameters under timm's names and in timm's layout
    frozen: list[str]
    label_smoothing: float
    optimizer: OrtOptimizer
    files: dict[str, str]  # SHA-256 by name
    made_with: dict[str, str]  # package versions
    edgetune_version: str
    created: str
