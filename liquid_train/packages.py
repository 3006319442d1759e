"""Packages that only some jobs need."""

from __future__ import annotations


def missing_package(what: str, package: str, extra: str) -> str:
    """The message for a package that is not installed: what needs it, and how to get it. extra: of pyproject.toml.

    Nothing is published on an index, so it is installed from the clone.
    """
    return f"{what} needs {package}: {install_command(extra)}"


def install_command(extra: str) -> str:
    """How to install the packages of an extra."""
    return f"pip install -e '.[{extra}]' in the clone of liquid_train"
