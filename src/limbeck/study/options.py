"""What a user can ask of a job, as typed fields. Free of torch, so that help is instant."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from limbeck.errors import OptionError


def parse_size(text: object) -> object:
    """``"64"`` or ``"32x48"`` (height x width) as the pair of sides that a source takes."""
    if not isinstance(text, str):
        return text
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise OptionError(f"a size looks like 64 or 32x48 (height x width), got {text!r}")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


class OpenOptions(BaseModel):
    """How the data are opened and split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Annotated[Path | None, Field(description="folder that holds a named data set's files")] = None
    size: Annotated[str | None, Field(description="resize images: 64 (short side, center crop) or 32x48 (height x width)")] = None
    channels: Annotated[int | None, Field(description="1 (gray) or 3 (RGB); default: as the images are")] = None
    skip_corrupt: Annotated[bool, Field(description="leave out images that cannot be read, and say which")] = False
    image_column: Annotated[str | None, Field(description="column of the images in a Parquet or Hugging Face table")] = None
    label_column: Annotated[str | None, Field(description="column of the labels in a Parquet or Hugging Face table")] = None
    validation: Annotated[float, Field(description="fraction of train kept for choosing")] = 0.1


class EvaluationOptions(BaseModel):
    """How sets are judged, and on what the arithmetic runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Annotated[str, Field(description="how students are trained; see: limbeck ls protocols")] = "dc"
    students: Annotated[int, Field(ge=1, description="students for every set")] = 5
    cross: Annotated[tuple[str, ...], Field(description="further architectures to evaluate on")] = ()
    tune_lr: Annotated[bool, Field(description="choose the students' learning rate on validation, the same search for every kind of set")] = False
    baselines: Annotated[bool, Field(description="evaluate random real images with hard and with an expert's soft labels beside the set")] = True
    device: Annotated[str, Field(description="auto, cpu, cuda or cuda:N")] = "auto"
    threads: Annotated[int | None, Field(ge=1, description="CPU threads; default: all cores")] = None


class EvaluateOptions(OpenOptions, EvaluationOptions):
    """Everything that `evaluate` takes beside the file; how to open a source matters only with one that is named."""

    expert_file: Annotated[
        Path | None, Field(description="a checkpoint to label the random-soft baseline with, when the file's own expert is not in the cache")
    ] = None


class ScoreOptions(OpenOptions):
    """Everything that `score` takes beside the file."""

    protocol: Annotated[str, Field(description="how students are trained; see: limbeck ls protocols")] = "dc"
    students: Annotated[int, Field(ge=1, description="students for every arm; random arms draw new images for each")] = 5
    which: Annotated[Literal["both", "label", "augmentation"], Field(description="which scores")] = "both"
    weight: Annotated[float, Field(ge=0, le=1, description="weight of the improvement over random, and of the augmented arms")] = 0.5
    full_accuracy: Annotated[
        float | None, Field(description="known test accuracy, a fraction, of training on all data with hard labels; default: it is trained")
    ] = None
    full_epochs: Annotated[
        int | None, Field(ge=1, description="epochs of training on all data; default: 20, and more where the set's students take more steps")
    ] = None
    full_students: Annotated[int, Field(ge=1, description="networks trained on all data")] = 1
    search_students: Annotated[int, Field(ge=1, description="students for each learning rate that is tried on validation")] = 2
    expert_file: Annotated[
        Path | None, Field(description="a checkpoint to label random images with, when the file's own expert is not in the cache")
    ] = None
    device: Annotated[str, Field(description="auto, cpu, cuda or cuda:N")] = "auto"
    threads: Annotated[int | None, Field(ge=1, description="CPU threads; default: all cores")] = None


class DistillOptions(OpenOptions, EvaluationOptions):
    """Everything that `distill` takes beside the source."""

    ipc: Annotated[str | None, Field(description="images per class: a number, or 'proportional' to the class sizes")] = None
    bytes: Annotated[str | None, Field(description="byte budget for images, labels and decoder: 100kB, 2MiB")] = None
    pixels: Annotated[str, Field(description="pixel space: raw, normalize, zca-mtt, zca-kip, zca-frepo")] = "normalize"
    method: Annotated[str, Field(description="name, name@recipe or name:option=value,...; see: limbeck ls methods")] = "random-real"
    steps: Annotated[int | None, Field(ge=1, description="steps of a method that optimizes; default: the method's own")] = None
    budget: Annotated[
        str | None, Field(description="stop optimizing after this long: 90s, 20min, 1.5h; rates that fall along --steps stay where they are then")
    ] = None
    checks: Annotated[int, Field(ge=0, description="how often one student is tried on validation while optimizing")] = 0
    selector: Annotated[str, Field(description="which real images: random, herding, k-center, ce-quantile:0..9")] = "random"
    model: Annotated[str, Field(description="architecture of expert and students: convnet, convnet-d3-w64, resnet18, mlp, module:factory")] = (
        "convnet"
    )
    labels: Annotated[
        Literal["auto", "soft", "hard"], Field(description="soft: from the expert; hard: the class alone; auto: as the method is published")
    ] = "auto"
    temperature: Annotated[float, Field(gt=0, description="divides the expert's logits")] = 1.0
    top_k: Annotated[int | None, Field(ge=1, description="keep the k largest label entries")] = None
    renormalize: Annotated[bool, Field(description="scale the kept entries to sum to one")] = True
    label_precision: Annotated[Literal["float32", "float16", "uint8"], Field(description="how label entries are stored")] = "float32"
    experts: Annotated[int, Field(ge=1, description="experts trained from different seeds")] = 1
    ensemble: Annotated[bool, Field(description="average the experts' logits into one labeler")] = False
    expert_epochs: Annotated[int, Field(ge=1, description="epochs of expert training")] = 5
    expert_lr: Annotated[float | None, Field(gt=0, description="learning rate of expert training; default: 0.01")] = None
    expert_model: Annotated[str | None, Field(description="architecture of the expert, when it is not the students'")] = None
    expert_step: Annotated[int | None, Field(ge=0, description="use this snapshot instead of choosing one on validation")] = None
    expert_file: Annotated[Path | None, Field(description="your own checkpoint as the expert (state dict or .safetensors)")] = None
    draws: Annotated[int, Field(ge=1, description="independent draws of images to evaluate; the first is saved")] = 1
    evaluate: Annotated[bool, Field(description="evaluate the set after making it")] = True
    seed: Annotated[int, Field(ge=0, description="root of every random stream")] = 0


class ImportOptions(OpenOptions):
    """Everything that `import` takes beside the path."""

    format: Annotated[Literal["auto", "dc", "mtt", "sre2l", "tensor"], Field(description="who wrote it; auto: told by the content")] = "auto"
    pixel_space: Annotated[
        str | None,
        Field(
            description="how the images are to be read: raw, normalize:cifar10 (a published normalization), network:mean=...,std=..., zca-mtt:SOURCE"
        ),
    ] = None
    stored: Annotated[
        Literal["auto", "raw", "network"],
        Field(
            description="whether the images are pixels that are still to be normalized (raw) or network inputs already; auto: whole numbers are pixels"
        ),
    ] = "auto"
    source: Annotated[
        str | None, Field(description="the real data that the set stands for: gives class names, and is then the source to evaluate on")
    ] = None
    classes: Annotated[
        str | None, Field(description="class names with commas, their number, a text file with one a line, or cifar10 or fashion-mnist")
    ] = None
    labels: Annotated[Path | None, Field(description="a file with the labels, when they lie apart")] = None
    label_kind: Annotated[
        Literal["auto", "probability", "logit", "log-probability", "free"], Field(description="what label rows are; logits become probabilities")
    ] = "auto"
    temperature: Annotated[float, Field(gt=0, description="divides label logits before the softmax")] = 1.0
    step_size: Annotated[str | None, Field(description="a learned learning rate: a number, or a file that holds it")] = None
    experiment: Annotated[int | None, Field(ge=0, description="which set of a file that holds several, from 0")] = None
    model: Annotated[str, Field(description="the architecture that the set was made for")] = "convnet"
    protocol: Annotated[str, Field(description="the training to recommend; see: limbeck ls protocols")] = "dc"
    made_by: Annotated[str | None, Field(description="method and setting that made the set, for the record")] = None
