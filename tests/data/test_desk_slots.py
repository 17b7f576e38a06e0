"""Values of the shipped rows: each belongs to one part, most are coined, all are written as people write them; SQL fixtures."""

import random
import sqlite3
from collections import Counter
from datetime import date, time
from pathlib import Path

import pytest

from nomoat.data.desk_fields import email, hours12, later, near_misses, plural, spoken_date, table_script
from nomoat.data.desk_slots import PART_OF_LIST, PARTS, SHARED, SHARES, Listing, Table, Values, part_of
from nomoat.errors import NomoatError

DESK = Path(__file__).resolve().parents[2] / "data" / "desk"


def test_a_value_belongs_to_one_part_and_the_shares_are_kept():
    values = Values(DESK / "values")
    for name in values.lists:
        if name not in SHARED:
            parts = [set(values.listed(name, part)) for part in PARTS]
            assert sum(map(len, parts)) == len(values.lists[name]) == len(set.union(*parts)) and all(parts), name
    drawn = Counter(part_of("reference", number) for number in range(20_000))
    assert all(abs(drawn[part] / 20_000 - SHARES[part]) < 0.02 for part in PARTS)
    assert all(set(values.lists[name]) <= set(values.lists[whole]) for name, whole in PART_OF_LIST.items())


def test_a_value_is_in_one_list_only():
    listed = Counter(
        value.casefold()
        for name, values in Values(DESK / "values").lists.items()
        if name not in (*SHARED, *PART_OF_LIST)
        for value in values
    )
    assert len(listed) > 2000 and not [value for value, times in listed.items() if times > 1]


@pytest.mark.parametrize("slot", ["reference", "date", "time", "amount", "room", "phone", "person", "company", "city"])
def test_drawn_values_of_two_parts_never_meet(slot):
    values, rng = Values(DESK / "values"), random.Random(slot)
    drawn = {part: {str(values.draw(slot, part, rng, [])) for _ in range(300)} for part in PARTS}
    assert not drawn["train"] & drawn["heldout"] and not drawn["train"] & drawn["validation"] and not drawn["validation"] & drawn["heldout"]


@pytest.mark.parametrize("pool", ["first_names", "last_names", "cities", "company_heads", "items", "topics", "tables", "number_columns"])
def test_training_values_are_mostly_coined_and_too_many_to_learn_by_heart(pool):
    values, rng = Values(DESK / "values"), random.Random(pool)
    drawn = [values.draw(pool, "train", rng, []) for _ in range(3000)]
    assert len(set(drawn)) > 1200
    assert 0.2 < sum(value in values.lists[pool] for value in drawn) / 3000 < 0.4
    assert all(part_of(pool, value) == "train" for value in drawn)
    for part in ("validation", "heldout"):
        assert {values.draw(pool, part, rng, []) for _ in range(300)} <= set(values.lists[pool])


def test_a_second_value_differs_from_the_first_and_a_used_up_list_is_an_error():
    values, rng = Values(DESK / "values"), random.Random("taken")
    days = []
    for _ in range(7):
        days.append(values.draw("weekday2", "train", rng, days))
    assert len(set(days)) == 7
    with pytest.raises(NomoatError, match="no value of part train is left"):
        values.draw("weekday", "train", rng, days)


def test_values_are_written_as_people_write_them():
    assert [spoken_date(date(2026, 3, day)) for day in (1, 2, 3, 11, 12, 13, 22)] == [
        f"March {day}, 2026" for day in ("1st", "2nd", "3rd", "11th", "12th", "13th", "22nd")
    ]
    assert [hours12(time(hour, 5)) for hour in (0, 9, 12, 13)] == ["12:05 am", "9:05 am", "12:05 pm", "1:05 pm"]
    assert later(time(9, 50), 75) == time(11, 5)
    assert [plural(thing) for thing in ("desk lamp", "torch", "duty", "tray", "bread knife", "wool scarf", "bookcase")] == [
        "desk lamps", "torches", "duties", "trays", "bread knives", "wool scarves", "bookcases"
    ]  # fmt: skip
    assert email("Håkon O'Brien", "Axle & Reed Foods") == "obrien@axle.example"
    assert email("Ana Van Dijk", "Bay 12 Press") == "vandijk@bay.example"


def test_a_listing_knows_what_is_left_what_is_new_and_what_can_come_first():
    listing = Listing(("a", "b", "c"), "a", "d")
    assert str(listing) == "a, b, c"
    assert (listing.rest, listing.later, listing.replaced) == (["b", "c"], "c", ["d", "b", "c"])
    assert Listing(("a", "b", "c"), "b", "d").later == "b"


TABLE = Table(
    name="trips",
    columns=["city", "driver", "fee"],
    text="city",
    other="driver",
    number="fee",
    value="Oslo",
    others=["Lima", "Quito"],
    labels=list("abcdef"),
    limit=40,
)


@pytest.mark.parametrize(
    ("query", "miss"),
    [
        ("SELECT COUNT(*) FROM trips WHERE city = 'Oslo'", "SELECT COUNT(*) FROM trips"),
        ("SELECT COUNT(*) FROM trips WHERE fee > 40", "SELECT COUNT(*) FROM trips WHERE fee >= 40"),
        ("SELECT SUM(fee) FROM trips WHERE city = 'Oslo'", "SELECT AVG(fee) FROM trips WHERE city = 'Oslo'"),
        ("SELECT driver FROM trips WHERE city = 'Oslo'", "SELECT * FROM trips WHERE city = 'Oslo'"),
        ("SELECT driver FROM trips ORDER BY fee DESC LIMIT 1", "SELECT driver FROM trips ORDER BY fee LIMIT 1"),
        ("SELECT driver FROM trips ORDER BY fee LIMIT 1", "SELECT driver FROM trips LIMIT 1"),
    ],
)
def test_near_misses_are_listed_and_answered_differently(query, miss):
    assert miss in near_misses(TABLE, query) and query not in near_misses(TABLE, query)
    database = sqlite3.connect(":memory:")
    database.executescript(table_script(TABLE, query, random.Random(1)))
    assert database.execute(query).fetchall() != database.execute(miss).fetchall()
    database.close()


def test_a_query_that_no_data_distinguishes_is_an_error():
    with pytest.raises(NomoatError, match="no data found"):
        table_script(TABLE, "SELECT driver FROM trips WHERE city = 'Nowhere'", random.Random(1))
