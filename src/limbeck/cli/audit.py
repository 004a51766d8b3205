"""``limbeck audit``: what a set, or the labels of one, would reveal about training records that are not in it."""

import json as json_module
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from limbeck.errors import OptionError
from limbeck.study.audit_options import AuditOptions


def audit(
    target: Annotated[str, Parameter(help="a source, to audit the making of a set from it; or a distilled .safetensors file, with --private SOURCE")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="where to write")] = None,
    options: Annotated[AuditOptions, Parameter(name="*")] = AuditOptions(),  # noqa: B008 (frozen)
    json: Annotated[bool, Parameter(negative="", help="print the record as JSON on stdout, and nothing else there")] = False,
) -> None:
    """Plant canaries and measure what students, or the published labels, give away of them; or check a finished file for copies of private images.

    Exit code 0: every required check is clean. 3: one leaks. 4: one is inconclusive or was not run.
    """
    from limbeck.cli.console import STDOUT, TerminalReporter, print_table
    from limbeck.report.audit import write_audit_page

    command = " ".join(["limbeck", *(shlex.quote(part) for part in sys.argv[1:])])
    folder, reporter = out or _folder(target, options), TerminalReporter()
    record: dict[str, Any]
    if target.endswith(".safetensors"):
        from limbeck.study.auditing_file import audit_file

        record = audit_file(Path(target), options, folder, reporter=reporter, command=command)
    else:
        from limbeck.study.auditing import audit_source

        if options.private is not None:
            raise OptionError(f"--private goes with a distilled .safetensors file, but {target!r} is a source; leave it out")
        record = audit_source(target, options, folder, reporter=reporter, command=command)
    if options.price and not record["findings"]:
        if json:
            print(json_module.dumps(record["cost"], indent=2, sort_keys=True))
        return
    page = write_audit_page(record, folder)
    if json:
        print(json_module.dumps({**record, "page": str(page)}, indent=2, sort_keys=True, allow_nan=False))
    else:
        rows = [
            [found["verdict"], found["check"] + ("" if found["required"] else " (not required)"), found["sentence"]] for found in record["findings"]
        ]
        print_table("", ["verdict", "check", "what was found"], rows)
        if record["frontier"]:
            print_table("defenses, each alone", ["defense", "test accuracy %", "exposure (points)", "p", "bytes"], _frontier(record))
        STDOUT.print(
            f"verdict: {record['verdict']} (exit code {record['exit_code']})\nrecord: {folder / 'audit.json'}\npage:   {page}",
            markup=False,
            soft_wrap=True,
        )
    if record["exit_code"]:
        sys.exit(record["exit_code"])


def _frontier(record: dict[str, Any]) -> list[list[str]]:
    from rich.markup import escape

    rows = []
    for row in record["frontier"]:
        if "note" in row:
            rows.append([row["defense"], escape(row["note"]), "", "", ""])
            continue
        exposure = f"{100 * row['value']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
        rows.append([row["defense"], f"{100 * row['accuracy']:.1f}", exposure, f"{row['p_value']:.2g}", str(row["bytes"]["total"])])
    return rows


def _folder(target: str, options: AuditOptions) -> Path:
    """``runs/audit-TARGET-DIGEST``: the digest is of everything that was asked, so that audits of different settings lie side by side."""
    from limbeck.store import digest_of

    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in Path(target).name)
    return Path("runs") / f"audit-{name}-{digest_of([target, options.model_dump(mode='json')])[:6]}"
