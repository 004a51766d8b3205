"""Where in a TOML file a value stands, so that an error names the line, and problems of a checked model as one sentence."""

import re
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from limbeck.errors import OptionError, nearest

Place = tuple[str | int, ...]
_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""^\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")


class Text:
    """A TOML file's text with the line of every table and key: ``text.line(("scales", "smoke", "axes"))``.

    Keys inside an inline table stand at the line of the key that holds it.
    """

    def __init__(self, name: str, content: str) -> None:
        self.name = name
        self._lines: dict[Place, int] = {}
        counts: dict[Place, int] = {}
        table: Place = ()
        for number, line in enumerate(content.splitlines(), 1):
            if header := _HEADER.match(line):
                table = _parts(header[2])
                if header[1] == "[[":
                    counts[table] = counts.get(table, -1) + 1
                table = _numbered(table, counts)
                self._lines.setdefault(table, number)
            elif key := _KEY.match(line):
                self._lines.setdefault((*table, *_parts(key[1])), number)

    def line(self, place: Place) -> int | None:
        """The line of a place, or of the nearest table around it that is written down."""
        return next((self._lines[place[:end]] for end in range(len(place), 0, -1) if place[:end] in self._lines), None)

    def words(self, place: Place) -> str:
        """``scales.smoke.axes (line 12 of FILE)``."""
        line, spoken = self.line(place), spell(place)
        return f"{spoken} (line {line} of {self.name})" if line else f"{spoken} of {self.name}" if spoken else self.name


def spell(place: Place) -> str:
    """``claims[0].check.left``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def problem(error: ValidationError, model: type[BaseModel], text: Text, before: Place = ()) -> OptionError:
    """A fault that pydantic found, as one sentence with its place: what, got, wanted, what to do. An unknown key comes first: it often explains a missing one."""
    fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    place = (*before, *(part for part in _keys(model, fault["loc"])))
    if fault["type"] == "extra_forbidden":
        known = _fields(model, fault["loc"][:-1])
        return OptionError(f"unknown key {str(fault['loc'][-1])!r} at {text.words(place)}; {nearest(str(fault['loc'][-1]), known)}")
    if fault["type"] == "missing":
        return OptionError(f"missing key {str(fault['loc'][-1])!r} at {text.words(place[:-1])}; add it")
    inner = fault.get("ctx", {}).get("error")
    if isinstance(inner, Exception):
        return OptionError(f"{text.words(place)}: {inner}")
    alike = [other["msg"] for other in error.errors() if _keys(model, other["loc"]) == _keys(model, fault["loc"])]
    words = " or ".join(dict.fromkeys(f"{message[:1].lower()}{message[1:]}" for message in alike))
    return OptionError(f"{text.words(place)}: {words}, got {fault['input']!r}")


def _keys(model: type[BaseModel], loc: Sequence[str | int]) -> list[str | int]:
    """A place without what pydantic adds to it: which kind of value of a union it tried (``int``, ``literal['all']``)."""
    return [part for number, part in enumerate(loc) if not (isinstance(part, str) and ("[" in part or _is_kind(model, loc[:number], part)))]


def _is_kind(model: Any, before: Sequence[str | int], part: str) -> bool:
    for step in before:
        model = _inside(model, step)
    kinds = _options(model)
    return len(kinds) > 1 and part in {getattr(kind, "__name__", "") for kind in kinds}


def _fields(model: Any, loc: Sequence[str | int]) -> list[str]:
    """The keys that the model at the end of `loc` takes."""
    for part in loc:
        model = _inside(model, part)
    kinds = [kind for kind in _options(model) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return sorted({name for kind in kinds for name in kind.model_fields})


def _inside(model: Any, part: str | int) -> Any:
    for kind in _options(model):
        if isinstance(kind, type) and issubclass(kind, BaseModel) and part in kind.model_fields:
            return kind.model_fields[str(part)].annotation
        if get_origin(kind) in (dict, Mapping):
            return get_args(kind)[1]
        if get_origin(kind) in (list, tuple):
            return get_args(kind)[0]
    return None


def _options(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _parts(written: str) -> Place:
    return tuple(part.strip().strip("\"'") for part in re.findall(r"\"[^\"]*\"|'[^']*'|[\w-]+", written))


def _numbered(table: Place, counts: Mapping[Place, int]) -> Place:
    """The table's place with the number of each repeated table on the way: ``[claims.check]`` belongs to the last ``[[claims]]``."""
    made: list[str | int] = []
    for end, part in enumerate(table, 1):
        made.append(part)
        if table[:end] in counts:
            made.append(counts[table[:end]])
    return tuple(made)
