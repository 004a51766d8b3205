from sklearn.datasets import load_digits

from limbeck.data import open_source


def test_counts_of_ink_are_scaled_to_bytes() -> None:
    source = open_source("digits")
    assert source.test is None
    assert source.train.classes == tuple("0123456789")
    assert (len(source.train), source.train.shape) == (1797, (1, 8, 8))
    data = load_digits()
    pixels = source.train.read(range(1797))[:, 0].double().numpy()
    assert abs(pixels * 16 / 255 - data.images).max() <= 0.5 * 16 / 255 + 1e-12
    assert pixels.max() == 255
    assert (source.train.labels == data.target).all()


def test_size_and_channels_apply() -> None:
    assert open_source("digits", size=16, channels=3).train.shape == (3, 16, 16)
