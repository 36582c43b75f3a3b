"""The program of the process in which an original model is loaded and runs for the first time."""

from moh_deploy.frontend.prove.eager import EagerTask
from moh_deploy.perf.bench.fresh_run import answer

if __name__ == "__main__":
    answer(EagerTask)
