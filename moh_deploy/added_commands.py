"""The commands of the add-ons in this distribution: what `--help` says, without importing them.

pyproject.toml registers them as entry points of `moh_deploy.commands`, and the last one of
`moh_deploy.verifiers` (ADR 96).
"""

from moh_deploy.add_ons import AddedCommand, AddedVerifier

BUILD = AddedCommand(
    "Make",
    "Build a TensorRT or TensorRT-RTX engine from a package.",
    "moh_deploy.cli.build:build_command",
)
COMPARE = AddedCommand(
    "Decide",
    "Decide by a plan which of several ways to serve is worth it.",
    "moh_deploy.decision.commands:compare_command",
)
COST = AddedCommand(
    "Decide",
    "Price a decision for your traffic, and say whether it pays.",
    "moh_deploy.decision.commands:cost_command",
)
SERVE = AddedCommand(
    "Serve",
    "Serve a package over HTTP, as KServe and Triton do.",
    "moh_deploy.serving.commands.serve:serve_command",
)
BUNDLE = AddedCommand(
    "Serve",
    "Write a package as a directory that Triton or genai loads, or check one.",
    "moh_deploy.serving.commands.bundle:bundle_command",
    place=1,
)
PROFILE = AddedCommand(
    "Serve",
    "Record the routing of traffic that is known to be good.",
    "moh_deploy.serving.commands.serve:profile_command",
    place=2,
)
WATCH = AddedCommand(
    "Serve",
    "Compare live routing with that, and alarm if it drifts.",
    "moh_deploy.serving.commands.serve:watch_command",
    place=3,
)
DRILL = AddedCommand(
    "Serve",
    "Break a guarded server on purpose, and say what clients saw.",
    "moh_deploy.serving.commands.serve:drill_command",
    place=4,
)
GENAI_BUNDLES = AddedVerifier("genai_config.json", "moh_deploy.serving.commands.genai")
