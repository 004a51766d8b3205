import numpy as np
import pytest

from limbeck.errors import FileFormatError
from limbeck.report.tables import accuracy_rows, gains, seconds_text
from limbeck.types.evaluation import nested_interval, paired_difference


def test_rows_carry_everything_that_a_number_needs(run) -> None:
    record, dataset = run
    rows = accuracy_rows(record)
    assert [row.role for row in rows] == ["distilled", "random-soft", "random-hard", "expert", "full data"]
    first = rows[0]
    assert first.accuracy == nested_interval(np.array(record["evaluations"][0]["accuracy"]))
    assert (first.model, first.protocol, first.repeats_text, first.covers_text) == ("convnet", "dc/1", "5 students", "covers students")
    assert first.bytes == dataset.bytes
    assert (first.images, first.test_images) == (100, 10_000)
    assert rows[3].accuracy_text == "85.8"
    assert (rows[3].repeats_text, rows[3].covers_text, rows[3].worst_text) == ("1 network", "nothing repeated", "–")
    assert rows[4].name == "expert, last step 1,055"


def test_the_distilled_set_comes_first_wherever_it_was_recorded(run) -> None:
    record, _ = run
    record["evaluations"].reverse()
    assert [row.role for row in accuracy_rows(record)][:3] == ["distilled", "random-hard", "random-soft"]


def test_an_expert_used_at_its_last_step_has_one_row(run) -> None:
    record, _ = run
    record["expert"]["chosen_step"] = record["expert"]["last_step"]
    assert [row.role for row in accuracy_rows(record)][3:] == ["expert"]


def test_gains_pair_the_same_students(run) -> None:
    record, _ = run
    found = gains(record)
    mine, _, hard = (np.array(entry["accuracy"]) for entry in record["evaluations"])
    assert [gain.over.role for gain in found] == ["random-soft", "random-hard"]
    assert found[1].difference == paired_difference(mine, hard)
    assert found[1].verdict == "excludes zero; covers students"


@pytest.mark.parametrize(
    ("key", "value"), [("protocol", "dc/2"), ("model", "resnet18"), ("seed", 1), ("test_digest", "00"), ("accuracy", [[[0.7, 0.7]]])]
)
def test_unlike_evaluations_are_not_paired(run, key: str, value: object) -> None:
    record, _ = run
    record["evaluations"][2][key] = value
    assert [gain.over.role for gain in gains(record)] == ["random-soft"]


def test_a_run_without_evaluations_or_expert_has_no_rows(run) -> None:
    record, _ = run
    assert accuracy_rows({**record, "evaluations": [], "expert": None}) == []
    assert accuracy_rows({key: value for key, value in record.items() if key not in ("evaluations", "expert")}) == []


def test_other_formats_and_broken_records_are_refused(run) -> None:
    record, _ = run
    with pytest.raises(FileFormatError, match=r"a result of format 2 cannot be reported; this version of limbeck reads format 1"):
        accuracy_rows({**record, "format": 2})
    with pytest.raises(FileFormatError, match=r"the result lacks 'counts' and 'bytes'; use an intact result.json"):
        accuracy_rows({key: value for key, value in record.items() if key not in ("counts", "bytes")})
    record["evaluations"][0].pop("protocol")
    with pytest.raises(FileFormatError, match="not a limbeck evaluation record"):
        accuracy_rows(record)


def test_an_ensemble_counts_its_networks(run) -> None:
    record, _ = run
    record["expert"]["count"] = 3
    assert accuracy_rows(record)[3].repeats_text == "3 networks"


def test_a_learning_rate_that_is_not_the_protocols_is_named(run) -> None:
    record, _ = run
    record["protocol"] = {"recipe": {"lr": 0.01}}
    distilled = record["evaluations"][0]
    distilled["recipe"] = {**distilled["recipe"], "lr": 0.0309}
    assert [row.protocol_text for row in accuracy_rows(record)][:3] == ["dc/1, learning rate 0.031", "dc/1", "dc/1"]
    distilled["rate"] = "learned"
    assert accuracy_rows(record)[0].protocol_text == "dc/1, learned rate 0.031"
    assert [gain.over.protocol_text for gain in gains(record)] == ["dc/1", "dc/1"]


def test_time_that_came_from_a_cache_is_not_said_to_be_none(run) -> None:
    record, _ = run
    record["seconds"] = {"expert and choice": 0.0, "distilling": 0.2}
    assert (seconds_text(record, "expert and choice"), seconds_text(record, "distilling")) == ("cached", "0.2 s")
    assert seconds_text({**record, "expert": None}, "expert and choice") == "0.0 s"
    assert seconds_text({**record, "cached": []}, "expert and choice") == "0.0 s"
    assert seconds_text({**record, "cached": ["expert and choice"], "seconds": {"expert and choice": 95}}, "expert and choice") == "cached"
