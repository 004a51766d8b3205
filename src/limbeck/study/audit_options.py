"""What a user can ask of an audit, as typed fields. Free of torch, so that help is instant."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from limbeck.errors import OptionError
from limbeck.study.options import DistillOptions

CHECKS = ("exposure", "membership", "copies")
_POINTLESS = ("cross", "tune_lr", "baselines", "evaluate", "draws", "checks")


class AuditSettings(BaseModel):
    """What an audit asks beyond how the set is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    canaries: Annotated[int, Field(ge=1, description="training records with drawn labels, and as many controls that nothing sees")] = 200
    arm: Annotated[
        Literal["expert", "end-to-end", "both"],
        Field(description="expert: canaries in the expert's training only; end-to-end: in the method's data as well, but never published"),
    ] = "both"
    snapshot: Annotated[
        Literal["chosen", "last"],
        Field(description="the expert's snapshot: as validation chooses it (early-stopped), or the last one (over-trained)"),
    ] = "chosen"
    train_images: Annotated[int | None, Field(ge=2, description="train on this many records, canaries included; default: all")] = None
    shadows: Annotated[int, Field(ge=0, description="worlds beside the attacked one for membership inference; 0: not checked")] = 8
    alpha: Annotated[float, Field(gt=0, lt=1, description="false-alarm rate of the whole audit, shared by its required tests")] = 0.01
    tolerance: Annotated[
        float,
        Field(
            gt=0, lt=1, description="exposure that a clean verdict must exclude; for membership, the area above one half and the rate above guessing"
        ),
    ] = 0.1
    redraws: Annotated[int, Field(ge=200, description="redrawn designs that calibrate the membership attacks")] = 2000
    controls: Annotated[bool, Field(description="control runs: hard labels, and soft labels shuffled within classes")] = True
    test_images: Annotated[int, Field(ge=1, description="test images for the students' accuracy, drawn at random")] = 2000
    skip: Annotated[tuple[str, ...], Field(description="checks to do without: exposure, membership, copies; reported as not checked")] = ()
    defend: Annotated[
        str | None, Field(description="also try defenses, each alone: temperature=4/20,top-k=1/3,precision=uint8,noise=0.5/2,expert-epochs=1,dp=2/8")
    ] = None
    private: Annotated[str | None, Field(description="audit a finished file against this source of private images")] = None
    price: Annotated[bool, Field(description="say what the audit would cost, and stop")] = False


class AuditOptions(DistillOptions, AuditSettings):
    """Everything that `audit` takes beside its source or file. What `distill` takes says how the set is made that is audited."""

    protocol: Annotated[str, Field(description="how students are trained; audit: to learn all that labels hold")] = "audit"

    @model_validator(mode="after")
    def _sensible(self) -> "AuditOptions":
        for name in _POINTLESS:
            if name in self.model_fields_set:
                raise OptionError(f"an audit makes and judges one set, so --{name.replace('_', '-')} has no meaning in it; leave it out")
        for name in self.skip:
            if name not in CHECKS:
                raise OptionError(f"--skip knows {', '.join(CHECKS)}, got {name!r}; use one of them")
        return self
