"""What every analysis must pass, bought by its one line in the table."""

import json
import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.small import distilled, gaussians, subject

from limbeck.analyze import ANALYSES
from limbeck.analyze.subject import Analysis, NotApplicable, Size, Subject
from limbeck.data.splits import TestHandle
from limbeck.data.tables import ArrayTable
from limbeck.progress import SILENT
from limbeck.streams import Streams
from limbeck.types.distilled import DistilledDataset
from limbeck.types.measurement import Measurement

pytestmark = pytest.mark.parametrize("name", ANALYSES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("measured")


@pytest.fixture(autouse=True)
def _its_extra(name: str) -> None:
    for module in getattr(ANALYSES[name], "extras", ()):
        pytest.importorskip(module)


def analysis(name: str) -> Analysis:
    kind = ANALYSES[name]
    made: Analysis = kind(kind.Options(**kind.smoke))
    return made


def measure(name: str, given: Subject) -> Measurement:
    return analysis(name).measure(given, SILENT)


def of_one_class() -> DistilledDataset:
    table = gaussians(3)
    kept = table.labels == 1
    return distilled(ArrayTable(table.images[kept], table.labels[kept], list(table.classes)))


def test_it_is_an_analysis_with_options_that_refuse_unknown_keys(name: str) -> None:
    kind = ANALYSES[name]
    assert isinstance(analysis(name), Analysis)
    assert kind.name == name
    assert kind.version >= 1
    assert kind.summary.endswith("?")
    assert kind.Options.model_config["extra"] == "forbid"
    assert kind.Options.model_config["frozen"]
    assert all(field.description for field in kind.Options.model_fields.values())


def test_its_measurement_survives_json_and_fits_what_is_drawn(name: str, folder: Path) -> None:
    kind, made = ANALYSES[name], measure(name, subject(cache=folder))
    assert made.analysis == name
    text = json.dumps(made.to_dict(), allow_nan=False)
    again = Measurement.from_dict(json.loads(text))
    assert json.dumps(again.to_dict(), allow_nan=False) == text
    assert set(kind.headline) & set(made.quantities)
    assert any(np.isfinite(quantity.values).any() for quantity in made.quantities.values())
    for plot in kind.plots:
        if plot.quantity not in made.quantities:
            continue  # what could not be measured is not drawn
        axes = made[plot.quantity].axes
        named = [plot.x, *([] if plot.kind == "scatter" else [plot.color]), plot.panel]
        assert {axis for axis in named if axis} <= set(axes)
    assert any(plot.quantity in made.quantities for plot in kind.plots)


def test_it_gives_the_same_numbers_again_and_others_with_another_seed(name: str, folder: Path, tmp_path: Path) -> None:
    def numbers(made: Measurement) -> str:
        return json.dumps({**made.to_dict(), "seconds": 0.0}, sort_keys=True)

    first = numbers(measure(name, subject(cache=folder)))
    assert numbers(measure(name, subject(cache=folder))) == first  # from what is kept
    assert numbers(measure(name, subject(cache=tmp_path))) == first  # from nothing
    assert numbers(measure(name, subject(cache=tmp_path, streams=Streams(1)["analyze"]))) != first


def test_it_moves_no_global_random_state(name: str, folder: Path) -> None:
    def states() -> tuple[object, ...]:
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().numpy().tobytes()

    before = states()
    measure(name, subject(cache=folder))
    assert states() == before


def outcome(name: str, given: Subject) -> Measurement | str:
    try:
        return measure(name, given)
    except NotApplicable as problem:
        return str(problem)


def test_a_set_of_one_class_is_measured_or_refused_in_a_sentence(name: str, folder: Path) -> None:
    found = outcome(name, subject(of_one_class(), cache=folder))
    assert found.quantities if isinstance(found, Measurement) else re.fullmatch(r"[^\n]{20,}", found)


def test_a_source_without_test_images_is_measured_or_refused_in_a_sentence(name: str, folder: Path) -> None:
    found = outcome(name, subject(test=TestHandle(gaussians(0)), cache=folder))
    assert found.quantities if isinstance(found, Measurement) else "no test images" in found


def test_its_work_grows_with_the_set(name: str) -> None:
    def images(size: Size) -> float:
        return sum(analysis(name).work(size).values())

    small, large = Size(20, 100, 50, 100, 20), Size(40, 200, 100, 100, 40)
    assert 0 < images(small) < images(large) <= 4 * images(small) + 1


def test_its_documentation_cites_its_source_and_states_its_cost(name: str) -> None:
    kind = ANALYSES[name]
    text = f"{sys.modules[kind.__module__].__doc__} {kind.__doc__}"
    assert re.search(r"(19|20)\d\d", text)
    assert re.search(r"arXiv \d{4}\.\d{4,5}", text)
    assert "Cost:" in text
    assert (Path(__file__).parents[2] / "docs" / "analyses" / f"{name}.md").is_file()
