"""Artefacts on disk: one safetensors file with a JSON header, written whole or not at all, and checked against its digest when read.

Nothing here unpickles. The digest is SHA-256 over the canonical JSON of the header and then, in name order, over each tensor's name, dtype, shape and bytes.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from limbeck.errors import FileFormatError, LimbeckError

Tensors = dict[str, torch.Tensor]
_KEY = "limbeck"  # one key only: safetensors writes several metadata keys in an order that is not fixed


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of a plain value's canonical JSON: the content key of a task, an option set or a record."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def content_digest(header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 (hex) of a header and its tensors."""
    sha = hashlib.sha256(canonical_json(header).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path in the same folder, then moves the result over `path`: readers see the old file or the whole new one."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    except OSError as problem:
        raise LimbeckError(
            f"cannot write {str(path)!r}: {problem.strerror or problem}; choose another folder with --out or free some space"
        ) from None
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as problem:
        raise LimbeckError(
            f"cannot write {str(path)!r}: {problem.strerror or problem}; choose another folder with --out or free some space"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_atomically(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with sorted keys atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def save(path: Path, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Writes an artefact atomically and returns its content digest. The same header and tensors give the same bytes."""
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    digest = content_digest(header, owned)
    payload = serialize(owned, metadata={_KEY: canonical_json({"digest": digest, "header": header})})
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(payload))
    return digest


def load_header(path: Path, kind: str) -> dict[str, Any]:
    """The JSON header of an artefact of the given kind, without reading its tensors."""
    return _read(Path(path), kind, None)[0]


def load(path: Path, kind: str, *, names: Callable[[str], bool] = lambda name: True, verify: bool = True) -> tuple[dict[str, Any], Tensors]:
    """Header and tensors of an artefact of the given kind.

    Reads only the tensors whose name passes `names`; the digest is checked when all are read and `verify` holds. Raises `FileFormatError` for a file that
    is missing, truncated, altered, foreign or of another kind or version.
    """
    header, digest, tensors, complete = _read(Path(path), kind, names)
    try:
        intact = not (verify and complete) or content_digest(header, tensors) == digest
    except (ValueError, RecursionError):  # a header that limbeck cannot have written: NaN, lone surrogates, too deep
        intact = False
    if not intact:
        raise FileFormatError(f"{str(path)!r} was altered after it was written (its content does not match its digest); use an intact copy")
    return header, tensors


def _read(path: Path, kind: str, names: Callable[[str], bool] | None) -> tuple[dict[str, Any], str, Tensors, bool]:
    if not path.exists():
        raise FileFormatError(f"no such file: {str(path)!r}; check the path")
    if path.is_dir():
        raise FileFormatError(f"{str(path)!r} is a folder; wanted a limbeck {kind} file (.safetensors)")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as reader:
            metadata = reader.metadata() or {}
            available = list(reader.keys())
            tensors = {} if names is None else {name: reader.get_tensor(name) for name in available if names(name)}
    except (SafetensorError, OSError, ValueError, RuntimeError, OverflowError) as problem:
        raise FileFormatError(
            f"{str(path)!r} is not a readable safetensors file (truncated, foreign or damaged: {problem}); use an intact copy"
        ) from None
    try:
        record = json.loads(metadata[_KEY])
        header, digest = record["header"], record["digest"]
        found = header["kind"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise FileFormatError(f"{str(path)!r} is a safetensors file, but limbeck did not write it; wanted a limbeck {kind} file") from None
    if found != kind:
        raise FileFormatError(f"{str(path)!r} holds a {found!r}; wanted a limbeck {kind} file")
    return header, digest, tensors, len(tensors) == len(available)
