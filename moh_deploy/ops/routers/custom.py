"""Any other router: it stays as the operators that the model has."""

from moh_deploy.ops.routers.form import RouterForm

CUSTOM = RouterForm("custom", "a router of no form above; it stays as ordinary operators")
