"""Where weights are found: the file given, the package itself, or the hub by name. Never imports torch.

The hub client is imported only when something is fetched, and only then does edgetune touch the network.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgetune.errors import InputError, MissingDependencyError
from edgetune.model.registry import BUNDLED_MODEL
from edgetune.model.spec import ViTSpec
from edgetune.resources import resource_folder


def find_weights(spec: ViTSpec, path: Path | None = None) -> Path:
    """The file with the weights of `spec`: `path` itself, the bundled one, or one fetched from the hub.

    Args:
        spec: the architecture.
        path: a file of the user's, which always wins.

    Raises:
        InputError: there is nothing to be had, or the hub can't be reached.
        MissingDependencyError: the hub client is not installed.
    """
    if path is not None:
        return path
    if spec.name == BUNDLED_MODEL:
        return bundled_weights()
    if spec.hub_id is None:
        raise InputError(f"no pre-trained weights are known for {spec.name}; give a .safetensors file with --weights.")
    return fetch(spec.hub_id)


def bundled_weights() -> Path:
    """The weights that come with the package."""
    try:
        path = resource_folder("bundled") / f"{BUNDLED_MODEL}.safetensors"
    except FileNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise InputError(f"the weights of {BUNDLED_MODEL} are missing from this installation; reinstall edgetune.")
    return path


def fetch(repository: str, name: str = "model.safetensors") -> Path:
    """A file of a hub repository, from the local cache where it is there. `HF_HUB_OFFLINE=1` keeps to the cache.

    Raises:
        InputError: the repository or the file does not exist, or the hub can't be reached.
        MissingDependencyError: the hub client is not installed.
    """
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError:
        raise MissingDependencyError("huggingface_hub", "hub", f"fetching {repository} by name") from None
    instead = "give a .safetensors file with --weights instead"
    try:
        return Path(hf_hub_download(repository, name))
    except errors.GatedRepoError:
        raise InputError(f"{repository} asks for permission on the hub; ask there, log in, or {instead}.") from None
    except errors.RepositoryNotFoundError:
        raise InputError(f"the hub has no {repository}; check the model's name and tag, or {instead}.") from None
    except errors.LocalEntryNotFoundError as error:
        raise InputError(_unreachable(repository, error, instead)) from None
    except errors.EntryNotFoundError:
        raise InputError(f"{repository} on the hub has no {name}; {instead}.") from None
    except Exception as error:  # whatever the client's HTTP library raises: its name changed between releases
        raise InputError(_unreachable(repository, error, instead)) from error


def _unreachable(repository: str, error: Exception, instead: str) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return f"{repository} is not in the hub's cache and HF_HUB_OFFLINE forbids fetching it; unset it, or {instead}."
    reason = type(error.__cause__ or error).__name__
    return f"the hub could not be reached to fetch {repository} ({reason}); check the network, or {instead}."
