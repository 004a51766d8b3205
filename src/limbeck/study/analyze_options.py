"""What a user can ask of `limbeck analyze`, as typed fields. Free of torch, so that help is instant."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from limbeck.study.options import OpenOptions


class AnalyzeOptions(OpenOptions):
    """Everything that `analyze` takes beside the file and the names."""

    all: Annotated[bool, Field(description="every analysis that works on this file; the others are skipped, each with its reason")] = False
    seeds: Annotated[int | None, Field(ge=1, description="repeats, in every analysis that has them; default: each one's own")] = None
    option: Annotated[
        tuple[str, ...], Field(description="an option of one analysis, NAME:KEY=VALUE, as often as needed; see: limbeck explain NAME")
    ] = ()
    protocol: Annotated[str, Field(description="how students are trained; see: limbeck ls protocols")] = "dc"
    expert_file: Annotated[
        Path | None, Field(description="a checkpoint to label real images with, when the file's own expert is not in the cache")
    ] = None
    device: Annotated[str, Field(description="auto, cpu, cuda or cuda:N")] = "auto"
    threads: Annotated[int | None, Field(ge=1, description="CPU threads; default: all cores")] = None
