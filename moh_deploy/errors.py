"""Every error that moh-deploy raises on purpose, and the exit code each one ends the command with.

MoHDeployError
├─ ConfigError         2   bad option or YAML; names the file and the key path
├─ CheckpointError     3   unreadable, untrusted, missing or unexpected keys
├─ ExportError         4   the model cannot be traced, rewritten or translated
├─ PackageError        5   not a package, wrong format version, hash mismatch, not writable
├─ BackendError        6   runtime unavailable, unsupported or failed
└─ ValidationError     1   the job ran and the answer is no: a parity gate failed

Any other exception is a bug of moh-deploy: it keeps its traceback and ends the command with 70
(EX_SOFTWARE of sysexits.h), never with 1, which means that the answer is no.
"""


class MoHDeployError(Exception):
    """Base class: one clean message, an optional hint that names the next step, an exit code.

    Args:
        message: What was wrong: what, got, expected.
        hint: The next step for the user, or None where there is nothing to add.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class ConfigError(MoHDeployError):
    exit_code = 2


class CheckpointError(MoHDeployError):
    exit_code = 3


class ExportError(MoHDeployError):
    exit_code = 4


class PackageError(MoHDeployError):
    exit_code = 5


class BackendError(MoHDeployError):
    exit_code = 6


class ValidationError(MoHDeployError):
    exit_code = 1
