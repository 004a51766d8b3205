"""Pages of measured studies: ``python -m benchmarks.studies_page [RUN ...]``.

Each RUN, a finished folder of `limbeck study run`, is recorded in ``benchmarks/results/studies/GROUP/NAME-SCALE.json`` with its figures beside the page; then
``docs/results/GROUP.md`` is written for every group of studies that has a record: each claim with what is expected, what was measured and the verdict, and the
figures. What we think of the answers stands in ``benchmarks/results/studies/GROUP/discussion.toml``: under a study's name, paragraphs by the claim that they are
about.
"""

import argparse
import json
import re
import shutil
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck import store
from limbeck.report.words import duration
from limbeck.study.running import Run, open_run
from limbeck.study.spec import Study

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "studies"
PAGES = ROOT / "docs" / "results"
TITLES = {
    "label-worth": (
        "The label paper, measured",
        "../label-worth.md",
        "*A Label is Worth a Thousand Images in Dataset Distillation* (arXiv 2406.10485)",
    ),
    "what-is-learned": ("What distilled data learned, measured", "../analyses.md", "*What is Dataset Distillation Learning?* (arXiv 2406.04284)"),
    "uses": ("What distilled sets are good for, measured", "../studies.md", "studies of our own"),
}


def main() -> None:
    """Records the runs and writes the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, help="finished folders of `limbeck study run`")
    for folder in parser.parse_args().runs:
        record(folder)
    for group in TITLES:
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RECORDS / group).glob("*.json"), key=_natural)]
        if found:
            (PAGES / f"{group}.md").write_text(page(group, found), encoding="utf-8")


def record(folder: Path) -> None:
    """Writes a run's record and copies its figures."""
    run = open_run(folder)
    made = run.to_dict()
    group, _, name = made["study"].rpartition("/")
    figures = PAGES / "figures" / f"{group or 'uses'}-{name}"
    shutil.rmtree(figures, ignore_errors=True)
    figures.mkdir(parents=True)
    drawn: dict[str, list[str]] = {key: [] for key in made["analyses"]}
    for path in sorted((folder / "figures").glob("*.svg")):
        owner = max((key for key in drawn if path.name.startswith(f"{key}-")), key=len)  # an id may begin as another does
        drawn[owner].append(path.name)
        shutil.copy(path, figures / path.name)
    kept = {key: made[key] for key in ("study", "scale", "tasks", "claims")} | {"settings": _settings(run.study, run.scale)}
    kept |= {"figures": drawn, "titles": {key: value["title"] for key, value in made["analyses"].items()}, **_cost(run)}
    target = RECORDS / (group or "uses") / f"{name}-{made['scale']}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _settings(study: Study, scale: str) -> str:
    """A digest of what a study runs at a scale, without its words and claims: a record of other settings does not belong beside the file."""
    arms = {name: arm.model_dump(mode="json", exclude={"note"}) for name, arm in study.file.arms.items()}
    return store.digest_of({"arms": arms, "scale": study.file.scales[scale].model_dump(mode="json", exclude={"cost"})})


def _cost(run: Run) -> dict[str, Any]:
    rows = [run.ledger.rows[key] for key in run.graph.tasks if key in run.ledger.rows]
    seconds: Counter[str] = Counter()
    for row in rows:
        seconds[row["kind"]] += row["seconds"]
    return {"seconds": dict(seconds), "machine": sorted({row["machine"]["architecture"] for row in rows})}


def page(group: str, records: Sequence[Mapping[str, Any]]) -> str:
    """The page of a group of studies."""
    title, about, source = TITLES[group]
    lines = [
        f"# {title}",
        "",
        f"Generated from the records in `benchmarks/results/studies/{group}` by `python -m benchmarks.studies_page`; see "
        f"[what is asked and how to read it]({about}). Claims are those of {source}; each was written into its study file before the run, "
        "unless the study says otherwise. Intervals are 95 %.",
        "",
        "A claim that fails on this scale says that it does not carry over to this problem and size.",
        "",
        *_overview(records),
    ]
    measured = {made["study"].rpartition("/")[2] for made in records}
    left = [f"`{path.stem}`" for path in sorted((ROOT / "studies" / group).glob("*.toml")) if path.stem not in measured]
    lines += [f"Not measured yet: {', '.join(left)}.", ""] if left else []
    path = RECORDS / group / "discussion.toml"
    thoughts = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for made in records:
        lines += _study(group, made, thoughts.get(made["study"].rpartition("/")[2], {}))
    return "\n".join(lines).rstrip() + "\n"


def _overview(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many claims of each study have which verdict, with a link to it."""
    lines, whole = ["| study | question | claims | hold | undecided | fail |", "|---|---|---|---|---|---|"], Counter[str]()
    for made in records:
        study = Study.load(ROOT / "studies" / f"{made['study']}.toml").file
        answers = Counter(claim["answer"] for claim in made["claims"].values())
        whole += answers
        name, anchor = made["study"].rpartition("/")[2], _anchor(study.title)
        lines.append(f"| [{name}](#{anchor}) | {study.question} | {_counts(answers)} |")
    return [*lines, f"| all {len(records)} | | {_counts(whole)} |", ""]


def _counts(answers: Counter[str]) -> str:
    return " | ".join(str(count) for count in (answers.total(), *(answers[answer] for answer in ("holds", "undecided", "fails"))))


def _anchor(title: str) -> str:
    """What a heading is linked by, on the page and on GitHub."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def _natural(path: Path) -> list[str | int]:
    """Names in the order of their numbers: figure 2 before figure 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]


def _study(group: str, made: Mapping[str, Any], thoughts: Mapping[str, str]) -> list[str]:
    name = made["study"]
    whole = Study.load(ROOT / "studies" / f"{name}.toml")
    study = whole.file
    settings = study.scales[made["scale"]]
    claims = {claim.id: claim for claim in study.claims}
    cost = ", ".join(f"{kind} {duration(seconds)}" for kind, seconds in made["seconds"].items())
    lines = [
        f"## {study.title}",
        "",
        f"{study.question} After {study.paper}.",
        "",
        f"`limbeck study run studies/{name}.toml --scale {made['scale']}`: {settings.source}, {settings.model}, protocol {settings.protocol}, students of each "
        f"set: {settings.students} unless an arm says otherwise. Seconds of tasks, whenever they were made: {cost}.",
        "",
        *([] if made.get("settings") == _settings(whole, made["scale"]) else ["**Measured with other settings than the file has now.**", ""]),
        "| claim | expected | measured | covers | verdict |",
        "|---|---|---|---|---|",
    ]
    for key in filter(made["claims"].__contains__, claims):
        verdict = made["claims"][key]
        interval = verdict["interval_95"]
        covers = interval["covers"] if interval else ""
        lines.append(f"| {claims[key].sentence} | {claims[key].expected} | {verdict['words']} | {covers} | **{verdict['answer']}** |")
    lines += ["", *(f"{text}\n" for text in thoughts.values()), "How this differs from what was published:", ""]
    lines += [*(f"- {text}" for text in study.deviations), ""]
    for key, files in made["figures"].items():
        readings = [entry.options.get("reading", "") for entry in study.analyses if entry.id == key]
        for file in files:
            lines += [f"![{made['titles'][key]}](figures/{group}-{name.rpartition('/')[2]}/{file})", ""]
        lines += [" ".join(filter(None, readings)), ""] if any(readings) else []
    return lines


if __name__ == "__main__":
    main()
