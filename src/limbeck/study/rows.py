"""Rows of finished tasks as text: in a ledger, and in the cache beside the files that they name."""

import json
import reprlib
from typing import Any

from pydantic import BaseModel, ValidationError

from limbeck import store

Row = dict[str, Any]


class _Fields(BaseModel):
    """What every row has."""

    key: str
    kind: str
    settings: dict[str, Any]
    inputs: dict[str, list[str]]
    measures: dict[str, Any]
    digests: dict[str, Any]
    files: list[str]
    facts: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, str]
    seconds: float
    finished: float


class Damaged(ValueError):
    """Why a text is not a row; `torn` where it is no JSON at all."""

    def __init__(self, words: str, torn: bool = False) -> None:
        super().__init__(words)
        self.torn = torn


def encode(row: Row) -> str:
    """One line of canonical JSON: the row, and a digest of it as it is read back."""
    return store.canonical_json({**row, "digest": _digest(row)})


def decode(text: bytes) -> Row:
    """The row of a line; raises `Damaged`. Rows of earlier versions have no digest."""
    try:
        _Fields.model_validate_json(text)
    except ValidationError as error:
        raise Damaged(fault(error), torn=error.errors()[0]["type"] == "json_invalid") from None
    row: Row = json.loads(text)
    if row.pop("digest", None) not in (None, _digest(row)):
        raise Damaged("it does not fit its digest")
    return row


def fault(error: ValidationError) -> str:
    """The first thing that is wrong with a file that limbeck wrote itself: ``threads: input should be a valid integer, got 'x'``."""
    found = error.errors()[0]
    where = "".join(f"{part}: " for part in found["loc"])
    got = "" if found["type"] in ("missing", "json_invalid") else f", got {reprlib.repr(found['input'])}"
    return f"{where}{found['msg'][:1].lower()}{found['msg'][1:]}{got}"


def _digest(row: Row) -> str:
    return store.digest_of(json.loads(store.canonical_json(row)))
