import pytest
from pydantic import ValidationError

from limbeck.types.plan import ExecutionPlan


@pytest.mark.parametrize("wrong", [{"chunk": -1}, {"threads": 0}, {"precision": "float16"}, {"strategy": "fast"}, {"workers": 2}])
def test_unknown_keys_and_impossible_values_are_errors(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ExecutionPlan(**wrong)  # type: ignore[arg-type]


def test_a_plan_survives_json() -> None:
    plan = ExecutionPlan(device="cuda:1", chunk=0, threads=3, reason="a reason")
    assert ExecutionPlan(**plan.model_dump(mode="json")) == plan
