"""From a distilled set of another program to a limbeck file: read without running its code, with the pixel space that it was made in."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from limbeck import __version__
from limbeck.data.cifar import CIFAR10_CLASSES
from limbeck.data.foreign import Foreign, read_foreign, read_rate
from limbeck.data.idx import FASHION_CLASSES
from limbeck.data.normalizations import NORMALIZATIONS
from limbeck.data.opening import open_source
from limbeck.data.pixels import PIXEL_SPACES, fit_pixel_space
from limbeck.data.splits import Splits
from limbeck.errors import DataError, OptionError, nearest
from limbeck.models import parse_model
from limbeck.progress import SILENT, Reporter
from limbeck.study.distill import protocol_for
from limbeck.study.options import ImportOptions, parse_size
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels
from limbeck.types.pixels import PixelSpace, Standardize

CLASSES = {"cifar10": CIFAR10_CLASSES, "fashion-mnist": FASHION_CLASSES}
ZCA = tuple(name for name in PIXEL_SPACES if name.startswith("zca-"))
_MOST_CLASSES = 100_000  # what a damaged file claims must not fill the memory
_FAR = 10  # times as far as real images
_BRIGHT = 16  # beyond what normalized pixels reach
_SLACK = 1e-3  # of a pixel's range: saved pixels are rounded
_NUMBERS = r"\s*-?[\d.]+(?:e-?\d+)?(?:\s*[,/ ]\s*-?[\d.]+(?:e-?\d+)?)*\s*"
_NETWORK = re.compile(rf"mean=({_NUMBERS})[,;]\s*std=({_NUMBERS})")


@dataclass(frozen=True)
class _Real:
    """The real data beside a set: as it was asked for, and its parts."""

    spec: str
    splits: Splits
    options: dict[str, Any]


def import_set(path: Path, options: ImportOptions, out: Path, *, reporter: Reporter = SILENT) -> DistilledDataset:
    """Reads the set at `path` and writes it to `out` as a limbeck file; returns it.

    Images stay as they are, and the pixel space makes every other image alike: floating images under ``normalize:``, ``network:`` and ``zca-`` are taken as
    network inputs (`stored` "network"), whole numbers and ``raw`` images as pixels. ZCA is fitted on the training part of the user's own copy of the source, with
    nothing carved from it for validation, as published code does. The file's provenance holds the SHA-256 of every file that was read.
    Raises `LimbeckError`, one sentence, for anything that cannot be read safely or does not fit together; `out` is then left as it was.
    """
    if options.pixel_space is None:
        raise OptionError(
            "--pixel-space is needed, since no file of another program says how its images are to be read; "
            f"use raw, normalize:NAME ({', '.join(NORMALIZATIONS)}), network:mean=...,std=..., or zca-mtt:SOURCE"
        )
    protocol, model = protocol_for(options.protocol, options.source or ""), parse_model(options.model)
    real = _open(options.source, options, reporter) if options.source else None
    names = _class_names(options.classes) if options.classes else real.splits.train.classes if real else None
    foreign = read_foreign(path, options.format, labels=options.labels, classes=names, experiment=options.experiment)
    if any(file.resolve() == Path(out).resolve() for file in foreign.files):
        raise OptionError(f"the result would overwrite {str(out)!r} itself; give another place with --out")
    for note in foreign.notes:
        reporter.note(note)
    names = names or _numbered_classes(foreign, reporter)
    if real is not None and tuple(real.splits.train.shape) != tuple(foreign.images.shape[1:]):
        raise DataError(
            f"the set's images are {_sides(foreign.images.shape[1:])} but those of {real.spec} are {_sides(real.splits.train.shape)}; "
            "name the source that it was made from, with its --size"
        )
    owners, labels = _labels(foreign, len(names), options, reporter)
    step_size = _step_size(options.step_size, foreign)
    pixels, about = _pixel_space(options.pixel_space, foreign.images, options, real, reporter)
    dataset = DistilledDataset(
        images=foreign.images,
        owners=owners,
        labels=labels,
        pixels=pixels,
        classes=names,
        recipe=protocol.recipe,
        step_size=step_size,
        architecture=model.to_dict(),
        provenance={
            "limbeck": __version__,
            "torch": torch.__version__,
            "method": options.made_by or f"imported ({foreign.format})",
            "seed": 0,
            "protocol": options.protocol,
            "imported": {
                "format": foreign.format,
                "files": _digests(path, foreign.files),
                "experiment": options.experiment or 0,
                "pixel_space": about,
                "labels": _label_words(foreign, labels, options),
            },
            **(_source_facts(real, options) if real is not None else {}),
        },
    )
    dataset.save(out)
    return dataset


def _open(spec: str, options: ImportOptions, reporter: Reporter) -> _Real:
    source = open_source(
        spec,
        root=options.root,
        size=parse_size(options.size),  # type: ignore[arg-type]
        skip_corrupt=options.skip_corrupt,
        channels=options.channels,
        image_column=options.image_column,
        label_column=options.label_column,
    )
    return _Real(spec, Splits.make(source, seed=0, validation=0), source.options)


def _source_facts(real: _Real, options: ImportOptions) -> dict[str, Any]:
    return {
        "source": real.spec,
        "source_options": real.options,
        "test_digest": real.splits.test.digest,
        "validation_fraction": options.validation,
    }


def _class_names(text: str) -> tuple[str, ...]:
    if text in CLASSES:
        return CLASSES[text]
    if text.strip().isdigit():
        names = [str(number) for number in range(min(int(text), _MOST_CLASSES + 1))]
    elif Path(text).is_file():
        try:
            names = [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError):
            raise OptionError(f"{text!r} is no text file of class names; write one name a line, in UTF-8") from None
    else:
        names = [name.strip() for name in text.split(",")]
    if not 2 <= len(names) <= _MOST_CLASSES or len(set(names)) < len(names) or not all(names):
        raise OptionError(
            f"--classes needs at least 2 names, all different, got {text!r}; write cat,dog,horse, their number, or a file with one name a line"
        )
    return tuple(names)


def _numbered_classes(foreign: Foreign, reporter: Reporter) -> tuple[str, ...]:
    if foreign.labels is None:
        raise OptionError("neither labels nor the number of classes are known; use --labels FILE, and --classes or --source")
    count = foreign.labels.shape[1] if foreign.labels.ndim == 2 else int(foreign.labels.max()) + 1
    if count > _MOST_CLASSES:
        raise DataError(f"labels number {count} classes, more than {_MOST_CLASSES}; check the labels, or name the classes with --classes")
    reporter.note(f"classes were numbered 0 to {count - 1}; --classes or --source name them, which evaluating on a source with names needs")
    return tuple(str(number) for number in range(count))


def _labels(foreign: Foreign, classes: int, options: ImportOptions, reporter: Reporter) -> tuple[Int[Tensor, " N"], Labels]:
    """Owner classes [N] and labels; soft rows own the class of their largest entry."""
    given = foreign.labels
    if given is None:
        given = _in_class_order(len(foreign.images), classes, reporter)
    if given.ndim == 1:
        if not 0 <= int(given.min()) <= int(given.max()) < classes:
            wrong = int(given.min()) if int(given.min()) < 0 else int(given.max())
            raise DataError(f"labels need 0 <= label < {classes} classes, got {wrong}; mend --classes or the labels")
        return given, Labels.hard(given, classes)
    if given.shape[1] != classes:
        raise DataError(f"label rows have {given.shape[1]} entries but there are {classes} classes; mend --classes or the labels")
    owners = given.argmax(1)
    if torch.equal(given, torch.nn.functional.one_hot(owners, classes).float()):
        return owners, Labels.hard(owners, classes)
    return owners, _soft(given, options)


def _in_class_order(count: int, classes: int, reporter: Reporter) -> Int[Tensor, " N"]:
    if count % classes:
        raise OptionError(
            f"the file has no labels, and {count} images are no equal number for each of {classes} classes; give the labels with --labels FILE"
        )
    reporter.note(f"the file has no labels: images were taken to lie in the order of their classes, {count // classes} each")
    return torch.arange(classes).repeat_interleave(count // classes)


def _soft(rows: Float[Tensor, "N K"], options: ImportOptions) -> Labels:
    kind = options.label_kind
    sums, low = rows.double().sum(1), float(rows.min())
    whole = low >= 0 and bool(((sums - 1).abs() < 1e-2).all())
    if kind == "auto" and not whole:
        raise OptionError(
            f"label rows have entries from {low:.3g} to {float(rows.max()):.3g} and sums from {float(sums.min()):.3g} to {float(sums.max()):.3g}, so they are no "
            "probabilities; say what they are with --label-kind logit, log-probability, free (used as they are) or probability (truncated rows)"
        )
    if kind in ("logit", "log-probability"):
        rows, whole = (rows.double() / options.temperature).softmax(1).float(), True
    if kind == "free":
        return Labels.encode(rows, kind="free", sums_to_one=False)
    if low < 0 and kind == "probability":
        raise DataError(f"a label row has the entry {low:.3g}, and no probability is negative; use --label-kind logit or free")
    return Labels.encode(rows, temperature=options.temperature, sums_to_one=whole)


def _label_words(foreign: Foreign, labels: Labels, options: ImportOptions) -> str:
    if foreign.labels is None:
        return "none; images in class order"
    if labels.kind == "hard":
        return "class numbers" if foreign.labels.ndim == 1 else "one-hot rows"
    return options.label_kind if options.label_kind != "auto" else "probability"


def _step_size(text: str | None, foreign: Foreign) -> float | None:
    if text is None:
        return foreign.step_size
    try:
        rate = float(text)
    except ValueError:
        return read_rate(Path(text))
    if not 0 < rate < float("inf"):
        raise OptionError(f"--step-size needs a positive learning rate or a file that holds one, got {text!r}; leave it out if none was learned")
    return rate


def _pixel_space(
    spec: str, images: Shaped[Tensor, "N C H W"], options: ImportOptions, real: _Real | None, reporter: Reporter
) -> tuple[PixelSpace, dict[str, str]]:
    """The space with the images' place in it, and words on where it comes from."""
    kind, _, argument = spec.partition(":")
    channels, about = images.shape[1], {"spec": spec}
    if kind == "raw" and not argument:
        steps: tuple[Any, ...] = ()
    elif kind == "normalize":
        if argument not in NORMALIZATIONS:
            raise OptionError(
                f"no published normalization is named {argument!r}; {nearest(argument, NORMALIZATIONS)}, or give network:mean=...,std=..."
            )
        found = NORMALIZATIONS[argument]
        about["used_by"] = found.used_by
        if len(found.mean) != channels:
            raise OptionError(f"normalize:{argument} is for {len(found.mean)} channel(s), but the images have {channels}; use another normalization")
        steps = (Standardize(torch.tensor(found.mean), torch.tensor(found.std)),)
    elif kind == "network":
        steps = (_standardize(argument, channels),)
    elif kind in ZCA:
        data = _open(argument, options, reporter) if argument else real
        if data is None:
            raise OptionError(f"{kind} is fitted on real images, got none; write {kind}:SOURCE, or name the source with --source")
        steps = fit_pixel_space(kind, data.splits.train).steps
        about["fitted_on"] = data.splits.train.digest
    else:
        raise OptionError(
            f"unknown pixel space {spec!r}; {nearest(kind, ['raw', 'normalize:NAME', 'network:mean=...,std=...', *(f'{name}:SOURCE' for name in ZCA)])}"
        )
    space = PixelSpace(steps, "raw" if _are_pixels(images, kind, options) else "network")
    if space.stored == "raw":
        _check_pixels(images, "raw" if kind == "raw" else "--stored raw")
    elif options.stored == "auto" and 0 <= float(images.min()) <= float(images.max()) <= 1:
        reporter.note(
            "every value lies in [0, 1], as those of pixels do; if these images are pixels that students should see normalized, add --stored raw"
        )
    if space.stored == "network":
        _note_range(images, steps, reporter)
    return space, about


def _note_range(images: Tensor, steps: Sequence[Any], reporter: Reporter) -> None:
    """A note when the images run far beyond what real ones can have in this space; silent where that has no closed form."""
    if not all(isinstance(step, Standardize) for step in steps):
        return
    edges = torch.zeros(2, images.shape[1], 1, 1)
    edges[1] = 1
    shown = PixelSpace(tuple(steps), "raw")(edges)
    if float(images.abs().max()) > _FAR * float(shown.abs().max()):
        reporter.note(
            f"the images run from {float(images.min()):.3g} to {float(images.max()):.3g}, but real images will run from {float(shown.min()):.3g} to "
            f"{float(shown.max()):.3g} in this pixel space, so students will hardly know them; check --pixel-space"
        )


def _are_pixels(images: Tensor, kind: str, options: ImportOptions) -> bool:
    if images.dtype == torch.uint8 and options.stored == "network":
        raise OptionError("--stored network is for fractions, but these images are whole numbers 0 to 255, which are pixels; use --stored raw")
    return images.dtype == torch.uint8 or kind == "raw" or options.stored == "raw"


def _check_pixels(images: Tensor, asked: str) -> None:
    if images.dtype == torch.uint8:
        return
    low, high = float(images.min()), float(images.max())
    if low < -_SLACK or high > 1 + _SLACK:
        raise DataError(
            f"the images run from {low:.3g} to {high:.3g}, but pixels ({asked}) lie in [0, 1]; "
            + (
                "divide them by 255 if they are pixels"
                if low >= 0 and _BRIGHT < high <= 255
                else "name their normalization, such as --pixel-space normalize:cifar10, or use network:mean=0,std=1 if networks really saw these values"
            )
        )


def _standardize(text: str, channels: int) -> Standardize:
    match = _NETWORK.fullmatch(text.strip())
    try:
        mean, std = ([float(part) for part in re.split(r"\s*[,/ ]\s*", group.strip())] for group in match.groups()) if match else ([], [])
    except ValueError:
        mean, std = [], []
    if not mean or len(mean) != len(std) or len(mean) not in (1, channels) or min(std) <= 0:
        raise OptionError(
            f"network: needs a mean and a positive deviation for all {channels} channel(s) or for each, got {text!r}; "
            "write network:mean=0.49,0.48,0.45,std=0.20,0.20,0.20"
        )
    return Standardize(torch.tensor(mean), torch.tensor(std))


def _digests(path: Path, files: Sequence[Path]) -> dict[str, Any]:
    """SHA-256 (hex) of every file, by its name; a folder of many has one digest over the names and digests of all."""
    each = {file.relative_to(path).as_posix() if file.is_relative_to(path) and file != path else file.name: _sha256(file) for file in files}
    if len(each) <= 8:
        return each
    listed = "".join(f"{name}\0{digest}\n" for name, digest in sorted(each.items()))
    return {path.resolve().name: hashlib.sha256(listed.encode()).hexdigest(), "count": len(each)}


def _sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _sides(shape: Sequence[int]) -> str:
    return "x".join(str(side) for side in shape)
