"""Partitions go round, and those with work in hand stay where they are."""

from __future__ import annotations

from aiokafka.cluster import ClusterMetadata
from hypothesis import given
from hypothesis import strategies as st

from oncue.transports.kafka.assignor import Claim, make_assignor, share

PARTITIONS = range(12)
OWNERS = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=12, max_size=12)


@given(OWNERS, st.integers(1, 6))
def test_each_partition_has_one_owner_and_busy_ones_keep_theirs(owners: list[tuple[int, bool]], members: int) -> None:
    claims = {}
    for member in range(members):
        owned = [place for place, (owner, _) in enumerate(owners) if owner == member]
        claims[str(member)] = Claim(owned, [place for place in owned if owners[place][1]])
    shares = share(PARTITIONS, claims)
    assert sorted(place for mine, _ in shares.values() for place in mine) == list(PARTITIONS)
    for member, claim in claims.items():
        mine, over = shares[member]
        assert set(claim.busy) <= set(mine)
        assert set(over) <= set(claim.busy)
    after = [len(mine) - len(over) for mine, over in shares.values()]
    if not any(over for _, over in shares.values()):
        assert max(after) - min(after) <= 1


def test_a_partition_without_work_is_never_one_to_finish_first() -> None:
    shares = share(range(3), {"0": Claim([0, 2]), "1": Claim([1], [1])})
    assert shares == {"0": ([0], []), "1": ([1, 2], [])}  # or who has one too many asks again and again, for ever


@given(OWNERS, OWNERS)
def test_who_slept_through_a_sharing_out_takes_nothing_from_those_who_were_there(
    then: list[tuple[int, bool]], now: list[tuple[int, bool]]
) -> None:
    present = {}
    for member in range(1, 6):
        owned = [place for place, (owner, _) in enumerate(now) if owner == member]
        present[str(member)] = Claim(owned, [place for place in owned if now[place][1]], 8)
    old = [place for place, (owner, _) in enumerate(then) if owner == 0]
    shares = share(PARTITIONS, {**present, "0": Claim(old, old, 7)})
    assert sorted(place for mine, _ in shares.values() for place in mine) == list(PARTITIONS)
    for member, claim in present.items():
        assert set(claim.busy) <= set(shares[member][0])


def test_nothing_moves_when_all_is_fair() -> None:
    claims = {"a": Claim([0, 3]), "b": Claim([1, 2])}
    assert share(range(4), claims) == {"a": ([0, 3], []), "b": ([1, 2], [])}


def test_who_has_too_much_work_in_hand_is_told_what_to_finish() -> None:
    shares = share(range(4), {"a": Claim([0, 1, 2, 3], [0, 1, 2, 3]), "b": Claim()})
    mine, over = shares["a"]
    assert (mine, len(over)) == ([0, 1, 2, 3], 2)


def test_a_leader_whose_client_knows_of_no_partitions_shares_out_all_the_same() -> None:
    assignor = make_assignor(3, Claim, lambda _told: None)
    shares = assignor.assign(ClusterMetadata(), {"a": assignor.metadata(["work"]), "b": assignor.metadata(["work"])})
    assert sorted(place for mine in shares.values() for place in dict(mine.assignment)["work"]) == [0, 1, 2]
