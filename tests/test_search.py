"""Searches with Optuna: objective, resuming, pruned and failed trials."""

import csv
import shutil
import subprocess

import pytest
from omegaconf import OmegaConf

from mtkd_lightning.errors import MTKDError, Pruned

optuna = pytest.importorskip("optuna")
pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")

from mtkd_lightning.search import Storage, Trial, trials_left  # noqa: E402 (which needs them)

TrialState = optuna.trial.TrialState

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # of create_trial
STUDY = "loss_weights-edsr_mtkd_demo_x4_seed0"


@pytest.fixture
def sweeper(tmp_path):
    """Hydra's sweeper as a job's configuration has it, with a study in which one trial came to its end."""
    path = str(tmp_path / "runs/search.sqlite")
    study = optuna.create_study(study_name=STUDY, storage=Storage(path), direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=30.0, intermediate_values={2: 25.0, 4: 28.0}))
    return OmegaConf.create({"study_name": STUDY, "n_trials": 3, "storage": {"path": path, "prune_after": 1}})


def asked(sweeper) -> tuple[optuna.Study, optuna.Trial, list[str]]:
    """What the sweeper does before it launches a job."""
    study = optuna.load_study(sweeper.study_name, Storage(sweeper.storage.path))
    trial = study.ask()
    value = trial.suggest_float("method.weights.ground_truth", 0.01, 1, log=True)
    return study, trial, [f"method.weights.ground_truth={value}", "+experiment=edsr_mtkd"]


def test_a_job_below_the_median_is_pruned_and_no_failure(sweeper):
    study, trial, overrides = asked(sweeper)
    ours = Trial(sweeper, overrides)
    ours.report(2, 25.5)
    with pytest.raises(Pruned, match=r"step 4: 27\.00 dB is below the median") as pruned:
        ours.report(4, 27.0)
    assert pruned.value.value == 27.0
    study.tell(trial, state=TrialState.FAIL)  # as the sweeper does with a job that gave no number
    told = study.trials[-1]
    assert told.state == TrialState.PRUNED
    assert told.intermediate_values == {2: 25.5, 4: 27.0}
    assert trials_left(sweeper) == 1


def test_a_failed_job_is_a_failed_trial_and_made_again(sweeper):
    study, trial, _ = asked(sweeper)
    study.tell(trial, state=TrialState.FAIL)
    assert study.trials[-1].state == TrialState.FAIL
    assert trials_left(sweeper) == 2


def test_a_better_job_goes_on(sweeper):
    study, trial, overrides = asked(sweeper)
    Trial(sweeper, overrides).report(4, 28.1)
    study.tell(trial, 31.0)
    assert study.best_trial.number == trial.number
    assert study.trials[-1].intermediate_values == {4: 28.1}


def test_another_study_begins_anew(sweeper):
    sweeper.study_name = "another"
    assert trials_left(sweeper) == 3


def test_a_file_that_is_none_of_optunas(tmp_path):
    (tmp_path / "search.sqlite").write_text("no database" * 100)
    with pytest.raises(MTKDError, match=r"search\.sqlite cannot be opened"):
        Storage(str(tmp_path / "search.sqlite"))


@pytest.mark.slow
def test_a_search_goes_on_prunes_and_names_its_jobs(finished, tmp_path, command):
    folder = shutil.copytree(finished, tmp_path / "copy")
    arguments = [
        *(argument for argument in command("hparams_search=loss_weights") if argument != "name=tiny"),
        *("stages=[distillation]", "training.distillation.validate_every=2", "hydra.sweeper.storage.prune_after=1"),
    ]

    def search(trials: int) -> tuple[list[dict[str, str]], str]:
        result = subprocess.run(
            [*arguments, f"hydra.sweeper.n_trials={trials}"], cwd=folder, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stdout + result.stderr
        path = max((folder / "runs/multirun").glob("*/sweep.csv"), key=lambda path: path.stat().st_mtime_ns)
        with path.open() as file:
            return list(csv.DictReader(file)), result.stdout

    (first,), _ = search(1)
    assert first["status"] == "ok"
    storage = Storage(str(folder / "runs/search.sqlite"))
    (name,) = (summary.study_name for summary in optuna.get_all_study_summaries(storage))
    study = optuna.load_study(name, storage)
    assert study.best_value == float(first["validation"])
    assert set(study.best_params) == {"method.weights.ground_truth", "method.response.high_weight"}
    study.add_trial(optuna.trial.create_trial(value=99.0, intermediate_values={2: 99.0, 4: 99.0}))

    (second,), output = search(3)
    assert "2 of 3 trials" in output
    assert second["status"] == "pruned"
    assert second["name"] != first["name"]
    assert not (folder / f"weights/{second['name']}.safetensors").exists()
    states = [trial.state for trial in optuna.load_study(name, Storage(str(folder / "runs/search.sqlite"))).trials]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED]
