"""Writes a run into MLflow: the one module that does.

The truth is one artifact, ``gradients/measurements.npz``, the full arrays. Beside it go what the
MLflow UI draws by itself: curves over the lag (metric step = lag) and over training (metric step =
training step), parameters to group by, tags to filter by, and the resolved configuration.
"""

import secrets
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from gradpath.tracking import checkpoint, claims, ending, reserve, spooling, store
from gradpath.tracking.conclusion import conclude
from gradpath.tracking.liveness import process_tags, pulse
from gradpath.tracking.mlflow_metrics import TrainingCurves
from gradpath.tracking.outbox import Outbox
from gradpath.tracking.provenance import code_difference, provenance, source_tags
from gradpath.tracking.readings import Readings
from gradpath.tracking.run_parameters import run_parameters
from gradpath.tracking.unsent import add_note, keep
from gradpath.training.experiment import Experiment
from gradpath.training.loop import Step
from gradpath.training.state import TrainingState


class Recorder:
    """Records one run; a context manager, so that it never stays open whatever happens. ``log``:
    lines about it, which are still being added to.
    """

    def __init__(self, experiment: Experiment, tags: Mapping[str, str], log: Sequence[str] = ()) -> None:
        self.experiment, self._log = experiment, log
        self.client, self.experiment_id = spooling.connect(experiment.tracking)
        self.run_id = ""
        self._tags = {**tags, **source_tags(), **process_tags()}
        self._tags |= {"config_hash": experiment.config_hash, "attempt": secrets.token_hex(8)}
        self._outbox = Outbox(self.client)
        self._create_requested = self._closed = self._continues = False
        self.checkpoints: dict[int, dict[str, NDArray]] = {}
        self._readings, self._curves = Readings(experiment), TrainingCurves(experiment)

    def start(self) -> None:
        """Creates the run, or goes on with one that has ``checkpoints`` and that a kill has ended.
        What is to close it is registered before: a signal may come between any two lines.
        """
        try:
            with store.patience(ending.PATIENCE):
                self.run_id = self._outbox.run_id = self._continued() or store.ask(
                    self.client.tracking_uri, "create a run", self._create
                )
                reserve.keep(self.client.tracking_uri, self.run_id)
                spooling.start_pulse(self.client, self.run_id)
                self._parameters()
        except BaseException as error:
            self._closed = True
            pulse.stop(self.run_id)
            with store.patience(ending.patience_of(error)), suppress(store.StoreError):
                for run_id in [self.run_id] if self.run_id else self._nameless():
                    reserve.terminate(self.client, run_id, ending.status_of(error))
            raise

    def __enter__(self) -> "Recorder":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Sends the rest and closes the run. Where the store does not take it, what was measured is
        kept in a file.
        """
        if self._closed or not self.run_id:
            return
        self._closed = True
        failure = self._close(error)
        if failure is None and not isinstance(error, store.StoreError):
            return
        saved = keep(self.run_id, self._readings.arrays(), self.experiment.resolved())
        refusal = error if isinstance(error, store.StoreError) else failure
        if isinstance(refusal, store.StoreError):
            complete = refusal.with_kept(saved)
            if error is None or error is refusal:
                raise complete from refusal
            print(f"gradpath: {complete}", file=sys.stderr)  # the error that ended the run is the one to be raised
        elif failure is not None and (error is None or not isinstance(failure, Exception)):
            # It came while the run was being closed, before the store had everything.
            tqdm.write(f"gradpath: {store.StoreError(self.experiment.run_name).with_kept(saved)}", file=sys.stderr)
            raise failure
        if isinstance(error, Exception):
            add_note(error, saved)

    def _close(self, error: BaseException | None) -> BaseException | None:
        """Sends what is left and ends the run; what went wrong with that, if anything did."""
        uri, failure = self.client.tracking_uri, None
        if error is not None and not isinstance(error, Exception):
            store.limit_requests(ending.PATIENCE_INTERRUPTED)
        try:
            if isinstance(error, store.UnreachableError):
                raise store.UnreachableError(error.reason)  # another run has waited for it, in vain
            with store.patience(ending.patience_of(error)):
                if error is not None:
                    self.client.set_tag(
                        self.run_id, "error", store.masked(f"{type(error).__name__}: {error}", uri)[:500]
                    )
                self._finish(complete=error is None)
        except BaseException as raised:
            failure = raised
        pulse.stop(self.run_id)
        try:
            if not isinstance(failure, store.UnreachableError):
                with store.patience(ending.patience_of(failure or error)):
                    reserve.terminate(self.client, self.run_id, ending.status_of(error or failure))
                    store.settle(uri)
        except BaseException as raised:
            failure = failure or raised
        return failure

    def withdrawn(self) -> bool:
        """Does another command compute the same? Then a record that holds nothing is deleted."""
        taken = self._continues and claims.taken_since(self.client, self.run_id, self._tags)
        if not taken and not claims.is_second(self.client, self.run_id):
            return False
        self._closed = True
        pulse.stop(self.run_id)
        claims.withdraw(self.client, self.run_id, taken, self._continues)
        return True

    def tag(self, key: str, value: str) -> None:
        """Sets a tag of the run, with the next points that are sent."""
        if self._tags.get(key) != value:
            self._tags[key] = value
            self._outbox.tag(key, value)

    def record(self, step: Step) -> None:
        """Takes in one training step."""
        self._readings.add(step)
        for point in self._curves.points(step):
            self._outbox.point(*point)
        if step.evaluation is not None:
            self._outbox.tag("solved", str(step.evaluation.solved).lower())
        if step.diverged:
            self._outbox.tag("diverged", "true")
            self._outbox.tag("diverged_at_step", str(step.step))
        self._outbox.try_flush()
        if step.state is not None:
            state = step.state
            self._outbox.try_flush(lambda: self._checkpoint(state))

    def restore(self, step: int) -> TrainingState:
        """Takes in what a checkpoint holds; the state of training from which it goes on."""
        arrays = self.checkpoints[step]
        for past in checkpoint.steps(arrays):
            self.record(past)
        return TrainingState.from_arrays(arrays)

    def _checkpoint(self, state: TrainingState) -> None:
        turn = state.step // (self.experiment.train.checkpoint_every or 1)
        checkpoint.save(self.client, self.run_id, checkpoint.arrays(self.experiment, self._readings, state), turn)
        self.client.set_tag(self.run_id, "checkpoint", str(state.step))

    def _continued(self) -> str:
        """The id of a run that is gone on with, now this process's; nothing where there is none."""
        e = self.experiment
        if not (e.resume and e.train.checkpoint_every):
            return ""
        continued = checkpoint.go_on(self.client, self.experiment_id, e, self._tags)
        if continued is None:
            return ""
        self._continues = True
        self._outbox.stored, self.checkpoints = continued.points, continued.checkpoints
        return str(continued.run.info.run_id)

    def _create(self) -> str:
        """The id of a new run, made once however often it is asked for: an answer may be lost on
        its way.
        """
        with store.patience(0):
            if self._create_requested and (run_ids := self._nameless()):
                return run_ids[0]
            self._create_requested = True
            run = self.client.create_run(self.experiment_id, tags=self._tags, run_name=self.experiment.run_name)
        return str(run.info.run_id)

    def _nameless(self) -> list[str]:
        """The run that the store has made although its id has not come back."""
        runs = self.client.search_runs([self.experiment_id], f"tags.attempt = '{self._tags['attempt']}'")
        return [run.info.run_id for run in runs]

    def _parameters(self) -> None:
        """What a person groups and filters by, and the whole resolved configuration."""
        from mlflow.entities import Param, RunTag

        e = self.experiment
        params = [Param(k, "none" if v is None else str(getattr(v, "name", v))) for k, v in run_parameters(e).items()]
        tags = [RunTag("arm", e.arm), RunTag("diverged", "false"), RunTag("solved", "false")]
        self.client.log_batch(self.run_id, params=params, tags=tags)
        self.client.log_dict(self.run_id, e.resolved(), "config.yaml")
        self.client.log_dict(self.run_id, provenance(), "provenance.json")
        if difference := code_difference():
            self.client.log_text(self.run_id, difference, "code.diff")

    def _finish(self, complete: bool) -> None:
        """The curves over the lag, the summary and the artifact; of an unfinished run it alone."""
        if not complete and self.experiment.train.checkpoint_every:
            self._outbox.flush()
            self._artifact()
            return
        conclude(self.experiment, self._readings, self._outbox)
        self._outbox.flush()
        self._artifact()
        self._verdict()
        if self.experiment.train.checkpoint_every and complete:
            checkpoint.discard(self.client, self.run_id)

    def _verdict(self) -> None:
        """The verdict, once the run has come to its end. As a parameter too: the UI sorts by those,
        not by tags.
        """
        from mlflow.entities import Param, RunTag

        if (verdict := self._readings.verdict()) is None:
            return
        tags = [RunTag("verdict", verdict.word), RunTag("verdict_reason", verdict.reason)]
        self.client.log_batch(self.run_id, params=[Param("verdict", verdict.word)], tags=tags)

    def _artifact(self) -> None:
        """Stores ``measurements.npz``; MLflow shows it under its name when it is whole."""
        folder, _, file = store.ARTIFACT.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / file
            store.ask("", "write a temporary file", lambda: np.savez(path, **self._readings.arrays()))  # type: ignore[arg-type]
            self.client.log_artifact(self.run_id, str(path), folder)
        self.client.log_text(self.run_id, "".join(f"{line}\n" for line in self._log), "log.txt")
