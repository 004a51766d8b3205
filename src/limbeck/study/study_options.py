"""What a user can ask of a study's run. Free of torch, so that help is instant."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class ExecutionOptions(BaseModel):
    """Who does the work of a study."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    executor: Annotated[Literal["in-process", "ray"], Field(description="this process, or the workers of a Ray cluster")] = "in-process"
    address: Annotated[str | None, Field(description="the Ray cluster: auto, or its address; default: a local one is started")] = None
    workers: Annotated[int, Field(ge=1, description="worker processes of a local Ray")] = 1
    gpus: Annotated[float, Field(ge=0, description="part of a GPU that a task takes on Ray: 0.25 lets four share one")] = 0.0


class StudyOptions(ExecutionOptions):
    """Everything that `study run` takes beside the file."""

    scale: Annotated[Literal["smoke", "cpu", "paper"], Field(description="which scale of the study")] = "smoke"
    only: Annotated[tuple[str, ...], Field(description="run only the cells that match, and what they need: arm=soft,ipc=10")] = ()
    out: Annotated[Path | None, Field(description="folder of the ledger and the report; default: runs/studies/NAME-SCALE")] = None
    store: Annotated[str | None, Field(description="where finished tasks are kept: a folder, or a URL that fsspec opens; default: the cache")] = None
    device: Annotated[str, Field(description="auto, cpu, cuda or cuda:N")] = "auto"
    threads: Annotated[int | None, Field(ge=1, description="CPU threads of a task; default: all cores, shared by the workers")] = None
    dry_run: Annotated[bool, Field(description="price every task without opening the data, and do nothing")] = False
    rate: Annotated[float | None, Field(gt=0, description="operations per second that the price assumes; default: by device")] = None
