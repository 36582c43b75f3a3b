from __future__ import annotations

from moh_deploy.runtime.tensorrt.engine_graph import fix_dimension
from tests.graph.models import model, node, value


def test_every_value_gets_the_size_and_other_dimensions_stay():
    x, y, z = value("x", ["b", "room", 4]), value("y", ["b", "room", None]), value("z", ["b", 4])
    made = model([x], [y], [node("Relu", [x], y), node("Relu", [x], z)])
    assert fix_dimension(made, "room", 7)
    sizes = [[d if isinstance(d, int) else d.value for d in item.shape] for item in (x, y, z)]
    assert sizes == [["b", 7, 4], ["b", 7, None], ["b", 4]]
    assert not fix_dimension(made, "room", 7)
