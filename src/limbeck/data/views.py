"""Replays the augmented views that labels per view belong to: the same pictures for any batch size, order and number of workers."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from limbeck.data.augment import Augment, Chain, CutMix, Mixup, Params, Shape, draw_boxes, draw_shares, parse_augment, paste
from limbeck.errors import FileFormatError, OptionError
from limbeck.streams import Streams
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels
from limbeck.types.views import ViewSpec

Read = Callable[[Int[Tensor, " B"]], Float[Tensor, "B C H W"]]
"""Gives images of the set by their numbers, in network space, on any device."""

_CHECKED = 64  # images whose draws the fingerprint covers


class Views:
    """The `views` augmented views of a set of `count` images of `shape` (C, H, W).

    All draws of view e come from the generator ``Streams(seed).torch("view", e)``: first the parameters of the augmentation for every image of the set;
    then, where `augment` ends in a mixing step, every image's partner, uniform over the whole set, and its share lam ~ Beta(alpha, alpha), and for CutMix
    its box (Yun et al. 2019, arXiv:1905.04899). The partner is shown as its own view e. So what image i looks like in view e depends on (seed, e, i)
    and the size of the set alone. SRe2L (Yin, Xing and Shen 2023, arXiv:2306.13092) draws one box and one permutation for a whole batch instead, which is
    why its labels hold for one batch size and one order only.
    """

    def __init__(self, augment: str, views: int, seed: int, count: int, shape: Shape) -> None:
        self.count, self.shape = count, shape
        self._text, self._views, self._seed = augment, views, seed
        self._plain, self._mixing = split_mixing(augment)
        self._last: tuple[int, Params, Params] | None = None

    @staticmethod
    def of(spec: ViewSpec, count: int, shape: Shape) -> "Views":
        """The views that `spec` describes. Raises `FileFormatError` when this program draws other ones than the program that made the labels."""
        views = Views(spec.augment, spec.count, spec.seed, count, shape)
        if views.spec != spec:
            raise FileFormatError(
                f"the labels of these views belong to other pictures than limbeck draws here with PyTorch {torch.__version__}; "
                "use the versions that the file's provenance names"
            )
        return views

    @cached_property
    def spec(self) -> ViewSpec:
        """The description under which these views are replayed."""
        sha = hashlib.blake2b(digest_size=8)
        for params in self.draw(0):
            for name, value in sorted(params.items()):
                if not value.is_floating_point():  # whole numbers come out the same on every processor
                    sha.update(name.encode() + value[:_CHECKED].long().numpy().astype("<i8").tobytes())
        return ViewSpec(seed=self._seed, count=self._views, augment=self._text, fingerprint=sha.hexdigest())

    def draw(self, view: int) -> tuple[Params, Params]:
        """Every decision of a view: the augmentation's parameters; and ``partner`` [N] with ``box`` [N, 4] or ``lam`` [N], or nothing."""
        if self._last is None or self._last[0] != view:
            generator = Streams(self._seed).torch("view", view)
            plain = {} if self._plain is None else self._plain.draw(self.count, self.shape, generator)
            mixing: Params = {}
            if self._mixing is not None:
                mixing["partner"] = torch.randint(self.count, (self.count,), generator=generator)
                lam = draw_shares(self._mixing.alpha, self.count, generator)
                mixing |= {"box": draw_boxes(lam, self.shape, generator)} if isinstance(self._mixing, CutMix) else {"lam": lam}
            self._last = view, plain, mixing
        return self._last[1:]

    def images(self, read: Read, numbers: Int[Tensor, " B"], view: int) -> Float[Tensor, "B C H W"]:
        """Images `numbers` as view `view` shows them, on the device that `read` gives them on; differentiable in them."""
        plain, mixing = self.draw(view)
        shown = torch.cat([numbers, mixing["partner"][numbers]]) if mixing else numbers
        images = read(shown)
        if self._plain is not None:
            # parameters that all images share have a leading dimension of 1
            images = self._plain.apply(images, {name: value if len(value) == 1 else value[shown] for name, value in plain.items()})
        if not mixing:
            return images
        own, others = images.chunk(2)
        if "box" in mixing:
            return paste(own, others, mixing["box"][numbers].to(own.device))
        return torch.lerp(others, own, mixing["lam"][numbers].to(own.device, own.dtype)[:, None, None, None])


def split_mixing(text: str) -> tuple[Augment | None, CutMix | Mixup | None]:
    """What an augmentation does to each image for itself, and how it mixes images at the end; None for nothing."""
    parsed = parse_augment(text)
    steps: tuple[Augment, ...] = parsed.steps if isinstance(parsed, Chain) else () if parsed is None else (parsed,)
    last = steps[-1] if steps and isinstance(steps[-1], CutMix | Mixup) else None
    plain = steps if last is None else steps[:-1]
    if any(isinstance(step, CutMix | Mixup) for step in plain):
        raise OptionError(f"a view mixes images at most once, as its last step, got {text!r}; use for example resized_crop+flip+cutmix")
    return (None if not plain else plain[0] if len(plain) == 1 else Chain(plain)), last


class LabeledViews:
    """Views with their labels. Epochs count from 0; after the last view comes the first one again."""

    def __init__(self, views: Views, labels: Labels) -> None:
        self.views, self._labels = views, labels

    @staticmethod
    def of(dataset: DistilledDataset) -> "LabeledViews | None":
        """Those of a set; None when it has one label for each image."""
        return None if dataset.views is None else LabeledViews(Views.of(dataset.views, len(dataset), dataset.shape), dataset.labels)

    def images(self, read: Read, numbers: Int[Tensor, " B"], epoch: int) -> Float[Tensor, "B C H W"]:
        """Images `numbers` as an epoch shows them."""
        return self.views.images(read, numbers, epoch % self.views.spec.count)

    def labels(self, numbers: Int[Tensor, " B"], epoch: int) -> Float[Tensor, "B K"]:
        """Their label rows, float32 on the CPU; stored logits as probabilities."""
        return self._labels.of_view(epoch % self.views.spec.count, numbers).probabilities()


class ReplayDataset(Dataset[tuple[Tensor, Tensor]]):
    """One epoch of a set with labels per view, for a plain PyTorch loop: pairs of augmented network input [C, H, W] and label [K], a distribution.

    ``for epoch in range(epochs): loader = DataLoader(ReplayDataset(dataset, epoch), batch_size, shuffle=True)``. Every pair is the same for any batch
    size, order and number of workers. Making one copies no image. Raises `OptionError` for a set with one label for each image.
    """

    def __init__(self, dataset: DistilledDataset, epoch: int = 0) -> None:
        labeled = LabeledViews.of(dataset)
        if labeled is None:
            raise OptionError("this set has one label for each image and no views to replay; use dataset.to_torch()")
        self.dataset, self.epoch, self._views = dataset, epoch, labeled

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> tuple[Float[Tensor, "C H W"], Float[Tensor, " K"]]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """A batch at once, as PyTorch's loader asks for it."""
        chosen = torch.as_tensor(numbers)
        images = self._views.images(lambda rows: self.dataset.pixels(self.dataset.images[rows]), chosen, self.epoch)
        return list(zip(images, self._views.labels(chosen, self.epoch), strict=True))
