"""Fields of pydantic's models: all names of each, and which one a wrong name means."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo


def bare(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type below `Annotated` and `| None`, and the marks found on the way.

    A union of several types counts as none of them: pydantic chooses.
    """
    marks: tuple[Any, ...] = ()
    while True:
        if get_origin(kind) is Annotated:
            kind, *found = get_args(kind)
            marks += tuple(found)
        elif get_origin(kind) in (Union, types.UnionType):
            options = [option for option in get_args(kind) if option is not type(None)]
            if len(options) > 1:
                return None, marks
            kind = options[0]
        else:
            return kind, marks


def kind_of(field: FieldInfo) -> Any:
    """The field's type with its marks."""
    return Annotated[field.annotation, None, *field.metadata]


def by_name(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields by every name they can be given under."""
    named = dict(model.model_fields)
    for field in model.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            named |= {str(alias): field for alias in field.validation_alias.choices}
    return named


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key below `model` in dotted form, with its field; sections are walked into."""
    for name, field in model.model_fields.items():
        kind = bare(field.annotation)[0]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def nearest(model: type[BaseModel], path: list[str]) -> str:
    """The valid key most like `path`, in dotted form; empty if the model has no keys."""
    fields = by_name(model)
    close = difflib.get_close_matches(path[0], fields, 1)
    if not close or not path[1:]:
        known = [*fields, *(key for key, _ in keys(model))]
        return next(iter(difflib.get_close_matches(".".join(path), known, 1, 0)), "")
    kind = bare(fields[close[0]].annotation)[0]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"{close[0]}.{nearest(kind, path[1:])}"
    return ".".join([close[0], *path[1:]])
