"""Who may use how many connections: growing, shrinking, taking turns."""

from pysendmail.daemon.lanes import DEPTH, OVERCOMMIT, SILENT_AFTER, TURN, Lane, Lanes


def lane_with(lanes: Lanes[int], name: str, waiting: int, now: float = 0.0) -> Lane[int]:
    lane = lanes.lane(name, now)
    lane.waiting.extend(range(waiting))
    lanes.provide(lane)
    return lane


def send(lane: Lane[int]) -> int:
    """Send what may be sent; how much that is."""
    count = min(lane.room, len(lane.waiting))
    for _ in range(count):
        lane.waiting.popleft()
    lane.sent += count
    return count


def test_a_new_destination_gets_two_connections_and_one_for_a_single_message() -> None:
    lanes: Lanes[int] = Lanes(20, 5)
    assert lane_with(lanes, "a", 100).slots == 2
    assert lane_with(lanes, "b", 1).slots == 1
    assert Lanes[int](20, 1).lane("c", 0.0).width == 1


def test_each_slot_has_its_next_shipments_waiting() -> None:
    lane = lane_with(Lanes(20, 5), "a", 100)
    assert send(lane) == 2 * DEPTH
    assert lane.room == 0


def test_width_grows_while_conversations_go_well_up_to_the_limit() -> None:
    lanes: Lanes[int] = Lanes(20, 5)
    lane, widths = lane_with(lanes, "a", 100), []
    for _ in range(30):
        lanes.widen(lane)
        widths.append(lane.width)
    assert widths[:5] == [3, 4, 5, 5, 5]
    assert widths[-1] == 5
    lanes.provide(lane)
    assert lane.slots == 5


def test_width_grows_slowly_once_a_conversation_has_broken() -> None:
    lanes: Lanes[int] = Lanes(20, 5)
    lane, widths = lane_with(lanes, "a", 100), []
    lanes.narrow(lane)
    for _ in range(9):
        lanes.widen(lane)
        widths.append(lane.width)
    assert widths == [2, 2, 3, 3, 3, 4, 4, 4, 4]


def test_width_shrinks_when_conversations_break_but_never_to_nothing() -> None:
    lanes: Lanes[int] = Lanes(20, 5)
    lane = lane_with(lanes, "a", 100)
    for _ in range(4):
        lanes.narrow(lane)
    assert (lane.width, lane.slots, lane.rough) == (1, 1, 4)
    lanes.widen(lane)
    assert lane.rough == 0


def test_a_probe_goes_alone() -> None:
    lanes: Lanes[int] = Lanes(20, 5)
    lane = lanes.lane("a", 0.0)
    lane.is_narrow = True
    lane.waiting.extend(range(10))
    lanes.provide(lane)
    assert (lane.slots, send(lane), lane.room) == (1, 1, 0)


def test_lanes_without_a_slot_queue_and_are_served_in_their_order() -> None:
    lanes: Lanes[int] = Lanes(3, 5)
    a, b = lane_with(lanes, "a", 10), lane_with(lanes, "b", 10)
    c, d = lane_with(lanes, "c", 1), lane_with(lanes, "d", 1)
    assert [lane.slots for lane in (a, b, c, d)] == [2, 1, 0, 0]
    assert lanes.next_served() is None
    lanes.remove(b)
    assert lanes.next_served() is c
    assert lanes.next_served() is None
    lanes.remove(a)
    assert lanes.next_served() is d
    assert [lane.slots for lane in (a, b, c, d)] == [0, 0, 1, 1]


def test_nobody_grows_while_others_queue() -> None:
    lanes: Lanes[int] = Lanes(3, 5)
    a, b, c = (lane_with(lanes, name, 10) for name in "abc")
    lanes.widen(a)
    lanes.widen(a)
    lanes.remove(b)
    lanes.provide(a)
    assert (a.width, a.slots) == (4, 2)
    assert lanes.next_served() is c


def test_a_lane_gives_up_a_slot_after_its_turn_and_queues_itself() -> None:
    lanes: Lanes[int] = Lanes(1, 5)
    a, b = lane_with(lanes, "a", 1000), lane_with(lanes, "b", 1000)
    order = []
    for _ in range(6):
        served = a if a.slots else b
        order.append(served.name)
        for _ in range(TURN):
            send(served)
            lanes.answered(served, 1.0)
        lanes.provide(served)
        lanes.next_served()
    assert order == ["a", "b", "a", "b", "a", "b"]


def test_nobody_gives_up_anything_while_nobody_queues() -> None:
    lanes: Lanes[int] = Lanes(2, 5)
    lane = lane_with(lanes, "a", 1000)
    for _ in range(5 * TURN):
        send(lane)
        lanes.answered(lane, 1.0)
    assert lane.slots == 2


def test_slots_of_a_lane_that_hears_nothing_do_not_count_until_it_hears_something() -> None:
    lanes: Lanes[int] = Lanes(2, 5)
    slow = lane_with(lanes, "slow", 10)
    send(slow)
    other = lane_with(lanes, "other", 1)
    lanes.grow_silent(slow, SILENT_AFTER)
    assert lanes.next_served() is None
    lanes.grow_silent(slow, SILENT_AFTER + 1)
    assert lanes.next_served() is other
    lanes.answered(slow, 40.0)
    assert lane_with(lanes, "third", 1).slots == 0
    lanes.remove(slow)
    lanes.remove(other)
    assert lanes._counted == lanes._total == 0


def test_silent_lanes_are_bounded_too() -> None:
    lanes: Lanes[int] = Lanes(2, 5)
    for n in range(50):
        lane = lane_with(lanes, f"slow{n}", 1)
        send(lane)
        lanes.grow_silent(lane, SILENT_AFTER + 1)
    assert sum(lane.slots for lane in lanes) == 2 * OVERCOMMIT


def test_a_removed_lane_is_gone() -> None:
    lanes: Lanes[int] = Lanes(2, 5)
    lane = lane_with(lanes, "a", 1)
    send(lane)
    lanes.answered(lane, 1.0)
    assert lane.is_empty
    lanes.remove(lane)
    assert len(lanes) == 0
    assert lanes.find("a") is None
