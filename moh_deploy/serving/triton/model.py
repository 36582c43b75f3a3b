"""Run the package beside this file by moh-deploy, in Triton's Python backend."""

from moh_deploy.serving.triton.python_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
