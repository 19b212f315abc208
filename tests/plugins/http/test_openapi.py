"""The description: valid, loading nothing, complete."""

from __future__ import annotations

import json

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from vellumd_http import openapi
from vellumd_http.openapi import OPERATIONS, Operation

DOCUMENT = openapi.document("1.2.3")


def test_it_is_valid_openapi() -> None:
    """The validator has nothing to say."""
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_it_names_no_address() -> None:
    """Generated clients take the address that they were given."""
    assert "http://" not in json.dumps(DOCUMENT)
    assert "https://" not in json.dumps(DOCUMENT)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
def test_every_operation_tells_its_errors(operation: Operation) -> None:
    """Each code it can answer stands under its status, with what it means."""
    shown = DOCUMENT["paths"][operation.path][operation.method]
    codes = openapi.codes_of(operation)
    assert {"forbidden_host", "internal"} <= set(codes)
    assert ("forbidden_origin" in codes) is (operation.method != "get")
    for code in codes:
        status = str(openapi.status_of(operation, code))
        assert f"`{code}`" in shown["responses"][status]["description"] or (
            operation.path == "/readyz"
        )


def test_edits_are_described_as_they_are_sent() -> None:
    """Pictures are texts in JSON and files in forms; aliases are not repeated."""
    edit = DOCUMENT["components"]["schemas"]["Edit"]["properties"]
    assert edit["images"]["items"]["type"] == "string"
    assert {"prompt", "steps", "true_cfg_scale", "seed", "size", "loras"} <= edit.keys()
    form = DOCUMENT["components"]["schemas"]["EditForm"]["properties"]
    assert form["images"]["items"]["format"] == "binary"
    legacy = DOCUMENT["components"]["schemas"]["LegacyEdit"]["properties"]
    assert {"width", "height"} <= legacy.keys()
