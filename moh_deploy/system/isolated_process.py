"""The process of `isolated`. It imports nothing before it can be interrupted without a word."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    try:
        from moh_deploy.system.garbage import collect_rarely

        collect_rarely()
        from moh_deploy.system.isolate import carry_out, carry_out_later

        if len(sys.argv) > 2:  # started early
            carry_out_later(*sys.argv[2:])
        else:
            carry_out(Path(sys.argv[1]))
    except KeyboardInterrupt:  # The process that started this one says so.
        sys.exit(130)
