"""What a user can ask of `labels tune`, as typed fields. Free of torch, so that help is instant."""

from typing import Annotated, Literal

from pydantic import Field

from limbeck.study.options import OpenOptions


class TuneLabelsOptions(OpenOptions):
    """Everything that `labels tune` takes beside the source."""

    bytes: Annotated[str | None, Field(description="byte budget for images and labels: 100kB, 2MiB")] = None
    pixels: Annotated[str, Field(description="pixel space: raw, normalize, zca-mtt, zca-kip, zca-frepo")] = "normalize"
    model: Annotated[str, Field(description="architecture of expert and students")] = "convnet"
    protocol: Annotated[str, Field(description="how students are trained; see: limbeck ls protocols")] = "dc"
    expert_epochs: Annotated[int, Field(ge=1, description="epochs of expert training")] = 5
    expert_lr: Annotated[float | None, Field(gt=0, description="learning rate of expert training; default: 0.01")] = None
    expert_model: Annotated[str | None, Field(description="architecture of the expert, when it is not the students'")] = None
    snapshots: Annotated[int, Field(ge=1, description="how many of the expert's snapshots are tried, evenly spread over those that it keeps")] = 6
    temperatures: Annotated[tuple[float, ...], Field(min_length=1, description="temperatures to try")] = (1.0, 2.0, 4.0)
    top_k: Annotated[
        tuple[int, ...], Field(description="numbers of kept entries to try beside all; default: a quarter of the classes, at least 2")
    ] = ()
    precisions: Annotated[tuple[Literal["float32", "float16", "uint8"], ...], Field(min_length=1, description="storage precisions to try")] = (
        "float16",
        "uint8",
    )
    hard: Annotated[bool, Field(description="let hard labels compete: they cost a byte or two and pay for more images")] = True
    students: Annotated[int, Field(ge=1, description="students of each candidate in the last round")] = 3
    seed: Annotated[int, Field(ge=0, description="root of every random stream")] = 0
    device: Annotated[str, Field(description="auto, cpu, cuda or cuda:N")] = "auto"
    threads: Annotated[int | None, Field(ge=1, description="CPU threads; default: all cores")] = None
