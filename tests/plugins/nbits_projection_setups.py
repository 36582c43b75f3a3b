"""Projections with weights of 4 bits as they may come, from which a case is made."""

from moh_deploy.ops.cases import Case
from tests.ops.cases.nbits_projection import nbits_case
from tests.plugins.projection_setups import ProjectionSetup


class NBitsProjectionSetup(ProjectionSetup):
    """A projection of that kind and size; it is in float32, whatever `dtype` is."""

    def case(self) -> Case:
        rows, columns = self.width, self.num_heads * self.head_dim
        if self.op == "MoHOutputProjection":
            rows, columns = columns, rows
        in_float32 = ProjectionSetup(**{**vars(self), "dtype": "float32"})
        return nbits_case(in_float32.case(), rows, columns)
