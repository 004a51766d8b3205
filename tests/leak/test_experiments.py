"""Every experiment of the table runs at its smallest scale, answers the same when it is asked again or stopped between parts, and says what it is."""

import json
import math

import numpy as np
import pytest

from limbeck.cache import Cache
from limbeck.errors import OptionError
from limbeck.leak import EXPERIMENTS
from limbeck.leak.experiment import Bench, Experiment, Work, crossing, over_repeats
from limbeck.leak.logistic import LogisticOptions, separable
from limbeck.leak.mlp import phases
from limbeck.progress import Reporter
from limbeck.report.leak import leak_figures, write_leak_report
from limbeck.streams import Streams
from limbeck.study.leaking import prepare, read, run
from limbeck.types.measurement import Measurement, Quantity
from limbeck.types.plan import ExecutionPlan

_QUICK = {
    "temperature": ("loads=2", "taus=2", "steps=60", "repeats=1"),
    "class-scaling": ("loads=3", "steps=40", "repeats=1"),
    "logistic": ("loads=3", "rhos=3", "teacher_steps=40"),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Experiment, Measurement]]:
    """Every experiment, run once."""
    out = tmp_path_factory.mktemp("leak")
    found = {}
    for name in EXPERIMENTS:
        prepared = prepare(name, "smoke", _QUICK.get(name, ()), threads=1, device="cpu")
        found[name] = (prepared.experiment, run(prepared, out / name, cache=Cache(out / "cache")))
    return found


def test_every_experiment_measures_accuracies_and_writes_its_record(measured):
    for name, (experiment, measurement) in measured.items():
        assert measurement.analysis == name == experiment.name
        assert measurement.settings["cpu_seconds"] > 0
        fractions = [quantity.values for quantity in measurement.quantities.values() if quantity.unit == "fraction"]
        assert fractions
        for values in fractions:
            known = values[~np.isnan(values)]
            assert ((known >= 0) & (known <= 1)).all()
        assert Measurement.from_dict(json.loads(json.dumps(measurement.to_dict()))).axes == measurement.axes


def test_every_chart_can_be_drawn(measured, tmp_path):
    for experiment, measurement in measured.values():
        figures = [figure for chart in experiment.charts for figure in leak_figures(chart, measurement)]
        assert len(figures) >= len(experiment.charts) - 1  # a gap between protocols needs loads beyond the threshold
        assert all("<svg" in figure.svg(600) for figure in figures[:1])
    experiment, measurement = measured["picture"]
    page = write_leak_report(experiment, measurement, tmp_path).read_text(encoding="utf-8")
    assert experiment.title in page
    assert "//" not in page.replace("http://www.w3.org", "")  # nothing is loaded from elsewhere


class _Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_to_the_same_numbers_and_finished_parts_are_not_made_again(tmp_path, measured):
    prepared = prepare("mlp", "smoke", threads=1, device="cpu")
    kept: list[str] = []

    class Stopping(Bench):
        def remembered(self, task, make):
            if len(kept) == 3:
                raise _Stopped
            kept.append(json.dumps(task))
            return super().remembered(task, make)

    with pytest.raises(_Stopped):
        prepared.experiment.measure(prepared.options, Stopping(Streams(0)["leak"], prepared.plan, Cache(tmp_path)))
    again = run(prepared, tmp_path / "out", cache=Cache(tmp_path))
    for name, quantity in measured["mlp"][1].quantities.items():
        np.testing.assert_array_equal(again[name].values, quantity.values)
    np.testing.assert_array_equal(read(tmp_path / "out" / "measurement.json")["seen"].values, again["seen"].values)


def test_options_are_changed_by_text():
    experiment: Experiment = EXPERIMENTS["temperature"]
    options = experiment.configured("cpu", ("features=50", "protocols=exact+converged"))
    assert options.features == 50
    assert options.protocols == ("exact", "converged")
    with pytest.raises(OptionError, match="experiment 'temperature' has no option 'feature'; did you mean 'features'?"):
        experiment.configured("cpu", ("feature=50",))
    with pytest.raises(OptionError, match="option rho of experiment 'temperature': input should be less than 1, got '2'"):
        experiment.configured("cpu", ("rho=2",))
    with pytest.raises(OptionError, match="experiment 'temperature' has no scale 'huge'"):
        experiment.configured("huge")


def test_published_sizes_are_the_paper_scale():
    logistic = EXPERIMENTS["logistic"].scales["cpu"]
    assert isinstance(logistic, LogisticOptions)
    assert (logistic.features, logistic.loads, logistic.rhos, logistic.repeats, logistic.teacher_steps) == (200, 50, 50, 5, 10_000)
    temperature = EXPERIMENTS["temperature"].scales["paper"]
    assert (temperature.features, temperature.loads, temperature.taus, temperature.rho, temperature.repeats) == (1000, 20, 40, 0.8, 5)
    assert EXPERIMENTS["modular"].scales["paper"].modulus == 113


def test_prices_grow_with_the_work():
    for name in EXPERIMENTS:
        experiment: Experiment = EXPERIMENTS[name]
        small, large = (experiment.work(experiment.scales[scale]) for scale in ("smoke", "cpu"))
        assert 0 < small.adam + small.newton + small.network < large.adam + large.newton + large.network
    temperature: Experiment = EXPERIMENTS["temperature"]
    mild, hard = (temperature.work(temperature.configured("paper", ("protocols=converged", f"least_tau={tau}"))) for tau in (1, -0.5))
    assert hard.newton > 2 * mild.newton  # systems of nearly hard labels are factored
    assert Work(1, 2, 3, 4, 5) * 2 + Work(cells=1) == Work(2, 4, 6, 8, 11)


def test_crossings_are_interpolated():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert crossing(x, np.array([0.0, 0.4, 0.8, 1.0]), 0.6, rising=True) == pytest.approx(2.5)
    assert crossing(x, np.array([1.0, 1.0, 0.5, 0.0]), 0.9, rising=False) == pytest.approx(2.2)
    assert math.isnan(crossing(x, np.array([1.0, 1.0, 1.0, 1.0]), 0.9, rising=True))  # it was there from the start
    assert math.isnan(crossing(x, np.zeros(4), 0.9, rising=True))
    assert crossing(x, np.array([0.0, np.nan, 1.0, 1.0]), 0.5, rising=True) == pytest.approx(2.0)


def test_intervals_over_repeats_are_students():
    values = np.array([[0.5], [0.7], [0.6]])
    quantity = over_repeats(values, ("x",))
    assert quantity.values[0] == pytest.approx(0.6)
    assert quantity.high[0] - 0.6 == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)
    assert over_repeats(values[:1], ("x",)).low is None


def test_covers_theorem():
    assert separable(400, 200) == pytest.approx(0.5)
    assert separable(3, 200) == 1
    assert separable(4, 2) == pytest.approx(0.5)  # 8 of 16 labelings of 4 points in the plane, through the origin


def test_phases_are_told_from_teacher_memory_and_recovery():
    columns = {"seen": [[1, 1, 0.5]], "held_out": [[1, 0.5, 0.2]]}
    quantities = {name: Quantity(np.array(values * 2, dtype=float), ("load", "rho")) for name, values in columns.items()}
    quantities["teacher"] = Quantity(np.array([1.0, 0.9]), ("load",))
    assert phases(quantities).tolist() == [[3, 2, 1], [0, 0, 0]]


def test_progress_is_reported_in_full(tmp_path):
    seen: dict[str, int] = {}

    class Counting(Reporter):
        def task(self, description, total):
            from contextlib import contextmanager

            @contextmanager
            def opened():
                seen["total"], seen["done"] = total, 0
                yield lambda units: seen.update(done=seen["done"] + units)

            return opened()

    prepared = prepare("picture", "smoke", threads=1, device="cpu")
    prepared.experiment.measure(prepared.options, Bench(Streams(0), ExecutionPlan(threads=1), Cache(tmp_path), Counting()))
    assert seen["done"] == seen["total"]
