"""`--install-completion`: let a shell complete commands, options and their choices."""

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from moh_deploy.errors import ConfigError, PackageError

_SHELLS = ("bash", "zsh", "fish")


def install_completion_option(group: click.Group) -> None:
    """Give a group the option."""
    group.params.append(
        click.Option(
            ["--install-completion"],
            is_flag=False,
            flag_value="auto",
            type=click.Choice((*_SHELLS, "auto")),
            metavar=f"[{'|'.join(_SHELLS)}]",
            is_eager=True,
            expose_value=False,
            callback=_install,
            help="Let the shell complete commands, options and choices.  [default: your shell]",
        )
    )


def _install(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is None or ctx.resilient_parsing:
        return
    shell = Path(os.environ.get("SHELL", "")).name if value == "auto" else value
    if shell not in _SHELLS:
        raise ConfigError(
            f"the shell is '{shell}' (SHELL), expected {', '.join(_SHELLS)}.",
            hint="Name one: moh-deploy --install-completion bash.",
        )
    name = str(ctx.info_name)
    kind = get_completion_class(shell)
    assert kind is not None  # of click's own
    script = kind(ctx.command, {}, name, f"_{name.replace('-', '_').upper()}_COMPLETE").source()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    try:
        if shell == "fish":  # reads what lies in this folder
            target = config / "fish/completions" / f"{name}.fish"
            _write(target, script)
        else:
            target = data / name / f"complete.{shell}"
            if shell == "zsh":
                loaded = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }"
                script = f"{loaded}\n{script}"
            _write(target, script)
            _add_line(Path.home() / f".{shell}rc", f". '{target}'  # completion of {name}")
    except OSError as error:
        raise PackageError(f"{error.filename} cannot be written: {error.strerror}.") from error
    click.echo(f"{target} completes {name} in each new {shell}.")
    ctx.exit()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _add_line(path: Path, line: str) -> None:
    """Add a line to a file of settings, once."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if line not in text.splitlines():
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{'' if not text or text.endswith(chr(10)) else chr(10)}{line}\n")
