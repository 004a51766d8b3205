import pytest
from pydantic import ValidationError

from limbeck.types.recipe import Recipe


@pytest.mark.parametrize("length", [{}, {"epochs": 1, "steps": 1}])
def test_exactly_one_length_is_set(length: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="a recipe needs exactly one of epochs and steps"):
        Recipe(**length)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"learning_rate": 1.0}, {"lr": 0}, {"lr": -1}, {"momentum": 1}, {"batch_size": 0}, {"decay": 0}, {"optimizer": "lion"}]
)
def test_unknown_keys_and_impossible_values_are_errors(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Recipe(epochs=1, **wrong)  # type: ignore[arg-type]


def test_a_recipe_is_frozen_and_survives_json() -> None:
    recipe = Recipe(epochs=3, schedule="step", decay_at=(0.5,))
    assert Recipe(**recipe.model_dump(mode="json")) == recipe
    with pytest.raises(ValidationError, match="frozen"):
        recipe.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(("examples", "per_epoch"), [(1, 1), (255, 1), (256, 1), (257, 2), (1000, 4)])
def test_the_last_smaller_batch_is_a_step(examples: int, per_epoch: int) -> None:
    assert Recipe(epochs=1).steps_per_epoch(examples) == per_epoch
    assert Recipe(epochs=5).total_steps(examples) == 5 * per_epoch
    assert Recipe(epochs=5, extra_epoch=True).total_steps(examples) == 6 * per_epoch
    assert Recipe(steps=5).total_steps(examples) == 5


def test_decays_fall_on_whole_epochs_or_steps() -> None:
    schedule = {"schedule": "step", "decay_at": (0.25, 0.5, 0.75)}
    assert Recipe(steps=10, **schedule).decay_steps(999) == [2, 5, 7]
    assert Recipe(epochs=10, **schedule).decay_steps(257) == [4, 10, 14]
    assert Recipe(epochs=10, decay_at=(0.5,)).decay_steps(257) == []


def test_setting_one_length_clears_the_other() -> None:
    assert Recipe(epochs=3).with_(steps=7) == Recipe(steps=7)
    assert Recipe(steps=7).with_(epochs=3, lr=0.5) == Recipe(epochs=3, lr=0.5)
    assert Recipe(steps=7).with_(lr=0.5).steps == 7
    with pytest.raises(ValidationError, match="speed"):
        Recipe(steps=7).with_(speed=1)


def test_later_fields_are_left_out_of_records_where_they_have_their_default():
    assert not {"betas", "shuffle"} & Recipe(steps=1).model_dump().keys()
    changed = Recipe(steps=1, betas=(0.9, 0.98), shuffle=False)
    assert changed.model_dump()["betas"] == (0.9, 0.98)
    assert Recipe(**changed.model_dump(mode="json")) == changed
    assert changed.with_(steps=2).shuffle is False
