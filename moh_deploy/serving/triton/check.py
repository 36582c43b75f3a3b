"""Say why a server would not load a bundle, or serve it wrongly, without starting one."""

import math
import platform
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import numpy as np

from moh_deploy import __version__
from moh_deploy.errors import BackendError, ConfigError, MoHDeployError, PackageError
from moh_deploy.report.document import Document, Status, Table, Text
from moh_deploy.report.report import Report
from moh_deploy.runtime.kernel_use import instruction_sets
from moh_deploy.runtime.onnxruntime.session import runtime_name
from moh_deploy.runtime.openvino.extension import openvino_name
from moh_deploy.runtime.tensorrt.flavour import REGISTERED_NAME
from moh_deploy.serving.http.tensors import DATATYPES
from moh_deploy.serving.served_model import cores
from moh_deploy.serving.source import require_own_code
from moh_deploy.serving.triton import bundle_json
from moh_deploy.serving.triton.bundle_json import Bundle
from moh_deploy.serving.triton.config_pbtxt import ConfigMessage, parse_config, tensor_config
from moh_deploy.serving.triton.server import PYTHON, TritonServer, find_server, python_of_stub
from moh_deploy.system.bounded_file import read_bytes, read_text

Version = tuple[int, ...]

MOST_LIBRARY_BYTES = 2**28
_MAGIC = b"\x7fELF"
# Versions of symbols that a library needs stand as text in its table of names.
_GLIBC = re.compile(rb"\0GLIBC_(\d{1,3})\.(\d{1,3})(?:\.\d{1,3})?\0")
_MACHINES = {62: "x86_64", 183: "aarch64"}


def library_needs(library: Path) -> tuple[str, Version]:
    """Return the processor, as `platform.machine()` has it, and the oldest GNU C library.

    Raises:
        PackageError: It cannot be read, or is no library.
        FileNotFoundError: It is missing.
    """
    content = read_bytes(library, most_bytes=MOST_LIBRARY_BYTES, error=PackageError)
    if len(content) < 64 or not content.startswith(_MAGIC):
        raise PackageError(f"{library} is no native library.")
    # e_machine of the ELF header; the byte before says which end comes first.
    machine = int.from_bytes(content[18:20], "big" if content[5] == 2 else "little")
    # Names follow each other directly: the zero after a name begins the next.
    found = _GLIBC.findall(content.replace(b"\0", b"\0\0"))
    versions = {(int(major), int(minor)) for major, minor in found}
    return _MACHINES.get(machine, f"machine {machine}"), max(versions, default=(2, 0))


def glibc_here() -> Version | None:
    """Return the version of this process's GNU C library; None where it has another one."""
    name, version = platform.libc_ver()
    return version_of(version) if name == "glibc" else None


def version_of(text: str) -> Version:
    """Return `(2, 36)` of `2.36`."""
    return tuple(int(part) for part in re.findall("[0-9]{1,9}", text))


_MOST_CONFIG_BYTES = 2**20
_ENVIRONMENT = "EXECUTION_ENV_PATH"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str  # what it is, or what is wrong with it
    is_good: bool | None = True  # false where a server would not load the bundle; None for a note
    fix: str | None = None  # the next step where it is wrong


@dataclass(frozen=True)
class BundleCheck(Report):
    """Findings on a bundle: why a server on this machine would not load it."""

    root: Path
    backend: str  # what runs the model in it
    findings: tuple[Finding, ...]  # in the order in which a server meets them
    start: str | None = None  # the command that starts the server that was found; None: none was

    @property
    def failure(self) -> MoHDeployError | None:
        """The first finding that keeps a server from loading the bundle."""
        wrong = [finding for finding in self.findings if finding.is_good is False]
        if not wrong:
            return None
        more = f" (and {len(wrong) - 1} more)" if wrong[1:] else ""
        return PackageError(
            f"{self.root} would not be served as it was written: {wrong[0].what}:"
            f" {wrong[0].found.rstrip('.')}{more}.",
            hint=wrong[0].fix,
        )

    def document(self) -> Document:
        """Return what it says."""
        words = {True: "ok", False: "WRONG", None: "note"}
        rows = [
            (finding.what, Status(words[finding.is_good], finding.is_good), finding.found)
            for finding in self.findings
        ]
        is_good = self.failure is None
        start = [] if self.start is None else [Text(f"start it: {self.start}", is_whole=True)]
        verdict = "nothing stands against loading it" if is_good else "A SERVER WOULD NOT LOAD IT"
        return Document(
            "bundle",
            (
                Text(verdict, is_good),
                Text(f"bundle {self.root}, backend {self.backend}"),
                Table("what a server here would meet", ("what", "", "found"), rows),
                *(start if is_good else []),
            ),
        )


def examine_bundle(root: Path, server: Path | None = None) -> BundleCheck:
    """Look at a bundle as a server on this machine would, without starting one.

    Args:
        server: Where the server is; None: looked for (`find_server`).

    Raises:
        PackageError: It is no bundle, or `bundle.json` cannot be read.
    """
    bundle = bundle_json.read_bundle(root)
    is_engine = bundle.backend == "tensorrt"
    findings = list(_check_files(root, bundle))
    findings += _check_engine(bundle) if is_engine else _check_versions(bundle)
    findings += _check_library(root, bundle)
    config, name = None, bundle.config.as_posix()
    try:
        text = read_text(root / name, most_bytes=_MOST_CONFIG_BYTES, error=PackageError)
        config = parse_config(text)
        findings += _check_config(config, root, bundle)
    except FileNotFoundError:
        pass  # among the files above
    except PackageError as error:
        findings.append(Finding(name, error.message, False, "Put it right, or copy it again."))
    found = find_server(server)
    parameters = () if config is None else config.parameters
    values = [entry.value.string_value for entry in parameters if entry.key == _ENVIRONMENT]
    environment = values[-1] if values else None
    findings += _check_server(bundle, found, server, environment)
    start = None
    if found is not None and all(finding.is_good is not False for finding in findings):
        start = found.start_command(root, bundle.backend_config(str(root.resolve())))
    return BundleCheck(root, bundle.backend, tuple(findings), start)


def _check_files(root: Path, bundle: Bundle) -> Iterator[Finding]:
    wrong = 0
    for name in bundle.files:
        problem = bundle_json.file_problem(root, bundle, name)
        # People are meant to tune how a model is served; its content is compared below.
        if problem == bundle_json.CHANGED and name == bundle.config.as_posix():
            yield Finding(name, "has been edited since it was written", None)
        elif problem is not None:
            wrong += 1
            yield Finding(name, problem, False, bundle_json.COPY_AGAIN)
    # Another model or version in the repository would be loaded, too.
    for path in sorted((root / bundle_json.REPOSITORY).rglob("*")):
        name = path.relative_to(root).as_posix()
        # Python leaves what it has compiled.
        if path.is_file() and name not in bundle.files and "__pycache__" not in path.parts:
            wrong += 1
            found = "is no part of the bundle, and a server would read it"
            yield Finding(name, found, False, "Remove it.")
    if not wrong:
        yield Finding("files", f"{len(bundle.files)}, all as they were written")


def _check_versions(bundle: Bundle) -> Iterator[Finding]:
    """Compare the versions by which a package is served with those that wrote it."""
    made_by = bundle.versions.get("moh-deploy", "?")
    if made_by != __version__:
        fix = "Install that version where the server runs, or write the bundle again."
        yield Finding("moh-deploy", f"{__version__} is here, {made_by} wrote it", False, fix)
    else:
        yield Finding("moh-deploy", made_by)
    for name, of_runtime in (("onnxruntime", runtime_name), ("openvino", openvino_name)):
        wanted = bundle.versions.get(name)
        if wanted is None:
            continue
        try:
            found = of_runtime().rpartition(" ")[2]
        except BackendError as error:
            yield Finding(name, error.message, False, error.hint)
            continue
        text = found if found == wanted else f"{found} is here, it was written with {wanted}"
        yield Finding(name, text, True if found == wanted else None)


def _check_engine(bundle: Bundle) -> Iterator[Finding]:
    yield Finding("tensorrt", bundle_json.NEVER_RUN, None)
    if "TensorRT-RTX" in bundle.versions:
        text = "is of TensorRT-RTX, and Triton's backend loads engines of TensorRT only"
        yield Finding("engine", text, False, "Bundle an engine of --backend tensorrt.")
    library, registered = bundle.library, f"{bundle_json.LIBRARIES}/{REGISTERED_NAME}"
    if library is not None and library.file != registered:
        text = "is not in the bundle, so the server would know none of the engine's plugins"
        yield Finding(registered, text, False, "Write the bundle again: moh-deploy bundle.")


def _check_library(root: Path, bundle: Bundle) -> Iterator[Finding]:
    info = bundle.library
    if info is None:
        found = "in the engine" if bundle.embeds_plugins else "none: function bodies run"
        yield Finding("kernels", found, None)
        return
    # Loading a library runs its code.
    if (problem := bundle_json.file_problem(root, bundle, info.file)) is not None:
        yield Finding(
            "kernels", f"not loaded: {info.file} {problem}", False, bundle_json.COPY_AGAIN
        )
        return
    if info.machine != platform.machine():
        fix = "Write the bundle on a machine of that kind."
        yield Finding(info.file, f"is for {info.machine}, this is {platform.machine()}", False, fix)
        return
    here, wanted = glibc_here(), info.glibc or "of any version"
    if here is None or here < version_of(wanted):
        has = "has another C library" if here is None else f"has {'.'.join(map(str, here))}"
        text = f"needs the GNU C library {wanted} or newer, this machine {has}"
        fix = "Serve on a newer system (Debian 12, Ubuntu 24.04), or build moh-deploy on this one."
        yield Finding(info.file, text, False, fix)
        return
    yield Finding(info.file, f"needs the GNU C library {wanted} or newer, which is here")
    if not info.instruction_sets:
        return
    try:
        require_own_code(root, trust_code=False)
    except ConfigError:
        yield Finding("instruction sets", "not asked: the library is of another installation", None)
        return
    try:
        usable = instruction_sets(root / info.file)
    except MoHDeployError as error:
        yield Finding("instruction sets", error.message, False, bundle_json.COPY_AGAIN)
        return
    lost = [name for name in info.instruction_sets if name not in usable]
    text = f"{usable[0]} here"
    if lost:
        text += f"; it was written where there was {lost[0]}: slower, and rounded another way"
    yield Finding("instruction sets", text, None if lost else True)


def _check_config(config: ConfigMessage, root: Path, bundle: Bundle) -> Iterator[Finding]:
    name = bundle.config.as_posix()
    problems = [*_config_problems(config, bundle), *_warmup_problems(config, root, bundle)]
    for problem in problems:
        yield Finding(name, problem, False, "Put it right, or write the bundle again.")
    if not problems:
        yield Finding(name, "says what the model takes and returns")
    if bundle.backend == "tensorrt":
        return  # which has no threads of its own
    groups = config.instance_group
    instances = sum(group.count if group.HasField("count") else 1 for group in groups) or 1
    used = instances * (bundle.settings.threads or max(1, cores() // instances))
    noun = "instance" if instances == 1 else "instances"
    text = f"{instances} {noun} with {used // instances} threads, {cores()} cores"
    yield Finding("threads", text, True if used <= cores() else None)


def _config_problems(config: ConfigMessage, bundle: Bundle) -> Iterator[str]:
    # Triton takes the directory's name where it is missing.
    for key, expected in (("name", bundle.settings.name), ("backend", bundle.backend)):
        found = getattr(config, key) if config.HasField(key) or key != "name" else expected
        if found != expected:
            yield f"{key} is {found or 'absent'}, expected {expected}"
    for key, tensors in (("input", bundle.inputs), ("output", bundle.outputs)):
        written = {tensor.name: _as_written(tensor) for tensor in getattr(config, key)}
        names = [info.name for info in tensors]
        if set(written) != set(names):
            yield f"{key} has {', '.join(sorted(written))}; expected {', '.join(names)}"
            continue
        for info in tensors:
            expected_tensor = tensor_config(info, is_batched=bundle.max_batch > 0)
            if written[info.name] != expected_tensor:
                yield f"{key} is {written[info.name]}, expected {expected_tensor}"
    most = config.max_batch_size
    if not (0 < most <= bundle.max_batch or most == bundle.max_batch == 0):
        expected = f"1 to {bundle.max_batch}" if bundle.max_batch else "0"
        yield f"max_batch_size is {most}, expected {expected}"


def _as_written(tensor: ConfigMessage) -> dict[str, object]:
    """Return an entry as `tensor_config` does; its other fields, a label's file say, fit any."""
    data_types = tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    entry = {"name": tensor.name, "data_type": data_types[tensor.data_type].name}
    reshape = {"reshape": list(tensor.reshape.shape)} if tensor.HasField("reshape") else {}
    return {**entry, "dims": list(tensor.dims), **reshape}


def _warmup_problems(config: ConfigMessage, root: Path, bundle: Bundle) -> Iterator[str]:
    known = [info for info in bundle.inputs if info.dtype in DATATYPES]
    sizes = {info.name: np.dtype(info.dtype).itemsize for info in known}
    for entry in (entry for warmup in config.model_warmup for entry in warmup.inputs):
        file, dims = entry.value.input_data_file, entry.value.dims
        if not file:
            continue
        path = root / bundle.model / bundle_json.WARMUP / file
        found = path.stat().st_size if path.is_file() else None
        expected = math.prod(dims) * sizes.get(entry.key, 0)
        if found is None:
            yield f"warm-up file '{file}' is missing"
        elif found != expected:
            yield f"warm-up file '{file}' has {found} bytes, its dims make {expected}"


def _check_server(
    bundle: Bundle, server: TritonServer | None, given: Path | None, environment: str | None
) -> Iterator[Finding]:
    if server is None and given is not None:
        text = f"is not in {given}, neither bin/tritonserver nor a Python with nvidia-pytriton"
        yield Finding("tritonserver", text, False, "Name another folder: --server DIR.")
        return
    if server is None:
        yield Finding("tritonserver", "is not on this machine: not looked at", None)
        return
    if bundle.backend not in server.backends:
        known = ", ".join(server.backends) or "none"
        text = f"{server.root} has no backend '{bundle.backend}', only {known}"
        yield Finding("tritonserver", text, False, "Serve it with a server that has that backend.")
        return
    yield Finding("tritonserver", f"{server.root}, with the backend '{bundle.backend}'")
    if bundle.backend == "python":
        yield from _check_python(server, environment)


def _check_python(server: TritonServer, environment: str | None) -> Iterator[Finding]:
    """Look whether the server runs models in this Python, or in that of the environment."""
    python = PYTHON
    if environment is not None:
        folder = Path(environment)
        if folder.is_file():
            yield Finding(_ENVIRONMENT, f"is the archive {environment}: not looked at", None)
            return
        versions = sorted(folder.glob("lib/python3.*"))
        if not versions or not (folder / "bin" / "activate").is_file():
            text = f"is '{environment}', where there is no Python with bin/activate"
            yield Finding(_ENVIRONMENT, text, False, "Name the folder of an environment.")
            return
        python = versions[0].name.removeprefix("python")
    stub, packed = server.stub, server.packed_stub(python)
    found, library = python_of_stub(stub), f"libpython{python}.so.1.0"
    folder = Path(str(sysconfig.get_config_var("LIBDIR")))
    # The second is Debian's.
    places = (folder, folder / str(sysconfig.get_config_var("MULTIARCH")))
    fix = "Use a Python that was built with --enable-shared, of a version the server has."
    if found != python and packed.is_file():
        problem = "is missing" if found is None else f"is for Python {found}"
        text = f"{stub} {problem}: the server runs models of Python {python} by no other"
        fix = f"Copy it: cp {quote(str(packed))} {quote(str(stub))}"
        yield Finding("Python", text, False, fix)
    elif found != python:
        yield Finding("Python", f"the server has no stub for Python {python}", False, fix)
    elif python == PYTHON and not any((place / library).is_file() for place in places):
        yield Finding("Python", f"{library} is not in {folder}", False, fix)
    else:
        yield Finding("Python", f"{python}, with {library}")
