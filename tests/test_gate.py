"""What the gate leaves to the slow tests."""

import conftest


def test_each_value_of_a_parameter_has_its_turn():
    """In a run of the whole suite: of what was collected, every value that is not slow by itself is in the gate."""
    assert [value for value, turns in conftest.IN_TURN.items() if all(turns)] == []
