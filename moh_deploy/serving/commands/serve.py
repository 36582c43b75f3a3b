"""`moh-deploy serve`, `drill`, `profile` and `watch`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict, Unpack

import click

from moh_deploy.cli import options, values
from moh_deploy.cli.command import Argument, Default, command
from moh_deploy.cli.failure import writing_stdout
from moh_deploy.cli.output import print_answer, write_files

if TYPE_CHECKING:
    from moh_deploy.serving.http.server import Listening


class ToServe(TypedDict):
    package_dir: options.PackagePath
    host: Annotated[
        str,
        "Address to listen at. Clients that reach it may ask: TLS and passwords are a proxy's.",
        Default("127.0.0.1"),
    ]
    port: Annotated[
        int,
        "N",
        "Port to listen at; 0 for any that is free.",
        click.IntRange(0, 65535),
        Default(8000),
    ]
    name: Annotated[
        str | None, "What clients call the model.  [default: the bundle's, or the name of DIR]"
    ]
    runtime: options.RuntimeName
    instances: Annotated[
        int | None,
        "N",
        "How many batches run at the same time.  [default: cores by threads]",
        options.POSITIVE,
    ]
    threads: Annotated[
        int | None,
        "N",
        "Threads of each instance.  [default: cores by instances]",
        options.POSITIVE,
    ]
    max_batch: options.MaxBatch[int | None]
    max_delay_ms: options.MaxDelay[float | None]
    sample_every: options.SampleEvery[int | None]
    per_head: options.PerHead
    otlp: options.Otlp
    reference: options.RoutingProfile
    guard: options.GuardFile
    audit_log: Annotated[
        Path | None, "FILE", "Append what the guard does to this file, as JSON lines."
    ]
    control: Annotated[
        Path | None, "FILE", "The guard's control file: manual switch, alarms of drift."
    ]
    drill: options.PlantsFaults
    shadow: options.ShadowDir
    shadow_share: options.ShadowShare[float | None]
    trust_code: options.TrustCode
    max_queue: Annotated[
        int,
        "N",
        "The most requests that wait; then 503, with Retry-After.",
        options.POSITIVE,
        Default(256),
    ]
    max_body: Annotated[
        int, "N", "The largest body of a request, in MiB; then 413.", options.POSITIVE, Default(64)
    ]
    max_json: Annotated[
        int, "N", "The most JSON in a body, in MiB; then 413.", options.POSITIVE, Default(4)
    ]
    longest: Annotated[
        Mapping[str, int],
        "DIM=N",
        "The largest size of a dynamic dimension, seq=512; then 400. A long sequence is a small"
        " body, but much work. Of the batch it is --max-batch.",
        values.read_all(values.parse_longest),
    ]
    read_timeout: Annotated[
        float,
        "TIME",
        "How long a request may take to arrive; then 408.",
        values.seconds,
        Default("20s"),
    ]
    request_timeout: Annotated[
        float, "TIME", "How long it waits for its answer; then 504.", values.seconds, Default("60s")
    ]
    shutdown_timeout: Annotated[
        float,
        "TIME",
        "How long requests that have arrived are still answered at the end.",
        values.seconds,
        Default("30s"),
    ]


@command("serve")
def serve_command(as_json: options.Json, **given: Unpack[ToServe]) -> None:
    """Serve the package, engine or bundle DIR over HTTP until Ctrl-C or SIGTERM: the Open Inference
    Protocol v2, as KServe and Triton have it, and metrics for Prometheus at /metrics.

    A worker answers; it is started again when it dies. Each first repeats a recorded run: a wrong
    answer ends the command. At the end what has arrived is answered."""
    from moh_deploy.serving.api.serve import serve

    def on_ready(listening: "Listening") -> None:
        from moh_deploy.system.bounded_json import to_json_text

        with writing_stdout():
            click.echo(to_json_text(listening.to_json()) if as_json else listening.to_text())

    serve(**given, on_ready=on_ready)


class ToDrill(TypedDict):
    package_dir: options.PackagePath
    faults: Annotated[
        tuple[str, ...],
        "--fault nan|gates|slow|crash|drift|missing-library|wrong|kill",
        "Plant this, and no other.  [default: all]",
    ]
    policy: Annotated[
        Path | None,
        "FILE.yaml",
        "The guard's policy, as `serve` takes it.  [default: one of short cool-downs]",
    ]
    clients: Annotated[
        int, "N", "How many ask at the same time.", click.IntRange(1, 256), Default(4)
    ]
    seconds: Annotated[
        float,
        "TIME",
        "How long the load runs before, and each fault stays.",
        values.seconds,
        Default("3s"),
    ]
    trip_timeout: Annotated[
        float,
        "TIME",
        "How long a fault stays that the guard has not noticed.",
        values.seconds,
        Default("10s"),
    ]
    return_timeout: Annotated[
        float,
        "TIME",
        "How long the first level may take to come back.",
        values.seconds,
        Default("60s"),
    ]
    in_process: Annotated[bool, "Serve in this process, by no protocol: without a worker to kill."]
    tritonserver: Annotated[
        Path | None,
        "DIR",
        "Serve a bundle by this Triton: the folder with bin/tritonserver, or an environment with"
        " nvidia-pytriton.  [default: moh-deploy serve]",
    ]
    url: Annotated[
        str | None,
        "http://HOST:PORT",
        "Break this server, which runs with --guard and --drill; its files have to be here.",
    ]
    name: Annotated[str | None, "What that server calls the model.  [default: of the bundle]"]
    control: Annotated[Path | None, "FILE", "Its control file.  [default: that of the bundle]"]
    audit_log: Annotated[Path | None, "FILE", "Its audit log.  [default: that of the bundle]"]


@command("drill")
def drill_command(
    files: options.ReportFiles, as_json: options.Json, **given: Unpack[ToDrill]
) -> None:
    """Serve the package or bundle DIR with a guard, under load, and plant one fault after the
    other: exit 1 if a wrong answer gets out where the fault can be seen, or the first level does
    not come back."""
    from moh_deploy.serving.api.drill import drill

    print_answer(
        lambda progress: write_files(
            files, str(given["package_dir"]), lambda: drill(progress=progress, **given)
        ),
        as_json=as_json,
    )


class ToProfile(TypedDict):
    package_dir: options.PackagePath
    inputs: Annotated[
        tuple[Path, *tuple[Path, ...]],
        "FILE.npz|DIR",
        "Requests that are known to be good, or a dump of a served model's window.",
    ]
    output: Annotated[Path, "--output -o FILE.json", "Reference to write."]
    request_size: Annotated[
        int, "N", "Samples of a request: files of inputs are cut into such.", Default(1)
    ]
    window: Annotated[
        int, "N", "Requests of the smallest window that `watch` will judge.", Default(256)
    ]
    false_alarms: Annotated[
        float, "SHARE", "Share of windows of unchanged traffic that may alarm.", Default(0.001)
    ]
    kernels: options.KernelChoice


@command("profile")
def profile_command(as_json: options.Json, **given: Unpack[ToProfile]) -> None:
    """Record what the routers of the package DIR do with traffic that is known to be good, and how
    far chance strays from it: the reference of `moh-deploy watch`."""
    from moh_deploy.serving.api.profile import profile

    print_answer(lambda progress: profile(**given, progress=progress), as_json=as_json)


class ToWatch(TypedDict):
    source: Annotated[str, Argument()]
    reference: Annotated[Path, "FILE.json", "What `moh-deploy profile` wrote."]
    every: Annotated[
        float, "TIME", "Time between two looks at metrics.", values.seconds, Default("60s")
    ]
    windows: Annotated[int, "N", "How often to look at metrics after the first time.", Default(1)]


@command("watch")
def watch_command(
    files: options.ReportFiles, as_json: options.Json, **given: Unpack[ToWatch]
) -> None:
    """Compare live routing with a reference: SOURCE is the address of a server's metrics, or a dump
    of its window. Exit 1 if it is not as it was, or if there is no data."""
    from moh_deploy.serving.api.watch import watch

    print_answer(
        lambda progress: write_files(
            files, given["source"], lambda: watch(progress=progress, **given)
        ),
        as_json=as_json,
    )
