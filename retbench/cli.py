"""The command line: one verb per experiment file, and ``list``. Imports no torch."""

import os
import sys
from typing import Annotated

import typer

from retbench import __version__
from retbench.devices import devices
from retbench.errors import UsageError
from retbench.registry import check_packages, choose, experiments

LISTS = ("systems", "peers", "sizes", "experiments", "devices")


def main() -> None:
    """The entry point: bad input is one line on stderr and exit status 2, an interrupt is 130."""
    try:
        check_packages()
        status = make_app()(sys.argv[1:] or ["--help"], standalone_mode=False)
    except (UsageError, typer.TyperException) as error:
        text = _with_hint(error) if isinstance(error, typer.TyperException) else str(error)
        # Of the processes that torchrun has started, one says it; as ranks.is_follower, which imports models.
        if "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0":
            print(f"retbench: {' '.join(text.split())}", file=sys.stderr)
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    sys.exit(status)


def make_app() -> typer.Typer:
    """The application, with a verb for every experiment."""
    # Imported late: they import models, which check_packages looks at first.
    from retbench import (
        compare,
        doctor,
        gate_command,
        generate,
        gguf_import,
        history,
        planner,
        report_command,
        reproduce,
        train,
    )

    app = typer.Typer(
        help="Measures RetNet against Transformers and regenerates the paper's tables and figures.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    app.command("list")(_list)
    app.command("history", help=history.__doc__)(history.command)
    app.command("generate", help=generate.__doc__)(generate.command)
    app.command("compare", help=compare.__doc__)(compare.command)
    app.command("env", help=doctor.__doc__)(doctor.command)
    app.command("gate", help=gate_command.__doc__)(gate_command.command)
    app.command("plan", help=planner.__doc__)(planner.command)
    app.command("report", help=report_command.__doc__)(report_command.command)
    app.command("train", help=train.__doc__)(train.command)
    app.command("reproduce", help=reproduce.__doc__)(reproduce.command)
    peers = typer.Typer(help="Other projects' models, to be measured beside ours.", rich_markup_mode=None)
    peers.command("install")(_install_peers)
    app.add_typer(peers, name="peers")
    importers = typer.Typer(help="Makes checkpoint folders of other files.", rich_markup_mode=None)
    importers.callback()(_options_of_import)
    importers.command("gguf", help=gguf_import.command.__doc__)(gguf_import.command)
    app.add_typer(importers, name="import")
    for name, module in experiments().items():
        app.command(name.replace("_", "-"), help=module.__doc__)(module.command)
    return app


def _with_hint(error: typer.TyperException) -> str:
    """What the parser says, and what is allowed: the verbs, or where the options of the verb are listed."""
    context = getattr(error, "ctx", None)
    verbs = context and getattr(context.command, "commands", None)
    path = context.command_path if context else "retbench VERB"
    allowed = f"verbs are {', '.join(verbs)}" if verbs else f"see: {path} --help"
    return f"{error.format_message().rstrip('.')}; {allowed}"


def _show_version(show: bool) -> None:
    if show:
        typer.echo(f"retbench {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """The options before a verb."""


def _options_of_import() -> None:
    """Nothing: without it typer would take the one kind of file for the verb itself."""


def _list(
    what: Annotated[str, typer.Argument(help=f"One of {', '.join(LISTS)}; all of them by default.")] = "all",
    size: Annotated[str, typer.Option(help="Sizes at which `list systems` shows parameters and state.")] = "small",
) -> None:
    """Lists systems, peers, sizes, experiments and devices; systems alone with parameters, state and forms."""
    chosen = choose(what, LISTS, "list")
    if chosen == ["systems"]:
        _show_systems(size)
        return
    for name in chosen:
        entries = _ENTRIES[name]()
        width = max(map(len, entries))
        lines = [f"{entry:<{width}}  {text}" for entry, text in entries.items()]
        typer.echo("\n".join(lines if len(chosen) == 1 else [f"{name}:", *(f"  {line}" for line in lines), ""]))


def _show_systems(size: str) -> None:
    from models.sizes import SIZES  # imported late, as in _systems
    from retbench.report.tables import render
    from retbench.systems import systems_table

    render(systems_table(choose(size, SIZES, "size")), "table", sys.stdout)


def _install_peers(
    names: Annotated[list[str] | None, typer.Argument(help="Peers; all by default. See: retbench list peers.")] = None,
) -> None:
    """Installs peers from the package index, each in an environment of its own that borrows our torch."""
    from models.catalogue import peers
    from retbench.peers import install, installation, venv_of

    for name in choose(",".join(names or peers()), peers(), "peer"):
        peer = peers()[name]
        typer.echo(f"{peer.name}: {installation(peer)}")
        install(peer)
        typer.echo(f"{peer.name}: computes what {peer.twin} computes; installed in {venv_of(peer).folder}")


def _systems() -> dict[str, str]:
    from models.catalogue import systems  # imported late: another package of that name must be reported, not loaded

    return {name: system.summary for name, system in systems().items()}


def _sizes() -> dict[str, str]:
    from models.sizes import SIZES

    return {name: f"d_model {size.d_model}, {size.n_layers} layers" for name, size in SIZES.items()}


def _experiments() -> dict[str, str]:
    lines = {name: (module.__doc__ or "").splitlines()[0] for name, module in experiments().items()}
    return {name.replace("_", "-"): line for name, line in lines.items()}


def _devices() -> dict[str, str]:
    lines = {}
    for name, device in devices().items():
        reason = device.unavailable()
        facts = reason or ", ".join(f"{key} {value}" for key, value in device.describe().items())
        lines[name] = f"not available: {facts}" if reason else facts
    return lines


def _peers() -> dict[str, str]:
    from models.catalogue import peers
    from retbench.peers import describe

    return {name: describe(peer) for name, peer in peers().items()}


_ENTRIES = {"systems": _systems, "peers": _peers, "sizes": _sizes, "experiments": _experiments, "devices": _devices}

if __name__ == "__main__":
    main()
