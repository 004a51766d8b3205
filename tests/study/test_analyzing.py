"""The job behind `limbeck analyze`: options, what is kept, what is skipped, and what is written."""

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.analyze import ANALYSES
from limbeck.analyze.subject import NotApplicable
from limbeck.cache import Cache
from limbeck.errors import OptionError
from limbeck.progress import SILENT
from limbeck.study.analyze_options import AnalyzeOptions
from limbeck.study.analyzing import analyze_file, chosen_names, make_analysis
from limbeck.study.distill import FILE, distill
from limbeck.study.options import DistillOptions
from limbeck.types.distilled import DistilledDataset
from limbeck.types.measurement import Measurement

SMALL = (
    "recognition:models=softmax,mlp-d1-w16",
    "recognition:epochs=2",
    "recognition:seeds=1",
    "recognition:snapshots=4",
    "recognition:test_images=100",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    options = DistillOptions(ipc="2", model="softmax", expert_epochs=2, protocol="tiny", evaluate=False)
    distill("digits", options, out, cache=Cache(out / "cache"))
    return out


def options(*texts: str, **given: Any) -> AnalyzeOptions:
    return AnalyzeOptions(option=texts, protocol="tiny", **given)


def test_options_are_read_as_their_fields_are_typed() -> None:
    made: Any = make_analysis("recognition", options(*SMALL, "recognition:test_images=none", seeds=4))
    assert (made.options.models, made.options.epochs, made.options.test_images) == (("softmax", "mlp-d1-w16"), 2, None)
    assert made.options.seeds == 1  # an option of the analysis comes before --seeds
    plain: Any = make_analysis("recognition", options('recognition:models=["convnet:width=8,depth=1"]', seeds=4))
    assert (plain.options.models, plain.options.seeds) == (("convnet:width=8,depth=1",), 4)


@pytest.mark.parametrize(
    ("names", "texts", "sentence"),
    [
        (("recognitio",), (), "unknown analysis 'recognitio'; did you mean 'recognition'?"),
        (
            ("mixing",),
            ("recognition:epochs=2",),
            "--option recognition:epochs=2 is for 'recognition', which is not run; add recognition to the command",
        ),
        (("recognition",), ("recognition:epoch=2",), "analysis recognition has no option 'epoch'; did you mean 'epochs'?"),
        (("recognition",), ("recognition:epochs",), "options of analyses are written NAME:KEY=VALUE, got 'recognition:epochs'"),
        (("recognition",), ("recognition:epochs=0",), "option epochs of analysis recognition: input should be greater than or equal to 1, got '0'"),
        (("recognition",), ("recognition:models=[a]",), "a list in brackets is JSON, got [a]"),
    ],
)
def test_wrong_options_are_one_sentence(names: tuple[str, ...], texts: tuple[str, ...], sentence: str) -> None:
    def read() -> None:
        for name in chosen_names(names, options(*texts)):
            make_analysis(name, options(*texts))

    with pytest.raises(OptionError) as caught:
        read()
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_and_names_do_not_go_together() -> None:
    with pytest.raises(OptionError, match="^--all runs every analysis, so there is no need to name mixing; leave out one of the two$"):
        chosen_names(("mixing",), options(all=True))
    assert chosen_names((), options(all=True)) == list(ANALYSES)
    assert chosen_names(("mixing", "mixing"), options()) == ["mixing"]


def test_a_measurement_is_written_kept_and_read_again(run: Path, tmp_path: Path) -> None:
    cache = Cache(run / "cache")
    first = analyze_file(run / FILE, ["recognition"], options(*SMALL), tmp_path, cache=cache)
    written = json.loads((tmp_path / "recognition.json").read_text())
    assert Measurement.from_dict(written).to_dict() == written
    assert not first.outcomes[0].kept
    (tmp_path / "recognition.json").unlink()
    again = analyze_file(run / FILE, ["recognition"], options(*SMALL), tmp_path, cache=cache)
    assert again.outcomes[0].kept
    assert json.loads((tmp_path / "recognition.json").read_text()) == written
    other = analyze_file(run / FILE, ["recognition"], options(*SMALL, "recognition:map_images=3"), tmp_path, cache=cache)
    assert not other.outcomes[0].kept
    assert first.title == "distilled.safetensors on digits"
    assert first.subject.labeler is not None  # the expert that labeled the file


def test_the_networks_it_compares_with_are_not_the_expert_that_labeled(run: Path) -> None:
    cache = Cache(run / "cache")
    found = analyze_file(run / FILE, ["recognition"], options(*SMALL), run / "analysis", cache=cache)
    labeler = found.subject.labeler
    assert labeler is not None
    trajectory = found.subject.trajectories(found.subject.network, found.subject.recipe.with_(steps=1), 0, (0, 1), SILENT)
    assert trajectory.at(0).digest != labeler.digest


def test_what_cannot_be_done_is_skipped_with_its_sentence_when_all_are_asked_for(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DistilledDataset.load(run / FILE)
    kept = whole.owners == 3
    one = DistilledDataset(
        **{**vars(whole), "images": whole.images[kept], "owners": whole.owners[kept], "labels": whole.labels.select(kept.nonzero()[:, 0])}
    )
    one.save(tmp_path / "one.safetensors")
    monkeypatch.setattr(ANALYSES, "_entries", {name: ANALYSES._entries[name] for name in ("recognition", "mixing", "agreement")})
    found = analyze_file(tmp_path / "one.safetensors", [], options(*SMALL, all=True), tmp_path, cache=Cache(run / "cache"))
    refusals = {outcome.name: outcome.refusal for outcome in found.outcomes}
    assert refusals["recognition"] == ""
    assert refusals["agreement"] == "agreement needs images of at least two classes, and all of this set's are of '3'"
    assert (tmp_path / "recognition.json").exists()
    assert not (tmp_path / "mixing.json").exists()
    with pytest.raises(NotApplicable, match="^mixing needs images of at least two classes"):
        analyze_file(tmp_path / "one.safetensors", ["mixing"], options(), tmp_path, cache=Cache(run / "cache"))


def test_the_page_shows_what_was_measured_before_and_settings_say_on_what(run: Path, tmp_path: Path) -> None:
    cache = Cache(run / "cache")
    small = (*SMALL, "agreement:seeds=1", "agreement:runs=1", "agreement:snapshots=3", "agreement:subset_sizes=1", "agreement:resamples=20")
    analyze_file(run / FILE, ["recognition"], options(*SMALL), tmp_path, cache=cache)
    both = analyze_file(run / FILE, ["agreement"], options(*small[5:]), tmp_path, cache=cache)
    assert [outcome.name for outcome in both.earlier] == ["recognition"]
    about = json.loads((tmp_path / "agreement.json").read_text())["settings"]["subject"]
    assert about["set"] == DistilledDataset.load(run / FILE).digest
    assert (about["network"], about["protocol"]) == ("softmax", "tiny/1")
    other = analyze_file(run / FILE, ["agreement"], options(*small[5:]), tmp_path, cache=cache, seed=5)
    assert other.earlier == ()  # of another subject


def test_a_changed_file_of_attributes_is_measured_anew(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "odd.csv"
    small = tuple(
        f"semantics:{text}" for text in (f"attributes=csv:{file}:odd", "model=softmax", "steps=5", "noise_points=1", "shuffles=20", "least=1")
    )
    seen = []
    for share in (3, 4, 4):
        file.write_text("index,odd\n" + "".join(f"{row},{int(row % share == 0)}\n" for row in range(200)))
        found = analyze_file(run / FILE, ["semantics"], options(*small), tmp_path / "out", cache=Cache(run / "cache"))
        seen.append(found.outcomes[0])
    assert [outcome.kept for outcome in seen] == [False, False, True]
