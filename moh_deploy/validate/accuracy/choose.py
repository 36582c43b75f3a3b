"""Choose the metrics that score an output: those asked for, or the one that the labels tell."""

from __future__ import annotations

from collections.abc import Sequence

from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo
from moh_deploy.system.npz import Array
from moh_deploy.system.suggest import did_you_mean
from moh_deploy.system.user_code import find_callable, user_code
from moh_deploy.validate.accuracy.class_labels import Labelling, check_integers, check_range
from moh_deploy.validate.accuracy.class_metrics import Perplexity, TopK
from moh_deploy.validate.accuracy.metrics import Metric
from moh_deploy.validate.accuracy.task import BUILT_IN_METRICS, Task
from moh_deploy.validate.accuracy.user_metric import ScoreFunction, UserMetric


def choose_metrics(task: Task, labels: Array, outputs: Sequence[TensorInfo]) -> tuple[Metric, ...]:
    """Return the metrics that are asked for, or the one that the shape of the labels tells.

    Args:
        task: What was asked for.
        labels: Of all samples, or of some.
        outputs: The model's.

    Raises:
        ConfigError: A metric is unknown, or labels and outputs are not what it is of.
    """
    # [N] labels are classes of samples, [N, S] tokens of sequences.
    names = task.metrics or (_by_shape(labels),)
    if len(set(names)) != len(names):
        raise ConfigError(f"a metric is named twice: {', '.join(map(_name, names))}.")
    # Only of a function that the user wrote it is unknown whether more is better.
    functions = [name for name in names if callable(name) or ":" in name]
    if task.better is not None and not functions:
        raise ConfigError(
            f"better is '{task.better}', but which values of {', '.join(map(_name, names))} are"
            " better is known: leave it out."
        )
    return tuple(_metric(name, task, labels, outputs) for name in names)


def _by_shape(labels: Array) -> str:
    if labels.ndim > 2:
        raise ConfigError(
            f"labels are {list(labels.shape)}, which tells no metric: [N] is scored by top-1,"
            " [N, S] by perplexity.",
            hint="Name one of your own: --metric MODULE:FUNCTION.",
        )
    return "top-1" if labels.ndim == 1 else "perplexity"


def _metric(
    name: str | ScoreFunction, task: Task, labels: Array, outputs: Sequence[TensorInfo]
) -> Metric:
    if callable(name) or ":" in name:
        return _user_metric(name, task, outputs)
    if name not in BUILT_IN_METRICS:
        raise ConfigError(
            f"metric '{name}' is none of {', '.join(BUILT_IN_METRICS)}, nor MODULE:FUNCTION.",
            hint=did_you_mean(name, BUILT_IN_METRICS) or None,
        )
    check_integers(labels)
    _check_rank(name, labels, task.labelling)
    info = _scored_output(task.output, labels, outputs)
    # A dynamic number of classes is checked batch by batch instead, in `Labelling.check`.
    if isinstance(info.shape[-1], int):
        check_range(labels, info.shape[-1], info.name, task.labelling.ignore)
    if name == "perplexity":
        return Perplexity(info.name, task.labelling)
    return TopK(int(name.removeprefix("top-")), info.name, task.labelling)


def _user_metric(
    name: str | ScoreFunction, task: Task, outputs: Sequence[TensorInfo]
) -> UserMetric:
    if task.better is None:
        raise ConfigError(
            f"whether higher or lower scores of metric '{_name(name)}' are better is not said.",
            hint="Say it: --better higher, or --better lower.",
        )
    if task.output is not None:
        _named(task.output, outputs)
    if callable(name):
        return UserMetric(_name(name), task.better, name, task.output)
    with user_code(task.code_dirs):
        found = find_callable(name, what="metric", code_dirs=task.code_dirs)
    return UserMetric(name, task.better, found, task.output)


def _name(metric: str | ScoreFunction) -> str:
    if isinstance(metric, str):
        return metric
    module = getattr(metric, "__module__", type(metric).__module__)
    return f"{module}:{getattr(metric, '__qualname__', type(metric).__qualname__)}"


def _check_rank(name: str, labels: Array, labelling: Labelling) -> None:
    shape = list(labels.shape)
    if name == "perplexity" and labels.ndim != 2:
        raise ConfigError(f"labels are {shape}; perplexity is of [N, S], a token at each position.")
    if labels.ndim not in (1, 2):
        raise ConfigError(f"labels are {shape}; {name} is of [N], or of [N, S] tokens.")
    if labelling.shifted and labels.ndim != 2:
        raise ConfigError(f"labels are {shape}, and only those of [N, S] tokens can be shifted.")


def _scored_output(name: str | None, labels: Array, outputs: Sequence[TensorInfo]) -> TensorInfo:
    """Return the output with an axis of classes behind those of the labels."""
    fitting = [output for output in outputs if _fits(output, labels)]
    if name is not None:
        found = _named(name, outputs)
        if found not in fitting:
            raise ConfigError(_no_fit(f"output '{name}' is", [found], labels), hint=_hint(labels))
        return found
    # Taking the first of several would score something the user did not mean.
    if len(fitting) != 1:
        if not fitting:
            raise ConfigError(_no_fit("outputs are", outputs, labels), hint=_hint(labels))
        names = ", ".join(f"'{info.name}'" for info in fitting)
        raise ConfigError(
            f"labels {list(labels.shape)} could be those of outputs {names}.",
            hint=f"Say which: --label-output {fitting[0].name}.",
        )
    return fitting[0]


def _named(name: str, outputs: Sequence[TensorInfo]) -> TensorInfo:
    for output in outputs:
        if output.name == name:
            return output
    names = [output.name for output in outputs]
    raise ConfigError(
        f"there is no output '{name}' to score: the model has {', '.join(names)}.",
        hint=did_you_mean(name, names) or None,
    )


def _fits(output: TensorInfo, labels: Array) -> bool:
    if "float" not in output.dtype or len(output.shape) != labels.ndim + 1:
        return False
    # The batch axis is left out, since labels of all samples are cut into batches; [N, S, C] has to
    # fit [N, S] between it and the classes.
    pairs = zip(output.shape[1:-1], labels.shape[1:], strict=True)
    return all(isinstance(size, str) or size == of_labels for size, of_labels in pairs)


def _no_fit(start: str, outputs: Sequence[TensorInfo], labels: Array) -> str:
    shapes = ", ".join(f"{output.dtype}[{', '.join(map(str, output.shape))}]" for output in outputs)
    letters = "NS"[: labels.ndim]
    return (
        f"{start} {shapes}; labels {list(labels.shape)} take one of floats,"
        f" [{', '.join((*letters, 'classes'))}]."
    )


def _hint(labels: Array) -> str | None:
    if labels.ndim == 2 and labels.shape[1] == 1:
        return "Labels with an axis of size 1 are not those of one class a sample: labels[:, 0]."
    if labels.ndim == 2:
        return "One-hot labels are no numbers of classes: labels.argmax(axis=1)."
    return "Another form is scored by a function of yours: --metric MODULE:FUNCTION."
