"""Equal histories run once, within a pass and between passes, and nothing of it moves a bit."""

import pytest
import torch
from families import VOCAB, tiny_model

from shoal.engine.boundary_cache import BoundaryCache
from shoal.engine.open import open_model
from shoal.engine.passes import run_pass
from shoal.engine.route import route_of, split_by_step, work_for
from shoal.engine.streamed import open_streamed
from shoal.engine.student import TEACHER, Student
from shoal.engine.view import DecoderView, Tap
from shoal.words.types import Batch, Unit

IDS = torch.randint(3, VOCAB, (3, 2, 7), generator=torch.Generator().manual_seed(0))
MASK_BT = torch.arange(7)[None] < torch.tensor([4, 7])[:, None]
BATCHES = [Batch(IDS[0], None, 0), Batch(IDS[1], None, 1), Batch(IDS[2].where(MASK_BT, 0), MASK_BT, 2)]


def without(*names):
    units = (name.split(".") for name in names)
    return Student(removed=frozenset(Unit(kind, int(index)) for kind, index in units))


def without_layers(*layers):
    return without(*(f"layer.{layer}" for layer in layers))


@pytest.fixture(scope="module", params=["resident", "streamed"])
def view(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model("gemma2").save_pretrained(folder)
    if request.param == "resident":
        return DecoderView(open_model(folder).model)
    opened, streamed = open_streamed(folder)
    return DecoderView(opened.model, residency=streamed)


def ends_of(view, students, **how):
    """Boundary L of every student for every batch, and how many layers were run."""
    ends = []
    n_runs = run_pass(view, BATCHES, students=students, sink=lambda _, found: ends.append([h.clone() for h in found]), **how)
    return ends, n_runs


def equal(a, b):
    return all(torch.equal(x, y) for xs, ys in zip(a, b, strict=True) for x, y in zip(xs, ys, strict=True))


def test_a_route_is_the_tree_of_what_the_students_do():
    route = route_of([TEACHER, without_layers(2), without_layers(2, 3), without("mlp.3")], 4)
    assert [len(hops) for hops in route.hops] == [1, 1, 1, 3]  # Layer 3 runs for the teacher, "no layer 2" and "no MLP 3".
    assert len(set(route.ends)) == 4
    assert route.ends[2] == route.hops[1][0].after  # Nothing runs behind layer 1.
    assert [h is not None for h in route.histories] == [True] * 7


def test_students_with_values_of_their_own_have_no_history_that_can_be_kept():
    other = Student(overrides={1: {"a": torch.zeros(1)}})
    route = route_of([TEACHER, other], 3)
    assert [route.histories[end] is None for end in route.ends] == [False, True]


def test_students_part_by_what_they_do_at_a_layer():
    students = [TEACHER, without_layers(1), without("attn.1"), without_layers(1, 2)]
    split = split_by_step([(7, [0, 1, 2, 3])], [student.step(1) for student in students])
    assert [(node, step is not None, members) for node, step, members in split] == [
        (7, True, [0]),
        (7, False, [1, 3]),
        (7, True, [2]),
    ]


def test_work_is_what_leads_to_the_ends_and_is_not_known():
    route = route_of([TEACHER, without_layers(3)], 4)
    everything = work_for(route, route.ends, is_known=lambda _: False, is_tapped=lambda _: False)
    assert (everything.n_runs, everything.borrowed) == (4, frozenset())
    third = route.hops[2][0].after
    rest = work_for(route, route.ends, is_known=lambda node: node == third, is_tapped=lambda _: False)
    assert (rest.n_runs, rest.borrowed) == (1, {third})
    tapped = work_for(route, route.ends, is_known=lambda node: node == third, is_tapped=lambda hop: hop.step.layer == 1)
    assert tapped.n_runs == 3  # The tapped layer runs, and what leads to it.


def test_a_pass_that_begins_with_kept_states_gives_the_same_bits(view):
    cache = BoundaryCache()
    first = [TEACHER, without_layers(3), without_layers(3, 4), without("attn.2")]
    second = [TEACHER, without_layers(3, 5), without_layers(2, 4), without("attn.2", "layer.4")]
    for students in (first, second, second):
        expected, n_all = ends_of(view, students)
        ends, n_runs = ends_of(view, students, cache=cache)
        assert equal(ends, expected)
        assert n_runs <= n_all
    assert n_runs < n_all


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_cache_stays_within_its_limit_and_never_changes_a_bit(view, share):
    whole = BoundaryCache()
    students = [TEACHER, *(without_layers(layer) for layer in range(6))]
    expected, n_first = ends_of(view, students, cache=whole)
    small = BoundaryCache(int(whole.n_bytes * share))
    for _ in range(2):
        ends, n_runs = ends_of(view, students, cache=small)
        assert equal(ends, expected) and small.n_bytes <= small.limit
    assert (n_runs == n_first) == (share == 0.0)


def test_states_of_the_running_pass_are_not_given_up_for_its_own():
    """A pass reads its batches in order: dropping the oldest of them would always drop what the next pass asks for first."""
    h = torch.zeros(10)  # 40 bytes
    cache = BoundaryCache(100)
    cache.begin()
    for index in range(5):
        cache.put((), index, h)
    assert [cache.has((), index) for index in range(5)] == [True, True, False, False, False]
    cache.begin()
    assert cache.has((), 1)
    cache.put((), 4, h)
    assert [cache.has((), index) for index in range(5)] == [False, True, False, False, True]


def test_observers_see_everything_though_states_are_known(view):
    class Keep:
        def __init__(self):
            self.seen = {}

        def taps(self, view):
            return [Tap("boundary", 2), Tap("boundary", 6), Tap("mlp_in", 4)]

        def update(self, batch, values):
            for tap, value in values.items():
                self.seen.setdefault(tap, []).extend(value.clone())

        def state(self):
            return {}

    cache, plain = BoundaryCache(), Keep()
    run_pass(view, BATCHES, observers=[plain])
    ends_of(view, [TEACHER, without_layers(5)], cache=cache)
    known = Keep()
    run_pass(view, BATCHES, observers=[known], cache=cache)
    assert all(torch.equal(a, b) for tap in plain.seen for a, b in zip(plain.seen[tap], known.seen[tap], strict=True))
