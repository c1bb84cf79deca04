"""The command line: `transferlab COMMAND ...`, or `python -m transferlab COMMAND ...`."""

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

from . import __doc__ as about
from . import __version__, commands
from .errors import UserError


def find_commands() -> dict[str, ModuleType]:
    """The commands by name: every module of `transferlab.commands` that can be run."""
    found = {}
    for info in pkgutil.iter_modules(commands.__path__):
        module = importlib.import_module(f"{commands.__name__}.{info.name}")
        if hasattr(module, "run"):
            found[info.name] = module
    return found


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands, an example beside each option."""
    parser = argparse.ArgumentParser(prog="transferlab", description=about)
    version = f"transferlab {__version__}"
    parser.add_argument("--version", action="version", version=version)
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in find_commands().items():
        described = " ".join((command.__doc__ or "").split()).replace("%", "%%")
        text = described.partition(": ")[2].partition(". ")[0]
        own = parsers.add_parser(name, help=text, description=described)
        command.add_options(own)
        own.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command -> exit code: its own (0, or 1 after an audit that found something serious),
    or 2 after a `UserError`, whose one line goes to stderr."""
    try:
        options = make_parser().parse_args(arguments)
        return options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: what was finished is kept", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
