"""The names that jobs and results are expected to use; `map` tells the others."""

from __future__ import annotations

from pydantic import AliasChoices

from vellumd import EditRequest

ANSWER = {
    "id": "id",
    "status": "status",
    "done": "done",
    "failed": "failed",
    "image": "image",
    "images": "images",
    "seed": "seed",
    "elapsed": "elapsed",
    "error": "error",
    "code": "code",
}
"""Names of a posted result, and its two words for `status`, as most servers expect them."""


def _spellings() -> dict[str, str]:
    """Every name under which a field may come, and the field."""
    names = {"width": "width", "height": "height"}
    for field, about in EditRequest.model_fields.items():
        alias = about.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else ()
        names |= dict.fromkeys([field, *(str(choice) for choice in choices)], field)
    return names


SPELLINGS = _spellings()
"""As most servers and the predecessor spell them."""
