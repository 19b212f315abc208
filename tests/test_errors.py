"""Errors: each tells what to do, once, and names nothing that is not there."""

from __future__ import annotations

import re

import pytest

from vellumd import errors, fields
from vellumd.cli.main import COMMANDS
from vellumd.settings import Settings
from vellumd_http.plugin import HttpSettings


@pytest.mark.parametrize("error", [*errors.ALL, errors.ConfigError])
def test_a_remedy_names_what_there_is(error: type[errors.VellumError]) -> None:
    """Settings and commands in a remedy exist."""
    keys = {key for key, _ in fields.keys(Settings)}
    keys |= {f"plugins.http.{key}" for key, _ in fields.keys(HttpSettings)}
    sections = "|".join(sorted({key.partition(".")[0] for key in keys}))
    assert set(re.findall(rf"\b(?:{sections})(?:\.[a-z_]+)+", error.remedy)) <= keys
    assert set(re.findall(r"`vellumd (\w+)", error.remedy)) <= COMMANDS.keys()


@pytest.mark.parametrize("error", errors.ALL)
def test_a_stored_error_is_told_as_it_was(error: type[errors.VellumError]) -> None:
    """What was made public and stored comes back without its remedy doubled."""
    told = error("It went wrong.").public()
    again = errors.from_code(error.code, str(told["message"]))
    assert type(again) is error and again.public() == told
