"""Compare installed Python packages with the versions that moh-deploy's metadata asks for."""

from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from moh_deploy.native import INSTALL_ORT_GPU

OWN_NAME = "moh-deploy"
# Each name may be had in several builds: one is enough.
_ORT, _ORT_GPU = "onnxruntime", "onnxruntime-gpu"
_SAME_MODULE = {_ORT: (_ORT, _ORT_GPU)}
_OPTIONAL = (_ORT_GPU, "onnx-graphsurgeon", "polygraphy", "tensorrt")


@dataclass(frozen=True)
class PackageFacts:
    """The state of one Python package: its version, and what is wrong with it."""

    name: str
    version: str | None  # What is installed; None: nothing
    expected: str  # The versions that moh-deploy takes, such as `>=2.9`; empty: any
    required: bool
    problem: str | None  # What is wrong with it, as half a sentence; None: nothing
    fix: str | None  # The command that closes the gap


@dataclass(frozen=True)
class Packages:
    """The Python packages that matter to moh-deploy."""

    # False: moh-deploy runs from files that were not installed, so nothing says which versions it
    # takes.
    known: bool
    # Required ones, installed or not, then optional ones that are installed.
    found: tuple[PackageFacts, ...]

    @property
    def gaps(self) -> tuple[PackageFacts, ...]:
        """Required ones that are missing or of another version."""
        return tuple(facts for facts in self.found if facts.required and facts.problem)


def probe_packages() -> Packages:
    """Look at what is installed, without importing it."""
    own = _installed(OWN_NAME)
    wanted = [] if own is None else [Requirement(line) for line in own.requires or ()]
    bounds: dict[str, str] = {
        canonicalize_name(requirement.name): str(requirement.specifier)
        for requirement in reversed(wanted)
    }
    # Markers speak of the Python version and the platform, too; an empty extra leaves these.
    required = tuple(
        _required(requirement)
        for requirement in wanted
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    )
    # A build that stands in for a required package is no optional one.
    installed = {canonicalize_name(package.metadata["Name"] or "") for package in distributions()}
    optional = (
        _facts(name, bounds.get(name, ""), required=False)
        for name in sorted(installed - {facts.name for facts in required})
        if any(name == text or name.startswith(f"{text}-") for text in _OPTIONAL)
    )
    return Packages(own is not None, (*required, *optional))


def _required(wanted: Requirement) -> PackageFacts:
    names = _SAME_MODULE.get(wanted.name, (wanted.name,))
    name = next((name for name in names if _installed(name) is not None), wanted.name)
    return _facts(name, str(wanted.specifier), required=True)


def _facts(name: str, expected: str, *, required: bool) -> PackageFacts:
    found, problem = _installed(name), None
    # Pre-releases count: PyTorch is often installed as a nightly build.
    if found is None:
        problem = f"{name} is not installed"
    elif not SpecifierSet(expected).contains(Version(found.version), prereleases=True):
        problem = f"{name} is {found.version}, expected {expected}"
    fix = f"pip install '{name}{expected}'" if problem else None
    if name == _ORT_GPU and not required:
        # Both are installed, and which of the two is imported depends on the order.
        problem = f"{_ORT} is installed, too, and holds the same files"
        fix = INSTALL_ORT_GPU
    version = None if found is None else found.version
    return PackageFacts(name, version, expected, required, problem, fix)


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None
