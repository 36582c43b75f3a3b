"""Say why a server would not load a bundle, or serve it wrongly, without starting one."""

from __future__ import annotations

import math
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ml_dtypes  # noqa: F401  (teaches numpy bfloat16)
import numpy as np

from moh_deploy import __version__
from moh_deploy.errors import ConfigError, MoHDeployError, PackageError
from moh_deploy.report.document import Document, Status, Table, Text
from moh_deploy.report.report import Report
from moh_deploy.runtime.onnxruntime.kernels import instruction_sets
from moh_deploy.serving.foreign_code import require_own_code
from moh_deploy.serving.served_model import cores
from moh_deploy.serving.triton import library_needs
from moh_deploy.serving.triton.bundle_json import (
    CHANGED,
    COPY_AGAIN,
    LIBRARIES,
    REPOSITORY,
    WARMUP,
    Bundle,
    file_problem,
    read_bundle,
)
from moh_deploy.serving.triton.config_pbtxt import TRITON_TYPES, tensor_message
from moh_deploy.serving.triton.server import TritonServer, find_server
from moh_deploy.serving.triton.text_format import TextMessage, TextValue, Word, from_text
from moh_deploy.system.bounded_file import read_text

_MOST_CONFIG_BYTES = 2**20
_ENVIRONMENT = "EXECUTION_ENV_PATH"
_THREADS = "intra_op_thread_count"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: The thing.
        found: What it is, or what is wrong with it.
        is_good: False where a server would not load the bundle; None for a note.
        fix: The next step where it is wrong.
    """

    what: str
    found: str
    is_good: bool | None = True
    fix: str | None = None


@dataclass(frozen=True)
class BundleCheck(Report):
    """Findings on a bundle: why a server on this machine would not load it.

    Attributes:
        root: The bundle.
        backend: What runs the model in it.
        findings: In the order in which a server meets them.
    """

    root: Path
    backend: str
    findings: tuple[Finding, ...]

    @property
    def failure(self) -> MoHDeployError | None:
        """The first of what is wrong; None where nothing is."""
        wrong = [one for one in self.findings if one.is_good is False]
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
            (one.what, Status(words[one.is_good], one.is_good), one.found) for one in self.findings
        ]
        is_good = self.failure is None
        verdict = "nothing stands against loading it" if is_good else "A SERVER WOULD NOT LOAD IT"
        return Document(
            "bundle",
            (
                Text(f"bundle {self.root}, backend {self.backend}"),
                Table("what a server here would meet", ("what", "", "found"), rows),
                Text(verdict, is_good),
            ),
        )


def examine_bundle(root: Path, server: Path | None = None) -> BundleCheck:
    """Look at a bundle as a server on this machine would, without starting one.

    Args:
        root: The bundle.
        server: Where the server is; None: looked for (`find_server`).

    Raises:
        PackageError: It is no bundle, or `bundle.json` cannot be read.
    """
    bundle = read_bundle(root)
    findings = (
        *_check_files(root, bundle),
        *_check_versions(bundle),
        *_check_library(root, bundle),
        *_check_config(root, bundle),
        *_check_server(bundle, server),
    )
    return BundleCheck(root, bundle.backend, findings)


def _check_files(root: Path, bundle: Bundle) -> Iterator[Finding]:
    wrong = 0
    for name in bundle.files:
        problem = file_problem(root, bundle, name)
        # People are meant to tune how a model is served; what it says is compared below.
        if problem == CHANGED and name == bundle.config.as_posix():
            yield Finding(name, "has been edited since it was written", None)
        elif problem is not None:
            wrong += 1
            yield Finding(name, problem, False, COPY_AGAIN)
    for name in _foreign(root, bundle):
        wrong += 1
        yield Finding(
            name, "is no part of the bundle, and a server would read it", False, "Remove it."
        )
    if not wrong:
        yield Finding("files", f"{len(bundle.files)}, all as they were written")


def _foreign(root: Path, bundle: Bundle) -> Iterator[str]:
    """Yield what lies in the repository beside the bundle's files: another model, or version."""
    for path in sorted((root / REPOSITORY).rglob("*")):
        name = path.relative_to(root).as_posix()
        # Python leaves what it has compiled.
        if path.is_file() and name not in bundle.files and "__pycache__" not in path.parts:
            yield name


def _check_versions(bundle: Bundle) -> Iterator[Finding]:
    made_by = bundle.versions.get("moh-deploy", "?")
    if bundle.backend == "python" and made_by != __version__:
        fix = "Install that version where the server runs, or write the bundle again."
        yield Finding("moh-deploy", f"{__version__} is here, {made_by} wrote it", False, fix)
    else:
        yield Finding("moh-deploy", made_by)
    if bundle.backend != "python":
        return
    wanted = bundle.versions.get("onnxruntime", "?")
    try:
        found = version("onnxruntime")
    except PackageNotFoundError:
        yield Finding("onnxruntime", "is not installed", False, "pip install onnxruntime")
        return
    same = found == wanted
    text = found if same else f"{found} is here, it was written with {wanted}"
    yield Finding("onnxruntime", text, True if same else None)


def _check_library(root: Path, bundle: Bundle) -> Iterator[Finding]:
    info = bundle.library
    if info is None:
        yield Finding("kernels", "none: function bodies run", None)
        return
    # Loading a library runs its code.
    if (problem := file_problem(root, bundle, info.file)) is not None:
        yield Finding("kernels", f"not loaded: {info.file} {problem}", False, COPY_AGAIN)
        return
    path = root / info.file
    try:
        machine, floor = library_needs.processor_of(path), library_needs.glibc_floor(path)
    except (OSError, PackageError) as error:
        yield Finding(info.file, f"cannot be read: {error}", False, COPY_AGAIN)
        return
    here = library_needs.glibc_here()
    if machine != platform.machine():
        fix = "Write the bundle on a machine of that kind."
        yield Finding(info.file, f"is for {machine}, this is {platform.machine()}", False, fix)
        return
    needs = f"needs the GNU C library {library_needs.version_text(floor)} or newer"
    if here is None or here < floor:
        has = "has another C library" if here is None else f"has {library_needs.version_text(here)}"
        fix = "Serve on a newer system (Debian 12, Ubuntu 24.04), or build moh-deploy on this one."
        yield Finding(info.file, f"{needs}, this machine {has}", False, fix)
        return
    yield Finding(info.file, f"{needs}, which is here")
    if not info.instruction_sets:
        return
    try:
        require_own_code(root, trust_code=False)
    except ConfigError:
        yield Finding("instruction sets", "not asked: the library is of another installation", None)
        return
    try:
        usable = tuple(instruction_sets(path))
    except MoHDeployError as error:
        yield Finding("instruction sets", error.message, False, COPY_AGAIN)
        return
    lost = [one for one in info.instruction_sets if one not in usable]
    text = f"{usable[0]} here"
    if lost:
        text += f"; it was written where there was {lost[0]}: slower, and rounded another way"
    yield Finding("instruction sets", text, None if lost else True)


def _check_config(root: Path, bundle: Bundle) -> Iterator[Finding]:
    path, name = root / bundle.config, bundle.config.as_posix()
    try:
        text = read_text(path, most_bytes=_MOST_CONFIG_BYTES, error=PackageError)
        config = from_text(text, name, error=PackageError)
    except FileNotFoundError:
        return  # said above
    except PackageError as error:
        yield Finding(name, error.message.removeprefix(f"{name}: "), False, COPY_AGAIN)
        return
    problems = [*_config_problems(config, bundle), *_named_files(config, root, bundle)]
    for problem in problems:
        yield Finding(name, problem, False, "Put it right, or write the bundle again.")
    if not problems:
        yield Finding(name, "says what the model takes and returns")
    yield from _check_cores(config, bundle)


def _config_problems(config: Mapping[str, Sequence[TextValue]], bundle: Bundle) -> Iterator[str]:
    # Triton takes the directory's name where there is none.
    for key, expected in (("name", bundle.settings.name), ("backend", bundle.backend)):
        found = config.get(key, [expected] if key == "name" else [])
        if list(found) != [expected]:
            yield f"{key} is {_shown(found)}, expected {expected}"
    if bundle.backend == "onnxruntime" and _native_threads(config) is None:
        text = (_parameter(config, _THREADS) or "")[:20]
        yield f"{_THREADS} is '{text}', expected a number of threads"
    most = _number(config, "max_batch_size", 0)
    if not (0 < most <= bundle.max_batch or most == bundle.max_batch == 0):
        expected = f"1 to {bundle.max_batch}" if bundle.max_batch else "0"
        yield f"max_batch_size is {most}, expected {expected}"
    for key, tensors in (("input", bundle.inputs), ("output", bundle.outputs)):
        written = {_text(one, "name"): one for one in _messages(config, key)}
        names = [tensor.name for tensor in tensors]
        if set(written) != set(names):
            yield f"{key} has {', '.join(sorted(written))}; expected {', '.join(names)}"
            continue
        for tensor in tensors:
            expected_message = tensor_message(tensor, is_batched=bundle.max_batch > 0)
            for part in ("data_type", "dims"):
                found = written[tensor.name].get(part, [])
                if list(found) != list(expected_message[part]):
                    yield (
                        f"{key} '{tensor.name}': {part} is {_shown(found)}, expected"
                        f" {_shown(expected_message[part])}"
                    )


def _native_threads(config: Mapping[str, Sequence[TextValue]]) -> int | None:
    """Return the threads of the server's own backend; 0: it chooses, None: it is no number."""
    text = _parameter(config, _THREADS) or "0"
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def _named_files(
    config: Mapping[str, Sequence[TextValue]], root: Path, bundle: Bundle
) -> Iterator[str]:
    """Yield what is wrong with the files and folders that a configuration names."""
    for operations in _messages(config, "model_operations"):
        for name in operations.get("op_library_filename", []):
            if not (root / LIBRARIES / str(name)).is_file():
                yield f"op_library_filename is '{name}', which is not in {LIBRARIES}/"
    environment = _parameter(config, _ENVIRONMENT)
    if environment is not None and not Path(environment).exists():
        yield f"{_ENVIRONMENT} is '{environment}', which does not exist here"
    sizes = {text: np.dtype(name).itemsize for name, text in TRITON_TYPES.items()}
    for warmup in _messages(config, "model_warmup"):
        for entry in _messages(warmup, "inputs"):
            for value in _messages(entry, "value"):
                if "input_data_file" not in value:
                    continue
                file = _text(value, "input_data_file")
                dims = [one for one in value.get("dims", []) if isinstance(one, int)]
                expected = math.prod(dims) * sizes.get(_word(value, "data_type"), 0)
                path = root / bundle.model / WARMUP / file
                found = path.stat().st_size if path.is_file() else None
                if found is None:
                    yield f"warm-up file '{file}' is missing"
                elif found != expected:
                    yield f"warm-up file '{file}' has {found} bytes, its dims make {expected}"


def _check_cores(config: Mapping[str, Sequence[TextValue]], bundle: Bundle) -> Iterator[Finding]:
    if bundle.backend == "tensorrt":
        return
    instances = sum(_number(one, "count", 1) for one in _messages(config, "instance_group"))
    available = cores()
    threads = bundle.settings.threads
    if bundle.backend == "onnxruntime":
        threads = _native_threads(config) or available
    used = instances * (threads or max(1, available // max(1, instances)))
    noun = "instance" if instances == 1 else "instances"
    text = f"{instances} {noun} with {used // max(1, instances)} threads, {available} cores"
    yield Finding("threads", text, True if used <= available else None)


def _check_server(bundle: Bundle, given: Path | None) -> Iterator[Finding]:
    server = find_server(given)
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
        yield from _check_python(server)


def _check_python(server: TritonServer) -> Iterator[Finding]:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if server.stub(python) is None:
        yield Finding("Python", f"the server has no stub for Python {python}", False, _OTHER_PYTHON)
        return
    library = f"libpython{python}.so.1.0"
    folder = Path(str(sysconfig.get_config_var("LIBDIR")))
    if not (folder / library).is_file():
        yield Finding("Python", f"{library} is not in {folder}", False, _OTHER_PYTHON)
        return
    yield Finding("Python", f"{python}, with {library}")


_OTHER_PYTHON = "Use a Python that was built with --enable-shared, of a version the server has."


def _messages(message: Mapping[str, Sequence[TextValue]], key: str) -> list[TextMessage]:
    return [one for one in message.get(key, []) if isinstance(one, Mapping)]


def _text(message: TextMessage, key: str) -> str:
    values = message.get(key, [])
    return str(values[-1]) if values else ""


def _word(message: TextMessage, key: str) -> str:
    values = message.get(key, [])
    return values[-1].text if values and isinstance(values[-1], Word) else ""


def _number(message: Mapping[str, Sequence[TextValue]], key: str, absent: int) -> int:
    values = message.get(key, [])
    return values[-1] if values and isinstance(values[-1], int) else absent


def _parameter(config: Mapping[str, Sequence[TextValue]], key: str) -> str | None:
    for entry in _messages(config, "parameters"):
        if _text(entry, "key") == key:
            return next((_text(one, "string_value") for one in _messages(entry, "value")), None)
    return None


def _shown(values: Sequence[TextValue] | None) -> str:
    texts = [one.text if isinstance(one, Word) else str(one) for one in values or ()]
    return f"[{', '.join(texts)}]" if len(texts) != 1 else texts[0]
