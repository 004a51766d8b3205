"""The audit of a finished file against private images: what can be said without training anything again."""

import platform
import time
from pathlib import Path
from typing import Any

import torch

from limbeck import __version__, store
from limbeck.errors import LimbeckError, OptionError
from limbeck.leak.file_audit import Embed, copy_findings, draw_controls, find_copies, in_pieces, label_findings, privacy_claim
from limbeck.leak.verdicts import exit_code, overall
from limbeck.models import parse_model
from limbeck.models.spec import ModelSpec
from limbeck.progress import SILENT, Reporter
from limbeck.streams import Streams
from limbeck.study.audit_options import AuditOptions
from limbeck.study.auditing import RECORD
from limbeck.study.setting import Setting
from limbeck.train.network import Network
from limbeck.types.distilled import DistilledDataset
from limbeck.types.finding import Finding
from limbeck.types.pixels import PixelSpace

_CONTROLS = 1000
_FEATURES = "convnet:width=32,depth=2"  # of random weights: they keep what is alike under small shifts, and have seen no data


def audit_file(file: Path, options: AuditOptions, out: Path, *, reporter: Reporter = SILENT, command: str = "") -> dict[str, Any]:
    """Checks a distilled file against the private source ``options.private`` and writes ``audit.json`` under `out`; returns the record."""
    started = time.monotonic()
    dataset = DistilledDataset.load(file)
    if options.private is None:
        raise OptionError("a file is audited against the images that it must not give away; name them with --private SOURCE")
    setting = Setting.open(options.private, options, options.seed, reporter, pixels=PixelSpace())
    private = setting.source.train
    if tuple(private.shape) != dataset.shape:
        raise OptionError(
            f"the file's images are {'x'.join(map(str, dataset.shape))} but those of {options.private} are {'x'.join(map(str, private.shape))}; "
            "use the source that it was made from, with the same --size"
        )
    student = _student(dataset, options)
    findings: list[Finding] = []
    if "copies" in options.skip:
        findings.append(Finding("copies", "not checked", "Left out with --skip copies.", required=False))
    else:
        controls = draw_controls(private, _CONTROLS, Streams(options.seed).torch("audit", "controls"))
        reporter.note(
            f"cost: distances of {len(dataset) + len(controls):,} images to {len(private):,} private ones in two spaces; seconds to a minute"
        )
        copies = find_copies(dataset, private, controls, embed=_embedding(dataset, reporter))
        findings += [*copy_findings(dataset, copies, alpha=options.alpha), privacy_claim(dataset, copies)]
    for name in ("exposure", "membership"):
        words = f"A file alone does not show it: run limbeck audit {options.private} with the options that the file was made with."
        skipped = name in options.skip
        findings.append(Finding(name, "not checked", f"Left out with --skip {name}." if skipped else words, required=not skipped))
    findings += label_findings(dataset, student)
    record = {
        "format": 1,
        "kind": "audit",
        "title": f"{file.name} against {options.private}",
        "command": command,
        "file": str(file),
        "digest": dataset.digest,
        "source": setting.describe(),
        "method": str(dataset.provenance.get("method", "unknown")),
        "counts": torch.bincount(dataset.owners.long(), minlength=len(dataset.classes)).tolist(),
        "bytes": dataset.bytes,
        "alpha": options.alpha,
        "tolerance": options.tolerance,
        "seed": options.seed,
        "options": options.model_dump(mode="json"),
        "expert": None,
        "exposures": [],
        "attacks": {},
        "frontier": [],
        "findings": [finding.to_dict() for finding in findings],
        "verdict": overall(findings),
        "exit_code": exit_code(findings),
        "seconds": round(time.monotonic() - started, 1),
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "versions": {"limbeck": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    store.write_json(out / RECORD, record)
    return record


def _student(dataset: DistilledDataset, options: AuditOptions) -> Network:
    """The student that the file recommends, or the one that was named."""
    if "model" in options.model_fields_set or dataset.architecture is None:
        spec = parse_model(options.model)
    else:
        spec = ModelSpec.from_dict(dict(dataset.architecture))
        if spec.is_factory:
            raise OptionError(f"this file asks to import {spec.name!r}, which is code; if you trust it, say so with --model {spec.name}")
    return Network(spec, dataset.shape, len(dataset.classes))


def _embedding(dataset: DistilledDataset, reporter: Reporter) -> Embed | None:
    try:
        network = Network(parse_model(_FEATURES), dataset.shape, len(dataset.classes))
        state = network.init(Streams(0)["audit", "features"])
    except LimbeckError as problem:
        reporter.note(f"copies are looked for in pixels alone: {problem}")
        return None
    return in_pieces(lambda images: network.features(state, images))
