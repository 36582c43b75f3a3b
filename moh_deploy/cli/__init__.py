"""The `moh-deploy` command: reads options, calls a job, prints its report.

Nothing heavy is imported here or in the commands' files before a command runs: `--help` answers at
once.
"""

from typing import get_args

from moh_deploy.cli.group import CommandGroup
from moh_deploy.config.dtypes import LowerPrecision, either

main = CommandGroup(
    "moh-deploy",
    "Deploy Mixture-of-Head attention models: one portable package, proven equal to the original.",
    {
        "Make": {
            "optimize": "Export a model, and write its fastest package that is still good.",
            "export": "Turn a PyTorch model or an ONNX file into a verified package.",
            "precision": f"Write a package again in {either(get_args(LowerPrecision))}.",
            "prune": "Write a package with the same heads for every token, and no router.",
            "inline": "Write a package's model in standard operators only.",
        },
        "Prove": {
            "verify": "Prove that a package computes what it should.",
            "probe": "Run a package on edge cases and on its regression corpus.",
            "bisect": "Find where a package diverges, and which nodes need float32.",
        },
        "Speed": {
            "tune": "Measure how each layer runs fastest, and write it down.",
            "bench": "Measure how fast packages run, beside baselines.",
        },
        "Decide": {},
        "Run": {
            "run": "Run a package on inputs from a file.",
            "generate": "Generate text with a language model's package.",
            "inspect": "Show what is in a package or an engine, and what runs it.",
            "doctor": "Say what can be built and run here, and what is missing.",
        },
        "Serve": {},
    },
    main_path=("optimize", "export", "verify", "bench", "run"),
)

__all__ = ["main"]
