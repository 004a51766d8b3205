"""The verbs of the command line: each parses what the user typed, calls one function of the library, and prints."""

import json as json_module
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from limbeck.errors import OptionError, nearest
from limbeck.study.options import DistillOptions, EvaluateOptions, ImportOptions, ScoreOptions

if TYPE_CHECKING:
    from limbeck.progress import Reporter
    from limbeck.types.evaluation import Interval

Flat = Parameter(name="*")
Json = Annotated[bool, Parameter(negative="", help="print the result as JSON on stdout, and nothing else there")]
Out = Annotated[Path | None, Parameter(help="where to write")]


def _reporter() -> "Reporter":
    from limbeck.cli.console import TerminalReporter

    return TerminalReporter()


def _print_json(value: Any) -> None:
    print(json_module.dumps(value, indent=2, sort_keys=True, allow_nan=False))


def demo(*, out: Out = None, json: Json = False) -> None:
    """Distill handwritten digits end to end in under a minute: expert, chosen labels, file, evaluation, report."""
    options = DistillOptions(ipc="1", model="convnet-d2-w64", expert_epochs=10, students=2, draws=5)
    _distill("digits", options, out or Path("runs/demo"), json)


def distill(
    source: Annotated[
        str, Parameter(help="digits, fashion-mnist, composed:fashion-mnist, a folder of class folders, an .npz or .parquet file, hf:NAME")
    ],
    /,
    *,
    out: Out = None,
    options: Annotated[DistillOptions, Flat] = DistillOptions(),  # noqa: B008 (frozen)
    json: Json = False,
) -> None:
    """Distill a source into one file of a few images per class, evaluate it beside its baselines, and write a report."""
    _distill(source, options, out or _run_folder(source, options), json)


def _distill(source: str, options: DistillOptions, out: Path, json: bool) -> None:
    from limbeck.cli.console import STDOUT, bytes_words, print_evaluations
    from limbeck.report.page import write_report
    from limbeck.study.distill import FILE, distill

    command = " ".join(["limbeck", *(shlex.quote(part) for part in sys.argv[1:])])
    dataset, record = distill(source, options, out, reporter=_reporter(), command=command)
    page = write_report(record, dataset, out)
    if json:
        _print_json({**record, "file": str(out / FILE), "report": str(page)})
        return
    if record["evaluations"]:
        print_evaluations(record)
    size, full = dataset.bytes["total"], record["full_data_bytes"]
    STDOUT.print(
        f"{len(dataset)} images, {bytes_words(size)} of pixels and labels ({full / size:.0f} times smaller than train), digest {dataset.digest[:16]}",
        markup=False,
        soft_wrap=True,
    )
    STDOUT.print(f"file:   {out / FILE}\nreport: {page}\ntook {record['seconds']['total']:.0f} s", markup=False, soft_wrap=True)


def evaluate(
    file: Annotated[Path, Parameter(help="a distilled .safetensors file")],
    /,
    *,
    source: Annotated[str | None, Parameter(help="evaluate on this source instead of the file's own")] = None,
    model: Annotated[str | None, Parameter(help="architecture of the students; default: the file's own")] = None,
    labels: Annotated[
        Literal["stored", "hard", "both"], Parameter(help="use the stored labels, the class of each image alone, or one after the other")
    ] = "stored",
    options: Annotated[EvaluateOptions, Flat] = EvaluateOptions(),  # noqa: B008 (frozen)
    seed: Annotated[int | None, Parameter(help="root of every random stream; default: the file's own")] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Train students on a distilled file and measure them on the test split, beside random real images."""
    from limbeck.cli.console import STDOUT, print_evaluations
    from limbeck.study.judge import evaluate_file, refuse_overwriting, write_record

    target = out or file.parent / f"{file.stem}-{options.protocol}{'' if labels == 'stored' else f'-{labels}'}.json"
    refuse_overwriting(file, target)
    if target.is_dir():
        raise OptionError(f"--out names a folder, {str(target)!r}; evaluate writes one JSON file, so give its name")
    record = evaluate_file(
        file,
        options,
        source=source,
        source_options=options,
        model=model,
        labels=labels,
        seed=seed,
        expert_file=options.expert_file,
        reporter=_reporter(),
    )
    write_record(target, record)
    if json:
        return _print_json(record)
    print_evaluations(record)
    STDOUT.print(f"record: {target}", markup=False, soft_wrap=True)


def score(
    file: Annotated[Path, Parameter(help="a distilled .safetensors file")],
    /,
    *,
    source: Annotated[str | None, Parameter(help="score on this source instead of the file's own")] = None,
    model: Annotated[str | None, Parameter(help="architecture of the students; default: the file's own")] = None,
    options: Annotated[ScoreOptions, Flat] = ScoreOptions(),  # noqa: B008 (frozen)
    seed: Annotated[int | None, Parameter(help="root of every random stream; default: the file's own")] = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Label-robust and augmentation-robust scores of a distilled file, with every component (after DD-Ranking, with accuracies as fractions)."""
    from limbeck.cli.console import STDOUT, print_score
    from limbeck.study.judge import refuse_overwriting, write_record
    from limbeck.study.scoring import score_file

    target = out or file.parent / f"{file.stem}-score-{options.protocol}.json"
    refuse_overwriting(file, target)
    if target.is_dir():
        raise OptionError(f"--out names a folder, {str(target)!r}; score writes one JSON file, so give its name")
    record = score_file(file, options, source=source, model=model, seed=seed, reporter=_reporter())
    write_record(target, record)
    if json:
        return _print_json(record)
    print_score(record["score"])
    STDOUT.print(f"record: {target}", markup=False, soft_wrap=True)


def import_(
    path: Annotated[Path, Parameter(help="a file or folder of DC, DM, MTT, SRe2L, or of plain tensors")],
    /,
    *,
    options: Annotated[ImportOptions, Flat] = ImportOptions(),  # noqa: B008 (frozen)
    out: Out = None,
    json: Json = False,
) -> None:
    """Turn a distilled set of another program into a limbeck file, without running any code of its files."""
    from limbeck.cli.catalog import explanation
    from limbeck.cli.console import STDOUT
    from limbeck.study.importing import import_set

    target = out or Path(f"{path.resolve().stem}-imported.safetensors")
    dataset = import_set(path, options, target, reporter=_reporter())
    if json:
        return _print_json({"file": str(target), "digest": dataset.digest, "images": len(dataset), "provenance": dict(dataset.provenance)})
    STDOUT.print(explanation(str(target)), markup=False, soft_wrap=True)


def compare(
    *results: Annotated[Path, Parameter(help="run folders or result files; one alone is compared with its own baselines")], json: Json = False
) -> None:
    """Paired differences in accuracy between results, with 95 % intervals."""
    from limbeck.cli.console import percent, print_table
    from limbeck.study.judge import compare_rows, load_record

    if not results:
        raise OptionError("compare needs one or more run folders or result files, got none; for example: limbeck compare runs/a runs/b")
    rows, reporter = [], _reporter()
    for path in results:
        label = path.name if path.is_dir() else f"{path.parent.name}/{path.name}"
        named = [(f"{label}: {row['role']}", row) for row in load_record(path)["evaluations"]]
        rows += named if len(results) == 1 else [(name, row) for name, row in named if row["role"] == "distilled"]
    found = []
    for i, (first_name, first) in enumerate(rows):
        for second_name, second in rows[i + 1 :]:
            if first["model"] != second["model"]:
                continue
            difference = compare_rows(first, second)
            if first["recipe"] != second["recipe"]:
                reporter.note(
                    f"{first_name} and {second_name} were trained with different recipes (learning rates {first['recipe']['lr']:g} and {second['recipe']['lr']:g})"
                )
            found.append({"first": first_name, "second": second_name, "model": first["model"], "protocol": first["protocol"], **_plain(difference)})
    if not found:
        raise OptionError(f"nothing to compare: {len(rows)} result(s) and no two of the same model; give two run folders evaluated alike")
    if json:
        return _print_json(found)
    body = [
        [
            row["first"],
            row["second"],
            row["model"],
            f"{100 * row['mean']:+.1f}",
            "one pair" if row["low"] is None else f"[{percent(row['low'])}, {percent(row['high'])}]",
            row["covers"],
            row["n"],
        ]
        for row in found
    ]
    print_table("first minus second, percentage points", ["first", "second", "model", "difference", "95 % interval", "covers", "pairs"], body)


def train(
    file: Annotated[Path, Parameter(help="a distilled .safetensors file")],
    /,
    *,
    model: Annotated[str | None, Parameter(help="convnet, resnet18, mlp, ... or your own module:factory; default: the file's own")] = None,
    protocol: Annotated[str | None, Parameter(help="train by this protocol instead of the file's recipe")] = None,
    source: Annotated[str | None, Parameter(help="measure test accuracy on this source instead of the file's own")] = None,
    out: Out = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    json: Json = False,
) -> None:
    """Train a model on a distilled file by its recipe and save a checkpoint."""
    from limbeck.cli.console import STDOUT, percent
    from limbeck.study.judge import train_on_file

    target = out or file.parent / f"{(model or 'model').replace(':', '-').replace(',', '-')}.safetensors"
    result = train_on_file(
        file, target, model=model, protocol=protocol, source=source, seed=seed, device=device, threads=threads, reporter=_reporter()
    )
    if json:
        return _print_json(result)
    measured = f", {percent(result['test_accuracy'])} % on {result['test_images']} test images (one student)" if "test_accuracy" in result else ""
    STDOUT.print(f"{result['model']}, {result['parameters']} parameters{measured}\ncheckpoint: {target}", markup=False, soft_wrap=True)


def report(run: Annotated[Path, Parameter(help="a run folder")], /, *, out: Out = None) -> None:
    """Write the HTML report and its figures again from a run folder."""
    from limbeck.cli.console import STDOUT
    from limbeck.report.page import write_report
    from limbeck.study.distill import FILE
    from limbeck.study.judge import load_record
    from limbeck.types.distilled import DistilledDataset

    record = load_record(run)
    dataset = DistilledDataset.load(run / FILE) if run.is_dir() else None
    STDOUT.print(f"report: {write_report(record, dataset, out or (run if run.is_dir() else run.with_suffix('')))}", markup=False, soft_wrap=True)


def list_(
    what: Annotated[str, Parameter(help="sources, methods, selectors, transforms, models, protocols, pixel-spaces, normalizations, or runs")] = "all",
    /,
    *,
    json: Json = False,
) -> None:
    """List what limbeck knows, and the runs below the current folder."""
    from limbeck.cli.catalog import catalog
    from limbeck.cli.console import print_table

    tables = catalog()
    if what != "all" and what not in tables:
        raise OptionError(f"unknown list {what!r}; {nearest(what, tables)}")
    shown = tables if what == "all" else {what: tables[what]}
    if json:
        return _print_json(shown)
    for name, entries in shown.items():
        print_table(name, ["name", "what it is"], [[key, value] for key, value in entries.items()])


def explain(topic: Annotated[str, Parameter(help="a name from `limbeck ls`, or a distilled file")], /) -> None:
    """Explain a method, selector, model, protocol or source, or what is inside a distilled file."""
    from limbeck.cli.catalog import explanation
    from limbeck.cli.console import STDOUT

    STDOUT.print(explanation(topic), markup=False, soft_wrap=True)


def _plain(interval: "Interval") -> dict[str, Any]:
    """An interval as JSON, which has no NaN."""
    return {key: None if value != value else value for key, value in vars(interval).items()}


def _run_folder(source: str, options: DistillOptions) -> Path:
    """``runs/SOURCE-METHOD-BUDGET-seedN``; with a short digest of the options behind it where another run has that name already."""
    from limbeck.store import digest_of

    name = Path(source).resolve().name if Path(source).exists() else source
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    budget = "-".join([*([f"ipc{options.ipc}"] if options.ipc else []), *([f"bytes{options.bytes}"] if options.bytes else [])])
    folder = Path("runs") / f"{kept}-{options.method}-{budget or 'nothing'}-seed{options.seed}"
    asked = {"source": source, **options.model_dump(mode="json")}
    try:
        taken = json_module.loads((folder / "options.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return folder
    return folder if taken == asked else folder.with_name(f"{folder.name}-{digest_of(asked)[:6]}")
