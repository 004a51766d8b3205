"""Small transformers that classify number sequences."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import OptionError
from limbeck.models.classifier import Classifier
from limbeck.models.spec import TransformerOptions


class Transformer(Classifier):
    """`depth` blocks of causal self-attention and a hidden layer over token and position embeddings; the last position's state is the feature.

    Inputs are whole numbers below `vocabulary`, as images [B, 1, 1, L]. ``transformer`` is the network of modular arithmetic (Nanda, Chan, Lieberum, Smith and
    Steinhardt 2023, arXiv:2301.05217): one block, 128 wide, 4 heads, 512 hidden ReLU units, no layer normalization, no biases in attention and head. ``norm=yes``
    and ``activation=gelu`` make it a small GPT (Radford et al. 2019): layer normalization before both halves of a block and at the end. Embeddings start as
    N(0, 1/width), other layers as everywhere in limbeck. Attention is written out, so that many networks train as one program.
    Raises `OptionError` for images of more than one row or channel, and for a width that the heads do not divide.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, options: TransformerOptions) -> None:
        super().__init__()
        if shape[:2] != (1, 1):
            raise OptionError(f"a transformer reads number sequences of shape 1x1xL, got {'x'.join(map(str, shape))}; use the mlp model for images")
        if options.width % options.heads:
            raise OptionError(f"{options.heads} heads need a width that they divide, got {options.width}; use width={options.heads * 32}")
        self.tokens = nn.Embedding(options.vocabulary, options.width)
        self.positions = nn.Embedding(shape[2], options.width)
        self.blocks = nn.ModuleList([Block(options) for _ in range(options.depth)])
        self.norm = nn.LayerNorm(options.width) if options.norm else nn.Identity()
        self.head = nn.Linear(options.width, classes, bias=False)

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        numbers = images.flatten(1).long()
        states = self.tokens(numbers) + self.positions.weight
        for block in self.blocks:
            states = block(states)
        last: Tensor = self.norm(states[:, -1])
        return last


class Block(nn.Module):
    """Attention and a hidden layer, each added to its input."""

    def __init__(self, options: TransformerOptions) -> None:
        super().__init__()
        self.heads = options.heads
        self.first = nn.LayerNorm(options.width) if options.norm else nn.Identity()
        self.query_key_value = nn.Linear(options.width, 3 * options.width, bias=False)
        self.mix = nn.Linear(options.width, options.width, bias=False)
        self.second = nn.LayerNorm(options.width) if options.norm else nn.Identity()
        self.up = nn.Linear(options.width, options.hidden)
        self.down = nn.Linear(options.hidden, options.width)
        self.activation = nn.GELU() if options.activation == "gelu" else nn.ReLU()

    def forward(self, states: Float[Tensor, "B L F"]) -> Float[Tensor, "B L F"]:
        batch, length, width = states.shape
        parts = self.query_key_value(self.first(states)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        scores = query @ key.transpose(-2, -1) / math.sqrt(width // self.heads)
        ahead = torch.ones(length, length, dtype=torch.bool, device=states.device).triu(1)
        mixed = scores.masked_fill(ahead, -torch.inf).softmax(-1) @ value
        states = states + self.mix(mixed.transpose(1, 2).reshape(batch, length, width))
        added: Tensor = self.down(self.activation(self.up(self.second(states))))
        return states + added
