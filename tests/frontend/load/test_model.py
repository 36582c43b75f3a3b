import torch
from torch import Tensor, nn

from moh_deploy.frontend.load.model import arguments_of, positional, taking_tensors
from moh_deploy.package import Call, CallArgument

A, B, C = torch.ones(2), torch.zeros(2), torch.full((2,), 5.0)

CALL = Call(
    args=(CallArgument(input="a"), CallArgument(value=None)),
    kwargs={
        "past": CallArgument(
            container="list",
            items=(CallArgument(container="tuple", items=(CallArgument(input="past.0"),)),),
        ),
        "named": CallArgument(
            container="dict", context=["class"], items=(CallArgument(input="class"),)
        ),
        "flag": CallArgument(value=True),
    },
)


class Takes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, a, mask=None, past=(), named=None, flag=False):
        assert mask is None
        assert flag is True
        return {"y": self.inner(a) + past[0][0] - named["class"]}


def test_tensors_become_nested_arguments_in_order():
    args, kwargs = arguments_of(CALL, [A, B, C])
    assert args == (A, None)
    assert kwargs == {"past": [(B,)], "named": {"class": C}, "flag": True}
    assert arguments_of(CALL, [A, B, C])[1]["past"] is not kwargs["past"]


def test_positional_call_gives_the_tensors_themselves():
    assert arguments_of(positional(["a", "b"]), [A, B]) == ((A, B), {})


def test_module_takes_tensors_meanwhile_and_is_as_before_afterwards():
    module, seen = Takes(), []
    module.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    with taking_tensors(module, CALL) as names:
        assert names == ("a", "past_0", "input_class")  # a word of Python
        found = module(A, B, C)
        assert type(module).__qualname__ == "Takes"
        assert isinstance(module, Takes)
    torch.testing.assert_close(found, {"y": module.inner(A) - 5})
    assert seen[0]["flag"] is True  # a hook gets what it was written for
    assert type(module) is Takes
    args, kwargs = arguments_of(CALL, [A, B, C])
    torch.testing.assert_close(module(*args, **kwargs), found)


def test_forward_that_was_replaced_on_the_module_is_kept():
    module = Takes()

    def replaced(a: Tensor, **kwargs: object) -> Tensor:
        return a + 7

    module.forward = replaced  # as accelerate does
    with taking_tensors(module, positional(["a"])):
        torch.testing.assert_close(module(A), A + 7)
    assert module.forward is replaced


def test_module_is_as_before_after_an_error():
    module = Takes()
    try:
        with taking_tensors(module, CALL):
            raise ValueError
    except ValueError:
        assert type(module) is Takes


def test_names_that_become_one_are_told_apart():
    with taking_tensors(Takes(), positional(["x.1", "x_1", "self", "1"])) as names:
        assert names == ("x_1", "x_1_", "input_self", "input_1")
