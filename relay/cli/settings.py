"""The settings of a command, and what in the environment looks like one and is none."""

from __future__ import annotations

import os

from relay.cli.exits import warn
from relay.config.settings import Settings, load, unknown


def read_settings() -> Settings:
    """Return the settings that the environment holds, after a warning for each variable that is misspelt.

    Raises:
        BadSetting: an invalid value.
    """
    for name, nearest in unknown(os.environ).items():
        hint = f"did you mean {nearest}?" if nearest else "`relay config` lists them"
        warn(f"{name} is not a setting: {hint}")
    return load(os.environ)
