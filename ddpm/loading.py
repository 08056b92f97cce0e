"""Load a published model from a folder, or from an address in a store such as a model registry."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import ddpm.published

STORES = "ddpm.model_stores"
"""Entry point group for model stores. An entry point is named by the scheme of its addresses, such as "models" for
models:/flowers@champion. It is a function from an address to a context manager that yields the folder with the model;
it raises CheckpointError."""

Store = Callable[[str], AbstractContextManager[Path]]

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/")


def load(
    source: Path | str, weights: str | None = None, device: torch.device | str | None = None
) -> "ddpm.published.PublishedModel":
    """Load a model to draw from: `load("build/model").draw(4, seed=0)`. Nothing is unpickled.

    Args:
        source: a folder, such as build/model, or an address, such as models:/flowers-ddpm@champion.
        weights: see `ddpm.published.load_model`; None takes the averaged ones, or the only ones.
        device: device of the network; None takes the GPU, or the CPU if there is none.

    Raises:
        ddpm.checkpoint.CheckpointError: the model is missing or damaged, or no installed store opens such addresses.
    """
    # safetensors is needed to load, not to train: importing it here keeps the library usable with torch alone.
    from ddpm.devices import best_device
    from ddpm.published import load_model

    device = best_device() if device is None else device
    address = _ADDRESS.match(source) if isinstance(source, str) else None
    if address is None:
        return load_model(source, weights or find_weights(Path(source)), device)
    with _store(address[1], str(source))(str(source)) as folder:
        return load_model(folder, weights or find_weights(folder), device)


def find_weights(folder: Path) -> str:
    """Return the name of the only weights in `folder`, or "averaged"."""
    names = [path.stem for path in folder.glob("*.safetensors")]
    return names[0] if len(names) == 1 else "averaged"


def _store(scheme: str, address: str) -> Store:
    from ddpm.checkpoint import CheckpointError

    installed = _installed_stores()
    if scheme not in installed:
        raise CheckpointError(
            f"no installed package opens model addresses of {scheme}:, got {address} (known: "
            f"{', '.join(sorted(installed)) or 'none'}): run `pip install 'flowers-ddpm[pipeline]'`, or name "
            "a folder"
        )
    try:
        store: Store = installed[scheme].load()
    except ImportError as error:
        raise CheckpointError(
            f"the store of {address} cannot be opened: {error}; run `pip install 'flowers-ddpm[pipeline]'`, "
            "or name a folder"
        ) from error
    return store


def _installed_stores() -> dict[str, Any]:
    # Not typed as EntryPoint: some packages replace importlib.metadata by its backport.
    return {store.name: store for store in entry_points(group=STORES)}
