"""Opens the MLflow UI on the store, where its charts are."""

import os
import subprocess
import sys

from gradpath import store
from gradpath.terminal import printable


def links(uri: str | None, base: str) -> list[tuple[str, str]]:
    """(MLflow experiment, address of its charts) for every experiment that holds runs.

    Without ``workflowType`` the UI opens in its mode for language models, which shows no curve at all.
    """
    client = store.connect(uri, create=store.own_is_missing(uri))
    found = []
    for experiment in client.search_experiments(order_by=["last_update_time DESC"]):
        if client.search_runs([experiment.experiment_id], max_results=1):
            query = "compareRunsMode=CHART&workflowType=machine_learning"
            found.append(
                (printable(experiment.name, 80), f"{base}/#/experiments/{experiment.experiment_id}/runs?{query}")
            )
    return found


def serve(uri: str | None, host: str, port: int) -> int:
    """Starts ``mlflow ui`` with one worker, prints the deep links, and runs until interrupted."""
    if (resolved := store.tracking_uri(uri)).startswith(store.SERVERS):
        base, command = resolved.rstrip("/"), None
    else:
        base = f"http://{host}:{port}"
        command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port), "--workers", "1"]
        if root := store.artifact_root(resolved):
            command += ["--default-artifact-root", root]
    found = links(uri, base)
    print("MLflow UI:" if found else "MLflow UI: no run yet; start one with: gradpath run")
    for name, link in found:
        print(f"  {name:<16} {link}")
    if command is None:
        return 0
    print("Stop it with Ctrl-C.", flush=True)
    # By the environment and not as an argument, which every user of the machine can read: it may hold a password.
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": store.backend_uri(resolved)}
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    try:
        return subprocess.run(command, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return 0
