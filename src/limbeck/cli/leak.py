"""``limbeck leak``: the memorization experiments by name."""

import json as json_module
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def leak(
    name: Annotated[str | None, Parameter(help="which experiment; without a name, they are listed")] = None,
    /,
    *,
    scale: Annotated[Literal["smoke", "cpu", "paper"], Parameter(help="seconds, minutes on two cores, or the published sizes")] = "cpu",
    set: Annotated[
        tuple[str, ...], Parameter(negative="", help="change an option of the scale: --set features=100 --set taus=9; lists joined by +")
    ] = (),
    price: Annotated[bool, Parameter(negative="", help="say what it would take, and do nothing")] = False,
    out: Annotated[Path | None, Parameter(help="where to write; default: runs/leak-NAME-SCALE")] = None,
    seed: Annotated[int, Parameter(help="root of every random stream")] = 0,
    device: Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N")] = "auto",
    threads: Annotated[int | None, Parameter(help="CPU threads; default: all cores")] = None,
    json: Annotated[bool, Parameter(negative="", help="print the result as JSON on stdout, and nothing else there")] = False,
) -> None:
    """Measure what soft labels give away of what a teacher memorized: phase diagrams, temperatures, label treatments, modular arithmetic, real images."""
    from limbeck.cli.console import STDERR, STDOUT, TerminalReporter, print_table
    from limbeck.leak import EXPERIMENTS
    from limbeck.report.words import count, duration

    if name is None:
        rows = [[key, EXPERIMENTS[key].question] for key in EXPERIMENTS]
        print_table("", ["experiment", "question"], rows)
        STDOUT.print("what one would take: limbeck leak NAME --price", markup=False)
        return
    from limbeck.report.leak import quantity_words, write_leak_report
    from limbeck.study.leaking import RECORD, prepare, run

    prepared = prepare(name, scale, set, seed=seed, device=device, threads=threads)
    seconds, work = prepared.seconds, prepared.work
    words = f"{name} at scale {scale}: {count(work.cells, 'student')}, about {duration(seconds)} on this machine when nothing is cached and it is otherwise idle"
    if price:
        if json:
            print(json_module.dumps({"experiment": name, "scale": scale, "students": work.cells, "seconds": seconds}))
        else:
            STDOUT.print(words, markup=False, soft_wrap=True)
        return
    STDERR.print(words, markup=False, soft_wrap=True)
    folder = out or Path("runs") / f"leak-{name}-{scale}"
    measurement = run(prepared, folder, reporter=TerminalReporter())
    record = {**measurement.to_dict(), "command": " ".join(["limbeck", *(shlex.quote(part) for part in sys.argv[1:])])}
    page = write_leak_report(prepared.experiment, measurement, folder)
    if json:
        print(json_module.dumps(record, indent=2, sort_keys=True, allow_nan=False))
        return
    shown = [[key, quantity_words(measurement[key]), measurement[key].unit] for key in prepared.experiment.headline if key in measurement.quantities]
    if shown:
        print_table(prepared.experiment.title, ["quantity", "value", "unit"], shown)
    for note in measurement.notes:
        STDOUT.print(f"note: {note}", markup=False, soft_wrap=True)
    STDOUT.print(f"record: {folder / RECORD}\nreport: {page}\ntook {duration(measurement.seconds)}", markup=False, soft_wrap=True)
