"""Accuracy parity: a task's metric on both sides, the difference, and whether it may be."""

from moh_deploy.validate.accuracy.metric_parity import ChangedSample, MetricParity, MetricVerdict

__all__ = ["ChangedSample", "MetricParity", "MetricVerdict"]
