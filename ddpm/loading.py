"""A published model by the name of its folder, or by its address in a store such as a registry of models."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import ddpm.checkpoint

STORES = "ddpm.model_stores"
"""The group of entry points that open addresses: named by the scheme, such as "models" of models:/flowers@champion, a
function from the address to a context in which the model lies in a folder. It raises CheckpointError."""

Store = Callable[[str], AbstractContextManager[Path]]

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/")


def load(
    source: Path | str, weights: str | None = None, device: torch.device | str | None = None
) -> "ddpm.checkpoint.PublishedModel":
    """A model to draw from: `load("build/model").draw(4, seed=0)`. Nothing is unpickled.

    Args:
        source: a folder, such as build/model, or an address, such as models:/flowers-ddpm@champion.
        weights: see `ddpm.checkpoint.load_model`; None takes the averaged ones, or the only ones.
        device: where the network goes; None takes the GPU where there is one.

    Raises:
        ddpm.checkpoint.CheckpointError: the model is missing or damaged, or nothing installed opens such addresses.
    """
    # safetensors is needed to load, not to train: importing it here keeps the library usable with torch alone.
    from ddpm.checkpoint import load_model
    from ddpm.devices import best_device

    device = best_device() if device is None else device
    address = _ADDRESS.match(source) if isinstance(source, str) else None
    if address is None:
        return load_model(source, weights or found_weights(Path(source)), device)
    with _store(address[1], str(source))(str(source)) as folder:
        return load_model(folder, weights or found_weights(folder), device)


def found_weights(folder: Path) -> str:
    """The averaged weights, or the only ones where a folder holds others alone."""
    names = [path.stem for path in folder.glob("*.safetensors")]
    return names[0] if len(names) == 1 else "averaged"


def _store(scheme: str, address: str) -> Store:
    from ddpm.checkpoint import CheckpointError

    installed = _installed_stores()
    if scheme not in installed:
        raise CheckpointError(
            f"{address} lies in a store of models, and nothing installed opens addresses of {scheme}: (known: "
            f"{', '.join(sorted(installed)) or 'none'}); run `pip install 'flowers-ddpm[pipeline]'`, or name "
            "a folder"
        )
    try:
        store: Store = installed[scheme].load()
    except ImportError as error:
        raise CheckpointError(
            f"{address} lies in a store of models that cannot be opened: {error}; run "
            "`pip install 'flowers-ddpm[pipeline]'`, or name a folder"
        ) from error
    return store


def _installed_stores() -> dict[str, Any]:
    # Entry points, of importlib.metadata or of its backport, which other packages put in its place.
    return {store.name: store for store in entry_points(group=STORES)}
