"""Compare installed Python packages with the versions that moh-deploy's metadata asks for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

OWN_NAME = "moh-deploy"
# Each name may be had in several builds, of which one is enough.
_ORT, _ORT_GPU = "onnxruntime", "onnxruntime-gpu"
_SAME_MODULE = {_ORT: (_ORT, _ORT_GPU)}
_OPTIONAL = (_ORT_GPU, "onnx-graphsurgeon", "polygraphy", "tensorrt")


@dataclass(frozen=True)
class PackageFacts:
    """The state of one Python package: its version, and what is wrong with it.

    Attributes:
        name: As it is installed.
        version: What is installed; None: nothing.
        expected: The versions that moh-deploy takes, such as `>=2.9`; empty: any.
        required: Nothing works without it.
        problem: What is wrong with it, as half a sentence; None: nothing.
        fix: The command that closes the gap.
    """

    name: str
    version: str | None
    expected: str
    required: bool
    problem: str | None
    fix: str | None


@dataclass(frozen=True)
class Packages:
    """The Python packages that matter to moh-deploy.

    Attributes:
        known: False: moh-deploy runs from files that were not installed, so nothing says which
            versions it takes.
        found: Required ones, installed or not, then optional ones that are installed.
    """

    known: bool
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
    candidates = _SAME_MODULE.get(wanted.name, (wanted.name,))
    name = next(
        (candidate for candidate in candidates if _installed(candidate) is not None), wanted.name
    )
    return _facts(name, str(wanted.specifier), required=True)


def _facts(name: str, expected: str, *, required: bool) -> PackageFacts:
    found = _installed(name)
    version = None if found is None else found.version
    problem = _problem(name, version, expected)
    fix = f"pip install '{name}{expected}'" if problem else None
    if name == _ORT_GPU and not required:
        # Both are installed, and which of the two is imported depends on the order.
        problem = f"{_ORT} is installed, too, and holds the same files"
        fix = f"pip uninstall {_ORT} {_ORT_GPU}, then pip install {_ORT_GPU}"
    return PackageFacts(name, version, expected, required, problem, fix)


def _problem(name: str, version: str | None, expected: str) -> str | None:
    if version is None:
        return f"{name} is not installed"
    # Pre-releases count: PyTorch is often installed as a nightly build.
    if not SpecifierSet(expected).contains(Version(version), prereleases=True):
        return f"{name} is {version}, expected {expected}"
    return None


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None
