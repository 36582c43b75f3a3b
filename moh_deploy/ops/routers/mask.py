"""Mask routing: the k best heads run, with gates of 1."""

from moh_deploy.ops.routers.form import RouterForm

MASK = RouterForm("mask", "the best heads, with gates of 1")
