import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from limbeck.report.figures import NARROW, PALETTE, WIDE, accuracy_figure, entropy_figure, label_matrix_figure, snapshots_figure
from limbeck.report.softness import softness
from limbeck.report.tables import accuracy_rows
from limbeck.types.evaluation import Interval


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text") or element.tag.endswith("}tspan")]


def width(svg: str) -> float:
    return float(ElementTree.fromstring(svg).get("width"))


@pytest.fixture
def figures(run):
    record, dataset = run
    soft = softness(dataset)
    return [
        accuracy_figure(accuracy_rows(record), "a title"),
        snapshots_figure(record["expert"], "a title"),
        label_matrix_figure(soft, dataset.classes, "a title"),
        entropy_figure(soft, 10, "a title"),
    ]


def test_charts_fit_their_width(figures) -> None:
    for figure in figures:
        assert width(figure.svg(NARROW)) <= NARROW + 30, figure.name
        assert width(figure.svg(WIDE)) <= WIDE + 30, figure.name


def test_only_palette_colors_are_used(figures) -> None:
    light = {pair[0] for pair in PALETTE.values()} | {"none", "transparent", None}
    for figure in figures:
        for element in ElementTree.fromstring(figure.svg(WIDE)).iter():
            assert element.get("fill") in light, (figure.name, element.attrib)
            assert element.get("stroke") in light, (figure.name, element.attrib)


def test_titles_are_for_charts_that_stand_alone(figures) -> None:
    for figure in figures:
        assert any("a title" in text for text in texts(figure.svg(WIDE, titled=True)))
        assert not any("a title" in text for text in texts(figure.svg(WIDE)))


def test_axes_name_their_units(figures) -> None:
    accuracy, snapshots, matrix, entropy = (" ".join(texts(figure.svg(WIDE))) for figure in figures)
    assert "test accuracy after the last epoch (%)" in accuracy
    assert "validation accuracy (%)" in snapshots
    assert "(nats)" in snapshots
    assert "chosen: step 211" in snapshots
    assert "students, 25 % of training" in snapshots
    assert "1/2" in snapshots
    assert "mean probability" in matrix
    assert "entropy of an image's label (nats); uniform over 10 classes = 2.30" in entropy


def test_accuracy_figure_says_every_number(run) -> None:
    record, _ = run
    rows = accuracy_rows(record)
    figure = accuracy_figure(rows, "")
    shown = texts(figure.svg(WIDE))
    for row in rows:
        assert row.accuracy_text in shown
        assert f"{row.name}: {row.accuracy_text} %" in figure.alt


def test_rows_that_share_a_name_stay_apart(run) -> None:
    record, _ = run
    record["evaluations"].append({**record["evaluations"][0], "seed": 1})
    svg = accuracy_figure(accuracy_rows(record), "").svg(WIDE)
    assert texts(svg).count("this set") == 2


def test_snapshots_need_two_measured_ones(run) -> None:
    record, _ = run
    expert = record["expert"]
    assert snapshots_figure({**expert, "snapshots": expert["snapshots"][:1]}, "") is None
    unmeasured = [{**entry, "accuracy": None} for entry in expert["snapshots"]]
    assert snapshots_figure({**expert, "snapshots": unmeasured}, "") is None


def test_snapshots_without_trials_or_entropy(run) -> None:
    record, _ = run
    expert = {**record["expert"], "trials": [], "snapshots": [{**entry, "entropy": None} for entry in record["expert"]["snapshots"]]}
    shown = texts(snapshots_figure(expert, "").svg(WIDE))
    assert "validation accuracy (%)" in shown
    assert not any("students" in text or "nats" in text for text in shown)


def test_the_matrix_has_a_limit(make_run) -> None:
    _, dataset = make_run((1,) * 101)
    assert label_matrix_figure(softness(dataset), dataset.classes, "") is None


def test_intervals_stay_within_accuracies(run) -> None:
    record, _ = run
    rows = [replace(row, accuracy=Interval(0.16, -0.282, 1.02, "students", 2)) for row in accuracy_rows(record)[:1]]
    entries = json.dumps(accuracy_figure(rows, "a title").build(WIDE).to_dict())
    assert '"low": 0.0, "high": 100.0' in entries
