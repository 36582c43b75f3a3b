"""Define the command `moh-deploy bundle`."""

from pathlib import Path
from typing import Annotated, Literal, TypedDict, Unpack

import click

from moh_deploy.cli import options
from moh_deploy.cli.command import Before, Default, command
from moh_deploy.cli.output import print_answer
from moh_deploy.serving.commands import genai


class ToBundle(TypedDict):
    backend: Annotated[
        Literal["python", "tensorrt"] | None,
        "The server's backend: python runs a package by moh-deploy, with telemetry and guard;"
        " tensorrt runs an engine (never run yet).  [default: by what DIR is]",
    ]
    name: Annotated[str | None, "NAME", "What clients call the model.  [default: the directory's]"]
    instances: Annotated[
        int, "N", "How many batches run at the same time.", options.POSITIVE, Default(1)
    ]
    threads: Annotated[
        int | None,
        "N",
        "Threads of each instance.  [default: the cores by the instances]",
        options.POSITIVE,
    ]
    max_batch: Annotated[options.MaxBatch[int], Default(64, shown=False)]
    max_delay_ms: Annotated[options.MaxDelay[float], Default(1.0, shown=False)]
    sample_every: Annotated[options.SampleEvery[int], Default(128, shown=False)]
    per_head: options.PerHead
    otlp: options.Otlp
    guard: options.GuardFile
    fallback: Annotated[Path | None, "DIR", "The package of the policy's level of kind package."]
    shadow: options.ShadowDir
    shadow_share: Annotated[options.ShadowShare[float], Default(0.05, shown=False)]
    drill: options.PlantsFaults
    reference: options.RoutingProfile
    image: Annotated[str | None, "IMAGE", "The container that kserve.yaml names."]
    storage: Annotated[
        str | None, "URI", "Where kserve.yaml says the bundle is: pvc://models/NAME."
    ]


@command("bundle")
def bundle_command(
    artefact: options.ArtefactDir,
    output: Annotated[
        Path | None,
        "--output -o DIR",
        "The bundle to write; an earlier one is replaced.",
        Before("backend"),
    ],
    target: Annotated[
        Literal["triton", "genai"],
        "The server that is to load it, or genai: onnxruntime-genai, for language models.",
        Default("triton"),
        Before("backend"),
    ],
    check: Annotated[
        Path | None, "BUNDLE", "Say why a server on this machine would not load this bundle."
    ],
    server: Annotated[
        Path | None,
        "DIR",
        "With --check: the folder with bin/tritonserver, or an environment with nvidia-pytriton."
        "  [default: what is installed]",
    ],
    as_json: options.Json,
    **given: Unpack[ToBundle],
) -> None:
    """Write the package or engine DIR as a directory that Triton Inference Server loads, with
    kernels, warm-up, dashboard, alert rules and YAML for KServe; or, with --target genai, a
    language model's package as one that onnxruntime-genai opens. A package that `verify` refuses is
    not bundled. With --check, say why a server on
    this machine would not load a bundle: exit 0 if nothing stands against it, 5 if something does.
    """
    from moh_deploy.serving.api.bundle import bundle, check_bundle

    if check is not None:
        if artefact is not None or output is not None:
            raise click.UsageError("--check takes a bundle alone: leave out DIR and --output.")
        print_answer(lambda progress: check_bundle(check, server=server), as_json=as_json)
        return
    if artefact is None or output is None:
        raise click.UsageError("name a package or engine DIR and --output, or --check BUNDLE.")
    if server is not None:
        raise click.UsageError("--server is for --check.")
    if target == "genai":
        genai.write_bundle_for_genai(artefact, output, given["threads"], as_json)
        return
    print_answer(
        lambda progress: bundle(artefact, output, **given, progress=progress), as_json=as_json
    )
