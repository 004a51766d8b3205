"""What every classifier of the table offers: an embedding and a linear head."""

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor, nn


class Classifier(nn.Module):
    """``logits = head(features(images))``, with `head` the final linear layer."""

    head: nn.Linear

    @abstractmethod
    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        """The embedding that the head sees."""

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits, one per class."""
        logits: Tensor = self.head(self.features(images))
        return logits
