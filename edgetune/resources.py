"""Where the files that ship with edgetune lie: beside the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def resource_folder(name: str) -> Path:
    """The folder of board files (`devices`), reference profiles (`profiles`) or bundled data (`bundled`)."""
    for candidate in (_PACKAGE / name, _PACKAGE / f"_{name}", _PACKAGE.parent / name):
        if candidate.is_dir() and not (candidate / "__init__.py").exists():
            return candidate
    raise FileNotFoundError(f"edgetune's {name} folder is missing: reinstall the package.")
