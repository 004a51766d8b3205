import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.study.studies import ROW, SMALL, small

from limbeck.errors import DataError, LimbeckError, OptionError
from limbeck.study.artefacts import Artefacts
from limbeck.study.graph import Builder, DataKey, select
from limbeck.study.ledger import Ledger
from limbeck.study.running import LEDGER, ROWS, Run, open_run, price_study, resume_study, run_study, write_rows
from limbeck.study.setting import Setting
from limbeck.study.spec import Study
from limbeck.study.study_options import ExecutionOptions, StudyOptions


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The small study, run once."""
    folder = tmp_path_factory.mktemp("study")
    return run_study(Study.parse(SMALL), options(folder))


def options(folder: Path, **changes: Any) -> StudyOptions:
    return StudyOptions(out=folder / "out", store=str(folder / "store"), threads=1, **changes)


def test_a_study_measures_every_cell_and_decides_its_claims(finished: Run) -> None:
    assert finished.counts() == {"expert": (1, 1), "expert-score": (2, 2), "set": (6, 6), "evaluate": (6, 6)}
    assert finished.done == 15
    findings = finished.findings()
    assert {name: verdict.answer for name, verdict in findings.verdicts.items()} == {"more-is-better": "holds", "trained": "undecided"}
    row = findings.view.row(finished.graph.cells[2])
    assert row["settings"]["seed"] == 0
    assert len(row["measures"]["accuracy"]) == len(row["digests"]["predictions"]) == 2
    assert row["digests"]["set"] == finished.artefacts.dataset(row).digest
    assert finished.artefacts.scores(row)["predictions"].shape == (2, 359)
    assert findings.analyses["students"][0]["accuracy"].values.shape == (2, 2)
    trained = findings.verdicts["more-is-better"].interval
    assert trained is not None
    assert trained.covers == "students"


def test_a_second_run_skips_every_task(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = finished.ledger.path.read_bytes()
    monkeypatch.setattr("limbeck.study.running.make_executor", lambda *given: pytest.fail("there was nothing to do"))
    again = resume_study(finished.out, ExecutionOptions())
    assert (again.done, again.reused) == (0, 15)
    assert finished.ledger.path.read_bytes() == before


def test_another_study_takes_tasks_that_it_shares(finished: Run, tmp_path: Path) -> None:
    other = Study.parse(SMALL.replace('name = "small"', 'name = "other"').replace("ipc = [1, 4]", "ipc = [1, 4, 5]"))
    run = run_study(other, StudyOptions(out=tmp_path, store=str(finished.artefacts.cache.root), threads=1))
    assert run.counts() == {"expert": (1, 1), "expert-score": (2, 2), "set": (9, 9), "evaluate": (9, 9)}
    assert run.done == 6
    assert set(finished.ledger.rows) < set(run.ledger.rows)


@pytest.mark.parametrize("damage", [('"measures"', '"measurez"'), ('"digest":"', '"digest":"0')])
def test_a_task_whose_row_in_the_cache_is_damaged_is_done_again(finished: Run, tmp_path: Path, damage: tuple[str, str]) -> None:
    shutil.copytree(finished.artefacts.cache.root, tmp_path / "store")
    key = next(key for key, row in finished.ledger.rows.items() if row["kind"] == "evaluate")
    path = tmp_path / "store" / "study" / f"{key}.json"
    path.write_text(path.read_text().replace(*damage))
    run = run_study(Study.parse(SMALL), options(tmp_path))
    assert (run.done, run.ledger.canonical()) == (1, finished.ledger.canonical())


def test_only_runs_what_the_cells_need(tmp_path: Path) -> None:
    run = run_study(Study.parse(SMALL), options(tmp_path, only=("arm=hard,ipc=1",)))
    assert run.counts() == {"expert": (0, 1), "expert-score": (0, 2), "set": (1, 6), "evaluate": (1, 6)}
    assert run.findings().verdicts["trained"].answer == "not measured"


def test_going_on_keeps_to_the_cells_that_were_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_study(Study.parse(SMALL), options(tmp_path, only=("arm=hard,ipc=1",)))
    (tmp_path / "out" / LEDGER).unlink()
    monkeypatch.setattr("limbeck.study.running.make_executor", lambda *given: pytest.fail("there was nothing to do"))
    assert resume_study(tmp_path / "out", ExecutionOptions()).reused == 2
    assert json.loads((tmp_path / "out" / "run.json").read_text())["only"] == ["arm=hard,ipc=1"]


def test_stopping_at_any_moment_and_going_on_gives_the_same_ledger(finished: Run, tmp_path: Path) -> None:
    study, kills = Study.parse(SMALL), 0
    for delay in (0.15, 0.3, 0.45, 0.6):
        child = os.fork()
        if child == 0:
            try:
                run_study(study, options(tmp_path))
            finally:
                os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        kills += os.waitpid(child, 0)[1] == signal.SIGKILL
    assert kills >= 2
    run = run_study(study, options(tmp_path))
    assert run.ledger.canonical() == finished.ledger.canonical()


def test_a_run_in_another_order_gives_the_same_ledger(finished: Run, tmp_path: Path) -> None:
    for only in ("arm=soft,ipc=4", "arm=expert", "arm=hard"):
        run_study(Study.parse(SMALL), options(tmp_path, only=(only,)))
    run = run_study(Study.parse(SMALL), options(tmp_path))
    assert run.ledger.canonical() == finished.ledger.canonical()


def test_a_torn_last_line_is_dropped_and_done_again(finished: Run, tmp_path: Path) -> None:
    content = finished.ledger.path.read_bytes()
    path = tmp_path / LEDGER
    path.write_bytes(content[:-20])
    assert len(Ledger(path).rows) == 14
    with Ledger(path) as ledger:
        assert path.read_bytes() == content[: content[:-20].rfind(b"\n") + 1]
        ledger.add(list(finished.ledger.rows.values())[-1])
        with pytest.raises(LimbeckError, match="another run is writing"), Ledger(path):
            pass
    assert path.read_bytes() == content
    damaged = content.splitlines(keepends=True)
    path.write_bytes(b"".join([damaged[0], damaged[1][:9] + b"\n", *damaged[2:]]))
    with pytest.raises(LimbeckError, match=r"line 2 of .* is damaged \(invalid JSON: .*\); remove that line"):
        Ledger(path)


def test_tasks_that_were_finished_before_enter_the_ledger_after_what_they_build_on(finished: Run, tmp_path: Path) -> None:
    run = run_study(Study.parse(SMALL), StudyOptions(out=tmp_path, store=str(finished.artefacts.cache.root), threads=1))
    assert run.done == 0
    known: set[str] = set()
    for row in run.ledger.rows.values():
        assert known.issuperset(key for keys in row["inputs"].values() for key in keys)
        known.add(row["key"])


@pytest.mark.parametrize(("lost", "column", "left"), [("expert", "experts", [None] * 8), ("set", "set.key", [None] * 8)])
def test_the_table_is_written_though_lines_of_the_ledger_are_gone(finished: Run, tmp_path: Path, lost: str, column: str, left: list[None]) -> None:
    import pyarrow.parquet as pq

    shutil.copytree(finished.out, tmp_path / "out")
    lines = finished.ledger.path.read_text().splitlines(keepends=True)
    (tmp_path / "out" / LEDGER).write_text("".join(line for line in lines if json.loads(line)["kind"] != lost))
    write_rows(open_run(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out" / ROWS).to_pylist()
    assert [row.get(column) for row in table] == left


def test_the_table_has_a_row_for_every_cell_and_needs_no_other_file(finished: Run) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(finished.out / ROWS)
    rows = table.to_pylist()
    assert [row["arm"] for row in rows] == ["expert"] * 2 + ["soft"] * 4 + ["hard"] * 2
    soft, hard = rows[3], rows[6]
    assert (soft["study"], soft["scale"], soft["source"], soft["data.test"]) == ("small", "smoke", "digits", finished.data.test)
    assert (soft["axis.ipc"], soft["axis.epoch"], hard["axis.epoch"]) == (1, 2, None)
    assert (soft["set.method"], json.loads(soft["set.rule"])["kind"], soft["set.transforms"], soft["set.ipc"]) == ("random-real", "soft", "[]", 1)
    assert (soft["experts"], soft["expert_step"], hard["experts"], hard["expert_step"]) == ([0], 12, None, None)
    assert (rows[1]["experts"], rows[1]["expert_step"], rows[1]["set.method"]) == ([0], 12, None)
    assert soft["set.digest"] == finished.ledger.rows[soft["set.key"]]["digests"]["set"]
    assert len(soft["measure.accuracy"]) == 2
    assert (soft["measure.images"], len(rows[0]["measure.accuracy"])) == (10, 1)
    assert {"torch", "numpy"} <= set(json.loads(soft["versions"]))
    assert "cpu" in json.loads(soft["machine"])
    assert str(table.schema.field("axis.epoch").type) == "int64"
    assert [column["numpy_type"] for column in json.loads(table.schema.metadata[b"pandas"])["columns"] if column["name"] == "axis.epoch"] == ["Int64"]


def test_keys_are_stable_and_hang_on_everything_that_decides_a_number() -> None:
    def keys(content: str, **data: str) -> list[str]:
        digests = {"train": "a", "validation": "b", "test": "c", "pixels": "normalize", **data}
        return list(Builder(Study.parse(content), "smoke", DataKey(**digests), device="cpu", threads=1).graph().keys)

    first = keys(SMALL)
    assert keys(SMALL) == first
    assert keys(SMALL.replace('name = "small"', 'name = "other"').replace('question = "', 'question = "Well, ')) == first
    assert keys(small(students=3))[:2] == first[:2]  # experts have no students
    for changed in (keys(small(students=3)), keys(SMALL, test="d"), keys(SMALL.replace("steps = 20", "steps = 21")), keys(SMALL + "seed = 1\n")):
        assert not set(changed[2:]) & set(first)
    # hard labels do not hang on the expert
    assert set(keys(SMALL.replace("epochs = 2", "epochs = 3"))) & set(first) == set(first[6:])


def test_students_of_alike_sets_train_together_whatever_is_asked_for() -> None:
    graph = Builder(Study.parse(SMALL), "smoke", DataKey("a", "b", "c", "normalize"), device="cpu", threads=1).graph()
    together = [unit for unit in graph.units if len(unit) > 1]
    assert [[task.words for task in unit] for unit in together] == [
        ["soft: ipc=1, epoch=1", "soft: ipc=1, epoch=2"],
        ["soft: ipc=4, epoch=1", "soft: ipc=4, epoch=2"],
    ]
    assert together[0] in graph.needed(select(graph.cells, ["arm=soft,ipc=1,epoch=2"]))
    with pytest.raises(OptionError, match=r"--only 'arm=soff' selects no cell; filters look like arm=soft,ipc=10 and use arm, epoch, ipc"):
        select(graph.cells, ["arm=soff"])


def test_the_price_needs_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.study.running.Setting.open", lambda *given, **more: pytest.fail("opened the data"))
    estimate = price_study(Study.parse(SMALL), StudyOptions(dry_run=True, rate=1e9))
    lines = {line.kind: line for line in estimate.lines}
    assert lines["evaluate"].steps == 6 * 2 * 20
    assert lines["expert"].steps == 2 * 6  # 1295 images in batches of 256, twice
    assert lines["expert"].operations == pytest.approx(3 * (2 * 64 * 10) * 12 * 256)
    assert "1e+09 operations a second" in estimate.words


def test_data_that_are_not_as_stated_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        run_study(Study.parse(SMALL.replace("train = 1295, test = 359", "train = 1300, test = 360")), options(tmp_path))
    assert str(refused.value) == (
        "the source 'digits' has train = 1295, test = 359, but scales.smoke.data (line 45 of study.toml) states train = 1300, test = 360; "
        "correct the study"
    )


def test_data_that_changed_since_the_run_began_are_named_as_a_cause(tmp_path: Path) -> None:
    names = [f"{label}/{number}.png" for label in ("left", "right") for number in range(10)]
    for number, name in enumerate(names):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 12 * number, np.uint8)).save(tmp_path / "data" / name)
    content = SMALL.replace('"digits"', f'"folder:{tmp_path / "data"}"').replace(
        "classes = 10, train = 1295, test = 359", "classes = 2, train = 14, test = 4"
    )
    run_study(Study.parse(content), options(tmp_path, only=("arm=hard,ipc=1",)))
    (tmp_path / "data" / names[0]).unlink()
    with pytest.raises(DataError) as refused:
        resume_study(tmp_path / "out", ExecutionOptions())
    assert str(refused.value) == (
        f"the source 'folder:{tmp_path / 'data'}' has train = 13, but scales.smoke.data (line 45 of study.toml) states train = 14; correct the study, "
        f"or put back the files of the source, which are not those that the run in '{tmp_path / 'out'}' began with"
    )


def test_more_images_of_a_class_than_there_are_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as refused:
        run_study(Study.parse(SMALL.replace("ipc = [1, 4]", "ipc = [1, 4, 129]")), options(tmp_path))
    assert str(refused.value) == (
        "class '8' has 125 training images, fewer than the 129 asked for; use ipc = 125 or less, "
        "at arms.soft.ipc (line 13 of study.toml) (scale 'smoke', cell soft: ipc=129, epoch=1)"
    )


def test_missing_data_are_one_sentence(tmp_path: Path) -> None:
    study = Study.parse(SMALL.replace('source = "digits"', f'source = "folder:{tmp_path / "none"}"'))
    with pytest.raises(DataError, match=r"none.*, at scales.smoke.source \(line 44 of study.toml\)"):
        run_study(study, options(tmp_path))


def test_a_folder_of_another_study_is_not_written_to(finished: Run) -> None:
    with pytest.raises(OptionError, match=r"holds a run of 'small' on scale 'smoke'; choose another folder with --out"):
        run_study(Study.parse(SMALL.replace('name = "small"', 'name = "other"')), StudyOptions(out=finished.out))
    with pytest.raises(DataError, match="holds no run of a study"):
        open_run(finished.out / "figures")


@pytest.mark.parametrize("refusal", ["another run is writing", "another run wrote into", "no such executor"])
def test_a_refused_run_leaves_the_study_of_the_folder(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: str) -> None:
    shutil.copytree(finished.out, tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in ("study.toml", "run.json", LEDGER)}

    def refuse(*given: Any) -> None:
        raise OptionError("no such executor")

    with ExitStack() as stack:
        if refusal == "no such executor":
            monkeypatch.setattr("limbeck.study.running.make_executor", refuse)
        elif refusal == "another run is writing":
            stack.enter_context(Ledger(tmp_path / "out" / LEDGER))
        else:
            opened = Setting.open

            def overtaken(*given: Any, **more: Any) -> Setting:
                before["run.json"] = before["run.json"].replace(b'"only": []', b'"only": ["arm=hard"]')
                (tmp_path / "out" / "run.json").write_bytes(before["run.json"])
                return opened(*given, **more)

            monkeypatch.setattr("limbeck.study.running.Setting.open", overtaken)
        with pytest.raises(LimbeckError, match=refusal):
            run_study(Study.parse(small(students=3)), options(tmp_path, only=("arm=hard",)))
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"data": {}}, "data: train: field required"),
        ({"scale": "huge"}, "scale: input should be 'smoke', 'cpu' or 'paper', got 'huge'"),
        ({"threads": "x"}, "threads: input should be a valid integer, unable to parse string as an integer, got 'x'"),
        ({"plans": {"expert": {"lanez": 1}}}, "plans: expert: lanez: extra inputs are not permitted, got 1"),
        ("3", "input should be an object, got 3"),
        ('{"study": "sm', "invalid JSON: EOF while parsing a string at line 1 column 13"),
    ],
)
def test_damaged_settings_of_a_run_are_one_sentence(finished: Run, tmp_path: Path, content: Any, words: str) -> None:
    shutil.copytree(finished.out, tmp_path / "out")
    path = tmp_path / "out" / "run.json"
    path.write_text(content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content))
    before = path.read_bytes()
    for verb in (open_run, lambda out: resume_study(out, ExecutionOptions()), lambda out: run_study(Study.parse(SMALL), options(tmp_path))):
        with pytest.raises(DataError) as told:
            verb(tmp_path / "out")
        assert str(told.value) == (
            f"'{path}' is damaged ({words}); remove it, and `limbeck study run {path.parent / 'study.toml'} --out {path.parent}`, "
            "with the options that the run had, writes it anew and takes finished work from the cache"
        )
    assert path.read_bytes() == before


def test_transforms_and_methods_that_optimize_make_sets(tmp_path: Path) -> None:
    study = Study.parse(
        SMALL
        + """
[arms.swapped]
ipc = 1
at = "best"
labels = { kind = "soft" }
transforms = ["swap:rank=2", "remove-images:classes=3"]
[arms.learned]
method = "label-learning@smoke:steps=3"
"""
    )
    run = run_study(study, options(tmp_path, only=("arm=swapped", "arm=learned")))
    view = run.findings().view
    swapped, learned = (view.row(next(cell for cell in run.graph.cells if cell.arm == arm)) for arm in ("swapped", "learned"))
    made = run.artefacts.dataset(swapped)
    assert len(made) == swapped["measures"]["images"] == 9
    assert made.provenance["label_transforms"] == ["swap:rank=2", "remove-images:classes=3"]
    assert run.counts()["choose"] == (1, 1)
    assert run.artefacts.dataset(learned).provenance["optimization"]["steps"] == 3


def test_results_can_lie_behind_a_url(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    from limbeck.cache import Cache

    url = f"file://{tmp_path / 'far'}"
    here, there = Artefacts(Cache(tmp_path / "here"), url), Artefacts(Cache(tmp_path / "there"), url)
    row = ROW | {"key": "k", "files": ["study/k.bin"]}
    (tmp_path / "here" / "study").mkdir(parents=True)
    (tmp_path / "here" / "study" / "k.bin").write_bytes(b"set")
    assert there.find("k") is None
    here.keep(row)
    assert there.find("k") == row
    assert (tmp_path / "there" / "study" / "k.bin").read_bytes() == b"set"
    with pytest.raises(OptionError, match=r"the store 'nowhere://x' cannot be opened"):
        Artefacts.at("nowhere://x")


@pytest.fixture
def ray() -> Iterator[Any]:
    found = pytest.importorskip("ray")
    before = random.getstate()
    yield found
    found.shutdown()
    random.setstate(before)  # Ray draws from it


def test_ray_gives_the_same_ledger_though_a_worker_dies(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray: Any) -> None:
    deadly = tmp_path / "deadly"
    deadly.touch()

    def dies_once(tasks: list[dict[str, Any]], premises: dict[str, Any]) -> dict[str, Any]:
        """What a worker does, but the first that evaluates is killed. Inside the test, so that Ray sends the function and not its name."""
        from limbeck.study.ray_executor import _work

        if tasks[0]["kind"] == "evaluate" and deadly.exists():
            deadly.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return _work(tasks, premises)

    monkeypatch.setattr("limbeck.study.ray_executor._work", dies_once)
    run = run_study(Study.parse(SMALL), options(tmp_path, executor="ray", workers=2))
    assert not deadly.exists()
    assert run.ledger.canonical() == finished.ledger.canonical()
    assert not ray.is_initialized()
    assert json.loads((run.out / "run.json").read_text())["threads"] == 1


def test_a_worker_reports_a_problem_as_its_sentence(tmp_path: Path) -> None:
    from limbeck.study.ray_executor import _work

    premises = {"source": "digits", "open": {}, "pixels": "raw", "seed": 0, "cache": str(tmp_path), "digests": {"train": "other"}}
    task = {"kind": "expert", "key": "k", "settings": {"model": "softmax"}, "inputs": {}, "words": "main 0"}
    assert "are not those that the study was planned on" in _work([task], premises)["problem"]


def test_a_diverged_student_is_counted_and_has_no_loss(tmp_path: Path) -> None:
    study = Study.parse(SMALL.replace("lr = 0.1", "lr = 1e30"))
    row = run_study(study, options(tmp_path, only=("arm=hard,ipc=1",))).ledger.rows
    measured = next(entry for entry in row.values() if entry["kind"] == "evaluate")
    assert measured["facts"]["diverged"] == 2
    assert measured["measures"]["loss"] == [None, None]
    assert torch.tensor(measured["measures"]["accuracy"]).isfinite().all()
