"""What a phone is given: its file, the authority, the base model, and a node key, in one folder to copy to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from fedcaptor.common.config import phone_config
from fedcaptor.common.data.source import load
from fedcaptor.common.data.splits import pool, split
from fedcaptor.common.files import write_whole
from fedcaptor.common.secure.keys import identity_of
from fedcaptor.common.secure.register import signing_key
from fedcaptor.common.weights_file import digest_of_file
from fedcaptor.deploy.folder import KEY, Deployment

_DEMO_OWNERS = ((0, 1), (5, 7, 9), (2, 8))


def write_phone(deployment: Deployment, name: str) -> Path:
    """Write the folder of a phone, but for its key, and return it."""
    folder = deployment.phones / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in phone_files(deployment).items():
        write_whole(folder / file, content)
    return folder


def phone_files(deployment: Deployment, changes: Mapping[str, object] | None = None) -> dict[str, bytes]:
    """Return the files of a phone by their names. `changes`: keys of its `[device]` that are to be others."""
    config, settings, graph = deployment.config, deployment.settings, deployment.graph.is_file()
    device: dict[str, object] = {
        "superlink": f"{settings.host}:{settings.port}",
        "root_certificates": deployment.roots.name,
        "key": KEY,
        "folder": config.device.folder or "own",
        "images": config.device.images or "images",
        "catalogue": f"{settings.host}:{settings.port}",  # weights and graph come from there
        "weights": deployment.weights.name,
        "weights_digest": digest_of_file(deployment.weights, config.device.input_shape[0]),
        "graph": deployment.graph.name if graph else "",
        "model": config.model.name,
        "operator": identity_of(signing_key(deployment.operator_key)).hex(),
    }
    changed = {**device, **(changes or {})}
    own = config.model_copy(update={"device": config.device.model_copy(update=changed)})
    return {deployment.roots.name: deployment.roots.read_bytes(), "phone.toml": phone_config(own).encode()}


def write_demo_images(folder: Path, number: int, each: int = 40) -> None:
    """Give a phone photographs of an owner: embedded images of a few classes, by the phone's number."""
    if not folder.exists():
        write_images(folder, _DEMO_OWNERS[number % len(_DEMO_OWNERS)], each)


def write_images(folder: Path, classes: Iterable[int], each: int = 40) -> None:
    """Write embedded images of these classes, `each` of every one, without labels."""
    folder.mkdir(parents=True)
    data = load("embedded")
    mine = pool(data, split(data)["phones"])["use"]
    for label in classes:
        for number in mine[data.y[mine] == label][:each]:
            Image.fromarray(data.x[number, :, :, 0]).save(folder / f"{number:06d}.png")
