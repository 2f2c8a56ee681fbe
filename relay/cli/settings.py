"""The settings of a command, and warnings about unknown ones."""

from __future__ import annotations

import os

from relay.cli.exits import warn
from relay.config.environment import load, unknown
from relay.config.settings import Settings


def read_settings() -> Settings:
    """Read the settings from the environment, and warn about each misspelt variable.

    Raises:
        BadSetting: an invalid value.
    """
    for name, nearest in unknown(os.environ).items():
        hint = f"did you mean {nearest}?" if nearest else "`relay config` lists them"
        warn(f"{name} is not a setting: {hint}")
    return load(os.environ)
