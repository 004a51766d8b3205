"""A method as the user writes it: ``dm``, ``dm@smoke`` (a named recipe), ``dm:steps=200,image_lr=1`` (options), or both."""

from types import NoneType
from typing import Any, get_args

from pydantic import ValidationError

from limbeck.errors import OptionError, nearest
from limbeck.methods import METHODS
from limbeck.methods.driver import Method


def parse_method(text: str, **given: Any) -> Method:
    """The method with its options; `given` are further options, which replace a recipe's but not the text's (None counts as nothing).

    Every method has ``Options`` (a pydantic model) and may have ``recipes``: names of settings. A value with options of its own keeps its commas: after
    ``teacher=convnet:width=64`` the part ``norm=batch``, which names no option of the method, belongs to the teacher. Raises `OptionError`, one sentence,
    for an unknown name, recipe, option or value.
    """
    head, _, tail = text.partition(":")
    name, at, recipe = head.partition("@")
    kind = METHODS[name]
    recipes: dict[str, dict[str, Any]] = getattr(kind, "recipes", {})
    if at and recipe not in recipes:
        raise OptionError(f"method {name} has no recipe {recipe!r}; {nearest(recipe, recipes) if recipes else 'it has none'}")
    fields = kind.Options.model_fields
    options = recipes.get(recipe, {}) | {key: value for key, value in given.items() if value is not None and key in fields}
    written: dict[str, str] = {}
    last = ""
    for part in filter(None, tail.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise OptionError(f"options of {name} are written key=value, got {part.strip()!r}; write for example {name}:steps=200")
        if key in fields:
            written[last := key] = value
        elif ":" in written.get(last, ""):
            written[last] += f",{key}={value}"
        else:
            raise OptionError(f"method {name} has no option {key!r}; {nearest(key, fields)}")
    # "none" is a word of its own for fields that hold text, such as an augmentation
    options |= {key: None if value == "none" and NoneType in get_args(fields[key].annotation) else value for key, value in written.items()}
    try:
        made: Method = kind(kind.Options(**options))
    except ValidationError as error:
        fault = error.errors()[0]
        where = f"option {fault['loc'][0]}" if fault["loc"] else "options"  # a rule on several options names none of them
        raise OptionError(f"{where} of method {name}: {fault['msg'][:1].lower()}{fault['msg'][1:]}, got {fault['input']!r}") from None
    return made
