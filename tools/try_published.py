"""Try published weights of MoH-ViT, MoH-DiT or MoH-LLaMA3: see docs/published-weights.md.

    python tools/try_published.py MoH-ViT-S-75 --original MoH --inputs val.npz --labels val.npz

The model is exported, compared with the original on your data, probed, and timed beside eager
PyTorch and its plain export. result.json and page.html of --output are written anew after each
step, so that they hold what was found, however the run ends.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import moh_deploy
from moh_deploy.config.export_config import SHIPPED
from moh_deploy.errors import CheckpointError, ConfigError, MoHDeployError
from moh_deploy.perf.environment import environment
from moh_deploy.report import document as doc
from moh_deploy.report.html.page import page
from moh_deploy.runtime.kernel_use import choose_kernels
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.bounded_json import to_json_text
from moh_deploy.system.progress import progress_for_terminal

WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
MODELS = sorted(path.stem for path in SHIPPED.glob("moh_[vd]it_*.yaml"))


@dataclass(frozen=True)
class Published:
    """What was downloaded, and how it is loaded."""

    weights: Path  # a file, or a directory of Hugging Face
    name: str  # its configuration, or what config.json calls it
    settings: dict[str, Any]  # keyword arguments of `export` and `load_original`

    def loaded(self) -> "tuple[Any, Published]":
        """Load the original; weights alone have no key of a training checkpoint."""
        try:
            return moh_deploy.load_original(self.weights, **self.settings), self
        except CheckpointError as error:
            if "there is no key" not in error.message:
                raise
        overrides = (*self.settings["overrides"], "model.state_key=null")
        alone = Published(self.weights, self.name, {**self.settings, "overrides": overrides})
        return moh_deploy.load_original(self.weights, **alone.settings), alone


@dataclass
class Result:
    """What was found so far, on disk after each step."""

    folder: Path
    about: dict[str, object]
    hidden: dict[str, str]  # paths of this machine to what is written in their place
    steps: dict[str, dict[str, object]] = field(default_factory=dict)
    sections: list[doc.Section] = field(default_factory=list)
    facts: list[doc.Fact] = field(default_factory=list)

    def step(self, name: str, work: Callable[[], Any]) -> Any:
        """Do a step and keep its report; return None where it failed."""
        start = time.monotonic()
        self.steps[name] = {"error": "did not finish"}  # as a kernel may end the process
        self._write()
        report, section = None, doc.Section(name, (), doc.Verdict("NO ANSWER", False))
        try:
            report = work()
            found = report.document()
            self.steps[name] = {"report": json.loads(to_json_text(report.to_json()))}
            notes = tuple(doc.Text(text) for text in (*found.findings, *found.remarks))
            section = doc.Section(name, (*notes, *found.blocks), found.verdict)
            self.facts += found.facts
        except (Exception, KeyboardInterrupt) as error:
            ours = isinstance(error, MoHDeployError)
            text = str(error) if ours else f"{type(error).__name__}: {error}"
            self.steps[name] = {"error": text, "exit_code": getattr(error, "exit_code", 70)}
            section = doc.Section(name, (), doc.Verdict("NO ANSWER", False, text, (text,)))
            print(f"{name}: {text}", file=sys.stderr)
            if isinstance(error, KeyboardInterrupt):
                raise
        finally:
            self.steps[name]["seconds"] = round(time.monotonic() - start, 1)
            self.sections.append(section)
            self._write()
        return report

    @property
    def failed(self) -> list[str]:
        return [section.title for section in self.sections if not _is_good(section)]

    def _write(self) -> None:
        failed = self.failed
        sentence = f"Not good: {', '.join(failed)}." if failed else "All steps so far are good."
        verdict = doc.Verdict("NOT GOOD" if failed else "GOOD", not failed, sentence, (sentence,))
        document = doc.Document("try", tuple(self.sections), verdict, facts=tuple(self.facts))
        made_with = tuple(environment(choose_kernels("auto")))
        about = doc.About(str(self.about["model"]), environment=made_with)
        content = {**self.about, "environment": dict(made_with), "steps": self.steps}
        for file, text in (
            ("result.json", json.dumps(content, indent=1)),
            ("page.html", page(document, about)),
        ):
            for path, shown in self.hidden.items():
                text = text.replace(path, shown)
            (self.folder / file).write_text(text, encoding="utf-8", errors="backslashreplace")


def _is_good(section: doc.Section) -> bool:
    return section.verdict is None or section.verdict.is_good is not False


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    try:
        published = find_published(options)
    except MoHDeployError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    options.output.mkdir(parents=True, exist_ok=True)
    files = [published.weights] if published.weights.is_file() else _weights(published.weights)
    about: dict[str, object] = {
        "model": published.name,
        "weights": {file.name: sha256_of(file) for file in files},
    }
    paths = [options.dir, options.original, options.output, *options.inputs, options.labels]
    absolute = [Path(path).absolute() for path in paths if path is not None]
    hidden = {str(path): path.name for path in absolute} | {str(Path.home()): "~"}
    result = Result(options.output, about, hidden)
    try:
        try_out(published, options, result)
    except KeyboardInterrupt:
        return 130
    finally:
        print(f"{options.output}/result.json and page.html hold what was found.")
    return 1 if result.failed else 0


def try_out(published: Published, options: argparse.Namespace, result: Result) -> None:
    """Export, compare, probe and time; a step that needs an earlier one is left out with it."""
    progress = progress_for_terminal(quiet=False)
    package = options.output / "package"
    loaded: list[Any] = []

    def export() -> Any:
        original, found = published.loaded()
        loaded.append(original)
        return moh_deploy.export(found.weights, package, progress=progress, **found.settings)

    if result.step("export", export) is None:
        return
    (original,) = loaded
    data: dict[str, Any] = {"inputs": options.inputs}
    if options.inputs:
        data |= {"against": [original], "labels": options.labels}
    compared = result.step("verify", lambda: moh_deploy.verify(package, progress=progress, **data))
    if compared is not None:
        loads = [load for report in compared.comparisons for load in report.statistics.head_loads]
        of = sum(load.tokens * len(load.got) for load in loads)
        share = sum(sum(load.got) for load in loads) / of if of else None
        result.about["open_heads"] = share
        result.facts.append(doc.Fact("open heads", doc.percent(share) or "unknown"))
    result.step("inspect", lambda: moh_deploy.inspect(package, progress=progress))
    result.step(
        "bench",
        lambda: moh_deploy.bench(
            package,
            baselines=["eager", "plain-onnx"],
            original=original,
            threads=options.threads,
            min_time=options.min_time,
            progress=progress,
        ),
    )
    # Last: edge cases are where kernels may end the process.
    result.step("probe", lambda: moh_deploy.probe(package, progress=progress))


def find_published(options: argparse.Namespace) -> Published:
    """Find weights and configuration by the names of files.

    Raises:
        CheckpointError: There are no weights, or several.
        ConfigError: The configuration or the original code is not there.
    """
    path: Path = options.dir
    settings: dict[str, Any] = {
        "overrides": tuple(options.set),
        "trust_code": True,  # of the published repository, which the user names
        "dtype": options.dtype,
    }
    if (path / "config.json").is_file():
        if not _weights(path):
            raise CheckpointError(f"{path} has config.json and no weights.", hint=_download(path))
        if options.original:
            settings["code_dirs"] = (options.original / "MoH-LLaMA3" / "Inference_code",)
        return Published(path, path.absolute().name, settings)
    files = [path] if path.is_file() else _weights(path)
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise CheckpointError(
            f"{path}: expected one file of weights ({', '.join(WEIGHTS)}), found {found}.",
            hint="Name the file itself." if files else _download(path),
        )
    name = options.config or _config(f"{path.absolute().name}/{files[0].name}")
    if name is None:
        raise ConfigError(
            f"{path}: neither the directory nor {files[0].name} is named for a model.",
            hint=f"Add --config: {', '.join(MODELS)}.",
        )
    folder = "MoH-ViT" if "vit" in name else "MoH-DiT"
    if options.original is None or not (options.original / folder).is_dir():
        raise ConfigError(
            f"{name} needs the original code: {options.original or '--original'} has no {folder}.",
            hint="git clone https://github.com/SkyworkAI/MoH, and add --original MoH.",
        )
    settings |= {"config": SHIPPED / f"{name}.yaml", "code_dirs": (options.original / folder,)}
    return Published(files[0], name, settings)


def _weights(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in found if file.suffix in WEIGHTS)


def _config(name: str) -> str | None:
    """Return the configuration that `MoH-DiT-XL-90` or `moh_vit_s_75.pth` is named for."""
    words = re.sub(r"[^a-z0-9]+", "_", name.lower())
    # The patch size of MoH-DiT may be left out.
    return next((m for m in MODELS if re.search(m.replace("_2_", "(_2)?_"), words)), None)


def _download(path: Path) -> str:
    return f"hf download Chat-UniVi/{path.name} --local-dir {path.name}"


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("dir", type=Path, metavar="DIR", help="the published files, or the file of weights")
    add("--original", type=Path, metavar="DIR", help="a clone of https://github.com/SkyworkAI/MoH")
    add("--config", choices=MODELS, metavar="NAME", help="default: by the names of the files")
    add("--inputs", type=Path, nargs="+", default=[], metavar="FILE.npz", help="your data")
    add("--labels", metavar="FILE|MEMBER", help="labels of --inputs, for accuracy")
    add("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as moh-deploy export")
    add("--threads", type=int, metavar="N", help="default: as the runtime chooses")
    add("--min-time", type=float, default=5.0, metavar="SECONDS", help="of the timing; default: 5")
    add("--output", type=Path, default=Path("published"), metavar="DIR", help="default: published")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
