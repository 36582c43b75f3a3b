"""Do what a CI does with a description of steps: each `run` in bash, in order, until one fails.

Steps of other actions are noted, not run.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]

_EXPRESSION = re.compile(r"\$\{\{\s*(.+?)\s*\}\}")


@dataclass
class Outcome:
    """How a job ended.

    Attributes:
        exit_code: Of the first step that failed; 0 if none did.
        log: What the steps printed.
        summary: What GitHub would show of the job.
        outputs: The action's outputs.
        uses: Other actions that would have run, with their inputs.
        installed: Arguments of `pip install`.
    """

    exit_code: int = 0
    log: str = ""
    summary: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    uses: dict[str, dict[str, str]] = field(default_factory=dict)
    installed: list[str] = field(default_factory=list)


@dataclass
class CiRunner:
    """A machine with an empty workspace, whose `pip` only notes what it should install.

    Its `git` clones this checkout, whatever is named, and its `apt-get` does nothing.

    Attributes:
        root: An empty directory for all of it.
    """

    root: Path

    def __post_init__(self) -> None:
        for name in ("bin", "temp", "workspace"):
            (self.root / name).mkdir()
        self._script("python3", _PYTHON3)
        self._script("git", '[[ "$1" != clone ]] || ln -s "$REPOSITORY" "${@: -1}"\n')
        self._script("apt-get", "")
        self._script("pip", 'printf "%s\\n" "$@" >>"$INSTALLED"\n')

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    def run_action(self, **inputs: str) -> Outcome:
        """Run `action.yml` as GitHub's runner does. A `_` in a name stands for `-`."""
        action = yaml.safe_load((REPOSITORY / "action.yml").read_text())
        values = {name: item.get("default", "") for name, item in action["inputs"].items()}
        given = {name.replace("_", "-"): value for name, value in inputs.items()}
        assert given.keys() <= values.keys()
        return self._steps(action, {**values, **given})

    def run_gitlab_job(self, job: Mapping[str, Any], **variables: str) -> Outcome:
        """Run a job of a `.gitlab-ci.yml` in a fresh checkout."""
        environment = {**job["variables"], **variables}
        script = "\n".join([*job.get("before_script", ()), *job["script"]])
        outcome = Outcome()
        self._bash(script, environment, outcome)
        return outcome

    def environment(self) -> dict[str, str]:
        """Return the variables of this process, with the machine's own commands first."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("GITHUB_", "MOH_", "RUNNER_"))
        }
        return {
            **inherited,
            "PATH": f"{self.root / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "REAL_PYTHON": sys.executable,
            "REPOSITORY": str(REPOSITORY),
            "INSTALLED": str(self.root / "temp" / "installed"),
        }

    def _steps(self, action: Any, inputs: Mapping[str, str]) -> Outcome:
        outcome, step_outputs = Outcome(), dict[str, str]()

        def filled(text: str) -> str:
            return _EXPRESSION.sub(lambda found: inputs[found[1].removeprefix("inputs.")], text)

        for step in action["runs"]["steps"]:
            if not _is_due(step.get("if", "success()"), inputs, outcome.exit_code):
                continue
            if "uses" in step:
                outcome.uses[step["uses"].split("@")[0]] = {
                    name: filled(str(value)) for name, value in step["with"].items()
                }
                continue
            assert step["shell"] == "bash"
            assert "${{" not in step["run"], "text of a user must not become text of a script"
            written = self._bash(
                step["run"],
                {name: filled(value) for name, value in step.get("env", {}).items()},
                outcome,
                GITHUB_ACTIONS="true",
                GITHUB_ACTION_PATH=str(REPOSITORY),
                RUNNER_TEMP=str(self.root / "temp"),
            )
            step_outputs |= {f"steps.{step.get('id')}.outputs.{k}": v for k, v in written.items()}
        outcome.outputs = {
            name: step_outputs.get(_only_expression(output["value"]), "")
            for name, output in action["outputs"].items()
        }
        return outcome

    def _bash(
        self, script: str, environment: Mapping[str, str], outcome: Outcome, **github: str
    ) -> dict[str, str]:
        """Run a script, note how it went, and return the outputs that it wrote."""
        files = {name: self.root / "temp" / name for name in ("summary", "output", "installed")}
        for file in files.values():
            file.write_text("")
        if github:
            github["GITHUB_STEP_SUMMARY"] = str(files["summary"])
            github["GITHUB_OUTPUT"] = str(files["output"])
        finished = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=self.workspace,
            env={**self.environment(), **github, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        outcome.exit_code = outcome.exit_code or finished.returncode
        outcome.log += finished.stdout
        outcome.summary += files["summary"].read_text()
        outcome.installed += files["installed"].read_text().splitlines()
        return dict(line.split("=", 1) for line in files["output"].read_text().splitlines())

    def _script(self, name: str, text: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\nset -euo pipefail\n{text}")
        path.chmod(0o755)


_PYTHON3 = """
if [[ "${1:-}" == -m && "${2:-}" == venv ]]; then
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
elif [[ "${1:-}" == -m && "${2:-}" == pip ]]; then
    printf '%s\\n' "${@:4}" >>"$INSTALLED"
else
    exec "$REAL_PYTHON" "$@"
fi
"""


def _only_expression(text: str) -> str:
    found = _EXPRESSION.fullmatch(text)
    return found[1]


def _is_due(condition: str, inputs: Mapping[str, str], exit_code: int) -> bool:
    """Evaluate `[always() &&] inputs.NAME != ''`; without a status function, `success()` holds."""
    terms = condition.split(" && ")
    if "always()" not in terms and exit_code:
        return False
    names = [term.removesuffix(" != ''").removeprefix("inputs.") for term in terms]
    return all(inputs[name] for name in names if name not in ("always()", "success()"))
