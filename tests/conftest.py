"""What every test runs under: shapes checked, one thread, a cache of its own, and proof that global random states stay as they were."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch and BLAS load; command lines started by tests inherit it

import random
import sys
from collections.abc import Iterator
from contextlib import suppress

import hypothesis
import jaxtyping
import numpy as np
import pytest
import rich.style
import sklearn.datasets  # noqa: F401 (its first import moves the global random state that these tests watch)
import torch

if "limbeck" in sys.modules:
    raise RuntimeError("limbeck was imported before tests/conftest.py could install the shape checks; remove the plugin or option that imports it")


def _load_beartype() -> None:
    """Loads beartype with a random generator of its own.

    It checks one item of a container, drawn with `random.getrandbits`, and each such check would move the global state that these tests watch.
    It binds that function when it loads, and all of it has loaded after one check that fails.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random, "getrandbits", random.Random(0).getrandbits)
        from beartype.door import die_if_unbearable
        from beartype.roar import BeartypeDoorHintViolation

        with suppress(BeartypeDoorHintViolation):
            die_if_unbearable([""], list[int])


_load_beartype()
rich.style.randint = random.Random(0).randint  # it numbers the links of a style with the global generator
jaxtyping.install_import_hook("limbeck", "beartype.beartype")

torch.set_num_threads(1)  # two workers share two cores, and sums come out the same for any number of workers

hypothesis.settings.register_profile("limbeck", deadline=None, max_examples=25, derandomize=True, database=None)
hypothesis.settings.load_profile("limbeck")


def _random_states() -> dict[str, object]:
    legacy = np.random.get_state(legacy=False)
    return {
        "random": random.getstate(),
        "numpy.random": (legacy["state"]["key"].tobytes(), legacy["state"]["pos"], legacy["has_gauss"], legacy["gauss"]),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }


@pytest.fixture(scope="session", autouse=True)
def _last_random_states() -> dict[str, object]:
    """The global random states as the last test left them; a session's own, so that fixtures shared by several tests are covered too."""
    return _random_states()


@pytest.fixture(autouse=True)
def _global_random_states_unchanged(_last_random_states: dict[str, object]) -> Iterator[None]:
    yield
    after = _random_states()
    moved = [name for name, state in after.items() if state != _last_random_states[name]]
    _last_random_states.update(after)
    if moved:
        pytest.fail(f"the test, or a fixture that it was the first to use, moved the global random state of: {', '.join(moved)}", pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
