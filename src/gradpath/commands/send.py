"""``gradpath send``: sends what runs have left on this machine while their store was away."""

from gradpath.commands.arguments import Parser
from gradpath.schema import locations
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import printable
from gradpath.tracking import store
from gradpath.tracking.journal import Journal
from gradpath.tracking.spool import left
from gradpath.tracking.spooling import send_left


def send(arguments: list[str]) -> int:
    """The command; 0 where nothing is left, 1 where something could not be sent."""
    parser = Parser("gradpath send", description="Sends the runs that wait on this machine for their server.")
    parser.add_argument("--uri", help="MLflow tracking URI (the ones that the runs name)")
    if {"-h", "--help"} & set(arguments):
        parser.print_help()
        return 0
    options = parser.parse_args(arguments)
    chosen = store.tracking_uri(options.uri)
    named = {journal.uri for journal in left() if isinstance(journal, Journal)}
    problems = [line for line in left() if isinstance(line, str)]
    if options.uri is not None:
        named &= {store.shown(chosen)}
    for uri in sorted(named):
        if "***@" in uri and uri != store.shown(chosen):
            raise ConfigError(f"{uri}: gradpath send --uri with the whole address, since no password is kept")
        client = store.connect(chosen if uri == store.shown(chosen) else uri)
        count, lines = send_left(client)
        print(f"sent to {uri}: {count} run{'s'[: count != 1]}")
        problems += [line for line in lines if line not in problems]
    if not named:
        print(f"nothing to send in {locations.spool()}")
    for line in problems:
        print(printable(line))
    return int(bool(problems))
