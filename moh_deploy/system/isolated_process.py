"""The process of `isolated`. It imports nothing before it can be interrupted without a word."""

import gc
import sys
from pathlib import Path

_NEW_OBJECTS = 10_000


def collect_rarely() -> None:
    """Look for unreachable cycles whenever 10,000 objects are new, for the rest of the process.

    After 700, which is Python's default, looking took 1.6 of the 20 s of an export, most of it
    while modules were imported, and the model traced and translated.
    """
    gc.set_threshold(_NEW_OBJECTS)


if __name__ == "__main__":
    try:
        collect_rarely()
        from moh_deploy.system.isolate import carry_out, carry_out_later

        if len(sys.argv) > 2:  # started early
            carry_out_later(*sys.argv[2:])
        else:
            carry_out(Path(sys.argv[1]))
    except KeyboardInterrupt:  # The process that started this one says so.
        sys.exit(130)
