"""Models of the timm package, where it can be imported."""

import difflib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import LimbeckError, OptionError
from limbeck.models.classifier import Classifier


class TimmClassifier(Classifier):
    """``timm:NAME``: the model that ``timm.create_model(NAME)`` builds, without pretrained weights; its pooled features, and a linear head of our own.

    Made for the images' channels, and told their size where the architecture asks for it (vision transformers do). Nothing is downloaded. The weights come
    from PyTorch's global random state, as timm draws them: seed it for the call (`limbeck.models.construct.build` does, and puts it back).
    Raises `LimbeckError` where timm cannot be imported, whatever the reason, and `OptionError` for an unknown name and for images that the model cannot take.
    """

    def __init__(self, name: str, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        timm = _imported()
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=3)
            guess = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
            raise OptionError(f"timm has no model {name!r}; {guess}timm.list_models() lists them")
        self.body, width = _body(timm, name, shape)
        self.head = nn.Linear(width, classes)

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        pooled: Tensor = self.body(images)
        return pooled


def _imported() -> Any:
    try:
        import timm

        return timm
    except Exception as problem:  # beside a torchvision without operators its import fails with RuntimeError, not ImportError
        raise LimbeckError(
            f"timm:NAME needs the 'timm' package, which is not installed or not importable ({type(problem).__name__}); pip install 'limbeck[timm]'"
        ) from None


def _body(timm: Any, name: str, shape: tuple[int, int, int]) -> tuple[nn.Module, int]:
    """The network without its classifier, and the width of its features."""
    first: Exception | None = None
    for sizes in ({}, {"img_size": shape[1:]}):
        try:
            body: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, in_chans=shape[0], **sizes)
            with torch.no_grad():
                pooled = body.eval()(torch.zeros(1, *shape))
            if pooled.ndim == 2 and bool(torch.isfinite(pooled).all()):
                return body.train(), pooled.shape[1]
        except Exception as problem:  # what is wrong with a size or with img_size differs from one architecture to the next
            first = first or problem
    reason = f" ({type(first).__name__}: {str(first).strip().splitlines()[0][:160]})" if first is not None and str(first).strip() else ""
    raise OptionError(
        f"timm:{name} gives no pooled features of {'x'.join(map(str, shape))} images{reason}; use larger images with --size, or another model"
    )
