"""What is started instead of the interpreter: asks the server beside it, and waits.

It hands on signals, and ends as the other process did. The interpreter itself is called for what a
fork cannot give: options, or a search path of the dynamic linker.
"""

import os
import sys

SIGNAL_MASK = (1, 2, 15)  # SIGHUP, SIGINT, SIGTERM


def main() -> None:
    arguments, is_watched = sys.argv[1:], False
    if arguments[:2] == ["-X", "faulthandler"]:
        arguments, is_watched = arguments[2:], True
    has_script = bool(arguments) and (arguments[0] in ("-m", "-c") or arguments[0][0] != "-")
    if not has_script or any(name.startswith("LD_") for name in os.environ):
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    end_like(ask({"arguments": arguments, "is_watched": is_watched, "executable": sys.argv[0]}))


def ask(request: dict[str, object]) -> int:
    """Let the server fork, and return how the process ended: as `Popen.returncode` does."""
    import json
    import signal
    import socket

    ignored = [item for item in SIGNAL_MASK if signal.getsignal(item) is signal.SIG_IGN]
    # One that comes before there is a process to hand it to has to wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNAL_MASK)
    files = open_files()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.path.join(os.path.dirname(__file__), "socket"))
        own = {"directory": os.getcwd(), "environment": dict(os.environ)}
        text = json.dumps({**request, **own, "files": files, "ignored": ignored}).encode()
        socket.send_fds(server, [len(text).to_bytes(4, "big")], files)
        server.sendall(text)
        process = int.from_bytes(server.recv(4), "big")
        for item in set(SIGNAL_MASK) - set(ignored):
            signal.signal(item, lambda number, _: os.kill(process, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNAL_MASK)
        return int.from_bytes(server.recv(4), "big", signed=True)


def open_files() -> list[int]:
    """Return the numbers of all files that this process was given."""
    listed = [int(name) for name in os.listdir("/proc/self/fd")]
    # The listing itself is a file, too, and closed by now.
    return sorted(item for item in listed if os.path.exists(f"/proc/self/fd/{item}"))


def end_like(return_code: int) -> None:
    if return_code < 0:
        import resource
        import signal

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -return_code != signal.SIGKILL:
            signal.signal(-return_code, signal.SIG_DFL)
        os.kill(os.getpid(), -return_code)
    os._exit(return_code)


main()
