"""Configuration nodes to objects: the class behind `_target_` is checked before it is called, and so is every argument.

A name that begins with an allowed package proves nothing (`torch.os.system` does), so what counts is the object that the name resolves to.
"""

import difflib
import importlib
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from mdcs.errors import UserError

IMPORTED_FROM = ("mdcs", "torch", "timm")  # or what the program has imported already
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def instantiate(node: Mapping[str, Any], base: type, where: str, **given: Any) -> Any:
    """Call the class that `node["_target_"]` names, with the rest of the node and `given`.

    `where` is the node's place in the configuration, for messages. The class must be a subclass of `base`. Nested nodes are instantiated
    with the annotation of the parameter they go to as their base.
    """
    cls = resolve(node.get("_target_"), base, where)
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    hints = check_arguments(cls, arguments, where, given)
    for name, value in arguments.items():
        if isinstance(value, Mapping) and "_target_" in value:
            wanted = hints.get(name)
            if not isinstance(wanted, type):
                raise UserError(f"{where}.{name}: no object can be configured here, remove its _target_")
            arguments[name] = instantiate(value, wanted, f"{where}.{name}")
    return call(cls, where, **arguments, **given)


def call(cls: Callable[..., Any], where: str, *positional: Any, also: type[Exception] = ValueError, **arguments: Any) -> Any:
    """`cls(...)`, with a refusal by a foreign library's constructor told as the user's error that it is.

    Libraries refuse with TypeError, ValueError or `also`, a type of their own.
    """
    try:
        return cls(*positional, **arguments)
    except UserError:
        raise
    except (TypeError, ValueError, also) as refusal:
        raise UserError(f"{where}: {getattr(cls, '__name__', cls)} refuses its arguments: {' '.join(str(refusal).split())}") from refusal


def resolve(target: Any, base: type, where: str) -> type:
    """The class named by the dotted path `target`, if it is a subclass of `base`."""
    expected = f"expected a subclass of {base.__module__}.{base.__qualname__}"
    if not isinstance(target, str):
        raise UserError(f"{where}._target_={target!r} is not a dotted path: {expected}")
    parts = target.split(".")
    found: Any = None
    if parts[0] not in IMPORTED_FROM and parts[0] not in sys.modules:  # importing a module runs it
        raise UserError(f"{where}._target_={target} is not allowed here: {expected}, from {', '.join(IMPORTED_FROM)}")
    lengths = range(len(parts) - 1, 0, -1) if all(part.isidentifier() for part in parts) else ()
    for split in lengths:
        module = ".".join(parts[:split])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as missing:
            if missing.name is None or not module.startswith(missing.name):
                raise UserError(f"{where}._target_={target}: importing {module} fails, {missing}") from missing
            continue
        except Exception as broken:
            raise UserError(f"{where}._target_={target}: importing {module} fails, {type(broken).__name__}: {broken}") from broken
        for name in parts[split:]:
            found = getattr(found, name, None)
        break
    if found is None:
        raise UserError(f"{where}._target_={target}: there is no such class; {expected}")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{where}._target_={target} is not allowed here: {expected}")
    return found


def check_arguments(
    function: Callable[..., Any], arguments: Mapping[str, Any], where: str, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Refuse names that `function` does not take and values that do not fit its annotations.

    `given` are arguments that come from the program rather than the user. Returns the annotations.
    """
    given = given or {}
    parameters = inspect.signature(function).parameters
    hints = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    settable = [name for name, parameter in parameters.items() if name not in given and parameter.kind is not parameter.VAR_KEYWORD]
    for name, value in arguments.items():
        if name not in settable and not open_ended:
            raise UserError(f"{where}.{name} is not a setting of {function.__name__}{suggestion(name, settable)}")
        if not (isinstance(value, Mapping) and "_target_" in value) and not fits(value, hints.get(name, Any)):
            endless = isinstance(value, float) and not math.isfinite(value)
            expected = described(hints[name]).replace("a number", "a finite number") if endless else described(hints[name])
            raise UserError(f"{where}.{name}={as_written(value)}: expected {expected}")
    return hints


def as_written(value: Any) -> str:
    """A plain value as in YAML, where that is not as in Python."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_written, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))


def suggestion(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown `name`: the known one that ends in it or is closest, or all if they are few."""
    close = [other for other in known if other.endswith(f".{name}")] or difflib.get_close_matches(name, known, 1, 0.75)
    if close:
        return f": did you mean {close[0]}?"
    return f": there is {', '.join(known)}" if len(known) < 20 else ": `mdcs train --cfg job` prints all there are"


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain configuration value can stand where `annotation` is asked for. What cannot be judged fits."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is Any or isinstance(annotation, str):
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in args)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in args)
    if annotation is float:
        return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)))
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return isinstance(value, list | tuple) and all(fits(item, args[0]) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    return not isinstance(annotation, type) or isinstance(value, annotation)


def described(annotation: Any) -> str:
    """`annotation` in words, for messages."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        values = list(dict.fromkeys(str(value) for option in args if get_origin(option) is Literal for value in get_args(option)))
        words = [described(option) for option in args if option in NAMES or (get_origin(option) and get_origin(option) is not Literal)]
        words += [f"one of {', '.join(values)}" if len(values) > 1 else values[0]] if values else []
        return " or ".join(dict.fromkeys(sorted(words, key="null".__eq__)))  # null last
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list of {described(args[0]).removeprefix('a ')}s" if args[0] in NAMES else "a list"
    return NAMES.get(annotation, f"a {getattr(annotation, '__name__', annotation)}")
