"""What `ls` lists and `explain` explains, read from the tables themselves."""

import inspect
import json
import re
from pathlib import Path

from limbeck.analyze import ANALYSES
from limbeck.data import SOURCES
from limbeck.data.normalizations import NORMALIZATIONS
from limbeck.data.pixels import PIXEL_SPACES
from limbeck.errors import OptionError, nearest
from limbeck.evaluate.protocols import PROTOCOLS
from limbeck.labels import TRANSFORMS
from limbeck.methods import METHODS, SELECTORS
from limbeck.models import MODELS
from limbeck.registry import Registry

_TABLES: dict[str, Registry] = {
    "sources": SOURCES,
    "methods": METHODS,
    "selectors": SELECTORS,
    "transforms": TRANSFORMS,
    "models": MODELS,
    "analyses": ANALYSES,
    "pixel-spaces": PIXEL_SPACES,
}


def catalog() -> dict[str, dict[str, str]]:
    """Every table as name -> first sentence, and the runs below the current folder."""
    tables = {kind: {name: _first_sentence(table[name]) for name in table} for kind, table in _TABLES.items()}
    tables["models"] |= {"timm:NAME": "A model of the timm package, where that is installed", "package.module:function": "Your own"}
    tables["normalizations"] = {
        name: f"mean {', '.join(map(str, entry.mean))}; std {', '.join(map(str, entry.std))} ({entry.used_by})"
        for name, entry in NORMALIZATIONS.items()
    }
    tables["protocols"] = {name: f"{protocol.note} ({protocol.source})" for name, protocol in PROTOCOLS.items()}
    tables["runs"] = {str(path.parent): _run_words(path) for path in sorted(Path("runs").glob("*/result.json"))}
    return tables


def explanation(topic: str) -> str:
    """The full text on a name of any table, or on a distilled file."""
    if topic.endswith(".safetensors") or Path(topic).is_file():
        return _file_words(Path(topic))
    method, at, recipe = topic.partition("@")
    if at and method in METHODS:
        return _recipe_words(method, recipe)
    for kind, table in _TABLES.items():
        if topic in table:
            thing, what = table[topic], "analysis" if kind == "analyses" else kind[:-1]
            return f"{topic} ({what})\n\n{inspect.getdoc(thing)}{_options_words(thing)}{_recipes_words(thing)}"
    if topic in PROTOCOLS:
        protocol = PROTOCOLS[topic]
        settings = "\n".join(f"  {key}: {value}" for key, value in protocol.recipe.model_dump().items() if value not in (None, (), False))
        return f"{protocol.label} (protocol)\n\n{protocol.note}\nSource: {protocol.source}\n\n{settings}"
    raise OptionError(f"nothing is named {topic!r}; {nearest(topic, [*PROTOCOLS, *(name for table in _TABLES.values() for name in table)])}")


def _options_words(thing: object) -> str:
    """The options of a method or an analysis, one a line."""
    kind = getattr(thing, "Options", None)
    fields = {} if kind is None else kind.model_fields
    return "\n\nOptions:" + "".join(f"\n  {name} ({field.default}): {field.description}" for name, field in fields.items()) if fields else ""


def _recipes_words(thing: object) -> str:
    """The named settings of a method, one a line."""
    recipes: dict[str, dict[str, object]] = getattr(thing, "recipes", {})
    return "\n\nRecipes:" + "".join(f"\n  {name}: {_settings(given)}" for name, given in recipes.items()) if recipes else ""


def _settings(given: dict[str, object]) -> str:
    return ", ".join(f"{key}={'none' if value is None else value}" for key, value in given.items()) or "the defaults"


def _recipe_words(method: str, recipe: str) -> str:
    kind = METHODS[method]
    recipes = getattr(kind, "recipes", {})
    if recipe not in recipes:
        raise OptionError(f"method {method} has no recipe {recipe!r}; {nearest(recipe, recipes) if recipes else 'it has none'}")
    settings = kind.Options(**recipes[recipe]).model_dump(mode="json")
    lines = "".join(f"\n  {key}: {'none' if value is None else value}" for key, value in settings.items())
    return f"{method}@{recipe} (recipe of a method)\n\nIt sets {_settings(recipes[recipe])}. All its options:\n{lines}"


def _first_sentence(thing: object) -> str:
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return re.split(r"\.\s+(?=[A-Z])", text)[0].rstrip(".")


def _run_words(path: Path) -> str:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = {row["role"]: row["interval_95"]["mean"] for row in record["evaluations"]}
        return ", ".join([record["title"], *(f"{role} {100 * mean:.1f} %" for role, mean in rows.items())])
    except (OSError, ValueError, KeyError, TypeError):
        return "not readable"


def _file_words(path: Path) -> str:
    from limbeck.types.distilled import DistilledDataset

    dataset = DistilledDataset.load(path)
    labels, provenance = dataset.labels, {key: value for key, value in dataset.provenance.items() if key != "indices"}
    channels, height, width = dataset.shape
    lines = [
        f"{path}: {len(dataset)} images of {len(dataset.classes)} classes, {channels}x{height}x{width}, {dataset.images.dtype}".replace("torch.", ""),
        f"labels: {labels.kind}" + (f", temperature {labels.temperature:g}" if labels.kind != "hard" else ""),
        "bytes: " + ", ".join(f"{name} {count}" for name, count in dataset.bytes.items()),
        "pixel space: " + (" -> ".join(step.name for step in dataset.pixels.steps) or "raw [0, 1]") + f", images stored {dataset.pixels.stored}",
        f"recipe: {json.dumps(dataset.recipe.model_dump(mode='json'))}",
        f"digest: {dataset.digest}",
        f"provenance: {json.dumps(provenance, indent=2)}",
    ]
    return "\n".join(lines)
