from dataclasses import replace

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo
from moh_deploy.serving.guard.same_answers import require_same_interface
from tests.handmade_package import MANIFEST


def test_dimensions_may_have_other_names_and_sizes():
    other = replace(MANIFEST, inputs=(TensorInfo("x", "float32", ("n", 3, 8)),))
    require_same_interface("it", MANIFEST, other)


@pytest.mark.parametrize(
    "changed",
    [
        TensorInfo("z", "float32", ("batch", "seq", 8)),
        TensorInfo("x", "float16", ("batch", "seq", 8)),
        TensorInfo("x", "float32", ("batch", 8)),
    ],
)
def test_names_dtypes_and_ranks_have_to_agree(changed: TensorInfo):
    with pytest.raises(ConfigError, match=r"it has the inputs \[.*\], expected \[\('x', 'float32'"):
        require_same_interface("it", MANIFEST, replace(MANIFEST, inputs=(changed,)))
    with pytest.raises(ConfigError, match="it has the outputs"):
        require_same_interface("it", MANIFEST, replace(MANIFEST, outputs=(changed,)))
