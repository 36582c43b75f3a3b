"""Say which version of the domains of its functions a model is written for."""

from __future__ import annotations

import onnx_ir as ir

from moh_deploy.ops import VERSION, is_moh_op
from moh_deploy.ops.domains import KERNEL_DOMAIN, base_domain


def import_domains(model: ir.Model) -> bool:
    """Import the domains in which a model has functions of ours, and `moh`; drop others of ours."""
    before = dict(model.opset_imports)
    used = {domain for domain, name, _ in model.functions if is_moh_op(domain, name)}
    for domain in [
        opset_import for opset_import in model.opset_imports if base_domain(opset_import)
    ]:
        del model.opset_imports[domain]
    for domain in sorted({KERNEL_DOMAIN, *used}):
        model.opset_imports[domain] = VERSION
    return dict(model.opset_imports) != before
