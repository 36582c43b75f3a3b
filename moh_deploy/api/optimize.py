"""Export a model, prove it, and find the fastest package of it that is still good."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pydantic import TypeAdapter, ValidationError
from typing_extensions import Unpack

from moh_deploy.api.bench import bench
from moh_deploy.api.tune_within import FastestSearch, SearchSettings
from moh_deploy.api.verify import verify
from moh_deploy.config.export_config import ExportConfig, resolved_config
from moh_deploy.config.options import ModelOptions
from moh_deploy.errors import CheckpointError, ConfigError, PackageError
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import OnnxPackage, check_package_output
from moh_deploy.perf.bench.candidates import EAGER
from moh_deploy.perf.environment import Processor
from moh_deploy.perf.optimize_report import OptimizeReport, ProofRecord, Speedup
from moh_deploy.perf.tune.report import RuntimePrecision
from moh_deploy.perf.tune.search import Search, earlier_package
from moh_deploy.runtime.models import runtime_name_of
from moh_deploy.system.bounded_file import content_key, read_bytes
from moh_deploy.system.npz import read_npz, write_npz
from moh_deploy.system.progress import SilentProgress
from moh_deploy.system.staging import is_hidden_name, kept_directory, staged_file
from moh_deploy.validate.compare.policy import AccuracyCondition
from moh_deploy.validate.reference.samples import npz_files

# Imported where the model is loaded: everything else is refused before PyTorch is imported.
if TYPE_CHECKING:
    from moh_deploy.api.export import Inputs, Model, TraceSettings
    from moh_deploy.frontend.prove.eager import EagerModel

    class OptimizeSettings(TraceSettings, SearchSettings, total=False):
        """The options of `export` and of `tune_within`; `code_dirs` is of both."""

        example: Inputs | None


EXPORT, PROVE, SEARCH, TIME = (
    "exporting the model",
    "comparing with the original",
    "searching the fastest",
    "timing the fastest",
)
PHASES = {EXPORT: 3.0, PROVE: 2.0, SEARCH: 12.0, TIME: 3.0}
"""The phases of the work, and how much of it each usually is."""


def optimize(
    model: Model,
    output: Path | str,
    *,
    within: str | Sequence[str],
    progress: SilentProgress | None = None,
    **settings: Unpack[OptimizeSettings],
) -> OptimizeReport:
    """Write the fastest package of a model that still meets some conditions on this machine.

        moh_deploy.optimize(model, "build/fast", within="top-1 >= 0.98 * reference",
                            inputs=["val.npz"], labels="labels.npy")

    The model is exported in float32 and compared with the original on `inputs`. `tune_within`
    searches among runtimes, precisions and execution modes. The fastest package is compared with
    the recorded runs of the original, and timed beside it by `bench`.

    What is finished is kept in `work_folder(output)` until the output is written. The next call
    goes on there: it takes over what rests on the same files, options, versions and machine. Of a
    model in memory the export is made again.

    Args:
        model: A checkpoint's path, or a module or exported program in memory, which stays as it is.
        output: The package directory to write.
        within: Conditions, as `tune_within` takes them.
        progress: What to report the steps to.
        settings: As on the command line. `inputs`, `labels` and what belongs to them are those of
            `tune_within`; `example` is what `export` calls `inputs`. Where nothing says what the
            model takes, the example is the first two samples of `inputs` if there are labels, with
            the dynamic dimension `batch`, and the whole first file without.

    Raises:
        ValidationError: The package differs from the original, or not even the float32 package
            meets the conditions.
        MoHDeployError: As `export`, `tune_within` and `bench` do. No output is written.
    """
    progress, output = progress or SilentProgress(), Path(output)
    model = Path(model) if isinstance(model, str) else model
    given: dict[str, Any] = {**settings}
    of_search = {k: value for k, value in given.items() if k in SearchSettings.__annotations__}
    search = FastestSearch(within=within, **of_search)
    config = _checked(model, output, search, given)
    job = _Job(model, config, search, given, progress)
    work = work_folder(output)
    with kept_directory(work):
        with progress.step(EXPORT):
            base = search.read(job.exported(work).root, progress)
        with progress.step(PROVE):
            scratch = job.search_folder(work, base)
            proof = job.proof(scratch, base)
        with progress.step(SEARCH):
            found = search.run(base, scratch, work / "fastest", progress, before=job.before)
            fastest = OnnxPackage.open(work / "fastest")
            verified = verify(fastest.root, progress=progress)
            proofs = (proof, ProofRecord.of(verified, f"{found.precision}, as written"))
        with progress.step(TIME):
            speedups, sized = job.timed(fastest, base, found.sizes)
        # Last of all: what was there before stays until everything has passed.
        manifest = fastest.manifest
        write_choices(fastest, manifest.layers, output, tuning=manifest.tuning)
        shutil.rmtree(work, ignore_errors=True)
    return OptimizeReport(
        model=str(model) if isinstance(model, Path) else f"{type(model).__name__} in memory",
        speedups=speedups,
        proofs=proofs,
        search=replace(found, package=output, output=output),
        bench_command=job.bench_command(output, sized),
    )


def work_folder(output: Path) -> Path:
    """Return where what is finished is kept until an output is written."""
    return output.with_name(f"{output.name}.work")


_OURS = re.compile(r"float32-.*|search-.*|fastest|example\.npz", re.DOTALL)


def _checked(
    model: Model, output: Path, search: FastestSearch, settings: Mapping[str, Any]
) -> ExportConfig:
    """Refuse what can be told without PyTorch, and return the configuration of the export."""
    search.check()
    if isinstance(model, Path):
        if not os.path.exists(model):
            raise CheckpointError(
                f"{model} does not exist.",
                hint="MODEL is a file or a directory here; nothing is downloaded.",
            )
        if os.path.isfile(model / "manifest.json"):
            raise ConfigError(
                f"{model} is a package already.",
                hint=f"Search its fastest form: moh-deploy tune {model} --within ... --output DIR.",
            )
    check_package_output(output)
    work = work_folder(output)
    for entry in work.iterdir() if os.path.isdir(work) else ():
        if not _OURS.fullmatch(entry.name) and not is_hidden_name(entry.name):
            raise PackageError(
                f"{work} holds '{entry.name}', and is to keep unfinished work.",
                hint="Move it elsewhere, or name another --output.",
            )
    labels, example = search.labels, settings.get("example")
    files: list[object] = [*_files(search.inputs), *_files(search.calibration)]
    files += [example] if isinstance(example, (str, Path)) else []
    # Other texts may be the name of a member of the inputs.
    is_file = isinstance(labels, Path) or (isinstance(labels, str) and "." in labels)
    for path in map(str, [*files, *([labels] if is_file else [])]):
        if not os.path.exists(path):
            raise ConfigError(f"{path} does not exist.")
    if search.runtime is not None:
        runtime_name_of(search.runtime)
    names = ("config", "overrides", "factory", "code_dirs", "state_key", "trust_code")
    given = {name: settings[name] for name in names if settings.get(name)}
    given["code_dirs"] = _paths(search.code_dirs)
    given["overrides"] = tuple(given.get("overrides", ()))
    config = settings.get("config")
    given["config"] = None if config is None else Path(config)
    return resolved_config(ModelOptions(model, **given))


class _Job:
    """The stages of one optimization."""

    def __init__(
        self,
        model: Model,
        config: ExportConfig,
        search: FastestSearch,
        settings: Mapping[str, Any],
        progress: SilentProgress,
    ) -> None:
        from moh_deploy.api.export import ModelSettings, TraceSettings
        from moh_deploy.frontend.load.fileform import detect_form

        known = {"example", *TraceSettings.__annotations__, *SearchSettings.__annotations__}
        if unknown := sorted(settings.keys() - known):
            raise TypeError(f"optimize() got an unexpected keyword argument '{unknown[0]}'")
        self._model, self._config, self._search = model, config, search
        self._example, self._progress = settings.get("example"), progress
        # As keyword arguments of `export` and `load_original`, which have these types.
        self._trace: dict[str, Any] = {
            k: value for k, value in settings.items() if k in TraceSettings.__annotations__
        }
        self._loading = {k: v for k, v in self._trace.items() if k in ModelSettings.__annotations__}
        is_file = isinstance(model, Path) and model.is_file()
        self._form = detect_form(cast(Path, model)) if is_file else None

    def exported(self, work: Path) -> OnnxPackage:
        """Return the float32 package: that of an earlier run, or a new one."""
        from moh_deploy.api.export import export

        example, dynamic = self._example_inputs(work)
        trace = {**self._trace, "inputs": example, **({"dynamic": dynamic} if dynamic else {})}
        # Code counts by its content.
        paths = {name: trace[name] for name in ("config", "inputs") if trace.get(name)}
        named = {**trace, **{name: _path(value) for name, value in paths.items()}, "code_dirs": ()}
        key = content_key(self._model, named, self._code(), _installed())
        folder = work / f"float32-{key or 'in-memory'}"
        found = None if key is None else earlier_package(folder)
        if found is None:
            export(self._model, folder, progress=self._progress, **trace)
            found = OnnxPackage.open(folder)
        return found

    def search_folder(self, work: Path, base: OnnxPackage) -> Path:
        """Return the folder of a search of this package on this machine."""
        search = self._search
        labels: object = _path(search.labels)
        if isinstance(labels, np.ndarray):
            digest = hashlib.sha256(labels.tobytes()).hexdigest()
            labels = [str(labels.dtype), labels.shape, digest]
        options = {
            **asdict(replace(search, labels=None)),
            "inputs": _files(search.inputs),
            "calibration": _files(search.calibration),
            "labels": labels,
            "code_dirs": self._code(),
        }
        machine = Processor.this(None).describe()
        key = content_key(base.root / "manifest.json", options, machine, _installed())
        folder = work / f"search-{key or 'in-memory'}"
        if key is None:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        return folder

    def proof(self, folder: Path, base: OnnxPackage) -> ProofRecord:
        """Compare the float32 package with the original on the inputs, or with recorded runs."""
        path, kind = folder / "proof.json", TypeAdapter(ProofRecord)
        try:
            content = read_bytes(path, most_bytes=2**26, error=PackageError)
            return kind.validate_json(content)
        except (FileNotFoundError, PackageError, ValidationError):
            pass
        search = self._search
        # Flips are bounded beside this package: how ties are broken is no part of the model.
        metrics = [on.text for on in search.conditions if isinstance(on, AccuracyCondition)]
        found = verify(
            base.root,
            inputs=search.inputs,
            against=[self._original()] if search.inputs else (),
            labels=search.labels,
            within=metrics,
            label_output=search.label_output,
            ignore_label=search.ignore_label,
            shift_labels=search.shift_labels,
            batch_size=search.batch_size,
            code_dirs=search.code_dirs,
            progress=self._progress,
        )
        record = ProofRecord.of(found, "float32, as exported")
        with staged_file(path) as partial:
            partial.write_bytes(kind.dump_json(record))
        return record

    def before(self, search: Search, way: RuntimePrecision | None) -> None:
        """Keep what a search knows, and show how far it is."""
        search.keep()
        done, of = len(search.tried) + (search.best is not None), len(search.ways)
        self._progress.reached(done / of, f"{way.name}, {done + 1} of {of}" if way else "")

    def timed(
        self, fastest: OnnxPackage, base: OnnxPackage, sizes: Sequence[Mapping[str, int]]
    ) -> tuple[tuple[Speedup, ...], dict[str, Any]]:
        """Time the fastest package beside the original and the float32 package, as `bench` does.

        Returns:
            The speed-ups, and what `bench` was given to run on.
        """
        search = self._search
        sized: dict[str, Any] = {}
        if search.labels is not None:
            # The search has timed the first batch of each file; a file is a run for `bench`.
            sized = {"sizes": {name: [size] for name, size in sizes[0].items()}}
        elif search.inputs:
            sized = {"inputs": search.inputs}
        is_onnx = self._form == "onnx"  # which is timed as it is
        names = {
            str(self._model) if is_onnx else EAGER: "the original model",
            str(base.root): "the float32 package as exported",
        }
        report = bench(
            fastest.root,
            baselines=list(names),
            original=None if is_onnx else self._original(),
            threads=search.threads,
            # 5 s, as `bench` itself takes, where nothing else is asked for.
            min_time=min(10 * search.min_time, 3600),
            warmup=search.min_time,
            progress=self._progress,
            **sized,
        )
        return tuple(Speedup.of(report, names)), sized

    def bench_command(self, output: Path, sized: Mapping[str, Any]) -> str | None:
        """Return the command that measures the speed-up over the original again."""
        if not isinstance(self._model, Path):
            return None
        words: list[object] = ["moh-deploy", "bench", output]
        words += (word for path in sized.get("inputs", ()) for word in ("--inputs", path))
        for name, (size,) in sized.get("sizes", {}).items():
            words += ["--size", f"{name}={size}"]
        words += [] if self._search.threads is None else ["--threads", self._search.threads]
        if self._form == "onnx":
            return shlex.join(map(str, [*words, "--baseline", self._model]))
        words += ["--baseline", EAGER, "--checkpoint", self._model]
        named = {"overrides": "--set", "code_dirs": "--code-dir"}
        for name, value in self._loading.items():
            flag = named.get(name, f"--{name.replace('_', '-')}")
            if value is True:
                words.append(flag)
            elif value not in (None, False):
                values = value if name in named else (value,)
                words += (word for item in values for word in (flag, item))
        return shlex.join(map(str, words))

    def _original(self) -> EagerModel:
        from moh_deploy.api.export import load_original

        with self._progress.step("loading the original model"):
            return load_original(self._model, **self._loading)

    def _example_inputs(self, work: Path) -> tuple[Inputs | None, list[str]]:
        """Return what to trace with and its dynamic axes, if something has to say it."""
        from torch.export import ExportedProgram

        trace = self._trace
        files = _files(self._search.inputs)
        is_known = (
            self._example is not None
            or trace.get("input_specs")
            or self._config.inputs
            or trace.get("task") is not None
            # These know their inputs themselves.
            or isinstance(self._model, ExportedProgram)
            or (isinstance(self._model, Path) and self._model.is_dir())
            or self._form in ("onnx", "pt2", "pt2_legacy")
        )
        if is_known or not files:
            return self._example, []
        members, labels = read_npz(files[0], error=ConfigError), self._search.labels
        dynamic: list[str] = []
        if labels is not None:
            members = {k: array[:2] for k, array in members.items() if k != labels and array.ndim}
            if not trace.get("dynamic"):
                dynamic = [f"{name}:0=batch" for name in members]
        write_npz(work / "example.npz", members)
        return work / "example.npz", dynamic

    def _code(self) -> list[object]:
        """Return the content of the code that was named: of the model and of metrics."""
        found: list[object] = []
        for folder in self._config.model.code_dirs:
            for root, folders, files in os.walk(folder):
                # Environments and caches are no code of the model.
                folders[:] = sorted(
                    f for f in folders if not f.startswith(".") and f != "site-packages"
                )
                found += (Path(root, file) for file in sorted(files) if file.endswith(".py"))
        return found


def _installed() -> list[str]:
    """Return all packages of this Python with their versions: another one starts all over."""
    return sorted(f"{found.name} {found.version}" for found in distributions())


def _files(paths: Sequence[Path | str]) -> list[Path]:
    return npz_files(_paths(paths))


def _paths(paths: Sequence[Path | str]) -> tuple[Path, ...]:
    return tuple(map(Path, paths))


def _path(value: object) -> object:
    """Return a text as a path if it is that of a file."""
    return Path(value) if isinstance(value, str) and os.path.isfile(value) else value
