"""The figure of studies of replay: a measure after every group, or on every group, for each kind of memory."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from limbeck.analyze.subject import Plot
from limbeck.errors import OptionError
from limbeck.study.analyses import Made, Named, StudyAnalysisOptions, quantity_of
from limbeck.study.artefacts import Artefacts
from limbeck.study.spec import matching
from limbeck.study.view import NotMeasured, Selector, View
from limbeck.types.evaluation import Interval, nested_interval
from limbeck.types.measurement import Measurement


class GroupsSeenOptions(StudyAnalysisOptions):
    """Accuracy along the groups."""

    scalars = ()

    rows: Annotated[tuple[Named, ...], Field(min_length=1, description='selectors of arms with task = "replay", each with a name')]
    each: Annotated[Literal["after", "on group"], Field(description="after each group on all classes seen, or in the end on each group")] = "after"


def groups_seen(view: View, options: GroupsSeenOptions, artefacts: Artefacts) -> Made:
    """Accuracy with its 95 % interval over draws, experts and students, along the groups, one curve for each kind of memory; kinds that are not measured yet are
    left out."""
    found: dict[tuple[int, ...], Interval] = {}
    names: list[str] = []
    most = 0
    for row in options.rows:
        cells = matching(view.cells, row.where)
        if any(cell.making.replay is None for cell in cells):
            raise OptionError(f'{row.words} learns no groups; select arms with task = "replay"')
        groups = max(cell.making.replay.groups for cell in cells if cell.making.replay is not None)
        try:
            intervals = [
                view.named(nested_interval(view.values(Selector(measure=f"accuracy {options.each} {number + 1}", **row.where))), row)
                for number in range(groups)
            ]
        except NotMeasured:
            continue
        found |= {(len(names), number): interval for number, interval in enumerate(intervals)}
        names.append(row.name)
        most = max(most, groups)
    if not found:
        raise NotMeasured(f"{options.title}: nothing is measured yet; run: limbeck study resume")
    across = "groups seen" if options.each == "after" else "group"
    quantity = quantity_of(found, [len(names), most], ("memory", across), "fraction", "accuracy")
    axes = {"memory": tuple(names), across: tuple(np.arange(1, most + 1).tolist())}
    plot = Plot("accuracy", options.title, across, kind="line", color="memory", reading=options.reading)
    return Measurement("groups-seen", options.title, {"accuracy": quantity}, axes), (plot,)
