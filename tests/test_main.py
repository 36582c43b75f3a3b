import signal

import pytest

from tests.cli.run_cli import run_python, start_python

_LOADING = """
import signal, sys
class Loading:
    def find_spec(self, name, path=None, target=None):
        if name == "moh_deploy.cli":
            {interrupt}
sys.meta_path.insert(0, Loading())
from moh_deploy.__main__ import main
sys.argv = ["moh-deploy", "--version"]
main()
"""
_INTERRUPTS = {
    "at an import": "signal.raise_signal(signal.SIGINT)",
    "in a module that makes an error of it": (
        "try: signal.raise_signal(signal.SIGINT)\n"
        "            except KeyboardInterrupt: raise ImportError('initialization failed')"
    ),
}


@pytest.mark.parametrize("where", _INTERRUPTS)
def test_interrupt_while_modules_are_loaded_ends_with_130_and_no_traceback(where: str):
    ended = run_python("-c", _LOADING.format(interrupt=_INTERRUPTS[where]))
    assert (ended.exit_code, ended.out, ended.err) == (130, "", "interrupted\n")


def test_ignored_interrupt_stays_ignored():
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code += _LOADING.format(interrupt=_INTERRUPTS["at an import"])
    ended = run_python("-c", code)
    assert (ended.exit_code, ended.out.splitlines()[0]) == (0, "moh-deploy 0.2.0")


@pytest.mark.parametrize("module", ["click", "moh_deploy.cli.group"])
def test_real_interrupt_during_start_is_no_traceback(module: str):
    code = "import sys, time\n"
    code += "class Slow:\n    def find_spec(self, name, path=None, target=None):\n"
    code += f"        if name == {module!r}: print('loading', flush=True); time.sleep(60)\n"
    code += "sys.meta_path.insert(0, Slow())\nfrom moh_deploy.__main__ import main\nmain()"
    process = start_python("-c", code)
    assert process.stdout.readline() == "loading\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted\n")


def test_nothing_is_loaded_before_interrupts_are_heard():
    code = "import sys, moh_deploy.__main__;"
    code += "print(sorted(name for name in sys.modules if name.startswith('moh')))"
    assert run_python("-c", code).out == "['moh_deploy', 'moh_deploy.__main__']\n"
