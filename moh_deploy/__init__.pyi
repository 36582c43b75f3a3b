"""The public names, for type checkers: `__init__.py` imports them on first use."""

from moh_deploy.api.bench import bench as bench
from moh_deploy.api.bisect import bisect as bisect
from moh_deploy.api.build import build as build
from moh_deploy.api.doctor import doctor as doctor
from moh_deploy.api.export import export as export
from moh_deploy.api.export import load_original as load_original
from moh_deploy.api.generate import generate as generate
from moh_deploy.api.inline import inline as inline
from moh_deploy.api.inspect import inspect as inspect
from moh_deploy.api.load import load as load
from moh_deploy.api.optimize import optimize as optimize
from moh_deploy.api.polygraphy import polygraphy_runner as polygraphy_runner
from moh_deploy.api.precision import precision as precision
from moh_deploy.api.probe import probe as probe
from moh_deploy.api.prune import prune as prune
from moh_deploy.api.run import run as run
from moh_deploy.api.tune import tune as tune
from moh_deploy.api.tune_within import tune_within as tune_within
from moh_deploy.api.verify import verify as verify
from moh_deploy.decision.api.compare import compare as compare
from moh_deploy.decision.api.cost import cost as cost
from moh_deploy.native import kernel_library as kernel_library
from moh_deploy.package import OnnxPackage as OnnxPackage
from moh_deploy.runtime.tensorrt.models import Engine as Engine
from moh_deploy.serving.api.bundle import bundle as bundle
from moh_deploy.serving.api.bundle import check_bundle as check_bundle
from moh_deploy.serving.api.drill import drill as drill
from moh_deploy.serving.api.genai import (
    bundle_for_genai as bundle_for_genai,
)
from moh_deploy.serving.api.genai import (
    verify_genai_bundle as verify_genai_bundle,
)
from moh_deploy.serving.api.profile import profile as profile
from moh_deploy.serving.api.serve import serve as serve
from moh_deploy.serving.api.watch import watch as watch

__version__: str
