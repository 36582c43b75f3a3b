"""JSON from dataclasses, and the schemas in docs of all that `--json` prints of a job."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from jsonschema import ValidationError

from moh_deploy.decision.cost.report import CostReport
from moh_deploy.decision.report import DecisionReport
from moh_deploy.perf.bench.report import BenchReport
from moh_deploy.report.report import FLAT, HIDDEN, Report, in_json, to_json
from moh_deploy.serving.genai.verify import GenaiVerification
from moh_deploy.validate.bisection.report import BisectReport
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.edge_cases.report import ProbeReport
from tests.report.json_schema import DOCS, answer_schema, misfits, schema_of, validate

REPORTS: dict[str, type[Report]] = {
    "bench": BenchReport,
    "bisect": BisectReport,
    "compare": DecisionReport,
    "cost": CostReport,
    "probe": ProbeReport,
    "verify": ParityReport,
    "verify-genai": GenaiVerification,
}
BY_COMMAND_LINE = {"package"}
"""What `verify` and `probe` add: the package as the user named it."""


@dataclass(frozen=True)
class Inner:
    low: float
    high: float = field(metadata=HIDDEN)


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(metadata=FLAT)
    others: tuple[Inner, ...]
    path: Path
    named: dict[int, Inner | None]

    @property
    @in_json()
    def half(self) -> float:
        return self.inner.high / 2

    @property
    @in_json("count")
    def _count(self) -> int:
        return len(self.others)

    @property
    def unseen(self) -> int:
        return 0


def test_json_has_fields_and_marked_properties_and_no_others():
    value = Outer(Inner(1.0, 3.0), (Inner(2.0, 4.0),), Path("a/b"), {1: Inner(5.0, 6.0), 2: None})
    assert to_json(value) == {
        "low": 1.0,
        "others": [{"low": 2.0}],
        "path": "a/b",
        "named": {"1": {"low": 5.0}, "2": None},
        "half": 1.5,
        "count": 1,
    }


def test_every_schema_in_the_docs_is_of_a_report():
    assert {path.name for path in DOCS.glob("*.schema.json")} == {
        f"{command}.schema.json" for command in REPORTS
    }


@pytest.mark.parametrize("command", REPORTS)
def test_schema_in_the_docs_holds_what_the_dataclass_says(command: str):
    schema = answer_schema(command)
    defs = schema["$defs"]
    found = set(misfits(schema_of(REPORTS[command]), schema, defs))
    assert found <= {f".{name} is documented, and is not there" for name in BY_COMMAND_LINE}


def test_what_the_docs_do_not_have_would_be_found():
    docs = {"type": "object", "properties": {"low": {"type": "string"}, "more": {"type": "null"}}}
    docs["required"] = ["low", "more"]
    found = set(misfits(schema_of(Outer), docs, {}))
    assert ".low: number is not in [{'type': 'string'}]" in found
    assert ".more is documented, and is not there" in found
    assert {f".{name} is not documented" for name in ("others", "path", "half", "count")} <= found


@pytest.mark.parametrize("command", REPORTS)
def test_error_without_an_answer_is_of_the_form_and_no_half_of_one_is(command: str):
    error = {"type": "ConfigError", "message": "no", "hint": None, "exit_code": 2}
    validate(command, {"error": error})
    with pytest.raises(ValidationError):
        validate(command, {"error": error, "schema_version": 1})
