"""Runs the cases that test_runtimes.py wrote, in whatever ONNX Runtime this Python has.

    python runtime_probe.py FOLDER LIBRARY

Needs onnxruntime and numpy only. Prints one JSON object: version, and per instruction set how many
cases are right on a kernel; or why the library was refused.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def main(folder: Path, library: str) -> None:
    found: dict[str, object] = {"version": ort.__version__}
    try:
        for name in json.loads((folder / "instruction_sets.json").read_text()):
            problems = [_problem(case, library, name) for case in sorted(folder.glob("*.npz"))]
            found[name] = {"cases": len(problems), "problems": [p for p in problems if p]}
    except _Refused as refusal:
        found["refused"] = str(refusal)
    print(json.dumps(found))


class _Refused(Exception):
    """The library could not be registered."""


def _problem(case: Path, library: str, instruction_set: str) -> str | None:
    """Return what is wrong with a case, or None."""
    arrays = dict(np.load(case))
    session = _session(case, library, instruction_set)
    inputs = {given.name: arrays[given.name] for given in session.get_inputs()}
    got = session.run(None, inputs)[0].astype(np.float64)
    if not _ran_a_kernel(session):
        return f"{case.stem}: the function body ran"
    reference, bound = arrays["reference"], arrays["bound"]
    right = (np.abs(got - reference) <= bound) & ((reference != 0) | (got == 0))
    if not right.all():
        return f"{case.stem}: {int((~right).sum())} of {right.size} elements are wrong"
    return None


def _session(case: Path, library: str, instruction_set: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    options.enable_profiling = True
    options.profile_file_prefix = str(case.with_suffix(""))
    options.add_session_config_entry("moh.instruction_set", instruction_set)
    try:
        options.register_custom_ops_library(library)
    except Exception as error:
        raise _Refused(error) from error
    model = str(case.with_suffix(".onnx"))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _ran_a_kernel(session: ort.InferenceSession) -> bool:
    """Ask the profile which ops ran: every version of ONNX Runtime writes one."""
    profile = Path(session.end_profiling())
    events = json.loads(profile.read_text())
    profile.unlink()
    ran = {event.get("args", {}).get("op_name") for event in events}
    return any(str(name).startswith("MoH") for name in ran)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
