"""The verb `analyze`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from limbeck.cli.verbs import Flat, Json, _print_json, _reporter
from limbeck.study.analyze_options import AnalyzeOptions


def analyze(
    file: Annotated[Path, Parameter(help="a distilled .safetensors file")],
    /,
    *names: Annotated[str, Parameter(help="analyses to run; none: list what there is")],
    source: Annotated[str | None, Parameter(help="compare with this source instead of the file's own")] = None,
    model: Annotated[str | None, Parameter(help="architecture of the students; default: the file's own")] = None,
    options: Annotated[AnalyzeOptions, Flat] = AnalyzeOptions(),  # noqa: B008 (frozen)
    seed: Annotated[int | None, Parameter(help="root of every random stream; default: the file's own")] = None,
    out: Annotated[Path | None, Parameter(help="folder for the results; default: analysis, beside the file")] = None,
    json: Json = False,
) -> None:
    """Ask what a distilled set has learned: recognition, mixing with real images, agreement with early-stopped networks, and more."""
    from limbeck.analyze import ANALYSES
    from limbeck.cli.console import STDOUT, print_table

    if not names and not options.all:
        summaries = {name: ANALYSES[name].summary for name in ANALYSES}
        if json:
            return _print_json(summaries)
        print_table("analyses", ["name", "what it asks"], [[name, summary] for name, summary in summaries.items()])
        STDOUT.print(f"run some by name, or all: limbeck analyze {file} --all", markup=False, soft_wrap=True)
        return

    from limbeck.report.analysis import quantity_rows, write_analysis
    from limbeck.study.analyzing import analyze_file

    folder = out or file.parent / "analysis"
    found = analyze_file(file, names, options, folder, source=source, model=model, seed=seed, reporter=_reporter())
    page = write_analysis(found.title, [*found.outcomes, *found.earlier], found.subject, folder)
    if json:
        shown = {
            outcome.name: outcome.measurement.to_dict() if outcome.measurement else {"analysis": outcome.name, "skipped": outcome.refusal}
            for outcome in found.outcomes
        }
        return _print_json({"analyses": shown, "page": str(page)})
    for outcome in found.outcomes:
        if outcome.measurement is None:
            STDOUT.print(f"skipped {outcome.name}: {outcome.refusal}", markup=False, soft_wrap=True)
            continue
        print_table(
            ANALYSES[outcome.name].summary, ["quantity", "of", "value", "unit"], quantity_rows(outcome.measurement, ANALYSES[outcome.name].headline)
        )
        for note in outcome.measurement.notes:
            STDOUT.print(f"note: {note}", markup=False, soft_wrap=True)
        kept = ", measured before" if outcome.kept else ""
        STDOUT.print(f"{outcome.name}: {folder / (outcome.name + '.json')}{kept}", markup=False, soft_wrap=True)
    STDOUT.print(f"page: {page}", markup=False, soft_wrap=True)
