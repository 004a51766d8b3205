"""Writes ``docs/reference/tables.md`` from the registries: ``python docs/generate.py``; with ``--check`` it only says whether the page is current."""

import inspect
import sys
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from limbeck.analyze import ANALYSES
from limbeck.data import SOURCES
from limbeck.data.normalizations import NORMALIZATIONS
from limbeck.data.opening import NEEDS_TARGET
from limbeck.data.pixels import PIXEL_SPACES
from limbeck.evaluate.protocols import PROTOCOLS
from limbeck.labels import TRANSFORMS
from limbeck.methods import METHODS, SELECTORS
from limbeck.models import MODELS, ModelSpec
from limbeck.study.audit_options import AuditSettings
from limbeck.study.label_options import TuneLabelsOptions
from limbeck.study.options import DistillOptions, ImportOptions, ScoreOptions
from limbeck.types.recipe import Recipe

PAGE = Path(__file__).parent / "reference" / "tables.md"
HEAD = """# Tables

Every name that limbeck knows. `docs/generate.py` writes this page from the registries in the code (`make docs`); a test fails when it is stale. `limbeck ls`
shows the same lists, `limbeck explain NAME` one entry.
"""


def page() -> str:
    """The whole page."""
    sources = {name: f"Written `{name}:{NEEDS_TARGET[name]}`." if name in NEEDS_TARGET else f"Written `{name}`." for name in SOURCES}
    models = {name: f"Options: {_model_options(name)}." for name in MODELS}
    analyses = {name: f"Options: {_fields(ANALYSES[name].Options)}." for name in ANALYSES}
    methods = {name: f"Options: {_fields(METHODS[name].Options)}." for name in METHODS}
    sections = [
        HEAD,
        _entries("Sources", "What `limbeck distill` takes as its source; a path whose kind is recognized needs no name.", SOURCES, sources),
        _entries("Methods", "`--method NAME`.", METHODS, methods),
        _entries("Selectors", "Which real images to keep: `--selector NAME`, with an argument as `NAME:ARGUMENT`.", SELECTORS, {}),
        _entries(
            "Label transforms",
            "Controlled changes of soft labels, written `NAME` or `NAME:option=value,...`. See [Label transforms](../label-transforms.md).",
            TRANSFORMS,
            {name: f"Options: {_fields(TRANSFORMS[name])}." for name in TRANSFORMS},
        ),
        _entries(
            "Models",
            "`--model NAME`, with options as `convnet:width=64,norm=batch`, or short as `convnet-d4-w64`; `timm:NAME` for a model of the timm package, "
            "`module:function` for your own. See [Models](../models.md).",
            MODELS,
            models,
        ),
        _entries("Pixel spaces", "`--pixels NAME`; see [Pixel spaces](../pixel-spaces.md).", PIXEL_SPACES, {}),
        _entries(
            "Analyses", "`limbeck analyze FILE NAME`, with options as `--option NAME:KEY=VALUE`. See [Analyses](../analyses.md).", ANALYSES, analyses
        ),
        _normalizations(),
        _protocols(),
        _options("Recipe fields", "How a network is trained, as data: a protocol's and a distilled file's `recipe`.", Recipe, str),
        _options("Options of `limbeck distill`", "The same options exist in Python as `limbeck.DistillOptions`.", DistillOptions, _flag),
        _options("Options of `limbeck labels tune`", "See [Label budget](../label-budget.md).", TuneLabelsOptions, _flag),
        _options("Options of `limbeck import`", "See [Importing](../importing.md).", ImportOptions, _flag),
        _options("Options of `limbeck audit`", "And those of `limbeck distill`. See [Reading an audit](../audit.md).", AuditSettings, _flag),
        _options("Options of `limbeck score`", "See [Robust scores](../scores.md).", ScoreOptions, _flag),
    ]
    return "\n".join(sections)


def _entries(title: str, lead: str, table: Any, extra: dict[str, str]) -> str:
    parts = [f"## {title}\n\n{lead}\n"]
    for name in table:
        parts.append(f"### {name}\n\n" + "\n\n".join(filter(None, [inspect.getdoc(table[name]), extra.get(name)])) + "\n")
    return "\n".join(parts)


def _normalizations() -> str:
    rows = [[f"`{name}`", _value(entry.mean), _value(entry.std), entry.used_by] for name, entry in NORMALIZATIONS.items()]
    lead = "What published code subtracts from pixels in [0, 1] and divides by, for `limbeck import --pixel-space normalize:NAME`."
    return f"## Normalizations\n\n{lead}\n\n{_table(['name', 'mean', 'std', 'used by'], rows)}"


def _protocols() -> str:
    """One row per protocol and one column per recipe field in which any two of them differ."""
    recipes = {protocol.label: {field: getattr(protocol.recipe, field) for field in Recipe.model_fields} for protocol in PROTOCOLS.values()}
    columns = [field for field in Recipe.model_fields if len({repr(recipe[field]) for recipe in recipes.values()}) > 1]
    shared = {field: next(iter(recipes.values()))[field] for field in Recipe.model_fields if field not in columns}
    rows = [[f"`{label}`", *(_value(recipe[field]) for field in columns)] for label, recipe in recipes.items()]
    notes = [[f"`{protocol.label}`", protocol.note, protocol.source] for protocol in PROTOCOLS.values()]
    alike = f"\nAlike in all: {', '.join(f'`{field}` {_value(value)}' for field, value in shared.items())}.\n" if shared else ""
    return (
        "## Protocols\n\n`--protocol NAME`; a number is written with `name/version`. See [Evaluation](../evaluation.md#protocols).\n\n"
        f"{_table(['protocol', 'what it is', 'source'], notes)}\n{_table(['protocol', *(f'`{field}`' for field in columns)], rows)}{alike}"
    )


def _options(title: str, lead: str, kind: type[BaseModel], written: Any) -> str:
    rows = [
        [f"`{written(name)}`", _values(field.annotation), _value(field.default), field.description or ""] for name, field in kind.model_fields.items()
    ]
    return f"## {title}\n\n{lead}\n\n{_table(['name', 'values', 'default', 'meaning'], rows)}"


def _values(annotation: Any) -> str:
    """What a field takes, in words."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_values(part) for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is tuple:
        return f"list of {_values(get_args(annotation)[0])}"
    return {bool: "yes, no", int: "whole number", float: "number", str: "text", Path: "path"}[annotation]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _model_options(name: str) -> str:
    options = ModelSpec(name=name).options
    return ", ".join(f"`{key}` ({'by image size' if value is None else value})" for key, value in options.items()) or "none"


def _fields(kind: type[BaseModel]) -> str:
    given = {name: "needed" if field.is_required() else _value(field.default) for name, field in kind.model_fields.items()}
    return "; ".join(f"`{name}` ({given[name]}): {field.description}" for name, field in kind.model_fields.items()) or "none"


def _value(value: Any) -> str:
    if value is None or value == ():
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        ", ".join(part if isinstance(part, str) else f"{part:g}" for part in value)
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |\n" for line in lines)


def main(arguments: list[str]) -> int:
    """Exit code: 1 with ``--check`` when the page is stale."""
    text = page()
    if arguments == ["--check"]:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print("docs/reference/tables.md is current" if current else "docs/reference/tables.md is stale; run: python docs/generate.py")
        return 0 if current else 1
    if arguments:
        print("usage: python docs/generate.py [--check]", file=sys.stderr)
        return 2
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
