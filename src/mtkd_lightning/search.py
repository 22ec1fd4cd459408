"""Searches with Optuna: trials that are kept, counted over all commands, and given up where others did better.

hydra-optuna-sweeper 1.3 asks Optuna for values, launches the jobs and tells Optuna what they gave. What it has not is
here: a number of trials in all, pruning, and a message where no trial came to its end.
"""

import logging
from pathlib import Path

import optuna
from hydra.errors import CompactHydraException
from omegaconf import DictConfig
from optuna.storages import RDBStorage, _CachedStorage
from optuna.trial import FrozenTrial, TrialState

from mtkd_lightning.errors import MTKDError, Pruned

log = logging.getLogger(__name__)

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
PRUNED = "pruned"  # a job's mark on its trial


class Storage(_CachedStorage):  # type: ignore[misc]
    """Trials in an SQLite file; what a job reported and how it ended count, though it ran in another process.

    Args:
        path: of the file.
        prune_after: number of trials that have to end before one is pruned, see `Trial`.

    Raises:
        MTKDError: it cannot be opened.
    """

    def __init__(self, path: str, prune_after: int = 5) -> None:
        file = Path(path).expanduser().absolute()
        for name in ("alembic", "optuna"):
            logging.getLogger(name).setLevel(logging.WARNING)  # Hydra's sweeper says what matters
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            super().__init__(RDBStorage(f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": 60}}))
        except Exception as error:  # OSError, SQLAlchemy's, and SQLite's below it
            raise MTKDError(f"the trials in {file} cannot be opened: {error}") from error

    def set_trial_state(self, trial_id: int, state: TrialState) -> bool:
        """End a trial; as pruned where its job says so, which the sweeper takes for a failure."""
        if state.is_finished():
            reported = self._backend.get_trial(trial_id)
            for step, value in reported.intermediate_values.items():
                self.set_trial_intermediate_value(trial_id, step, value)
            if reported.user_attrs.get(PRUNED):
                state = TrialState.PRUNED
        return super().set_trial_state(trial_id, state)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Give the best trial."""
        try:
            return super().get_best_trial(study_id)
        except ValueError as error:
            raise CompactHydraException("The search has no result: none of its jobs came to its end.") from error


def trials_left(sweeper: DictConfig) -> int:
    """How many of the trials that a study should have in all are still to be made."""
    names = {summary.study_name for summary in optuna.get_all_study_summaries(Storage(sweeper.storage.path))}
    if sweeper.study_name not in names:
        return int(sweeper.n_trials)
    study = optuna.load_study(sweeper.study_name, Storage(sweeper.storage.path))
    done = len(study.get_trials(states=FINISHED))
    log.info("%d of %d trials of %s are there, in %s.", done, sweeper.n_trials, study.study_name, sweeper.storage.path)
    return max(0, int(sweeper.n_trials) - done)


class Trial:
    """The trial of the job that runs now.

    Args:
        sweeper: Hydra's, in the job's configuration.
        overrides: of the job, by which it finds its trial.
    """

    def __init__(self, sweeper: DictConfig, overrides: list[str]) -> None:
        self.storage = Storage(sweeper.storage.path)
        self.study = optuna.load_study(sweeper.study_name, self.storage)
        self.pruner = optuna.pruners.MedianPruner(n_startup_trials=sweeper.storage.prune_after)
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.of = max(
            trial._trial_id
            for trial in running
            if {f"{key}={value}" for key, value in trial.params.items()} <= set(overrides)
        )

    def report(self, step: int, value: float) -> None:
        """Keep a validation PSNR-Y in dB.

        Raises:
            Pruned: the best of this trial so far is below the median of those that came to their end, at this step.
        """
        self.storage.set_trial_intermediate_value(self.of, step, value)
        if self.pruner.prune(self.study, self.storage.get_trial(self.of)):
            self.storage.set_trial_user_attr(self.of, PRUNED, True)
            raise Pruned(f"Pruned at step {step}: {value:.2f} dB is below the median of earlier jobs there.", value)
