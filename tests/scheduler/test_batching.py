"""Exact timelines of the Batcher, as plain function calls."""

from __future__ import annotations

import math

import pytest

from scheduler.batching import TRAFFIC_MEMORY_S, Batcher
from scheduler.plan import POLICIES, OperatingPoint, Plan
from scheduler.query import Batch, Complete, Drop, DropReason, Instruction, Offload, Query, Run


def plan(batch_size: int = 100, sla_s: float = 1.0, **rest: object) -> Plan:
    return Plan(OperatingPoint(batch_size), sla_s, **rest)  # type: ignore[arg-type]


def one_model(workers: int = 1, policy: str = "adaptive", **rest: object) -> Batcher:
    batcher = Batcher(workers, POLICIES[policy])
    batcher.set_plan("m", plan(**rest))  # type: ignore[arg-type]
    return batcher


def query(size: int, arrival_s: float = 0.0, model: str = "m", expires_s: float = math.inf) -> Query:
    return Query(model, size, arrival_s, expires_s, payload=f"{model}{size}")


def arrive(batcher: Batcher, *queries: Query, now: float = 0.0) -> list[list[tuple[str, int, int]]]:
    return [shape for each in queries for shape in shapes(batcher.arrive(each, now))]


def shapes(instructions: list[Instruction]) -> list[list[tuple[str, int, int]]]:
    """Return the slices of each batch that is to run, as (payload, start, stop)."""
    return [shape(i.batch) for i in instructions if isinstance(i, Run)]


def shape(batch: Batch) -> list[tuple[str, int, int]]:
    return [(part.query.payload, part.start, part.stop) for part in batch.slices]


# ---- one batch after the other ----


def test_a_lone_query_runs_at_once() -> None:
    assert arrive(one_model(), query(7)) == [[("m7", 0, 7)]]


def test_small_queries_that_wait_share_the_next_batch() -> None:
    batcher = one_model()
    arrive(batcher, query(50))
    assert arrive(batcher, query(10), query(20), query(90)) == []
    assert batcher.waiting("m") == 120
    done = batcher.finish(0, 1.0)
    assert shapes(done) == [[("m10", 0, 10), ("m20", 0, 20), ("m90", 0, 70)]]
    assert isinstance(done[0], Complete)
    assert batcher.waiting("m") == 20


def test_a_large_query_is_split_into_full_batches_and_its_rest_is_shared() -> None:
    batcher = one_model(batch_size=100)
    large = query(250)
    assert arrive(batcher, large) == [[("m250", 0, 100)]]
    assert shapes(batcher.finish(0, 1.0)) == [[("m250", 100, 200)]]
    arrive(batcher, query(30, 1.5), now=1.5)
    last = batcher.finish(0, 2.0)
    assert shapes(last) == [[("m250", 200, 250), ("m30", 0, 30)]]
    assert batcher.finish(0, 3.0)[0] == Complete(large)
    assert large.batches == 3
    assert large.started_s == 0.0


def test_a_batch_takes_no_further_query_in_once_its_fixed_cost_is_small() -> None:
    # 1 ms + 1 ms per candidate: merging stops at 8 candidates.
    batcher = one_model(fixed_s=0.001, per_candidate_s=0.001)
    first = query(20)
    assert arrive(batcher, first) == [[("m20", 0, 20)]]
    arrive(batcher, query(3), query(4), query(5))
    assert shapes(batcher.finish(0, 1.0)) == [[("m3", 0, 3), ("m4", 0, 4), ("m5", 0, 1)]]


# ---- several workers ----


def test_idle_workers_share_a_large_query_evenly() -> None:
    assert arrive(one_model(workers=3), query(200)) == [
        [("m200", 0, 67)],
        [("m200", 67, 134)],
        [("m200", 134, 200)],
    ]


def test_a_query_larger_than_all_idle_workers_take_is_cut_into_even_rounds() -> None:
    batcher = one_model(workers=2, batch_size=100)
    assert arrive(batcher, query(300)) == [[("m300", 0, 75)], [("m300", 75, 150)]]
    assert shapes(batcher.finish(0, 1.0)) == [[("m300", 150, 225)]]


def test_no_slice_is_cut_below_the_size_at_which_cutting_stops_paying() -> None:
    batcher = one_model(workers=4, smallest_cut=40)
    assert arrive(batcher, query(60)) == [[("m60", 0, 40)], [("m60", 40, 60)]]
    assert batcher.idle_workers == 2


def test_a_worker_that_frees_takes_its_share_of_a_short_queue() -> None:
    # 1 ms + 1 ms per candidate: no share is below 8 candidates.
    batcher = one_model(workers=2, batch_size=1000, fixed_s=0.001, per_candidate_s=0.001)
    arrive(batcher, query(20))
    arrive(batcher, query(50))
    taken = [shapes(batcher.finish(k % 2, 1.0)) for k in range(4)]
    assert taken == [[[("m50", 0, 25)]], [[("m50", 25, 38)]], [[("m50", 38, 46)]], [[("m50", 46, 50)]]]


@pytest.mark.parametrize("policy", ["static", "paper"])
def test_static_and_paper_split_in_order_of_arrival_and_never_share_or_cut(policy: str) -> None:
    batcher = one_model(workers=2, policy=policy, batch_size=100)
    assert arrive(batcher, query(120), query(5)) == [[("m120", 0, 100)], [("m120", 100, 120)]]
    assert arrive(batcher, query(4)) == []
    assert shapes(batcher.finish(1, 1.0)) == [[("m5", 0, 5)]]
    assert shapes(batcher.finish(0, 1.0)) == [[("m4", 0, 4)]]


# ---- order ----


def test_short_queries_pass_long_ones_but_not_for_ever() -> None:
    batcher = one_model(batch_size=10, per_candidate_s=0.01)
    arrive(batcher, query(10))
    arrive(batcher, query(100))  # 1 s of work: what arrives more than 4 s after it cannot pass it
    arrive(batcher, query(9, 0.5), now=0.5)
    arrive(batcher, query(8, 4.5), now=4.5)
    order = [shapes(batcher.finish(0, 5.0 + k))[0][0][0] for k in range(3)]
    assert order == ["m9", "m100", "m100"]


def test_among_queries_of_nearly_one_size_the_first_goes_first() -> None:
    """Overtaking helps where sizes spread; among equals it would only delay some."""
    batcher = one_model(batch_size=1000, per_candidate_s=1e-3)
    for k in range(200):
        arrive(batcher, query(100 + k % 2, 0.2 * k), now=0.2 * k)
        batcher.finish(0, 0.2 * k + 0.15)
    started = []
    for size, arrival_s in ((120, 50.0), (104, 50.0), (100, 50.01)):
        started += arrive(batcher, query(size, arrival_s), now=arrival_s)
    for second in (51, 52):
        started += shapes(batcher.finish(0, float(second)))
    assert [each[0][0] for each in started] == ["m120", "m104", "m100"]


def test_the_earlier_deadline_goes_first() -> None:
    batcher = one_model(batch_size=10)
    arrive(batcher, query(10))
    arrive(batcher, query(9), query(8, expires_s=0.5))
    assert shapes(batcher.finish(0, 0.1))[0][0] == ("m8", 0, 8)


# ---- ends other than an answer ----


def test_the_target_orders_and_never_drops_but_the_clients_deadline_does() -> None:
    batcher = one_model(sla_s=0.1)
    arrive(batcher, query(1))
    late, expired = query(2), query(3, expires_s=5.0)
    arrive(batcher, late, expired)
    done = batcher.finish(0, 9.0)
    assert Drop(expired, DropReason.EXPIRED) in done
    assert shapes(done) == [[("m2", 0, 2)]]


def test_a_query_whose_deadline_has_passed_on_arrival_is_dropped_at_once() -> None:
    expired = query(3, expires_s=1.0)
    assert one_model().arrive(expired, 1.0) == [Drop(expired, DropReason.EXPIRED)]


def test_a_query_expires_between_two_of_its_batches() -> None:
    batcher = one_model(batch_size=10)
    expired = query(20, expires_s=1.0)
    arrive(batcher, expired)
    assert batcher.finish(0, 2.0) == [Drop(expired, DropReason.EXPIRED)]
    assert batcher.waiting("m") == 0
    assert batcher.idle_workers == 1


def test_a_lane_of_cancelled_and_expired_queries_leaves_the_worker_to_the_next_model() -> None:
    batcher = one_model()
    batcher.set_plan("n", plan())
    arrive(batcher, query(1))
    gone, expired = query(2), query(3, expires_s=0.5)
    arrive(batcher, gone, expired, query(4, model="n"))
    batcher.cancel(gone)
    done = batcher.finish(0, 1.0)
    assert Drop(expired, DropReason.EXPIRED) in done
    assert shapes(done) == [[("n4", 0, 4)]]


def test_a_cancelled_query_never_runs_and_its_batch_mates_get_their_answers() -> None:
    batcher = one_model(batch_size=10)
    arrive(batcher, query(10))
    gone, mate = query(15), query(3)
    arrive(batcher, gone, mate)
    assert shapes(batcher.finish(0, 1.0)) == [[("m15", 0, 10)]]
    batcher.cancel(gone)
    assert batcher.waiting("m") == 3
    assert shapes(batcher.finish(0, 2.0)) == [[("m3", 0, 3)]]
    assert batcher.finish(0, 3.0) == [Complete(mate)]


def test_cancelling_a_query_that_ended_or_never_arrived_changes_nothing() -> None:
    batcher = one_model()
    done, unknown = query(1), query(2)
    arrive(batcher, done)
    batcher.finish(0, 1.0)
    batcher.cancel(done)
    batcher.cancel(unknown)
    assert batcher.waiting("m") == 0


def test_many_cancelled_queries_are_not_kept() -> None:
    batcher = one_model()
    arrive(batcher, query(100), query(50))
    gone = [query(60) for _ in range(1000)]
    arrive(batcher, *gone)
    for each in gone:
        batcher.cancel(each)
    assert batcher.waiting("m") == 50
    assert len(batcher._lanes["m"].heap) < 200


def test_a_failed_query_is_dropped_once_and_what_waits_of_it_never_runs() -> None:
    batcher = one_model(workers=2, batch_size=10)
    failed = query(40)
    arrive(batcher, failed)
    assert batcher.fail(0, 1.0) == [Drop(failed, DropReason.FAILED)]
    assert batcher.fail(1, 1.0) == []
    assert batcher.waiting("m") == 0


def test_the_batch_mates_of_a_failed_batch_are_each_tried_alone() -> None:
    batcher = one_model()
    arrive(batcher, query(50))
    bad, good, gone, expired = query(10), query(11), query(12), query(13, expires_s=2.5)
    arrive(batcher, bad, good, gone, expired)
    assert len(shapes(batcher.finish(0, 1.0))[0]) == 4
    batcher.cancel(gone)
    assert shapes(batcher.fail(0, 2.0)) == [[("m10", 0, 10)]]
    assert batcher.waiting("m") == 24
    again = batcher.fail(0, 3.0)
    assert again[0] == Drop(bad, DropReason.FAILED)
    assert shapes(again) == [[("m11", 0, 11)]]
    assert batcher.finish(0, 4.0) == [Complete(good), Drop(expired, DropReason.EXPIRED)]
    assert batcher.waiting("m") == 0


def test_a_full_queue_refuses_but_never_a_query_that_finds_nothing_waiting() -> None:
    batcher = Batcher(1, POLICIES["adaptive"], max_waiting=10)
    batcher.set_plan("m", plan(batch_size=5))
    arrive(batcher, query(5), query(100))
    refused = query(1)
    assert batcher.arrive(refused, 0.0) == [Drop(refused, DropReason.QUEUE_FULL)]


def test_a_query_without_candidates_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1 candidate"):
        one_model().arrive(query(0), 0.0)


# ---- the accelerator ----


def offloading(threshold: int = 50, workers: int = 1) -> Batcher:
    batcher = Batcher(workers, POLICIES["adaptive"])
    batcher.set_plan("m", Plan(OperatingPoint(100, threshold), sla_s=1.0))
    return batcher


def test_queries_from_the_threshold_on_go_whole_to_the_accelerator() -> None:
    batcher, large = offloading(50), query(50)
    assert batcher.arrive(large, 0.0) == [Offload(large)]
    assert arrive(batcher, query(49)) == [[("m49", 0, 49)]]
    assert batcher.offload_finished(large) == [Complete(large)]


def test_the_workers_take_over_what_the_accelerator_failed() -> None:
    batcher, large = offloading(), query(80)
    batcher.arrive(large, 0.0)
    assert shapes(batcher.offload_failed(large, 1.0)) == [[("m80", 0, 80)]]
    assert batcher.finish(0, 2.0) == [Complete(large)]
    assert large.started_s == 1.0


def test_a_cancelled_query_that_comes_back_from_the_accelerator_is_silent() -> None:
    batcher, first, second = offloading(), query(80), query(80)
    batcher.arrive(first, 0.0)
    batcher.arrive(second, 0.0)
    batcher.cancel(first)
    batcher.cancel(second)
    assert batcher.offload_finished(first) == []
    assert batcher.offload_failed(second, 1.0) == []


# ---- plans ----


def test_a_new_plan_holds_for_every_query_that_has_not_begun() -> None:
    batcher = one_model(policy="paper", batch_size=10)
    arrive(batcher, query(30), query(40))
    batcher.set_plan("m", plan(batch_size=20))
    assert shapes(batcher.finish(0, 6.0)) == [[("m30", 10, 20)]]  # it began with batches of 10
    assert shapes(batcher.finish(0, 7.0)) == [[("m30", 20, 30)]]
    assert shapes(batcher.finish(0, 8.0)) == [[("m40", 0, 20)]]
    assert batcher.plan("m").point == OperatingPoint(20)


def test_a_new_plan_orders_anew_what_waits() -> None:
    batcher = one_model(batch_size=1000, fixed_s=1e-6, per_candidate_s=1e-9)
    arrive(batcher, query(5), query(500), query(9, 1e-3))
    batcher.set_plan("m", plan(batch_size=1000, per_candidate_s=1e-2))
    assert shapes(batcher.finish(0, 1.0))[0][0] == ("m9", 0, 9)  # 500 candidates have become five seconds


def test_a_batch_keeps_within_the_limit_of_every_query_in_it() -> None:
    batcher = one_model(batch_size=8)
    arrive(batcher, query(5), query(12), query(7))
    batcher.finish(0, 1.0)  # the first 8 of 12 run: it has begun under batches of 8
    batcher.set_plan("m", plan(batch_size=100))
    assert shapes(batcher.finish(0, 2.0)) == [[("m12", 8, 12), ("m7", 0, 4)]]


def test_a_whole_model_runs_each_query_as_one_inference() -> None:
    batcher = Batcher(2, POLICIES["adaptive"])
    batcher.set_plan("m", plan(batch_size=10, whole=True))
    assert arrive(batcher, query(30), query(31), query(5), query(6)) == [[("m30", 0, 30)], [("m31", 0, 31)]]
    assert shapes(batcher.finish(0, 1.0)) == [[("m5", 0, 5)]]


def test_a_model_is_forgotten_only_when_nothing_of_it_waits_or_runs() -> None:
    batcher, large = offloading(), query(80)
    batcher.arrive(large, 0.0)
    arrive(batcher, query(10), query(11))
    with pytest.raises(ValueError, match="waiting"):
        batcher.remove("m")
    batcher.finish(0, 1.0)
    with pytest.raises(ValueError, match="running"):
        batcher.remove("m")
    batcher.finish(0, 2.0)
    batcher.remove("m")
    assert batcher.offload_failed(large, 3.0) == [Drop(large, DropReason.FAILED)]
    with pytest.raises(KeyError):
        batcher.arrive(query(1), 4.0)


@pytest.mark.parametrize(("size", "threshold"), [(0, None), (1, 0)])
def test_an_operating_point_that_cannot_be_run_is_an_error(size: int, threshold: int | None) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        OperatingPoint(size, threshold)


def test_a_batcher_needs_a_worker_and_a_worker_needs_a_batch_to_finish() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Batcher(0, POLICIES["adaptive"])
    with pytest.raises(ValueError, match="runs nothing"):
        one_model().finish(0, 0.0)


# ---- several models ----


def two_models(policy: str = "adaptive", **rest: object) -> Batcher:
    batcher = Batcher(1, POLICIES[policy])
    batcher.set_plan("m", plan(sla_s=1.0, per_candidate_s=0.001, **rest))  # type: ignore[arg-type]
    batcher.set_plan("n", plan(sla_s=0.1, per_candidate_s=0.001, **rest))  # type: ignore[arg-type]
    return batcher


def test_a_batch_holds_one_model_and_the_model_with_the_least_slack_goes_first() -> None:
    batcher = two_models()
    arrive(batcher, query(5), query(10), query(20, model="n"))
    assert shapes(batcher.finish(0, 0.005)) == [[("n20", 0, 20)]]


def test_first_come_first_served_holds_over_models_too() -> None:
    batcher = two_models("paper")
    arrive(batcher, query(5), query(10), query(20, 0.001, "n"))
    assert shapes(batcher.finish(0, 0.005)) == [[("m10", 0, 10)]]


def test_with_several_models_no_batch_runs_longer_than_half_the_tightest_target() -> None:
    batcher = two_models(batch_size=1000)
    assert arrive(batcher, query(500)) == [[("m500", 0, 500)]]
    arrive(batcher, query(400), query(3, model="n"))
    assert shapes(batcher.finish(0, 0.5)) == [[("n3", 0, 3)]]
    assert shapes(batcher.finish(0, 0.5)) == [[("m400", 0, 50)]]
    now = 1.0 + TRAFFIC_MEMORY_S  # n is no longer in traffic
    assert shapes(batcher.finish(0, now)) == [[("m400", 50, 400)]]


def test_a_flooded_model_yields_beyond_its_share() -> None:
    """Both models are late for ever: m because it is flooded; n gets half of the worker, not what is left."""
    batcher = two_models(batch_size=10)
    arrive(batcher, *[query(10) for _ in range(300)])
    ran: dict[str, int] = {"m": 0, "n": 0}
    now = 2.0
    for _ in range(40):
        arrive(batcher, query(10, now - 0.5, "n"), now=now)
        now += 0.01
        ran[shapes(batcher.finish(0, now))[0][0][0][0]] += 1
    assert ran["n"] >= 19


def test_a_flooded_model_delays_another_within_its_share_by_one_batch() -> None:
    batcher = two_models(batch_size=10)
    arrive(batcher, *[query(10) for _ in range(300)])
    now = 5.0  # by now all of m is late
    for _ in range(20):
        for _ in range(3):
            now += 0.01
            batcher.finish(0, now)
        arrive(batcher, query(10, now, "n"), now=now)
        now += 0.01
        assert shapes(batcher.finish(0, now))[0][0][0] == "n10"


def test_a_model_that_comes_back_does_not_bring_the_share_it_left_unused() -> None:
    batcher = two_models(batch_size=10)
    now = 0.0
    arrive(batcher, *[query(10) for _ in range(300)])
    for _ in range(200):
        now += 0.01
        batcher.finish(0, now)
    arrive(batcher, *[query(10, 0.0, "n") for _ in range(60)], now=now)
    ran = []
    for _ in range(40):
        now += 0.01
        ran.append(shapes(batcher.finish(0, now))[0][0][0][0])
    assert 18 <= ran.count("m") <= 22


def test_the_share_counts_what_batches_took_not_what_was_predicted() -> None:
    batcher = two_models(batch_size=10)
    for model in ("m", "n"):
        arrive(batcher, *[query(10, -50.0, model) for _ in range(100)])
    now, took_s = 0.01, {"m": 0.0, "n": 0.0}
    running = shapes(batcher.finish(0, now))[0][0][0][0]
    for _ in range(80):
        each_s = 0.04 if running == "m" else 0.01
        now += each_s
        took_s[running] += each_s
        running = shapes(batcher.finish(0, now))[0][0][0][0]
    assert took_s["m"] == pytest.approx(took_s["n"], abs=0.1)
