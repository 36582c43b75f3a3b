"""What is asked of a report that is printed as JSON."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from pydantic import BaseModel, ValidationError

from moh_deploy.system.json_text import to_json_text


def assert_of_form(form: type[BaseModel], report: Mapping[str, object]) -> None:
    """Assert that a report is of its form, and is not with a key too many or any key too few."""
    form.model_validate_json(to_json_text(report))
    _assert_refused(form, {**report, "verdict": "good"}, "verdict")
    for missing in report:
        _assert_refused(form, {key: report[key] for key in report if key != missing}, missing)


def _assert_refused(form: type[BaseModel], report: Mapping[str, object], key: str) -> None:
    with pytest.raises(ValidationError, match=rf"(?m)^{key}$"):
        form.model_validate_json(to_json_text(report))
