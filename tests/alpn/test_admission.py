"""Limits on strangers: examples, and a model that the counts must equal after any history."""

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from alknet.alpn.admission import (
    MAX_TRACKED_ADDRESSES,
    PENALTY_WINDOW_S,
    Admission,
    AdmissionLimits,
    Slot,
    source_of,
)

STRANGER = "192.0.2.1"


def entered(admission: Admission, host: str = STRANGER, now: float = 0.0) -> Slot:
    slot = admission.enter(host, now)
    assert isinstance(slot, Slot), slot
    return slot


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_what_an_address_counts_as(host: str, source: str) -> None:
    assert source_of(host) == source


@pytest.mark.parametrize(
    ("limits", "hosts", "refused_by"),
    [
        (AdmissionLimits(connections=2), ["192.0.2.1", "192.0.2.2", "192.0.2.3"], "connections"),
        (AdmissionLimits(half_open=2), ["192.0.2.1", "192.0.2.2", "192.0.2.3"], "half_open"),
        (AdmissionLimits(connections_per_address=2), ["192.0.2.1"] * 3, "connections_per_address"),
        (AdmissionLimits(connections_per_address=2), [f"2001:db8::{n}" for n in range(3)], "connections_per_address"),
    ],
)
def test_a_full_limit_refuses_and_is_counted_until_somebody_leaves(
    limits: AdmissionLimits, hosts: list[str], refused_by: str
) -> None:
    admission = Admission(limits)
    *slots, last = [admission.enter(host, 0.0) for host in hosts]
    assert last == refused_by
    assert admission.refused == {refused_by: 1}
    assert (admission.open, admission.half_open) == (2, 2)
    assert isinstance(slots[0], Slot)
    slots[0].leave()
    entered(admission, hosts[-1])


def test_two_networks_do_not_share_a_limit() -> None:
    admission = Admission(AdmissionLimits(connections_per_address=1))
    for host in ("192.0.2.1", "192.0.2.2", "2001:db8:0:1::1", "2001:db8:0:2::1"):
        entered(admission, host)


def test_who_has_logged_in_counts_as_a_connection_and_not_as_a_stranger() -> None:
    admission = Admission(AdmissionLimits(connections=3, connections_per_address=1, half_open=1))
    for _ in range(3):
        entered(admission).logged_in()
    assert (admission.open, admission.half_open) == (3, 0)
    assert admission.enter(STRANGER, 0.0) == "connections"


def test_a_slot_may_be_told_twice() -> None:
    admission = Admission(AdmissionLimits())
    slot, other = entered(admission), entered(admission)
    for _ in range(2):
        slot.logged_in()
    for _ in range(2):
        slot.leave()
    slot.logged_in()
    assert (admission.open, admission.half_open) == (1, 1)
    other.leave()
    assert (admission.open, admission.half_open) == (0, 0)


def test_limits_may_be_replaced_while_connections_are_open() -> None:
    admission = Admission(AdmissionLimits())
    slots = [entered(admission) for _ in range(5)]
    admission.limits = AdmissionLimits(connections=1)
    assert admission.enter(STRANGER, 0.0) == "connections"
    for slot in slots:
        slot.leave()
    entered(admission)


# --- failed logins --------------------------------------------------------------------------------------------


def penalised(host: str = STRANGER, *, failures: int = 3) -> Admission:
    """`failures` failed logins, one a second from time 0; the limit is 3."""
    admission = Admission(AdmissionLimits(failed_logins_per_address=3))
    for second in range(failures):
        admission.failed_login(host, float(second))
    return admission


def test_too_many_failed_logins_close_the_door_for_a_while() -> None:
    admission = penalised()
    assert admission.enter(STRANGER, 2.0) == "failed_logins_per_address"
    assert admission.enter(STRANGER, 2.0 + PENALTY_WINDOW_S - 0.1) == "failed_logins_per_address"
    entered(admission, "192.0.2.2", 2.0)
    entered(admission, STRANGER, 2.0 + PENALTY_WINDOW_S)
    assert admission.refused == {"failed_logins_per_address": 2}


def test_one_failure_less_closes_nothing() -> None:
    entered(penalised(failures=2), STRANGER, 2.0)


def test_failures_that_lie_further_apart_are_forgotten() -> None:
    admission = penalised(failures=2)
    admission.failed_login(STRANGER, PENALTY_WINDOW_S)
    entered(admission, STRANGER, PENALTY_WINDOW_S)


def test_failures_during_the_wait_do_not_prolong_it() -> None:
    admission = penalised()
    admission.failed_login(STRANGER, 30.0)
    entered(admission, STRANGER, 2.0 + PENALTY_WINDOW_S)


def test_neighbours_in_one_ipv6_network_share_the_penalty() -> None:
    admission = penalised("2001:db8::1")
    assert admission.enter("2001:db8::2", 2.0) == "failed_logins_per_address"
    entered(admission, "2001:db8:0:1::1", 2.0)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.5.5", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_never_penalised(host: str) -> None:
    entered(penalised(host, failures=100), host, 2.0)


def test_only_so_many_addresses_are_remembered_and_the_oldest_goes_first() -> None:
    admission = Admission(AdmissionLimits(failed_logins_per_address=1))
    hosts = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(MAX_TRACKED_ADDRESSES + 1)]
    for host in hosts:
        admission.failed_login(host, 0.0)
    assert len(admission._failures) == MAX_TRACKED_ADDRESSES
    entered(admission, hosts[0], 0.0)
    for host in (hosts[1], hosts[-1]):
        assert admission.enter(host, 0.0) == "failed_logins_per_address"


# --- any history ----------------------------------------------------------------------------------------------

HOSTS = ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "127.0.0.1")
LIMITS = AdmissionLimits(connections=8, connections_per_address=3, half_open=5, failed_logins_per_address=3)


class AdmissionMachine(RuleBasedStateMachine):
    """Connections come, log in, fail, end, in any order and also twice."""

    slots = Bundle("slots")

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(LIMITS)
        self.now = 0.0
        self.inside: dict[Slot, str] = {}
        self.strangers: dict[Slot, str] = {}
        self.refused: Counter[str] = Counter()
        self.failures: list[tuple[str, float]] = []

    @rule(target=slots, host=st.sampled_from(HOSTS))
    def enter(self, host: str) -> object:
        source = source_of(host)
        slot = self.admission.enter(host, self.now)
        per_source = Counter(self.strangers.values())[source]
        if isinstance(slot, Slot):
            assert len(self.inside) < LIMITS.connections
            assert len(self.strangers) < LIMITS.half_open
            assert per_source < LIMITS.connections_per_address
            self.inside[slot] = self.strangers[slot] = source
            return slot
        match slot:
            case "connections":
                assert len(self.inside) >= LIMITS.connections
            case "half_open":
                assert len(self.strangers) >= LIMITS.half_open
            case "connections_per_address":
                assert per_source >= LIMITS.connections_per_address
            case "failed_logins_per_address":
                recent = [s for s, when in self.failures if s == source and self.now - when < 2 * PENALTY_WINDOW_S]
                assert len(recent) >= LIMITS.failed_logins_per_address
        self.refused[slot] += 1
        return multiple()

    @rule(slot=slots)
    def log_in(self, slot: Slot) -> None:
        slot.logged_in()
        self.strangers.pop(slot, None)

    @rule(slot=slots)
    def leave(self, slot: Slot) -> None:
        slot.leave()
        self.strangers.pop(slot, None)
        self.inside.pop(slot, None)

    @rule(slot=consumes(slots))
    def leave_for_good(self, slot: Slot) -> None:
        self.leave(slot)

    @rule(host=st.sampled_from(HOSTS))
    def fail(self, host: str) -> None:
        self.admission.failed_login(host, self.now)
        if not host.startswith("127."):
            self.failures.append((source_of(host), self.now))

    @rule(seconds=st.floats(0, PENALTY_WINDOW_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def the_counts_are_true(self) -> None:
        assert self.admission.open == len(self.inside)
        assert self.admission.half_open == len(self.strangers)
        assert self.admission.refused == self.refused
        assert self.admission._strangers == Counter(self.strangers.values())
        assert 0 not in self.admission._strangers.values(), "sources without strangers are forgotten"


TestAdmissionHistories = AdmissionMachine.TestCase
