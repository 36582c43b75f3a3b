"""What looks like windowed-and-pooled attention and is not: it stays, with the reason."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import Rewrite, insert
from tests.frontend.traced import plain_trace, traced
from tests.nightly import nightly, sampled
from tests.zoo.model import noise
from tests.zoo.windowed_otherwise import DIM, HEAD_DIM, HEADS, Pixels

X = noise(2, 30, DIM)


class Usual(Pixels):
    """The form that is replaced; what follows changes one thing each."""

    def cut_keys(self, image):
        return F.unfold(image, 3, padding=1)

    def cut_values(self, image):
        return self.cut_keys(image)

    def hide(self, near, x):
        return near.masked_fill(self.near == x.shape[1], float("-inf"))

    def bias(self):
        return self.near_bias[:, None]

    def weigh(self, near, far):
        return torch.cat([near, far], -1).softmax(-1).split([near.shape[-1], far.shape[-1]], -1)

    def forward(self, x):
        q = self.heads(self.q(x)).transpose(1, 2)
        k, v = self.image(self.k(x)), self.image(self.v(x))
        k = self.cut_keys(k).unflatten(1, (HEADS, HEAD_DIM, -1))  # [B, H, D, L, N]
        v = self.cut_values(v).unflatten(1, (HEADS, HEAD_DIM, -1))
        pk, pv = (t.transpose(1, 2) for t in self.pooled(x))
        near = self.hide(torch.einsum("bhnd,bhdln->bhnl", self.near_query(q), k), x) + self.bias()
        near, far = self.weigh(near, q @ pk.mT)
        y = torch.einsum("bhnl,bhdln->bhnd", self.added(q, near), v) + far @ pv
        return self.merge(x, y.transpose(1, 2))

    def near_query(self, q):
        return q

    def added(self, q, near):
        return near


class Dilated(Usual):
    def cut_keys(self, image):
        return F.unfold(image, 3, padding=2, dilation=2)


class Strided(Usual):
    def cut_keys(self, image):
        return F.unfold(F.interpolate(image, scale_factor=2), 3, padding=1, stride=2)


class NotCentred(Usual):
    def cut_keys(self, image):
        return F.unfold(F.pad(image, (0, 2, 0, 2)), 3)


class OtherPixels(Usual):
    def cut_keys(self, image):
        return F.unfold(image.roll(1, -1), 3, padding=1)


class ValuesInAnotherOrder(Usual):
    def cut_values(self, image):
        return F.unfold(image, 3, padding=1).unflatten(1, (-1, 9)).flip(2).flatten(1, 2)


class Reflecting(Usual):
    """Tokens weigh the values outside, too."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Parameter(torch.ones(HEADS, HEAD_DIM, 9))

    def cut_values(self, image):
        return F.unfold(F.pad(image, (1, 1, 1, 1), mode="reflect"), 3)

    def added(self, q, near):
        return near + q @ self.tokens


class NothingHidden(Usual):
    def hide(self, near, x):
        return near


class OneMoreHidden(Usual):
    def hide(self, near, x):
        hidden = self.near == x.shape[1]
        hidden[12, 4] = True
        return near.masked_fill(hidden, float("-inf"))


class OneHeadSeesMore(Usual):
    def hide(self, near, x):
        hidden = (self.near == x.shape[1]).expand(HEADS, -1, -1).clone()
        hidden[1] = False
        return near.masked_fill(hidden, float("-inf"))


class BarelyHidden(Usual):
    def hide(self, near, x):
        return near.masked_fill(self.near == x.shape[1], -100.0)


class HiddenByInput(Usual):
    def hide(self, near, x):
        return super().hide(near, x).masked_fill((x[..., 0] > 0)[:, None, :, None], -1e9)


class BiasOfPixels(Usual):
    def bias(self):
        return self.near_bias[:, None] + torch.arange(30.0)[:, None] / 30


class BiasOfInput(Usual):
    def weigh(self, near, far):
        return super().weigh(near + near.mean(-1, keepdim=True).relu(), far)


class TwoSoftmaxes(Usual):
    def weigh(self, near, far):
        return near.softmax(-1), far.softmax(-1)


class ScaledApart(Usual):
    def near_query(self, q):
        return q * 0.5


class AnotherQuery(Usual):
    def near_query(self, q):
        return q.sin()


class Sink(Usual):
    def weigh(self, near, far):
        p = torch.cat([near, far, torch.zeros_like(far[..., :1])], -1).softmax(-1)
        return p[..., :9], p[..., 9:-1]


class AddedForEachPixel(Usual):
    def added(self, q, near):
        return near + torch.arange(30.0)[:, None] / 30


@sampled(12)
@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        (Dilated, "not those of a window around each pixel"),
        (Strided, "the keys of a window are not its pixels' neighbours"),
        (NotCentred, "not those of a window around each pixel"),
        (OtherPixels, "the keys of a window are not its pixels' neighbours"),
        (ValuesInAnotherOrder, "the weights in the order of the keys"),
        (Reflecting, "values outside the image are not 0"),
        (NothingHidden, "keys outside the image take part in the softmax"),
        (OneMoreHidden, "hides other keys than those outside"),
        (OneHeadSeesMore, "hides other keys than those outside"),
        (BarelyHidden, "fills masked scores with -100.0, not with a large negative number"),
        (HiddenByInput, "a mask of the scores depends on the input"),
        (BiasOfPixels, "the bias of a window differs from pixel to pixel"),
        (BiasOfInput, "a bias of the scores depends on the input"),
        (TwoSoftmaxes, ""),
        (ScaledApart, "window scores and pooled scores are scaled differently"),
        (AnotherQuery, "window scores and pooled scores are of different queries"),
        (Sink, "some weights of the softmax are not used"),
        (AddedForEachPixel, "what is added to the weights differs from pixel to pixel"),
    ],
)
def test_what_differs_stays_with_the_reason(variant: type[Usual], reason: str):
    (rewrite, *_) = rewrites(variant())
    assert rewrite.replacement is None
    assert rewrite.reason is not None
    assert reason in rewrite.reason


def rewrites(model: nn.Module, x: torch.Tensor = X) -> list[Rewrite]:
    program = normalize(plain_trace(model, x))
    return insert(program, recognize(program))


@sampled(2)
@pytest.mark.parametrize("batch", [1, 2])
def test_usual_form_is_replaced(batch: int):
    (rewrite,) = rewrites(Usual(), X[:batch])
    assert (rewrite.op, rewrite.reason) == ("MoHAggregatedAttention", None)


@nightly
def test_image_of_dynamic_size_stays_with_the_reason():
    class AnyHeight(Usual):
        def forward(self, image):
            self.near = F.unfold(torch.ones_like(image[:1, :1]), 3, padding=1)[0].t() * 30
            self.rows = image.shape[2]
            return super().forward(image.flatten(2).mT)

        def hide(self, near, x):
            return near.masked_fill(self.near == 0, float("-inf"))

    image = ModelInput("image", noise(2, DIM, 6, 5), {0: "batch", 2: "height"})
    program = traced(AnyHeight(), (image,))
    (rewrite,) = insert(program, recognize(program))
    assert (rewrite.replacement, rewrite.reason) == (None, "the image has a dynamic size")
