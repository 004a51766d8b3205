"""The transformer: published sizes, causal attention against an independent implementation, and training as one program."""

import pytest
import torch
from torch import nn

from limbeck.data.synthetic import AS_THEY_ARE, VectorTable, modular
from limbeck.errors import OptionError
from limbeck.models import build, parse_model
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import Job, fit_many
from limbeck.train.network import Network
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe


def make(text: str = "transformer", length: int = 3, classes: int = 113) -> nn.Module:
    return build(parse_model(text), shape=(1, 1, length), classes=classes, generator=Streams(0).torch("init"))


def test_the_network_of_modular_arithmetic_has_its_published_size():
    # embeddings 114 x 128 and 3 x 128, attention 4 x 128 x 128, hidden layer 2 x 128 x 512 with biases, head 128 x 113
    assert sum(p.numel() for p in make().parameters()) == 114 * 128 + 3 * 128 + 4 * 128**2 + 2 * 128 * 512 + 512 + 128 + 128 * 113


def test_attention_agrees_with_pytorchs():
    model = make("transformer:vocabulary=11,width=16,heads=4,hidden=32", length=5, classes=7)
    block = model.blocks[0]
    states = torch.randn(2, 5, 16, generator=Streams(1).torch("x"))
    with torch.random.fork_rng():
        reference = nn.MultiheadAttention(16, 4, bias=False, batch_first=True)
    reference.in_proj_weight.data = block.query_key_value.weight.data
    reference.out_proj.weight.data = block.mix.weight.data
    ahead = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected = states + reference(states, states, states, attn_mask=ahead)[0]
    expected = expected + block.down(torch.relu(block.up(expected)))
    torch.testing.assert_close(block(states), expected)


def test_the_last_position_sees_all_numbers_and_no_position_sees_later_ones():
    model = make("transformer:vocabulary=11,width=16,heads=4,hidden=32,norm=yes,activation=gelu", length=4, classes=7)
    numbers = torch.tensor([[1.0, 2, 3, 4]])[:, None, None]
    for place in range(4):
        changed = numbers.clone()
        changed[..., place] = 9
        assert not torch.equal(model(numbers), model(changed))
    block = model.blocks[0]
    states = torch.randn(1, 4, 16, generator=Streams(1).torch("x"))
    later = states.clone()
    later[:, 3] += 1
    torch.testing.assert_close(block(states)[:, :3], block(later)[:, :3])


def test_a_stack_trains_as_each_would_alone():
    inputs, labels = modular(5)
    examples = Examples(VectorTable(inputs, labels, 5), labels, AS_THEY_ARE)
    network = Network(parse_model("transformer:vocabulary=6,width=16,heads=2,hidden=32"), (1, 1, 3), 5)
    recipe = Recipe(optimizer="adamw", lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98), batch_size=25, steps=8, shuffle=False)
    jobs = [Job(network.init(Streams(i)), examples, Streams(i)) for i in range(3)]
    alone = fit_many(network, jobs, recipe, ExecutionPlan(threads=1, chunk=0))
    together = fit_many(network, jobs, recipe, ExecutionPlan(threads=1, chunk=0, models=3))
    for first, second in zip(alone, together, strict=True):
        for name in first.network:
            torch.testing.assert_close(first.network[name], second.network[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "shape", "sentence"),
    [
        ("transformer", (3, 8, 8), "a transformer reads number sequences of shape 1x1xL, got 3x8x8; use the mlp model for images"),
        ("transformer:heads=3", (1, 1, 3), "3 heads need a width that they divide, got 128; use width=96"),
    ],
)
def test_impossible_sizes(text, shape, sentence):
    with pytest.raises(OptionError, match=sentence):
        build(parse_model(text), shape=shape, classes=5, generator=Streams(0).torch("init"))
