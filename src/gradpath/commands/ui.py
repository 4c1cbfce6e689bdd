"""Opens the MLflow UI on the store, which shows the charts."""

import contextlib
import errno
import os
import socket
import warnings
from types import FrameType

from gradpath.commands.signals import Terminated, terminable
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import printable
from gradpath.tracking import store


def links(uri: str | None, base: str) -> list[tuple[str, str]]:
    """(MLflow experiment, address of its charts) for every experiment that holds runs.

    Without ``workflowType`` the UI opens in its mode for language models, which shows no curve at
    all.
    """
    client = store.connect(uri, create=False)
    addresses = []
    for experiment in client.search_experiments(order_by=["last_update_time DESC"]):
        if client.search_runs([experiment.experiment_id], max_results=1):
            query = "compareRunsMode=CHART&workflowType=machine_learning"
            addresses.append(
                (printable(experiment.name, 80), f"{base}/#/experiments/{experiment.experiment_id}/runs?{query}")
            )
    return addresses


def serve(uri: str | None, host: str, port: int) -> int:
    """Prints the deep links and serves the MLflow UI until interrupted. It runs in this process, so
    that nothing is left running when the process ends or is killed. Raises ConfigError where the
    address cannot be used.
    """
    resolved = store.tracking_uri(uri)
    served = not resolved.startswith(store.SERVERS)
    if served:
        _listens(host, port)
    base = f"http://{f'[{host}]' if ':' in host else host}:{port}" if served else resolved.rstrip("/")
    charts = links(uri, base)
    print("MLflow UI:" if charts else "MLflow UI: no run yet; start one with: gradpath run")
    for name, link in charts:
        print(f"  {name:<16} {link}")
    if not served:
        return 0
    print("Stop it with Ctrl-C.", flush=True)
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    from mlflow.server import constants

    # As `mlflow ui` configures its servers, which are separate processes and outlive it.
    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = store.backend_uri(resolved)
    os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
    if root := store.artifact_root(resolved):
        os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = root
    warnings.simplefilter("ignore", DeprecationWarning)  # a warning among the libraries of MLflow's server
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            "mlflow.server.fastapi_app:app", host=host, port=port, log_level="warning", timeout_graceful_shutdown=2
        )
    )
    received: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)
        server.should_exit = True

    # The server handles Ctrl-C, the usual way to end it, and SIGTERM itself, and raises them again
    # once it has closed.
    with contextlib.suppress(KeyboardInterrupt), terminable(end):
        server.run()
    if received:
        raise Terminated(received[0])
    return 0


def _listens(host: str, port: int) -> None:
    """Raises ConfigError where no server can listen at this address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name != "nt":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except UnicodeError:
        raise ConfigError(f"--host {host}: is no name of a host") from None
    except socket.gaierror as error:
        raise ConfigError(f"--host {host}: {error.strerror}") from None
    except OSError as error:
        hint = "; choose another port, as in --port 5001" if error.errno in (errno.EADDRINUSE, errno.EACCES) else ""
        message = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(f"--host {host} --port {port}: {message}{hint}") from None
