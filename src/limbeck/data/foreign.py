"""Distilled sets that other programs wrote, read without running any of their code.

Torch files go through ``torch.load(weights_only=True)``, NumPy files are read without pickles, pictures through Pillow.
"""

import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from limbeck.data.decode import CorruptImage, decode, read_header
from limbeck.data.folder import FileRecords, list_images
from limbeck.errors import DataError, nearest

T = TypeVar("T")

IMAGE_KEYS = ("images", "image", "images_syn", "image_syn", "syn_images", "x_proto", "x", "X", "data", "x_train", "train_images", "arr_0")
LABEL_KEYS = ("labels", "label", "labels_syn", "label_syn", "syn_labels", "y_proto", "y", "Y", "targets", "y_train", "train_labels", "arr_1")
RATE_KEYS = ("syn_lr", "lr", "step_size", "learning_rate")
TORCH = (".pt", ".pth", ".bin", ".tar")
SUFFIXES = (*TORCH, ".npz", ".npy", ".safetensors")
_PLAIN = "save plain tensors instead: torch.save({'images': images, 'labels': labels}, 'plain.pt')"
_NUMBERED = re.compile(r"(?:new|class)?[_-]?(\d{1,9})")


@dataclass(frozen=True)
class Foreign:
    """What a file or folder of another program holds.

    `images` [N, C, H, W] are uint8, float32 or float16; `labels` are class numbers [M], rows [M, K] of whatever kind, or None where the file has none (M is N
    for what `read_foreign` returns); `step_size` a learned learning rate. `files` are those that were read.
    """

    format: str
    images: Shaped[Tensor, "N C H W"]
    labels: Int[Tensor, " M"] | Float[Tensor, "M K"] | None
    files: tuple[Path, ...]
    step_size: float | None = None
    notes: tuple[str, ...] = ()


def read_foreign(
    path: Path, kind: str = "auto", *, labels: Path | None = None, classes: Sequence[str] | None = None, experiment: int | None = None
) -> Foreign:
    """Reads a distilled set of another program.

    Args:
        path: a file, or a folder of files.
        kind: one of `FORMATS`, or ``auto`` to tell by the content.
        labels: a file with the labels, where they lie apart.
        classes: class names, which may tell the numbers of class folders.
        experiment: which of several sets in one file (``dc``), from 0.

    Raises:
        DataError: anything that cannot be read safely and as asked, in one sentence.
    """
    if not path.exists():
        raise DataError(f"no file or folder at {str(path)!r}; check the path")
    content = None if path.is_dir() else load(path)
    name = _recognized(path, content) if kind == "auto" else kind
    if name not in FORMATS:
        raise DataError(f"unknown format {kind!r}; {nearest(kind, [*FORMATS, 'auto'])}")
    found = FORMATS[name](_Request(path, content, tuple(classes) if classes is not None else None, experiment))
    if labels is not None:
        found = replace(found, labels=_labels(_single(load(labels), LABEL_KEYS, "labels", labels), labels), files=(*found.files, labels))
    if found.labels is not None and len(found.labels) != len(found.images):
        raise DataError(f"{str(path)!r} has {len(found.images)} images but {len(found.labels)} labels; give one label for each image")
    return found


@dataclass(frozen=True)
class _Request:
    path: Path
    content: Any
    classes: tuple[str, ...] | None
    experiment: int | None

    @property
    def where(self) -> str:
        return repr(str(self.path))


def read_dc(request: _Request) -> Foreign:
    """``res_*.pt`` of DC, DSA and DM: ``{"data": [[images, labels], ...], "accs_all_exps": ...}``, one pair for each of their experiments; the first by default."""
    pairs = request.content.get("data") if isinstance(request.content, Mapping) else None
    if not isinstance(pairs, list | tuple) or not pairs or not all(_is_pair(pair) for pair in pairs):
        raise DataError(
            f"{request.where} is no file of DC, DSA or DM: wanted a dict whose 'data' is a list of [images, labels] pairs; try --format auto"
        )
    chosen = request.experiment or 0
    if not 0 <= chosen < len(pairs):
        raise DataError(
            f"{request.where} holds {len(pairs)} experiments, 0 to {len(pairs) - 1}, but --experiment asks for {chosen}; use one of these"
        )
    note = f"the file holds {len(pairs)} sets; number 0 was taken, and --experiment takes another"
    notes = (note,) if len(pairs) > 1 and request.experiment is None else ()
    images, labels = pairs[chosen]
    return Foreign("dc", _images(images, request.path), _labels(labels, request.path), (request.path,), notes=notes)


def read_mtt(request: _Request) -> Foreign:
    """``images_best.pt`` with ``labels_best.pt`` beside it, as MTT and its successors write them, and ``lr_best.pt`` where there is one.

    In a folder without a best set the one of the latest iteration is taken, with a note; ``images_zca_*.pt``, whose whitening was undone, only when it is named.
    """
    path = request.path
    notes: tuple[str, ...] = ()
    if path.is_dir():
        path, notes = _latest_images(path)
    content = request.content if request.content is not None else load(path)
    if not isinstance(content, Tensor):
        raise DataError(f"{str(path)!r} is no images file of MTT: wanted one tensor, got a {type(content).__name__}; try --format auto")
    files, found = [path], {}
    for part, stems in (("labels", ("labels",)), ("rate", ("lr", "syn_lr"))):
        for stem in stems:
            beside = path.with_name(re.sub(r"^images(_zca)?", stem, path.name))
            if beside != path and beside.is_file() and part not in found:
                found[part] = load(beside)
                files.append(beside)
    labels = _labels(found["labels"], files[1]) if "labels" in found else None
    rate = _rate(found["rate"], files[-1]) if "rate" in found else None
    return Foreign("mtt", _images(content, path), labels, tuple(files), rate, notes)


def read_sre2l(request: _Request) -> Foreign:
    """A folder of pictures, one sub-folder per class, as SRe2L and its successors write them: ``new00001/class00001_id00001.jpg``.

    A folder named after one of the known classes is that class; folders named by numbers (``new00001``, ``class_1``, ``1``) are those class numbers; any
    others are numbered in the order of their names, with a note.
    """
    root = request.path
    if not root.is_dir():
        raise DataError(f"{request.where} is a file, wanted a folder with one sub-folder of pictures per class; try --format auto")
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    numbers, notes = _folder_numbers(names, request.classes, request.where)
    paths, labels = [], []
    for name in names:
        found, _ = list_images(root / name)
        paths += found
        labels += [numbers[name]] * len(found)
    if not paths:
        raise DataError(f"{request.where} has no pictures in class folders; wanted new00000/class00000_id00000.jpg and so on")
    return Foreign("sre2l", _pictures(paths), torch.tensor(labels), tuple(paths), notes=notes)


def read_tensor(request: _Request) -> Foreign:
    """Tensors under the usual names (``images`` and ``labels``, ``x`` and ``y``, ...) in a ``.pt``, ``.npz`` or ``.safetensors`` file, a pair of tensors, or images
    alone."""
    content = request.content
    if content is None:
        raise DataError(f"{request.where} is a folder, wanted one file of tensors; try --format auto")
    if _is_pair(content):
        return Foreign("tensor", _images(content[0], request.path), _labels(content[1], request.path), (request.path,))
    images = _single(content, IMAGE_KEYS, "images", request.path)
    labels = _member(content, LABEL_KEYS)
    rate = _member(content, RATE_KEYS)
    return Foreign(
        "tensor",
        _images(images, request.path),
        None if labels is None else _labels(labels, request.path),
        (request.path,),
        None if rate is None else _rate(rate, request.path),
    )


FORMATS: dict[str, Callable[[_Request], Foreign]] = {"dc": read_dc, "mtt": read_mtt, "sre2l": read_sre2l, "tensor": read_tensor}


def read_rate(path: Path) -> float:
    """A learned learning rate from a file that holds one number."""
    return _rate(_single(load(path), RATE_KEYS, "a learning rate", path), path)


def load(path: Path) -> Any:
    """The content of a ``.pt``, ``.npz``, ``.npy`` or ``.safetensors`` file: tensors in plain containers. Raises `DataError` for what cannot be read safely."""
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"no file at {str(path)!r}; check the path")
    if suffix in TORCH:
        return _load_torch(path)
    if suffix in (".npz", ".npy"):
        return _load_numpy(path)
    if suffix == ".safetensors":
        return _load_safetensors(path)
    raise DataError(f"{str(path)!r} ends in {suffix or 'nothing'}, wanted {', '.join(SUFFIXES)} or a folder; save plain tensors with torch.save")


class _Scalar:
    """Stands in for a NumPy scalar, which DC's files carry beside the images as accuracies: nothing of NumPy is called, and the value is dropped."""

    __module__ = "numpy.core.multiarray"
    __qualname__ = "scalar"

    def __init__(self, *parts: Any) -> None:
        pass


class _NewScalar(_Scalar):
    """The same under its name in NumPy 2."""

    __module__ = "numpy._core.multiarray"
    __qualname__ = "scalar"


class _DType:
    """Stands in for a NumPy dtype."""

    __module__ = "numpy"
    __qualname__ = "dtype"

    def __init__(self, *parts: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Nothing of a dtype's state is used."""


def _load_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([_Scalar, _NewScalar, _DType]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, which the user can do nothing about
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # the safe unpickler fails on damaged files with whatever its damaged instructions run into
        wanted = re.search(r"GLOBAL (\S+)", str(problem))
        if wanted:
            raise DataError(
                f"{str(path)!r} holds objects beyond tensors ({wanted[1]}), and rebuilding those would run code that the file names, so it is not read; {_PLAIN}"
            ) from None
        raise DataError(
            f"{str(path)!r} is no torch file of plain tensors that can be read safely ({_reason(problem)}); use an intact copy, or {_PLAIN}"
        ) from None


def _load_numpy(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
            arrays = {name: found[name] for name in found.files} if isinstance(found, np.lib.npyio.NpzFile) else found
    except (OSError, EOFError, ValueError, TypeError, AttributeError, MemoryError, zipfile.BadZipFile, zlib.error, NotImplementedError) as problem:
        reason = "it holds pickled objects, which are not read" if "allow_pickle" in str(problem) else _reason(problem)
        raise DataError(f"{str(path)!r} is no readable NumPy file ({reason}); save plain arrays with numpy.savez") from None
    return {name: _tensor(array, path) for name, array in arrays.items()} if isinstance(arrays, dict) else _tensor(arrays, path)


def _tensor(array: np.ndarray, path: Path) -> Any:
    """The array as a tensor; arrays that no tensor can hold (text, say) as they are, since nobody may ask for them."""
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    try:
        return torch.from_numpy(np.ascontiguousarray(native))
    except TypeError:
        return array


def _load_safetensors(path: Path) -> Any:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as reader:
            ours = "limbeck" in (reader.metadata() or {})
            content = {} if ours else {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 (a reader is no mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError, OverflowError, MemoryError) as problem:
        raise DataError(f"{str(path)!r} is no readable safetensors file ({_reason(problem)}); use an intact copy") from None
    if ours:
        raise DataError(f"{str(path)!r} is a limbeck file already; evaluate it as it is")
    return content


def _recognized(path: Path, content: Any) -> str:
    if path.is_dir():
        if any(path.glob("images*.pt")):
            return "mtt"
        if any(entry.is_dir() and list_images(entry)[0] for entry in path.iterdir()):
            return "sre2l"
        raise DataError(
            f"folder {str(path)!r} holds neither images_*.pt nor class folders of pictures; name a file in it, or the folder that holds them"
        )
    if isinstance(content, Mapping) and isinstance(content.get("data"), list | tuple):
        return "dc"
    return "mtt" if isinstance(content, Tensor) and path.suffix.lower() in TORCH else "tensor"


def _latest_images(folder: Path) -> tuple[Path, tuple[str, ...]]:
    if (folder / "images_best.pt").is_file():
        return folder / "images_best.pt", ()
    numbered = {int(match[1]): file for file in folder.iterdir() if (match := re.fullmatch(r"images_(\d+)\.pt", file.name))}
    if not numbered:
        raise DataError(f"folder {str(folder)!r} has neither images_best.pt nor images_<iteration>.pt; name the images file itself")
    latest = numbered[max(numbered)]
    return latest, (f"the folder has no images_best.pt; {latest.name}, its latest, was taken",)


def _folder_numbers(names: Sequence[str], classes: Sequence[str] | None, where: str) -> tuple[dict[str, int], tuple[str, ...]]:
    if classes is not None and set(names) <= set(classes):
        return {name: list(classes).index(name) for name in names}, ()
    matches = [_NUMBERED.fullmatch(name) for name in names]
    if all(matches):
        numbers = {name: int(match[1]) for name, match in zip(names, matches, strict=True) if match}
        if len(set(numbers.values())) < len(names):
            raise DataError(f"two class folders of {where} have the same number; merge them, or name each after its class")
        return numbers, ()
    if classes is not None and len(classes) != len(names):
        raise DataError(
            f"{where} has {len(names)} class folders for {len(classes)} classes, and their names tell no numbers; name each after its class"
        )
    return {name: number for number, name in enumerate(names)}, ("class folders were numbered in the order of their names",)


def _pictures(paths: Sequence[Path]) -> Shaped[Tensor, "N C H W"]:
    records = FileRecords(paths)
    headers = [_or_named(paths[index], partial(read_header, partial(records.open, index))) for index in range(len(paths))]
    for path, header in zip(paths, headers, strict=True):
        if (header.height, header.width) != (headers[0].height, headers[0].width):
            raise DataError(
                f"pictures differ in size: {str(paths[0])!r} is {headers[0].width} x {headers[0].height} and {str(path)!r} is "
                f"{header.width} x {header.height} (width x height); bring them to one size"
            )
    channels = 1 if all(header.gray for header in headers) else 3
    pixels = [_or_named(paths[index], partial(decode, partial(records.open, index), channels, None)) for index in range(len(paths))]
    return torch.from_numpy(np.stack(pixels))


def _or_named(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except CorruptImage as problem:
        raise DataError(f"corrupt picture {str(path)!r} ({problem}); mend or remove it") from None


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(part, Tensor) for part in value)


def _member(content: Any, keys: Sequence[str]) -> Any:
    return next((content[key] for key in keys if key in content), None) if isinstance(content, Mapping) else None


def _single(content: Any, keys: Sequence[str], what: str, path: Path) -> Any:
    """The one thing that a file is read for: all of its content, or what one of the usual names holds."""
    found = _member(content, keys) if isinstance(content, Mapping) else content
    if found is None:
        names = ", ".join(map(repr, list(content)[:8])) or "nothing"
        raise DataError(f"{str(path)!r} holds {names}, wanted {what} under one of the names {', '.join(keys)}; rename it")
    return found


def _plain(value: Any, what: str, path: Path) -> Tensor:
    """A tensor that owns its numbers, on the CPU; files can describe others, some of which would take far more memory than the file."""
    if not isinstance(value, Tensor):
        raise DataError(f"{what} of {str(path)!r} have type {type(value).__name__}, wanted a tensor; {_PLAIN}")
    odd = (
        type(value) not in (Tensor, torch.nn.Parameter)
        or value.layout is not torch.strided
        or value.is_quantized
        or value.is_complex()
        or value.is_nested
    )
    if odd or value.device.type != "cpu":
        raise DataError(f"{what} of {str(path)!r} are no plain dense real tensor; {_PLAIN}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise DataError(f"{what} of {str(path)!r} claim {value.numel()} values but store fewer; save them with .contiguous()")
    return value.detach().contiguous()


def _images(value: Any, path: Path) -> Shaped[Tensor, "N C H W"]:
    images = _plain(value, "images", path)
    shape = list(images.shape)
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or 0 in shape:
        raise DataError(f"images of {str(path)!r} have shape {shape}, wanted [N, C, H, W] with at least one image; reshape them")
    if shape[1] not in (1, 3) and shape[-1] in (1, 3):
        raise DataError(f"images of {str(path)!r} have shape {shape}, which looks like [N, H, W, C], wanted [N, C, H, W]; permute them")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        low, high = (int(edge) for edge in images.long().aminmax())
        if images.dtype == torch.bool or low < 0 or high > 255:
            name = str(images.dtype).removeprefix("torch.")
            raise DataError(f"images of {str(path)!r} are {name} from {low} to {high}, wanted whole numbers 0 to 255, or fractions; rescale them")
        return images.to(torch.uint8)
    images = images if images.dtype in (torch.float32, torch.float16) else images.float()
    if not bool(torch.isfinite(images).all()):
        raise DataError(f"images of {str(path)!r} hold values that are not finite; the run that made them diverged: use an earlier one")
    least, most = images.aminmax()
    whole = float(least) >= 0 and 1 < float(most) <= 255 and bool((images == images.round()).all())
    return images.to(torch.uint8) if whole else images  # pixels, in another type


def _labels(value: Any, path: Path) -> Int[Tensor, " N"] | Float[Tensor, "N K"]:
    labels = _plain(value, "labels", path)
    shape, name = list(labels.shape), str(labels.dtype).removeprefix("torch.")
    labels = labels.double() if labels.is_floating_point() else labels
    if labels.ndim == 2 and shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or 0 in shape:
        raise DataError(f"labels of {str(path)!r} have shape {shape}, wanted class numbers [N] or rows [N, K]; reshape them")
    if labels.is_floating_point() and not bool(torch.isfinite(labels).all()):
        raise DataError(f"labels of {str(path)!r} hold values that are not finite; the run that made them diverged: use an earlier one")
    if labels.ndim == 2:
        return labels.float()
    if labels.dtype == torch.bool or (labels.is_floating_point() and bool((labels != labels.round()).any())):
        raise DataError(f"labels of {str(path)!r} are {name} that number no classes, wanted whole numbers [N] or rows [N, K]; check them")
    return labels.long()


def _rate(value: Any, path: Path) -> float:
    rate = float("nan")
    if isinstance(value, int | float) and not isinstance(value, bool):
        rate = float(value)
    elif isinstance(value, Tensor) and value.numel() == 1:
        rate = float(_plain(value, "the learned rate", path).double())
    if not 0 < rate < float("inf"):
        raise DataError(
            f"the learned learning rate of {str(path)!r} is {value if isinstance(value, int | float) else rate:g}, wanted one positive number; check it"
        )
    return rate


def _reason(problem: Exception) -> str:
    text = str(problem).strip()
    return text.splitlines()[0].rstrip(".")[:160] if text else type(problem).__name__
