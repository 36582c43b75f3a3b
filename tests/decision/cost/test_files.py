"""Prices, traffic and decisions that do not fit: what messages say, and that nothing is guessed."""

import json
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

import moh_deploy
from moh_deploy.decision.cost.price_alternatives import read_decided
from moh_deploy.decision.cost.prices import DAYS_OF_A_MONTH, read_prices, read_traffic
from moh_deploy.errors import ConfigError
from moh_deploy.system.bounded_json import to_json_text
from tests.decision.cost.files import PRICES, decision, write
from tests.decision.simulated import decision_report


def prices_error(tmp_path: Path, text: str) -> str:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as got:
        read_prices(path)
    return got.value.message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("per_hour: 3.60", "machine.per_hour is 3.6: a price without a unit"),
        ("per_hour: 3.60 dollars", "expected an amount and a currency of three capitals"),
        ("per_hour: 2600 USD/month", "a price per month, expected one per hour: '3.06 USD/h'"),
        ("per_hour: -3 USD", "expected an amount and a currency"),
        ("per_hour: 3.60 EUR", "machine.per_hour in EUR, engineering.per_day in USD"),
        ("per_hours: 3.60 USD", "Did you mean 'per_hour'?"),
    ],
)
def test_price_without_its_unit_says_what_is_expected(tmp_path: Path, wrong: str, said: str):
    assert said in prices_error(tmp_path, PRICES.replace("per_hour: 3.60 USD", wrong))


@pytest.mark.parametrize("wrong", ["0", "1.5", "[0.4]", "often", "[0.2, 2]"])
def test_utilization_is_a_share(tmp_path: Path, wrong: str):
    assert "machine.utilization" in prices_error(tmp_path, PRICES.replace("0.5", wrong))


def test_prices_may_say_what_they_are_for(tmp_path: Path):
    path = tmp_path / "prices.yaml"
    path.write_text(PRICES.replace("3.60 USD", "3.60 USD/h"))
    found = read_prices(path)
    assert found.machine.per_hour.amount == 3.6
    assert found.machine.utilization.estimate.value == 0.5


def traffic_of(tmp_path: Path, text: str, days: float | None = None):
    path = tmp_path / "traffic.csv"
    path.write_text(text)
    return read_traffic(path, ["batch", "seq"], days=days)


def test_log_is_counted_and_a_month_is_made_of_its_rate(tmp_path: Path):
    lines = [f"2026-03-{day:02}T12:00:00Z,{1 + day % 2},64" for day in range(1, 11)]
    found = traffic_of(tmp_path, "\n".join(["timestamp,batch,seq", *lines]))
    assert found.per_month == pytest.approx(DAYS_OF_A_MONTH)
    assert [asked.share for asked in found.requests] == [0.5, 0.5]
    assert found.notes == ()
    short = traffic_of(tmp_path, "timestamp,batch,seq\n0,1,64\n43200,1,64\n86400,1,64\n")
    assert short.per_month == pytest.approx(2 * DAYS_OF_A_MONTH)
    assert "extrapolated from 1.5 days" in short.notes[0]


def test_counts_are_of_a_month_unless_it_is_said(tmp_path: Path):
    text = "batch,seq,count\n1,64,90\n1,128,0\n2,64,10\n1,64,100\n"
    found = traffic_of(tmp_path, text)
    assert found.per_month == 200
    assert [(asked.sizes, asked.share) for asked in found.requests] == [
        ({"batch": 1, "seq": 64}, 0.95),
        ({"batch": 2, "seq": 64}, 0.05),
    ]
    assert traffic_of(tmp_path, text, days=1).per_month == pytest.approx(200 * DAYS_OF_A_MONTH)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch,count\n1,2\n", "no column seq"),
        ("batch,seq\n1,2\n", "has columns batch, seq, expected batch, seq, count"),
        ("batch,seq,count,timestamp\n1,2,3,4\n", "has columns"),
        ("batch,sec,count\n1,2,3\n", "unknown column 'sec'"),
        ("batch,seq,count\n1,2,3\n1,-2,3\n", "line 3: seq is '-2', expected a whole number"),
        ("batch,seq,count\n1,2,3.5\n", "line 2: count is '3.5'"),
        ("batch,seq,count\n1,2\n", "line 2: has another number of values"),
        ("batch,seq,count\n1,2,3,4\n", "line 2: has another number of values"),
        ("batch,seq,count\n", "has no requests"),
        ("batch,seq,timestamp\n1,2,noon\n", "line 2: timestamp is 'noon'"),
        ("batch,seq,timestamp\n1,2,nan\n1,2,5\n", "timestamp is 'nan'"),
        ("batch,seq,timestamp\n1,2,7\n", "span no time"),
        ("", "has columns none|no column"),
    ],
)
def test_traffic_that_does_not_fit_says_where(tmp_path: Path, text: str, said: str):
    with pytest.raises(ConfigError, match=said):
        traffic_of(tmp_path, text)


def test_decision_without_times_or_intervals_is_refused(tmp_path: Path):
    path, *_ = write(tmp_path, decided=decision({"a": (), "b": ()}, sizes=()))
    with pytest.raises(ConfigError, match="no time was measured"):
        read_decided(path)
    few = decision()
    for alternative in few["arms"]:
        alternative["latency"][1]["block_means_ms"] = [1.0] * 14
    path, *_ = write(tmp_path, decided=few)
    with pytest.raises(ConfigError, match="'dense' has 14 blocks of rounds, expected at least 15"):
        read_decided(path)
    few = decision()
    del few["arms"][1]["latency"][0]["block_means_ms"]
    path, *_ = write(tmp_path, decided=few)
    with pytest.raises(
        ConfigError, match="alternative 'moh' has another number of blocks of rounds"
    ):
        read_decided(path)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="no JSON report of `moh-deploy compare`: schema_version"):
        read_decided(path)
    with pytest.raises(ConfigError, match="does not exist"):
        read_decided(tmp_path / "none.json")


def places(content: object, way: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the way to every value in JSON that holds no others."""
    if not isinstance(content, dict | list):
        yield way
        return
    for key, inner in content.items() if isinstance(content, dict) else enumerate(content):
        yield from places(inner, (*way, key))


def test_every_edit_of_a_decision_is_refused(tmp_path: Path):
    path, printed = tmp_path / "decision.json", to_json_text(decision_report().to_json())
    path.write_text(printed)
    assert read_decided(path).sha256
    found = list(places(json.loads(printed)))
    assert len(found) > 200
    for way in found[::5]:
        for taken_out in (False, True):
            content = json.loads(printed)
            holder: Any = reduce(lambda inner, key: inner[key], way[:-1], content)
            if not taken_out:
                holder[way[-1]] = 2
            elif way != ("sha256",):  # as in a file of before
                del holder[way[-1]]
            else:
                continue
            path.write_text(json.dumps(content))
            with pytest.raises(ConfigError):
                read_decided(path)


def test_edited_decision_names_the_next_step(tmp_path: Path):
    content = json.loads(to_json_text(decision_report().to_json()))
    content["arms"][1]["p_win"] = 2
    path = tmp_path / "decision.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="was edited since `moh-deploy compare` printed") as error:
        read_decided(path)
    assert "run `moh-deploy compare` again" in str(error.value.hint)


def test_decision_without_a_digest_is_priced_and_noted(tmp_path: Path):
    report = moh_deploy.cost(
        **dict(zip(("decision", "prices", "traffic"), write(tmp_path), strict=True))
    )
    assert any("has no digest: an edit of it is not seen" in note for note in report.notes)


@pytest.mark.parametrize("stamp", ["1767225600000", "nan", "inf"])
def test_timestamps_that_are_no_seconds_are_refused(tmp_path: Path, stamp: str):
    with pytest.raises(ConfigError, match=r"expected seconds since 1970") as refused:
        traffic_of(tmp_path, f"timestamp,batch,seq\n{stamp},1,64\n{stamp},1,64\n")
    assert ("1000" in str(refused.value.hint)) == stamp.isdecimal()
