"""The command line `relay`."""

import os
import sys

# `python -m` puts the current directory before the standard library, so a json.py in it would be executed. This must
# come before any other import, even `from __future__`. If the current directory was deleted, Python adds nothing.
if (
    __name__ == "__main__"
    and not sys.flags.safe_path
    and os.path.isdir(sys.path[0])
    and os.path.samefile(sys.path[0], os.curdir)
):
    del sys.path[0]

import importlib
from collections.abc import Mapping
from typing import Final

import click

from relay import __version__
from relay.cli.exits import USAGE, ExitWith, code_of

# A command is imported when it is called: `relay config` does not load a server, nor `serve` a client.
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "up": ("relay.cli.up:up", "Run everything on this machine."),
    "serve": ("relay.cli.serve:serve", "Run the API."),
    "deliver": ("relay.cli.deliver:deliver", "Run the delivery loop."),
    "migrate": ("relay.cli.migrate:migrate", "Bring the database's tables up to date."),
    "keys": ("relay.cli.keys:keys", "Create, list, rotate and revoke API keys."),
    "config": ("relay.cli.config:config", "Print the settings in force, secrets masked."),
}


_EPILOG: Final = (
    "Settings are environment variables. `relay config` prints those in force. The page docs/settings.md in the "
    "repository and in the source archive describes each."
)


class Commands(click.Group):
    """A click group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that `args` names. The error for an unknown one suggests the nearest."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as unknown:
            # click suggests only from commands that are imported.
            raise click.NoSuchCommand(unknown.command_name, possibilities=COMMANDS, ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(
    cls=Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True
)
@click.version_option(__version__, message="relay %(version)s")
@click.pass_context
def relay(ctx: click.Context) -> None:
    """Receive events over HTTP, store them, and deliver them as signed webhooks."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Run the command line and exit with its code (contract, section 9)."""
    # Not in standalone mode, click returns the exit code of --help and --version, which is 0.
    _leave(code_of(_run))


def _run() -> None:
    _leave_deleted_directory(os.environ)
    relay.main(prog_name="relay", standalone_mode=False)


def _leave_deleted_directory(environ: Mapping[str, str]) -> None:
    """Change to `/` if the current directory was deleted. Some libraries read it needlessly and fail.

    Raises:
        ExitWith: the data directory is relative to it.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        data_dir = environ.get("RELAY_DATA_DIR", "").strip()
        if data_dir and not os.path.isabs(data_dir):
            line = f"RELAY_DATA_DIR: {data_dir!r} is relative, and the current directory was deleted: use a full path"
            raise ExitWith(USAGE, line) from None
        os.chdir("/")


def _leave(code: int) -> None:
    """End the process, without Python's finalization if Granian has run. A Granian thread that requests the GIL during
    finalization is unwound through Rust, which aborts (seen once in 130 stops, as exit code -6).
    """
    if "granian" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        # Imported late, because `--help` logs nothing.
        from relay.telemetry import logs

        logs.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
