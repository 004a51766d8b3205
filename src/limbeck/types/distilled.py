"""`DistilledDataset`: the product. One portable file that needs no source, no registry and no network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from pydantic import ValidationError
from torch import Tensor

from limbeck import store
from limbeck.errors import FileFormatError, LimbeckError, OptionError
from limbeck.types.labels import Labels, index_dtype
from limbeck.types.pixels import PixelSpace
from limbeck.types.recipe import Recipe
from limbeck.types.views import ViewSpec

KIND = "distilled dataset"
FORMAT = 1
VIEWS_FORMAT = 2  # a reader of format 1 would take labels per view for labels of the plain images, so it must refuse them


@dataclass(frozen=True)
class DistilledDataset:
    """N images [N, C, H, W] (uint8 when real, float32 or float16 otherwise) with labels over K classes and everything needed to train on them.

    `owners` [N] is the class in whose name each image was made; `step_size` a learned learning rate or None; `recipe` the recommended training;
    `architecture` the network that it was made for; `provenance` plain JSON: method, options, seeds, digests of every ancestor, versions.
    `payload` names how images are stored: "plain" today; a factored or multi-formation payload decodes to the same `images`.
    `views` says which augmented views the labels are of when there is one for each view (`labels` then has a leading view axis), and is None otherwise.
    """

    images: Shaped[Tensor, "N C H W"]
    owners: Shaped[Tensor, " N"]
    labels: Labels
    pixels: PixelSpace
    classes: tuple[str, ...]
    recipe: Recipe
    step_size: float | None = None
    architecture: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    payload: str = "plain"
    views: ViewSpec | None = None

    def __post_init__(self) -> None:
        count = len(self.images)
        if self.images.ndim != 4 or count == 0:
            raise FileFormatError(
                f"a distilled dataset needs images [N, C, H, W] with N >= 1, got shape {tuple(self.images.shape)}; use an intact file"
            )
        if self.images.dtype not in (torch.uint8, torch.float32, torch.float16):
            raise FileFormatError(f"images must be uint8, float32 or float16, got {self.images.dtype}; use an intact file")
        if self.images.is_floating_point() and not bool(torch.isfinite(self.images).all()):
            raise FileFormatError("images hold values that are not finite; use an intact file")
        if self.owners.ndim != 1 or self.owners.is_floating_point():
            raise FileFormatError(
                f"owner classes must be whole numbers [N], got {self.owners.dtype} of shape {tuple(self.owners.shape)}; use an intact file"
            )
        if len(self.owners) != count or len(self.labels) != count:
            raise FileFormatError(f"{count} images but {len(self.owners)} owners and {len(self.labels)} labels; use an intact file")
        if self.labels.views != (self.views.count if self.views else None):
            raise FileFormatError(
                f"labels of {self.labels.views or 'no'} views but a description of {self.views.count if self.views else 'no'} views; use an intact file"
            )
        if self.labels.classes != len(self.classes):
            raise FileFormatError(f"labels over {self.labels.classes} classes but {len(self.classes)} class names; use an intact file")
        if not 0 <= int(self.owners.long().min()) <= int(self.owners.long().max()) < len(self.classes):
            raise FileFormatError(f"owner classes must lie in 0..{len(self.classes) - 1}, got {int(self.owners.long().max())}; use an intact file")
        if self.payload != "plain":
            raise FileFormatError(f"payload {self.payload!r} is not known to this version of limbeck; upgrade limbeck")
        if self.step_size is not None and not np.isfinite(self.step_size):
            raise FileFormatError(f"the learned step size must be a finite number, got {self.step_size}; use an intact file")
        self.pixels.check(tuple(self.images.shape[1:]))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def bytes(self) -> dict[str, int]:
        """Stored bytes: of images, of labels (owner classes included), of the decoder (pixel-space parameters), and their total."""
        owner_bytes = len(self) * index_dtype(len(self.classes)).itemsize
        parts = {
            "images": self.images.nbytes,
            "labels": owner_bytes + (0 if self.labels.kind == "hard" else self.labels.nbytes),
            "decoder": self.pixels.nbytes,
        }
        return {**parts, "total": sum(parts.values())}

    @property
    def digest(self) -> str:
        """SHA-256 of the whole content, provenance included: what the saved file records and is checked against."""
        return store.content_digest(self._header(), self._tensors())

    def inputs(self) -> Float[Tensor, "N C H W"]:
        """Images in network space, float32."""
        return self.pixels(self.images)

    def targets(self) -> Float[Tensor, "N K"]:
        """Dense labels, float32. Labels per view are averaged over their views, as probabilities: good to look at, while training replays the views."""
        if self.views is None:
            return self.labels.dense()
        every = torch.arange(len(self))
        mean = torch.zeros(len(self), len(self.classes), dtype=torch.float64)
        for number in range(self.views.count):
            mean += self.labels.of_view(number, every).probabilities()
        return (mean / self.views.count).float()

    def with_hard_labels(self) -> "DistilledDataset":
        """The same images under their owner classes alone."""
        return DistilledDataset(**{**vars(self), "labels": Labels.hard(self.owners.long(), len(self.classes)), "views": None})

    def save(self, path: str | Path) -> str:
        """Writes one ``.safetensors`` file, whole or not at all, and returns the digest. Equal sets give equal bytes."""
        return store.save(Path(path), self._header(), self._tensors())

    @staticmethod
    def load(path: str | Path) -> "DistilledDataset":
        """Reads a file written by `save`. Raises `FileFormatError` for a missing, truncated, altered, foreign or hostile file; never unpickles."""
        header, tensors = store.load(Path(path), KIND)
        version = header.get("format")
        if version not in (FORMAT, VIEWS_FORMAT):
            raise FileFormatError(f"{str(path)!r} has format {version}; this version of limbeck reads formats up to {VIEWS_FORMAT}; upgrade limbeck")
        try:
            owners = tensors["owners"]
            hard = header["labels"]["kind"] == "hard"
            return DistilledDataset(
                images=tensors["images"],
                owners=owners,
                labels=Labels.hard(owners.long(), len(header["classes"])) if hard else Labels.restore(header["labels"], tensors),
                pixels=PixelSpace.restore(header["pixels"], tensors),
                classes=tuple(map(str, header["classes"])),
                recipe=Recipe(**header["recipe"]),
                step_size=header["step_size"],
                architecture=None if header["architecture"] is None else dict(header["architecture"]),
                provenance=dict(header["provenance"]),
                payload=header["payload"],
                views=ViewSpec(**header["views"]) if version == VIEWS_FORMAT else None,
            )
        except LimbeckError as problem:
            raise FileFormatError(f"{str(path)!r}: {problem}") from None
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, RuntimeError, ValidationError) as problem:
            raise FileFormatError(
                f"{str(path)!r} is not a usable distilled dataset ({type(problem).__name__}: {problem}); use an intact copy"
            ) from None

    def to_torch(self) -> torch.utils.data.TensorDataset:
        """A ``torch.utils.data.Dataset`` of (network input [C, H, W], label [K]) pairs. Labels per view need `limbeck.data.views.ReplayDataset` instead."""
        if self.views is not None:
            raise OptionError(
                "this set has a label for each augmented view, not one for each image; use limbeck.data.views.ReplayDataset(dataset, epoch=0)"
            )
        return torch.utils.data.TensorDataset(self.inputs(), self.targets())

    def to_folder(self, path: str | Path) -> Path:
        """Writes PNG files in one sub-folder per class and ``labels.parquet`` (file, owner, one column per class). Returns the folder."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        root, labels, files = Path(path), self.targets().numpy(), []
        for i, (image, owner) in enumerate(zip(self.pil_images(), self.owners.tolist(), strict=True)):
            name = Path(_safe_name(self.classes[owner], owner)) / f"{i:06d}.png"
            store.write_atomically(root / name, partial(image.save, format="PNG"))
            files.append(name.as_posix())
        table = pa.table(
            {
                "file": files,
                "owner": [self.classes[k] for k in self.owners.tolist()],
                **{f"p_{k}_{name}": labels[:, k] for k, name in enumerate(self.classes)},
            }
        )
        store.write_atomically(root / "labels.parquet", lambda temporary: pq.write_table(table, temporary))
        return root

    def to_huggingface(self) -> Any:
        """A ``datasets.Dataset`` with columns image, owner (ClassLabel) and label (list of K floats). Needs the ``hf`` extra."""
        try:
            import datasets
        except Exception:
            raise LimbeckError(
                "to_huggingface needs the 'datasets' package, which is not installed or not importable; pip install 'limbeck[hf]'"
            ) from None
        features = datasets.Features(
            image=datasets.Image(),
            owner=datasets.ClassLabel(names=list(self.classes)),
            label=datasets.Sequence(datasets.Value("float32"), length=len(self.classes)),
        )
        columns = {"image": self.pil_images(), "owner": self.owners.tolist(), "label": self.targets().tolist()}
        return datasets.Dataset.from_dict(columns, features=features)

    def pil_images(self) -> list[Any]:
        """Images as Pillow pictures (gray or RGB; other channel counts show their first one)."""
        from PIL import Image

        shown = (self.pixels.to_pixels(self.images) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(picture if picture.shape[2] == 3 else np.ascontiguousarray(picture[:, :, 0])) for picture in shown]

    def _header(self) -> dict[str, Any]:
        views = {} if self.views is None else {"views": self.views.model_dump()}
        return {
            "kind": KIND,
            "format": VIEWS_FORMAT if views else FORMAT,
            "payload": self.payload,
            "classes": list(self.classes),
            "labels": self.labels.header(),
            "pixels": self.pixels.header(),
            "recipe": self.recipe.model_dump(mode="json"),
            "step_size": self.step_size,
            "architecture": None if self.architecture is None else dict(self.architecture),
            "provenance": dict(self.provenance),
            **views,
        }

    def _tensors(self) -> dict[str, Tensor]:
        labels = {} if self.labels.kind == "hard" else self.labels.tensors()
        return {"images": self.images, "owners": self.owners.to(index_dtype(len(self.classes))), **labels, **self.pixels.tensors()}


def _safe_name(name: str, number: int) -> str:
    """A folder name for a class: letters, digits, dash, underscore and dot survive; the class number keeps names apart."""
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name).strip(".")
    return kept if kept == name and kept else f"{number:04d}_{kept}"
