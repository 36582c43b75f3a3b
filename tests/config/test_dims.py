import pytest
from hypothesis import given
from hypothesis import strategies as st

from moh_deploy.config.dims import DimExpr, DynamicAxis, size_at, solve_sizes
from moh_deploy.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch", DimExpr("batch")),
        ("past + 1", DimExpr("past", 1, 1)),
        ("2*seq", DimExpr("seq", 2)),
        ("seq*2", DimExpr("seq", 2)),
        (" 3 * n_2 - 10 ", DimExpr("n_2", 3, -10)),
    ],
)
def test_linear_expressions_of_one_name_are_parsed(text: str, expected: DimExpr) -> None:
    assert DimExpr.parse(text, place="here") == expected


@pytest.mark.parametrize(
    "text", ["", "3", "a*b", "a+b", "2*a*2", "0*a", "a-", "1+a", "a/2", "2a", "a+1+1"]
)
def test_other_expressions_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"here: '.*' is not a dimension") as refused:
        DimExpr.parse(text, place="here")
    assert "has a name of its own: total" in str(refused.value.hint)


expressions = st.builds(
    DimExpr, st.sampled_from(["batch", "past", "_n1"]), st.integers(1, 9), st.integers(-9, 9)
)


@given(expressions)
def test_text_of_an_expression_parses_back_to_it(expr: DimExpr) -> None:
    assert DimExpr.parse(str(expr), place="here") == expr


@given(expressions, st.integers(0, 1000))
def test_solve_undoes_evaluate(expr: DimExpr, base: int) -> None:
    assert expr.solve(expr.evaluate({expr.name: base})) == base


def test_solve_refuses_what_no_whole_number_gives() -> None:
    assert DimExpr("seq", 2).solve(5) is None
    assert DimExpr("past", 1, 4).solve(3) is None


def test_sizes_are_solved_from_derived_dimensions() -> None:
    axes = [
        DynamicAxis("axis 0 of 'x'", DimExpr("batch"), 2),
        DynamicAxis("axis 1 of 'mask'", DimExpr("past", 1, 1), 9),
    ]
    assert solve_sizes(axes) == {"batch": 2, "past": 8}


def test_two_sizes_of_one_name_are_refused_naming_both_places() -> None:
    axes = [
        DynamicAxis("axis 1 of 'past'", DimExpr("past"), 7),
        DynamicAxis("axis 1 of 'mask'", DimExpr("past", 1, 1), 9),
    ]
    message = r"7 from axis 1 of 'past', 8 from axis 1 of 'mask' \(past\+1 = 9\)"
    with pytest.raises(ConfigError, match=message):
        solve_sizes(axes)


@pytest.mark.parametrize("size", [0, 1])
def test_example_sizes_that_tracing_fixes_are_refused(size: int) -> None:
    axis = DynamicAxis("axis 0 of 'x'", DimExpr("batch"), size)
    with pytest.raises(ConfigError, match=f"axis 0 of 'x' is dynamic .* example size is {size}"):
        solve_sizes([axis])


def test_size_that_an_expression_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has size 5, which '2\*seq' cannot be"):
        solve_sizes([DynamicAxis("axis 1 of 'x'", DimExpr("seq", 2), 5)])


@pytest.mark.parametrize(
    ("dim", "size"), [(3, 3), (None, None), ("past + 1", 8), ("other", None), ("past+seq", None)]
)
def test_size_of_an_axis_is_known_where_one_known_dimension_tells_it(
    dim: int | str | None, size: int | None
):
    assert size_at(dim, {"past": 7, "seq": 2}) == size
