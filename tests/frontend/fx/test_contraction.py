import pytest
import torch
from torch import Tensor
from torch.fx import Node

from moh_deploy.frontend.fx.axes import fresh_layout, product
from moh_deploy.frontend.fx.contraction import Contraction, contraction
from moh_deploy.frontend.fx.graph import shape
from tests.frontend.traced import Sheet
from tests.nightly import sampled

aten = torch.ops.aten


def write(shapes, target, *arguments) -> tuple[Sheet, Node]:
    """A node that applies an operator to two random tensors; 0 and 1 stand for them."""
    generator = torch.Generator().manual_seed(5)
    sheet = Sheet(*(torch.randn(*extents, generator=generator) for extents in shapes))
    if target is aten.einsum.default:
        return sheet, sheet.call(target, *arguments, sheet.inputs)
    return sheet, sheet.call(target, *sheet.inputs, *arguments)


def as_einsum(found: Contraction, a: Tensor, b: Tensor) -> Tensor:
    """Compute a product from nothing but its labels."""
    letters: dict[str, str] = {}
    for label in (*found.labels[0], *found.labels[1], *found.out):
        if label is not None:
            letters.setdefault(label, chr(ord("a") + len(letters)))
    terms = []
    for side, labels in enumerate(found.labels):
        kept = [position for position, label in enumerate(labels) if label is not None]
        operand = (a, b)[side]
        dropped = [position for position in range(operand.dim()) if position not in kept]
        operand = operand.squeeze(dropped) if dropped else operand
        a, b = (operand, b) if side == 0 else (a, operand)
        terms.append("".join(letters[labels[position]] for position in kept))
    return torch.einsum(f"{terms[0]},{terms[1]}->{''.join(letters[x] for x in found.out)}", a, b)


PRODUCTS = {
    "mm": ([(2, 3), (3, 4)], aten.mm.default),
    "bmm": ([(5, 2, 3), (5, 3, 4)], aten.bmm.default),
    "matmul": ([(2, 5, 3, 4), (2, 5, 4, 6)], aten.matmul.default),
    "matmul_shorter_left": ([(3, 4), (2, 5, 4, 6)], aten.matmul.default),
    "matmul_broadcast_batch": ([(2, 1, 3, 4), (5, 4, 6)], aten.matmul.default),
    "mul": ([(2, 3, 4), (2, 3, 4)], aten.mul.Tensor),
    "mul_broadcast": ([(2, 3, 4), (3, 1)], aten.mul.Tensor),
    "mul_broadcast_both": ([(2, 1, 4), (3, 1)], aten.mul.Tensor),
    "einsum": ([(2, 3, 4, 5), (2, 6, 4, 5)], aten.einsum.default, "bshd,bthd->bhst"),
    "einsum_spaces": ([(2, 3), (3, 4)], aten.einsum.default, " ij , jk -> ki "),
    "einsum_implicit": ([(2, 3), (3, 4)], aten.einsum.default, "zj,ja"),
    "einsum_ellipsis": ([(2, 5, 3, 4), (5, 4, 6)], aten.einsum.default, "...ij,...jk->...ik"),
    "einsum_ellipsis_implicit": ([(2, 3, 4), (4, 5)], aten.einsum.default, "...j,jk"),
    "einsum_size_one": ([(2, 3, 1), (2, 3, 4)], aten.einsum.default, "bsh,bsh->bsh"),
    "einsum_gates": ([(2, 3, 4), (2, 3, 4, 5)], aten.einsum.default, "bsh,bshd->bshd"),
}


@sampled(4)
@pytest.mark.parametrize("name", PRODUCTS)
def test_labels_say_what_the_operator_computes(name: str):
    sheet, node = write(*PRODUCTS[name])
    found = contraction(node)
    assert found is not None
    torch.testing.assert_close(as_einsum(found, *sheet.values), sheet.run(node))


@sampled(4)
@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("side", [0, 1])
def test_layouts_have_the_sizes_of_the_tensors(name: str, side: int):
    _, node = write(*PRODUCTS[name])
    found = contraction(node)
    other, out = found.layouts(fresh_layout(shape(found.operands[side])), side)
    assert tuple(map(product, other)) == shape(found.operands[1 - side])
    if name not in ("mul_broadcast_both", "einsum_size_one"):
        assert tuple(map(product, out)) == shape(node)


@pytest.mark.parametrize("name", PRODUCTS)
def test_operand_layouts_share_the_axes_of_the_result(name: str):
    _, node = write(*PRODUCTS[name])
    found = contraction(node)
    layouts = found.operand_layouts(fresh_layout(shape(node)))
    for layout, operand in zip(layouts, found.operands, strict=True):
        assert tuple(map(product, layout)) == shape(operand)


def test_sum_of_a_product_is_a_contraction():
    sheet, product = write([(2, 3, 1, 5), (3, 4, 5)], aten.mul.Tensor)
    node = sheet.call(aten.sum.dim_IntList, product, [-1])
    found = contraction(node)
    torch.testing.assert_close(as_einsum(found, *sheet.values), sheet.run(node))
    kept = sheet.call(aten.sum.dim_IntList, product, [-1], True)
    assert contraction(kept).out == (*found.out, None)


def test_sum_over_what_one_factor_lacks_or_of_squares_is_no_contraction():
    sheet, product = write([(2, 3, 1), (3, 4)], aten.mul.Tensor)
    assert contraction(sheet.call(aten.sum.dim_IntList, product, [-1])) is None
    square = sheet.call(aten.mul.Tensor, sheet.inputs[0], sheet.inputs[0])
    assert contraction(sheet.call(aten.sum.dim_IntList, square, [-1])) is None


def test_summed_labels_are_those_that_the_result_lacks():
    _, node = write([(2, 3, 4, 5), (2, 6, 4, 5)], aten.einsum.default, "bshd,bthd->bhst")
    assert contraction(node).summed == {"d"}
    _, node = write([(2, 3), (2, 3)], aten.mul.Tensor)
    assert contraction(node).summed == set()


@pytest.mark.parametrize(
    ("shapes", "target", "arguments"),
    [
        ([(2, 2)], aten.einsum.default, ["ii->i"]),
        ([(2, 2), (2, 3)], aten.einsum.default, ["ii,ij->j"]),
        ([(2, 3), (3, 4), (4, 5)], aten.einsum.default, ["ij,jk,kl->il"]),
        ([(3,), (3, 4)], aten.matmul.default, []),
        ([(2, 3), (2, 3)], aten.add.Tensor, []),
        ([(2, 3)], aten.mul.Scalar, [2.0]),
    ],
    ids=["trace", "diagonal", "three_operands", "vector", "sum", "number"],
)
def test_anything_else_is_no_product(shapes, target, arguments):
    _, node = write(shapes, target, *arguments)
    assert contraction(node) is None
