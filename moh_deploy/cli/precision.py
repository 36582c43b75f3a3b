"""`moh-deploy precision`."""

from __future__ import annotations

import click

from moh_deploy.cli import options, values
from moh_deploy.cli.output import print_answer


@click.command("precision")
@options.takes(
    options.PACKAGE,
    click.option(
        "--to",
        required=True,
        metavar="float16|bfloat16|int8|int4",
        help="What products and activations become. int8 and int4 are for the CPU: products with"
        " stored weights, by ONNX Runtime's own quantiser.",
    ),
    click.option(
        "--float32",
        multiple=True,
        metavar="NODE",
        help="With --to int8 or int4: a product of model.onnx that stays in float32, by its name."
        " Repeatable.",
    ),
    options.output("The package directory to write."),
    options.WITHIN,
    options.inputs("Judge --within on these inputs instead of the recorded ones."),
    options.LABEL_FILE,
    options.SCORING_OPTIONS,
    options.many(
        "--code-dir",
        "DIR",
        "Where the module of a metric is.",
        to="code_dirs",
        type=values.FILE_PATH,
    ),
    options.JSON,
)
def command(as_json: bool, **given: object) -> None:
    """Write the package DIR again in lower precision, as a graph whose types say where: routers,
    norms and what would overflow stay in float32."""
    from moh_deploy.api.precision import precision

    print_answer(lambda progress: precision(**given, progress=progress), as_json=as_json)  # type: ignore[arg-type]
