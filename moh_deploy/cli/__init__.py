"""The `moh-deploy` command: reads options, calls a job, prints its report.

Nothing heavy is imported here or in the commands' files before a command runs: `--help` answers at
once.
"""

from moh_deploy.cli.group import CommandGroup, CommandHome

main = CommandGroup(
    "moh-deploy",
    "Deploy Mixture-of-Head attention models: one portable package, proven equal to the original.",
    {
        "bench": CommandHome(
            "moh_deploy.cli.bench", "Measure how fast packages run, beside baselines."
        ),
        "bisect": CommandHome(
            "moh_deploy.cli.bisect", "Find where a package diverges, and which nodes need float32."
        ),
        "build": CommandHome(
            "moh_deploy.cli.build", "Build a TensorRT or TensorRT-RTX engine from a package."
        ),
        "doctor": CommandHome(
            "moh_deploy.cli.doctor", "Say what can be built and run here, and what is missing."
        ),
        "export": CommandHome(
            "moh_deploy.cli.export", "Turn a PyTorch model into a verified ONNX package."
        ),
        "inspect": CommandHome(
            "moh_deploy.cli.inspect", "Show what is in a package and what runs it."
        ),
        "precision": CommandHome(
            "moh_deploy.cli.precision", "Write a package again in float16 or bfloat16."
        ),
        "probe": CommandHome(
            "moh_deploy.cli.probe", "Run a package on edge cases and on its regression corpus."
        ),
        "run": CommandHome("moh_deploy.cli.run", "Run a package on inputs from a file."),
        "tune": CommandHome(
            "moh_deploy.cli.tune", "Measure how each layer runs fastest, and write it down."
        ),
        "verify": CommandHome(
            "moh_deploy.cli.verify", "Prove that a package computes what it should."
        ),
    },
)

__all__ = ["main"]
