"""A protocol of twenty steps, so that whole jobs run in a second."""

from collections.abc import Iterator

import pytest

from limbeck.evaluate.protocols import PROTOCOLS, Protocol
from limbeck.types.recipe import Recipe


@pytest.fixture(scope="module", autouse=True)
def _tiny_protocol() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            PROTOCOLS, "tiny", Protocol(name="tiny", version=1, recipe=Recipe(lr=0.05, steps=20), source="these tests", note="twenty steps")
        )
        yield
