"""The plan of a comparison: a YAML file that says, before any data, what would be worth it.

docs/compare.md describes it; `moh-deploy compare --new-plan FILE` writes one to fill in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moh_deploy.config.checked_yaml import checked, read_mapping, require_trust
from moh_deploy.config.dtypes import LowerPrecision, Runtime
from moh_deploy.errors import ConfigError
from moh_deploy.system.bounded_file import sha256_of_json
from moh_deploy.system.suggest import did_you_mean, shortened

_Text = Annotated[str, Field(min_length=1)]
_Path = Annotated[Path, Field(strict=False)]
_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(ge=0, le=3600)]


class _Section(BaseModel):
    # Strict: the text '4' is no number. Unknown keys are mostly misspelt ones.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class PruneSection(_Section):
    """`made.prune:` which heads of each layer stay; see `moh-deploy prune`."""

    keep: _Count | _Text  # a number of heads, or a share of each layer's: `75%`
    # `load`: those that are open for most tokens; `gate`: those of the largest mean gate.
    by: Literal["load", "gate"] = "load"
    # What heads are counted on; without, the recorded runs. Samples that quality is measured on are
    # not to be among them.
    inputs: Annotated[tuple[_Path, ...], Field(strict=False)] = ()


class MadeSection(_Section):
    """`made:` an alternative that is made from a package, in one way."""

    # Every head of every token is computed and weighed, by standard operators: nothing is skipped,
    # and nothing paid for skipping.
    all_heads_open: Literal[True] | None = None
    # Each token chooses so many routed heads; `all`: every one, on the kernels that would skip
    # them, which tells what skipping gains from what kernels gain.
    top_k: _Count | Literal["all"] | None = None
    # The same heads for every token; the others are cut out of the weights.
    prune: PruneSection | None = None
    # What the routers computed is fed, and they are gone: the time that routing takes, and no model
    # that could be served.
    fixed_routing: Literal[True] | None = None
    # The package in lower precision.
    precision: LowerPrecision | None = None

    @property
    def ways(self) -> list[str]:
        """The ways that are given; one."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]


class CheckpointSection(_Section):
    """`checkpoint:` the original model in PyTorch, and how it is loaded; see `export`."""

    file: _Path
    config: _Path | None = None
    factory: str | None = None
    code_dirs: Annotated[tuple[_Path, ...], Field(strict=False)] = ()
    state_key: str | None = None
    trust_pickle: bool = False  # it has to be unpickled, which the user has to allow, too
    dtype: Literal["float32", "float16", "bfloat16"] | None = None


class AlternativeSection(_Section):
    """An alternative of `arms:`, from one of four sources."""

    path: _Path | None = None  # a package, an engine or an ONNX file
    # The original model, or another in PyTorch with the same inputs.
    checkpoint: CheckpointSection | None = None
    url: _Text | None = None  # a server that speaks the v2 protocol: `http://HOST:PORT`
    model: _Text | None = None  # what that server calls the model
    made: MadeSection | None = None  # made from another alternative
    of: _Text | None = None  # which one; without, the first alternative that is a package
    # It has no routers, and computes every head: what MoH has to be worth more than.
    dense: bool = False
    # What runs it, if it is a package or an ONNX file; without, what the package was tuned for.
    runtime: Runtime | None = None
    kernels: Literal["auto", "off", "require"] = "auto"  # what runs its MoH nodes

    @property
    def sources(self) -> list[str]:
        """The sources that are given; one."""
        found = ("path", "checkpoint", "url", "made")
        return [name for name in found if getattr(self, name) is not None]


class QualityGoal(_Section):
    """`quality:` a metric, and how much of it an alternative may lose against the reference."""

    metric: _Text  # `top-1`, `top-5`, `perplexity`, or `MODULE:FUNCTION`
    # In units of the metric: 0.005 is half a point of top-1.
    may_lose: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    better: Literal["higher", "lower"] | None = None  # of a function: which values are better
    output: str | None = None  # the output that is scored; None to choose by shapes


class LatencyGoal(_Section):
    """`latency:` what is compared, and the least gain: a share of the reference's time."""

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5  # 0.5 is the median
    # 0.1 is a tenth less time; -0.05 allows a twentieth more.
    at_least: Annotated[float, Field(gt=-10, lt=1)]


class Plan(_Section):
    """The content of a plan."""

    goal: _Text  # what is to be decided, in words
    reference: (
        _Text  # the alternative that all others are compared with: what would be served otherwise
    )
    arms: dict[_Text, AlternativeSection]  # name to alternative; at least two
    # npz files of samples, or directories of them.
    inputs: Annotated[tuple[_Path, ...], Field(strict=False)] = ()
    labels: _Text | None = None  # a file of labels, or their member in the inputs
    ignore_label: int = -100  # labels of this number do not count
    shifted: bool = False  # outputs at a position are scored with the label of the next
    # The input, or member of the files, that says which tokens are no padding.
    valid_tokens: str | None = None
    # Where the modules of metrics of your own are.
    code_dirs: Annotated[tuple[_Path, ...], Field(strict=False)] = ()
    # What may be lost; all of it is judged.
    quality: Annotated[tuple[QualityGoal, ...], Field(strict=False)] = ()
    latency: LatencyGoal | None = None  # what has to be gained, at every one of the sizes
    # Sizes of dynamic dimensions to time at; without, those of the example.
    sizes: Annotated[tuple[dict[str, _Count], ...], Field(strict=False)] = ()
    # How long all alternatives run in turns at each of the sizes; a later look may take longer.
    seconds: _Seconds = 10.0
    warmup: _Seconds = 0.5  # and how long before, untimed
    threads: _Count | None = None  # threads within an operator; None for the runtime's own choice
    # Samples that run at once where quality is measured; None to choose.
    batch_size: _Count | None = None
    # No win and no loss is wrong with this confidence, over all alternatives and looks.
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    # How often the data may be looked at, each time with more of them.
    looks: Annotated[int, Field(ge=1, le=20)] = 1
    router_overhead: bool = True  # time each package without its routers, too
    edge_cases: bool = False  # run `moh-deploy probe`'s edge cases on each package, too

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Plan:
        # What pydantic cannot say of one field: how several fit each other.
        problems = [*_alternative_problems(self), *_other_problems(self)]
        if problems:
            # All at once: a file is not to be mended one run at a time.
            raise ValueError("\n".join(problems))
        return self

    @property
    def digest(self) -> str:
        """The sha256 of all it says but `seconds`, which a later look may raise."""
        return sha256_of_json(self.model_dump(mode="json", exclude={"seconds"}))

    @property
    def level(self) -> float:
        """The share of comparisons in which a win, or a loss, may be wrong at most."""
        return (1 - self.confidence) / 2

    @property
    def base(self) -> str | None:
        """The first alternative that is a path: it says what the inputs are."""
        # The reference first: its package is what others are made from unless they say.
        named = sorted(self.arms, key=lambda name: name != self.reference)
        return next((name for name in named if self.arms[name].path is not None), None)


@dataclass(frozen=True)
class PlanFile:
    """A plan, and where relative paths in it begin."""

    plan: Plan  # the plan
    folder: Path  # the directory of its file
    source: str  # what messages call it

    def placed(self, path: Path) -> Path:
        """Return a path of the plan: an absolute one stays."""
        return self.folder / path


def read_plan(path: Path, *, trust_code: bool = False, trust_pickle: bool = False) -> PlanFile:
    """Read a plan from YAML.

    Raises:
        ConfigError: The file is unreadable, or not of the schema; all that is wrong is said. Or it
            names code or pickles, and is not trusted.
    """
    hint = "`moh-deploy compare --new-plan FILE` writes one to fill in."
    plan = plan_of(read_mapping(path, Plan, hint=hint), str(path))
    alone = len(plan.quality) == 1
    code: dict[str, object] = {
        "quality.metric" if alone else f"quality.{index}.metric": goal.metric
        for index, goal in enumerate(plan.quality)
        if ":" in goal.metric
    }
    code["code_dirs"] = [*map(str, plan.code_dirs)]
    pickles = {}
    for name, checkpoint in (
        (name, alternative.checkpoint) for name, alternative in plan.arms.items()
    ):
        if checkpoint is not None:
            place = f"arms.{name}.checkpoint"
            code[f"{place}.factory"] = checkpoint.factory
            code[f"{place}.code_dirs"] = [*map(str, checkpoint.code_dirs)]
            pickles[f"{place}.trust_pickle"] = checkpoint.trust_pickle
    require_trust(str(path), code, "--trust-code", is_given=trust_code)
    require_trust(str(path), pickles, "--trust-pickle", is_given=trust_pickle)
    return PlanFile(plan, path.parent, str(path))


def plan_of(document: Mapping[Any, Any], source: str) -> Plan:
    """Check what a plan says.

    Raises:
        ConfigError: It is not of the schema.
    """
    # One metric is written without a list around it, and messages have no number for it then.
    alone = isinstance(document.get("quality"), dict)
    listed = {**document, "quality": [document["quality"]]} if alone else document
    try:
        return checked(listed, Plan, source)
    except ConfigError as error:
        if not alone:
            raise
        raise ConfigError(error.message.replace("quality.0", "quality")) from None


def _alternative_problems(plan: Plan) -> Iterator[str]:
    if len(plan.arms) < 2:
        yield f"arms has {len(plan.arms)}, expected a reference and at least one other."
    if plan.reference not in plan.arms:
        hint = did_you_mean(plan.reference, plan.arms) or f"There are {shortened(plan.arms)}."
        yield f"reference is '{plan.reference}', which is no alternative. {hint}"
    elif (made := plan.arms[plan.reference].made) is not None and made.fixed_routing:
        yield (
            f"reference is '{plan.reference}', which is made by fixed_routing: a bound, and no"
            " model that could be served otherwise."
        )
    for name, alternative in plan.arms.items():
        place, sources = f"arms.{name}", alternative.sources
        if len(sources) != 1:
            given = " and ".join(sources) or "none"
            yield f"{place}: expected one of path, checkpoint, url and made, got {given}."
        if alternative.url is not None and alternative.model is None:
            yield f"{place}.model is missing: what the server calls the model."
        if alternative.url is None and alternative.model is not None:
            yield f"{place}.model is given, but no url of a server."
        for key in sorted({"runtime", "kernels"} & alternative.model_fields_set):
            if alternative.url is not None or alternative.checkpoint is not None:
                yield f"{place}.{key} is given, but it is for packages and ONNX files."
        if alternative.made is None and alternative.of is not None:
            yield f"{place}.of is given, but nothing is made of it: made is missing."
        if alternative.made is not None:
            yield from _made_problems(plan, name, alternative)
    if plan.base is None:
        yield "no alternative has a path: at least one package says what the inputs are."


def _made_problems(plan: Plan, name: str, alternative: AlternativeSection) -> Iterator[str]:
    assert alternative.made is not None
    if len(alternative.made.ways) != 1:
        ways = shortened(MadeSection.model_fields)
        yield f"arms.{name}.made: expected one of {ways}, got {len(alternative.made.ways)}."
    of = alternative.of or plan.base
    if of is not None and of not in plan.arms:
        hint = did_you_mean(of, plan.arms)
        yield f"arms.{name}.of is '{of}', which is no alternative. {hint}".rstrip()
    elif of is not None and plan.arms[of].path is None:
        yield f"arms.{name}.of is '{of}', which is no package: nothing can be made of it."


def _other_problems(plan: Plan) -> Iterator[str]:
    if not plan.quality and plan.latency is None:
        yield "quality and latency are both missing: there is nothing to decide by."
    if plan.quality and (plan.labels is None or not plan.inputs):
        yield "quality is given, but no inputs and labels to measure it with."
    if not plan.quality and (plan.labels is not None or plan.inputs):
        yield "inputs or labels are given, but no quality that they are for."
    metrics = [quality_goal.metric for quality_goal in plan.quality]
    for metric in dict.fromkeys(metrics):
        if metrics.count(metric) > 1:
            yield f"quality names metric '{metric}' twice."
    for index, goal in enumerate(plan.quality):
        if goal.metric.startswith("top-") and goal.may_lose >= 1:
            yield (
                f"quality.{index}.may_lose is {goal.may_lose:g}, which is all of {goal.metric}:"
                " expected a share, one point is 0.01."
            )
    if plan.latency is None and plan.sizes:
        yield "sizes are given, but no latency that is compared at them."
    for index, sizes in enumerate(plan.sizes):
        if sizes in plan.sizes[:index]:
            yield f"sizes.{index} is there twice."
    if plan.latency is not None and not math.isclose(plan.seconds, 0) and plan.seconds < 0.1:
        yield f"seconds is {plan.seconds:g}: too short to time anything, expected 0.1 or more."


# A plan to fill in: a proof of concept, whose margins are written down before it runs.

NEW_PLAN = """\
# The plan of a comparison: fill it in before you have looked at any data, and run
#     moh-deploy compare --plan THIS_FILE --html decision.html
# Its sha256 is in every report. Paths are relative to this file. All keys: moh-deploy help compare

goal: Serve at lower latency than the dense model, at the same quality.

# What would be served otherwise. All other alternatives are compared with it.
reference: dense

arms:
  dense:
    path: build/dense        # a package, an engine or an ONNX file
    dense: true              # it has no routers and computes every head
  moh:
    path: build/moh
  all-open:                  # made from the package: what routing itself saves
    made: {all_heads_open: true}
    of: moh
  # fewer-heads:             # each token chooses 4 routed heads
  #   made: {top_k: 4}
  #   of: moh
  # pruned:                  # the same 12 heads for every token, the others cut away
  #   made: {prune: {keep: 12, by: load}}
  #   of: moh
  # int8:
  #   made: {precision: int8}
  #   of: moh
  # original:                # in PyTorch, loaded as by `export`; code needs --trust-code
  #   checkpoint: {file: model.pt, config: export.yaml}
  # served:                  # a server that speaks the v2 protocol
  #   url: http://127.0.0.1:8000
  #   model: moh

# Labelled samples that no alternative was trained on, or chosen by.
inputs: [held-out.npz]
labels: labels.npy

# How much an alternative may lose against the reference and still win, in units of the metric.
quality:
  metric: top-1
  may_lose: 0.005            # half a point

# How much time it has to save at least, as a share of the reference's, at each of the sizes.
latency:
  quantile: 0.5
  at_least: 0.10
sizes:
- {batch: 1}
- {batch: 8}

# When to stop. A look more than planned makes a wrong win likelier than the confidence says:
# with looks: 3 the second one is `--earlier first.json`, with more `seconds` here, or with more
# samples in the same files.
confidence: 0.95
looks: 1
seconds: 20
"""
