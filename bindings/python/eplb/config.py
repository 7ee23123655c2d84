"""Configurations as text."""

import os
from typing import Any, Dict


def toml(keys: Dict[str, Any]) -> str:
    """A dictionary as TOML: tables in dictionaries, texts, numbers, booleans, and lists of them.

    Raises `ValueError` for what TOML does not have, `None` among it: leave such keys out.
    """

    def value(key: str, given: Any) -> str:
        if isinstance(given, bool):
            return "true" if given else "false"
        if isinstance(given, (int, float)):
            return repr(given)
        if isinstance(given, (str, os.PathLike)):
            text = os.fspath(given)
            escaped = "".join(f"\\u{ord(c):04x}" if c in '"\\' or ord(c) < 32 or ord(c) == 127 else c for c in text)
            return f'"{escaped}"'
        if isinstance(given, (list, tuple)):
            return "[" + ", ".join(value(key, part) for part in given) + "]"
        if isinstance(given, dict):
            return "{ " + ", ".join(f'"{name}" = {value(f"{key}.{name}", part)}' for name, part in given.items()) + " }"
        raise ValueError(f"{key} is {given!r}, which a configuration cannot hold")

    return "".join(f'"{key}" = {value(key, given)}\n' for key, given in keys.items())
