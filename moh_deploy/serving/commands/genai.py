"""Bundles for onnxruntime-genai, within the commands `bundle` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from moh_deploy.cli.original import package_or_original
from moh_deploy.cli.output import print_answer
from moh_deploy.errors import ConfigError

if TYPE_CHECKING:
    from moh_deploy.cli.options import LoadingSettings
    from moh_deploy.serving.genai.verify import GenaiVerification
    from moh_deploy.system.progress import SilentProgress

_OF_BUNDLE = {"artefact", "output", "target", "threads", "as_json"}
_OF_VERIFY = {"package_dir", "against", "as_json", "verbose"}


def write_bundle_for_genai(
    package_dir: Path, output: Path, threads: int | None, as_json: bool
) -> None:
    """Write a bundle for genai, and print what it holds."""
    _refuse_others(_OF_BUNDLE, "--target genai takes")
    from moh_deploy.serving.api.genai import bundle_for_genai

    print_answer(
        lambda progress: bundle_for_genai(package_dir, output, threads=threads, progress=progress),
        as_json=as_json,
    )


def is_one(root: Path) -> bool:
    """Tell whether a directory is a bundle for genai."""
    from moh_deploy.serving.genai.bundle import is_genai_bundle

    return is_genai_bundle(root)


def verify_bundle(
    root: Path, against: tuple[str, ...], loading: LoadingSettings, as_json: bool
) -> None:
    """Compare the tokens of a bundle for genai, and print what was found."""
    _refuse_others(_OF_VERIFY | set(loading), "a bundle for genai takes")
    if len(against) > 1:
        raise ConfigError(
            f"--against is given {len(against)} times; tokens of a bundle for genai are compared"
            " with one model."
        )
    from moh_deploy.serving.api.genai import verify_genai_bundle

    def job(progress: SilentProgress) -> GenaiVerification:
        trust_code = loading["trust_code"]
        loading["trust_code"] = trust_code and bool(against)  # else it is for the bundle alone
        other = package_or_original(Path(against[0]) if against else None, loading, progress)
        return verify_genai_bundle(root, against=other, trust_code=trust_code, progress=progress)

    print_answer(job, as_json=as_json, package=str(root))


def _refuse_others(known: set[str], who: str) -> None:
    """Refuse options that would be ignored without a word."""
    ctx = click.get_current_context()
    for option in ctx.command.params:
        name = option.name or ""
        if name not in known and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{who} no {option.opts[0]}: leave it out.")
