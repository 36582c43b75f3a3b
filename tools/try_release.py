"""Install the wheel of a release in fresh environments, and use it there.

    python tools/try_release.py dist --find-links FOLDER --constraint 'torch==2.13.0+cpu'

For each Python, with the newest dependencies (by pip) and the lowest that have wheels (by uv): the
wheel verifies packages of 0.1 without PyTorch, then exports and verifies a small model with the
extra `export`. Each environment is removed before the next. Needs `uv` on the path, which also
finds the Pythons. Prints a report in Markdown; exit code 1 if anything failed.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES_OF_0_1 = ROOT / "tests/package/packages_of_0_1"
PYTHONS = ("3.11", "3.12", "3.13")
RESOLVED_ONLY = "3.14"
COLUMNS = ("torch", "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "protobuf", "pydantic")
MINUTES_A_STEP = 15


@dataclass(frozen=True)
class Sources:
    """Where an environment is installed from."""

    wheel: Path
    find_links: Sequence[str] = ()
    constraints: Sequence[str] = ()
    by_uv: bool = False  # pip installs the newest otherwise
    export: bool = True  # PyTorch is large where there is no build for CPUs

    def requirements(self, extra: str) -> list[str]:
        """Return the requirements that the wheel names, with those of an extra."""
        with ZipFile(self.wheel) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            metadata = HeaderParser().parsestr(archive.read(name).decode())
        found = []
        for line in metadata.get_all("Requires-Dist", []):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                requirement.marker = None
                found.append(str(requirement))
        return found


@dataclass
class Trial:
    """An environment: its versions, and the seconds and error of each step."""

    python: str
    dependencies: str  # newest or lowest
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failure: str = ""

    def row(self) -> list[str]:
        """Return the cells of the report's table."""
        times = [f"{self.seconds[step]:.0f}" if step in self.seconds else "-" for step in STEPS]
        versions = [self.versions.get(name, "-") for name in COLUMNS]
        verdict = self.failure.partition(":")[0] or "passed"
        return [
            self.versions.get("python", self.python),
            self.dependencies,
            *versions,
            *times,
            verdict,
        ]


STEPS = ("install", "verify 0.1", "install export", "export")


class StepFailed(Exception):
    """A command of a step ended with another code than 0."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dist", type=Path, help="a wheel, or the folder that holds it")
    parser.add_argument("--python", nargs="+", default=PYTHONS, dest="pythons")
    parser.add_argument("--dependencies", nargs="+", default=("newest", "lowest"))
    parser.add_argument("--find-links", action="append", default=[], help="folder of other wheels")
    parser.add_argument("--constraint", action="append", default=[], help="such as torch==2.13.0")
    parser.add_argument(
        "--uv", action="store_true", help="no pip: a wheel is unpacked once for all"
    )
    parser.add_argument("--no-export", action="store_true", help="install no PyTorch")
    parser.add_argument("--report", type=Path, help="where the report is written, too")
    options = parser.parse_args()
    sources = Sources(
        wheel_in(options.dist),
        options.find_links,
        options.constraint,
        by_uv=options.uv,
        export=not options.no_export,
    )
    trials = []
    for python in options.pythons:
        for dependencies in options.dependencies:
            trials.append(Trial(python, dependencies))
            with tempfile.TemporaryDirectory(prefix="moh-release-") as folder:
                attempt(trials[-1], sources, Path(folder))
            print(f"{' '.join(trials[-1].row())}\n{trials[-1].failure}".rstrip(), flush=True)
    text = report(sources.wheel.name, trials, resolve(RESOLVED_ONLY, sources))
    print(text)
    if options.report:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(text)
    sys.exit(any(trial.failure for trial in trials))


def wheel_in(dist: Path) -> Path:
    """Return the wheel for this machine."""
    wheels = [dist] if dist.is_file() else sorted(dist.glob(f"*_{platform.machine()}.whl"))
    if len(wheels) != 1:
        sys.exit(f"expected a single wheel for {platform.machine()} in {dist}, found {len(wheels)}")
    return wheels[0].resolve()


def attempt(trial: Trial, sources: Sources, folder: Path) -> None:
    """Install the wheel into a new environment in the folder, and use it."""
    script = folder / "env/bin/moh-deploy"
    python = folder / "env/bin/python"
    try:
        found = call(["uv", "python", "find", "--no-project", trial.python], folder)
        with timed(trial, "install"):
            call([found.strip(), "-m", "venv", folder / "env"], folder)
            install(trial, sources, "", folder)
        with timed(trial, "verify 0.1"):
            call([script, "--version"], folder)
            call([script, "doctor"], folder)
            for archive in sorted(PACKAGES_OF_0_1.glob("*.zip")):
                shutil.unpack_archive(archive, folder / archive.stem)
                verify(script, folder / archive.stem, folder)
        if sources.export:
            with timed(trial, "install export"):
                install(trial, sources, "export", folder)
            with timed(trial, "export"):
                export_small_model(python, script, folder)
                verify(script, folder / "package", folder)
    except StepFailed as failed:
        trial.failure = str(failed)
    if python.exists():
        trial.versions = versions_in(python, sources, folder)


@contextmanager
def timed(trial: Trial, step: str) -> Iterator[None]:
    """Keep the seconds of a step, and name the step where it fails."""
    start = time.monotonic()
    try:
        yield
    except StepFailed as failed:
        raise StepFailed(f"{step}: {failed}") from failed
    trial.seconds[step] = time.monotonic() - start


def install(trial: Trial, sources: Sources, extra: str, folder: Path) -> None:
    """Install the wheel with an extra: the newest dependencies by pip, the lowest by uv."""
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(sources.constraints))
    links = [f"--find-links={link}" for link in sources.find_links]
    python = folder / "env/bin/python"
    wheel = f"moh-deploy[{extra}] @ {sources.wheel.as_uri()}" if extra else str(sources.wheel)
    if trial.dependencies == "newest" and not sources.by_uv:
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        call([*pip, "--upgrade", "--no-cache-dir", *links, "-c", constraints, wheel], folder)
        return
    # What the wheel needs has to be named for `lowest-direct`, which takes the newest of the rest.
    needed = folder / "needed.txt"
    needed.write_text("\n".join([wheel, *sources.requirements(extra)]))
    resolution = "highest" if trial.dependencies == "newest" else "lowest-direct"
    uv = ["uv", "pip", "install", "--quiet", f"--python={python}", f"--resolution={resolution}"]
    call([*uv, "--only-binary=:all:", *links, "-c", constraints, "-r", needed], folder)


def export_small_model(python: Path, script: Path, folder: Path) -> None:
    """Export the smallest model of the tests, from its weights and its code."""
    code = folder / "code"
    code.mkdir()
    shutil.copy(ROOT / "tests/small_moh.py", code)
    save = "import small_moh, torch; torch.save(small_moh.build().state_dict(), '../weights.pt')"
    call([python, "-c", save], code)
    call(
        [script, "export", "weights.pt", "-o", "package", "--factory", "small_moh:build"]
        + ["--code-dir", "code", "--input", "x:[batch=2,tokens=5,8]:float32"],
        folder,
    )


def verify(script: Path, package: Path, folder: Path) -> None:
    """Compare a package with its recorded runs, on the wheel's kernels."""
    said = call([script, "verify", package, "--kernels", "require", "--json"], folder)
    if not json.loads(said)["equal"]:
        raise StepFailed(f"{package.name} is not equal")


def versions_in(python: Path, sources: Sources, folder: Path) -> dict[str, str]:
    """Return the versions of Python and of the wheel's requirements in an environment."""
    names = sorted({Requirement(line).name for line in sources.requirements("export")})
    code = (
        "import json, platform; from importlib.metadata import distributions;"
        " found = {it.name.lower().replace('_', '-'): it.version for it in distributions()};"
        " print(json.dumps({**found, 'python': platform.python_version()}))"
    )
    found = json.loads(call([python, "-c", code], folder))
    return {name: found[name] for name in ("python", *names) if name in found}


def resolve(python: str, sources: Sources) -> str:
    """Say whether the wheel's dependencies can be had for a Python that need not be here."""
    with tempfile.TemporaryDirectory() as folder:
        needed = Path(folder) / "needed.txt"
        needed.write_text("\n".join(sources.requirements("export")))
        command = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", needed]
        wheels = ["--only-binary=:all:", f"--python-platform={platform.machine()}-manylinux_2_28"]
        try:
            said = call([*command, *wheels, f"--python-version={python}"], Path(folder))
        except StepFailed as failed:
            return f"Python {python}: {failed}"
    pins = dict(line.split("==") for line in said.splitlines() if "==" in line)
    return f"Python {python}, resolved only: " + ", ".join(
        f"{name} {pins[name]}" for name in COLUMNS if name in pins
    )


def call(command: Sequence[str | Path], folder: Path) -> str:
    """Run a command outside of the sources, and return its output.

    Raises:
        StepFailed: It ended with another code than 0, or did not end in time.
    """
    # Pythons, settings and modules of this process stay out.
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "PIP_CONSTRAINT", "PIP_FIND_LINKS")
    environ = {name: text for name, text in os.environ.items() if name not in hidden}
    environ |= {"UV_PYTHON_DOWNLOADS": "never", "PIP_NO_COMPILE": "1"}
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60 * MINUTES_A_STEP,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StepFailed(str(error)) from error
    if done.returncode:
        line = " ".join(str(part) for part in command[:4])
        raise StepFailed(
            f"{line} ended with {done.returncode}: {(done.stderr or done.stdout)[-600:]}"
        )
    return done.stdout


def report(wheel: str, trials: Sequence[Trial], resolved: str) -> str:
    """Write the trials as a table, the versions of all requirements below it."""
    heads = ["Python", "dependencies", *COLUMNS, *(f"{step}, s" for step in STEPS), "verdict"]
    lines = [f"`{wheel}` in fresh environments:", ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads))]
    lines += [f"| {' | '.join(trial.row())} |" for trial in trials]
    lines += ["", resolved, ""]
    for trial in trials:
        pins = ", ".join(f"{name} {version}" for name, version in trial.versions.items())
        lines.append(f"- {trial.python}, {trial.dependencies}: {trial.failure or pins}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
