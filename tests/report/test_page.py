import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from limbeck.errors import FileFormatError, LimbeckError
from limbeck.report.page import render, write_report

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "</script><b>", "{{ 7*7 }}", "'\\u2028 \u2028&amp;")
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would make of a page: its tags in order, their attributes, the text outside of scripts and styles; tags must nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        place = self.open[-1] if self.open else ""
        self.raw.get(place, self.texts).append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture(scope="module")
def page(make_run) -> Page:
    return Page(render(*make_run())[0])


def test_the_page_loads_nothing(page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "data", "srcset", "action"):
                assert (value or "").startswith(("#", "data:image/")), (tag, name, value)
            elif not name.startswith("xmlns"):
                assert "http://" not in (value or "")
                assert "https://" not in (value or "")
    for text in page.raw["style"] + page.raw["script"]:
        assert not re.search(r"https?://|@import|fetch\(|XMLHttpRequest", text)
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_numbers_come_with_interval_protocol_repeats_and_bytes(page, run) -> None:
    record, dataset = run
    for entry in record["evaluations"]:
        shown = entry["interval_95"]
        assert f"{100 * shown['mean']:.1f} ± {50 * (shown['high'] - shown['low']):.1f}" in page.text
    for expected in (
        "dc/1",
        "5 students",
        "95 % interval, covers students",
        "10,000 test images",
        "6,400",
        "4,100",
        "10,500",
        "366× smaller",
        "85.8",
        "89.9",
    ):
        assert expected in page.text.replace("\u00a0", " "), expected
    assert dataset.digest in page.text


def test_ids_are_unique_and_every_chart_and_image_is_described(page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all("alt" in attributes for tag, attributes in page.tags if tag == "img")
    charts = [attributes for _, attributes in page.tags if attributes.get("class") in ("wide", "narrow")]
    assert len(charts) == 8
    assert all(chart["role"] == "img" and len(chart["aria-label"]) > 40 for chart in charts)


def test_every_image_is_a_button_with_its_label(page, run) -> None:
    _, dataset = run
    buttons = [attributes for tag, attributes in page.tags if tag == "button"]
    assert [int(button["data-label"]) for button in buttons] == list(range(100))
    data = json.loads(page.raw["script"][0])
    assert len(data) == 100
    name, text, _, own, negative = data[0]["bars"][0]
    best = int(dataset.targets()[0].argmax())
    assert (name, own, negative) == (dataset.classes[best], int(best == int(dataset.owners[0])), 0)
    assert float(text) == pytest.approx(float(dataset.targets()[0, best]), abs=6e-4)


def test_hostile_names_stay_text(make_run) -> None:
    record, dataset = make_run((2,) * 5, classes=HOSTILE)
    record.update(title="</title><script>alert(3)</script>", command="<b>x</b>", machine="</details><i>")
    record["evaluations"][0]["name"] = "</text></svg><script>alert(4)</script>"
    record["expert"]["model"] = "<i>convnet"
    page = Page(render(record, dataset)[0])
    assert [tag for tag, _ in page.tags if tag in ("script", "b", "i")].count("script") == 2
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert not any("alert(" in text for text in page.raw["script"][1:] + page.raw["style"])
    assert all(name in page.text or name.replace("\u2028", " ") in page.text for name in HOSTILE[:4])
    assert json.loads(page.raw["script"][0])[0]["bars"][0][0] in HOSTILE


def test_equal_runs_give_equal_bytes(make_run, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        assert write_report(*make_run(), tmp_path / folder) == tmp_path / folder / "report.html"
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert [file.as_posix() for file in files] == sorted(
        ["report.html", "figures/images.png"]
        + [f"figures/{name}.{kind}" for name in ("accuracy", "snapshots", "label-matrix", "label-entropy") for kind in ("svg", "png")]
    )
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_a_thousand_images_stay_below_five_megabytes(make_run) -> None:
    html, _ = render(*make_run((100,) * 10, (1, 28, 28)))
    assert len(html.encode()) < 5_000_000
    assert "300 of 1,000 images: the first of each class." in Page(html).text


def test_a_run_without_evaluations_or_expert(make_run) -> None:
    record, dataset = make_run((2,) * 3, kind="hard")
    html, figures = render({**record, "evaluations": [], "expert": None}, dataset)
    assert figures == []
    page = Page(html)
    assert "This set has not been evaluated" in page.text
    assert "The labels are hard: each image counts for its own class alone." in page.text
    assert not any(attributes.get("id") in ("accuracy", "expert") for _, attributes in page.tags)


def test_the_smallest_record(run) -> None:
    record, _ = run
    needed = ("format", "source", "method", "label_rule", "counts", "bytes")
    page = Page(render({key: record[key] for key in needed}, None)[0])
    assert "fashion-mnist, random-real" in page.text


def test_an_expert_without_recorded_training(run) -> None:
    record, dataset = run
    record["expert"].update(snapshots=[], trials=[], chosen_step=None, chosen_by="given")
    html, figures = render(record, dataset)
    assert "Its training was not recorded, so there are no snapshots to show." in Page(html).text
    assert "snapshots" not in [figure.name for figure in figures]


def test_single_students_have_no_interval(make_run) -> None:
    record, dataset = make_run(students=(1, 1, 1))
    text = Page(render(record, dataset)[0]).text
    assert "nothing repeated, so no interval" in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_a_difference_that_does_not_exclude_zero_says_so(run) -> None:
    record, dataset = run
    accuracy = np.array(record["evaluations"][0]["accuracy"])
    record["evaluations"][2]["accuracy"] = (accuracy + 0.02 * np.array([1, -1, 1, -1, 0])).tolist()
    assert "points, which does not exclude zero (paired;" in Page(render(record, dataset)[0]).text


@pytest.mark.parametrize("kind", ["logit", "centered", "free", "log-probability"])
def test_other_kinds_of_labels(make_run, kind: str) -> None:
    text = Page(render(*make_run((3,) * 4, kind=kind))[0]).text
    assert ("are no probability distributions" in text) == (kind != "log-probability")


def test_an_unwritable_folder_is_named(run, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(LimbeckError, match=r"cannot write .*choose another folder with --out"):
        write_report(*run, tmp_path / "taken")


def test_a_record_of_another_format_is_refused(run, tmp_path: Path) -> None:
    record, dataset = run
    with pytest.raises(FileFormatError, match="a result of format None cannot be reported"):
        write_report({**record, "format": None}, dataset, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_its_budget_ended_says_so(run) -> None:
    record, dataset = run
    whole, _ = render({**record, "optimization": {"steps": 1200, "curve": []}}, dataset)
    assert "<dt>Steps</dt><dd>1,200</dd>" in whole
    assert "stopped by" not in whole
    cut, _ = render({**record, "optimization": {"steps": 233, "total": 1200, "curve": []}}, dataset)
    assert "Distilling was stopped by --budget after 233 of 1,200 steps: the set is not finished." in cut
    assert "<dt>Steps</dt><dd>stopped by --budget after 233 of 1,200 steps</dd>" in cut


def test_a_set_that_learned_its_rate_is_not_said_to_be_trained_in_the_same_way(run) -> None:
    record, dataset = run
    html, _ = render(record, dataset)
    assert "trained and measured in the same way" in html
    record["protocol"] = {"recipe": {"lr": 0.01}}
    distilled = record["evaluations"][0]
    distilled |= {"rate": "learned", "recipe": {**distilled["recipe"], "lr": 0.0309}}
    html, _ = render(record, dataset)
    assert "dc/1, learned rate 0.031" in html
    assert "trained on this set alone at its learned rate 0.031 reach" in html
    assert "measured in the same way and trained at the protocol’s learning rate" in html
    assert "trained and measured in the same way" not in html


@pytest.mark.parametrize(
    ("changes", "heading", "row"),
    [
        ({}, "The expert that labels", "expert that labels, step 211"),
        ({"use": "baseline"}, "The expert behind the random images", "expert behind the random images, step 211"),
        ({"use": "images"}, "The expert behind the images", "expert behind the images, step 211"),
        ({"chosen_by": "matched, not asked for labels", "chosen_step": None, "test_accuracy": None, "trials": []}, "Experts that are matched", ""),
    ],
)
def test_the_expert_is_said_to_do_what_it_does(run, changes: dict, heading: str, row: str) -> None:
    record, dataset = run
    html, _ = render({**record, "expert": {**record["expert"], **changes}}, dataset)
    assert f'<h2 id="h-expert">{heading}</h2>' in html
    assert row in html
    assert ("students trained on labels from that snapshot" in html) == bool({**record["expert"], **changes}["trials"])
