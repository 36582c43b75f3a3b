"""Complex numbers become pairs of real ones, and results stay what they were."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from moh_deploy.frontend.fx.graph import is_tensor, op, tensor
from moh_deploy.frontend.normalize import normalize
from tests.frontend.traced import plain_trace

X = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
ANGLES = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
FREQUENCIES = torch.polar(torch.ones(3, 3), ANGLES)


def pairs(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))


def rotated(x: Tensor) -> Tensor:
    """Multiply [B, S, H, D] by stored frequencies, as LLaMA's first code does."""
    return torch.view_as_real(pairs(x) * FREQUENCIES[None, :, None]).flatten(3).type_as(x)


def rotated_by_angles(x: Tensor) -> Tensor:
    frequencies = torch.polar(torch.ones_like(ANGLES), ANGLES)
    return torch.view_as_real(pairs(x) * frequencies.view(1, 3, 1, 3)).reshape(x.shape)


def moved(x: Tensor) -> Tensor:
    z = pairs(x).transpose(-3, 1).permute(0, 2, 1, 3)[:, 1:, :, :-1].flatten(-2)
    z = z.unflatten(-1, (3, 2)).unsqueeze(-1).squeeze(-1).select(-2, 1)
    return torch.view_as_real(z.unsqueeze(1).expand(-1, 5, -1, -1).contiguous())


def viewed_behind_contiguous(x: Tensor) -> Tensor:
    z = (pairs(x) * FREQUENCIES[None, :, None]).transpose(1, 2).contiguous()
    return torch.view_as_real(z).view(8, 3, 6)


def scaled_by_a_number_alone(x: Tensor) -> Tensor:
    z = pairs(x) * torch.tensor(0.5, dtype=torch.float64)
    return torch.view_as_real(z + torch.tensor(1j, dtype=torch.complex128))


def has_complex(program: ExportedProgram) -> bool:
    tensors = [node for node in program.graph.nodes if is_tensor(node)]
    return any(tensor(node).dtype.is_complex for node in tensors if node.op != "placeholder")


@pytest.mark.parametrize(
    "model", [rotated, rotated_by_angles, moved, viewed_behind_contiguous, scaled_by_a_number_alone]
)
def test_results_stay_and_no_complex_number_is_left(model: Callable[[Tensor], Tensor]):
    traced = plain_trace(model, X)
    assert has_complex(traced)
    program = normalize(traced)
    assert not has_complex(program)
    torch.testing.assert_close(program.module()(X), model(X))


def test_arithmetic_is_that_of_complex_numbers():
    def of_pairs(x: Tensor) -> Tensor:
        z, w = pairs(x), torch.complex(x[..., :3], x[..., 3:])
        z = (z + w - torch.conj(z) * w).mul(x[..., :3])
        return torch.cat([torch.real(z), torch.imag(-z), z.abs()], -1)

    program = normalize(plain_trace(of_pairs, X))
    assert not has_complex(program)
    torch.testing.assert_close(program.module()(X), of_pairs(X))


def test_what_no_rule_is_for_stays():
    def waves(x: Tensor) -> Tensor:
        turned = torch.view_as_real(pairs(x) * FREQUENCIES[:, None])
        return torch.fft.fft(x).abs() + turned.sum()

    program = normalize(plain_trace(waves, X))
    assert has_complex(program)
    assert "view_as_real" not in {op(node) for node in program.graph.nodes}
    torch.testing.assert_close(program.module()(X), waves(X))


def test_parts_of_other_shapes_stay():
    def joined(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.complex(x, torch.zeros(1)))

    program = normalize(plain_trace(joined, X))
    assert has_complex(program)
    torch.testing.assert_close(program.module()(X), joined(X))
