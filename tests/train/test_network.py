import torch
from tests.small import network

from limbeck.streams import Streams


def test_an_initialization_belongs_to_its_stream() -> None:
    net = network("convnet-d1-w8")
    first, again, other = net.init(Streams(0)["a"]), net.init(Streams(0)["a"]), net.init(Streams(0)["b"])
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_equal_networks_share_a_template_whose_weights_are_never_used() -> None:
    net, twin = network("mlp:width=8,depth=1"), network("mlp:width=8,depth=1")
    assert net.module is twin.module
    state = net.init(Streams(1))
    before = {name: tensor.clone() for name, tensor in net.module.state_dict().items()}
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net.forward(state, images), net.loaded(state)(images))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.module.state_dict().items())
    assert net.loaded(state) is not net.module


def test_batch_statistics_move_in_training_only() -> None:
    net = network("convnet:depth=1,width=8,norm=batch")
    assert net.has_batch_statistics
    assert not network("convnet-d1-w8").has_batch_statistics
    state = net.init(Streams(0))
    before = {name: tensor.clone() for name, tensor in state.items()}
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    net.forward(state, images)
    assert all(torch.equal(state[name], before[name]) for name in state)
    net.forward(state, images, training=True)
    assert {name for name in state if not torch.equal(state[name], before[name])} == set(state) - set(net.parameter_names)


def test_counts_are_those_of_the_layers() -> None:
    assert network("softmax").parameter_count == 64 * 2 + 2
    assert network("softmax").parameter_names == ("head.weight", "head.bias")
    assert network("softmax").flops() == 2 * 64 * 2  # a multiplication and an addition for each weight
