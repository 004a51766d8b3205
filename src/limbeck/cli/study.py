"""``limbeck study``: runs experiments that are written down as files."""

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from limbeck.study.study_options import ExecutionOptions, StudyOptions

if TYPE_CHECKING:
    from limbeck.study.running import Run

app = App(name="study", help="Run, resume and report experiments that are written as study files.")

Flat = Parameter(name="*")
File = Annotated[Path, Parameter(help="a study file, such as studies/label-worth/figure-2.toml")]
Folder = Annotated[Path, Parameter(help="the folder of a run: runs/studies/NAME-SCALE")]
Json = Annotated[bool, Parameter(negative="", help="print the result as JSON on stdout, and nothing else there")]


@app.command
def run(file: File, /, *, options: Annotated[StudyOptions, Flat] = StudyOptions(), json: Json = False) -> None:  # noqa: B008 (frozen)
    """Do every task of a study that is not finished, then write its report; with --dry-run only price it."""
    from limbeck.cli.console import TerminalReporter
    from limbeck.study.running import price_study, run_study
    from limbeck.study.spec import Study

    study = Study.load(file)
    if options.dry_run:
        estimate = price_study(study, options)
        if json:
            return _print_json(estimate.to_dict())
        from limbeck.cli.console import STDOUT, print_table

        rows = [[line.kind, line.tasks, f"{line.steps:,}", f"{line.operations:.2e}", _duration(line.seconds)] for line in estimate.lines]
        print_table(f"{study.file.name}, {options.scale}", ["task", "tasks", "gradient steps", "operations", "time"], rows)
        STDOUT.print(f"{estimate.words}\nstated: {estimate.stated}", markup=False, soft_wrap=True)
        return None
    return _show(run_study(study, options, TerminalReporter()), json)


@app.command
def resume(
    folder: Folder,
    /,
    *,
    options: Annotated[ExecutionOptions, Flat] = ExecutionOptions(),  # noqa: B008 (frozen)
    json: Json = False,
) -> None:
    """Go on with a run, as it was last asked for (with the same --only), and write its report; `study run` without --only does the rest."""
    from limbeck.cli.console import TerminalReporter
    from limbeck.study.running import resume_study

    _show(resume_study(folder, options, TerminalReporter()), json)


@app.command
def status(folder: Folder, /, *, json: Json = False) -> None:
    """How many tasks of a run are finished, and what its claims say so far."""
    from limbeck.study.running import open_run

    found = open_run(folder)
    if json:
        return _print_json(found.to_dict())
    return _print(found)


@app.command
def report(folder: Folder, /, *, json: Json = False) -> None:
    """Write a run's report and its Parquet table again, from what is measured so far."""
    from limbeck.study.running import open_run, write_rows

    found = open_run(folder)
    write_rows(found)
    _show(found, json)


def _show(found: "Run", json: bool) -> None:
    from limbeck.cli.console import STDOUT
    from limbeck.report.study import write_study_report

    page = write_study_report(found)
    if json:
        return _print_json({**found.to_dict(), "report": str(page)})
    _print(found)
    STDOUT.print(f"ledger: {found.ledger.path}\nreport: {page}", markup=False, soft_wrap=True)
    return None


def _print(found: "Run") -> None:
    from limbeck.cli.console import STDOUT, print_table

    findings = found.findings()
    rows = []
    for claim in found.study.file.claims:
        answer, words = findings.answer(claim.id)
        rows.append([answer, claim.sentence, words])
    if rows:
        print_table("", ["verdict", "claim", "measured, with 95 % interval"], rows)
    words = ", ".join(f"{kind} {done} of {total}" for kind, (done, total) in found.counts().items())
    now = f"; {found.done} done now, {found.reused} were finished before" if found.done or found.reused else ""
    STDOUT.print(f"tasks: {words}{now}", markup=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _print_json(value: Any) -> None:
    print(json_module.dumps(value, indent=2, sort_keys=True, allow_nan=False))
