"""The setting of a job: an opened, split source with its pixel space, shared by every verb that touches data."""

from dataclasses import dataclass
from typing import Any

from limbeck.data.opening import open_source
from limbeck.data.pixels import fit_pixel_space
from limbeck.data.splits import Splits
from limbeck.data.tables import Source
from limbeck.models import parse_model
from limbeck.progress import Reporter
from limbeck.study.options import OpenOptions, parse_size
from limbeck.train.network import Network
from limbeck.types.pixels import PixelSpace


@dataclass(frozen=True)
class Setting:
    """A source as a job sees it."""

    spec: str
    source: Source
    splits: Splits
    pixels: PixelSpace

    @staticmethod
    def open(spec: str, options: OpenOptions, seed: int, reporter: Reporter, *, pixels: PixelSpace | str) -> "Setting":
        """Opens and splits the source and fits the named pixel space on train (or takes the given one)."""
        size = parse_size(options.size)
        source = open_source(
            spec,
            root=options.root,
            size=size,  # type: ignore[arg-type]
            skip_corrupt=options.skip_corrupt,
            channels=options.channels,
            image_column=options.image_column,
            label_column=options.label_column,
        )
        splits = Splits.make(source, seed=seed, validation=options.validation)
        for note in splits.notes:
            reporter.note(note)
        return Setting(spec, source, splits, fit_pixel_space(pixels, splits.train) if isinstance(pixels, str) else pixels)

    def network(self, model: str) -> Network:
        """The named architecture for these images and classes."""
        train = self.splits.train
        return Network(parse_model(model), (train.shape[0], train.shape[1], train.shape[2]), len(train.classes))

    def describe(self) -> dict[str, Any]:
        """Plain facts for records."""
        splits = self.splits
        return {
            "name": self.spec,
            "options": self.source.options,
            "shape": list(splits.train.shape),
            "classes": list(splits.train.classes),
            "train": len(splits.train),
            "validation": len(splits.validation),
            "test": splits.test.size,
            "train_digest": splits.train.digest,
            "test_digest": splits.test.digest,
            "notes": list(splits.notes),
        }
