import io

import pytest

from limbeck.data import encoded
from limbeck.data.encoded import digest_file


def digest(content: bytes, whole: bool = False) -> int:
    return digest_file(io.BytesIO(content), len(content), whole)


def flipped(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("position", [0, 70_000, encoded.WHOLE_BYTES - 1])
def test_every_byte_counts_up_to_the_limit(position: int) -> None:
    content = bytes(encoded.WHOLE_BYTES)
    assert digest(content) == digest(bytes(encoded.WHOLE_BYTES))
    assert digest(flipped(content, position)) != digest(content)


def test_beyond_the_limit_size_and_samples_count_unless_whole() -> None:
    content = bytes(2 * encoded.WHOLE_BYTES)
    last = len(content) - 1
    assert digest(flipped(content, 0)) != digest(content) != digest(flipped(content, last))
    assert digest(content + b"\0") != digest(content)
    between = encoded.SAMPLE_BYTES + 10
    assert digest(flipped(content, between)) == digest(content)
    assert digest(flipped(content, between), whole=True) != digest(content, whole=True)
