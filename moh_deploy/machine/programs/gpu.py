"""Asks NVIDIA's driver what GPUs there are."""

from __future__ import annotations

from dataclasses import astuple

from moh_deploy.runtime.tensorrt.driver import read_driver


def main() -> dict[str, object]:
    driver = read_driver()
    return {"cuda": driver.cuda, "gpus": [astuple(gpu) for gpu in driver.gpus]}
