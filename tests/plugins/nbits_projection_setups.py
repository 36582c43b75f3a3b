"""Projections with weights of 4 bits as they may come, from which a case is made."""

from dataclasses import replace

from moh_deploy.ops.cases import Case
from tests.ops.cases.nbits_projection import nbits_case
from tests.plugins.projection_setups import ProjectionSetup


class NBitsProjectionSetup(ProjectionSetup):
    """A projection of that kind and size; it is in float32, whatever `dtype` is."""

    def case(self) -> Case:
        return case_of(ProjectionSetup(**vars(self)))


def case_of(setup: ProjectionSetup) -> Case:
    """Return the case with weights of 4 bits that has the sizes and gates of a projection."""
    rows, columns = setup.width, setup.num_heads * setup.head_dim
    if setup.op == "MoHOutputProjection":
        rows, columns = columns, rows
    return nbits_case(replace(setup, dtype="float32").case(), rows, columns)
