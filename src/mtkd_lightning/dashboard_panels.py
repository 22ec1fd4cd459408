"""What the W&B workspace and report show, with the names of `mtkd_lightning.loggers`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws


@dataclass(frozen=True)
class Dashboard:
    """A workspace and a report of the students of a project.

    Attributes:
        project: of W&B.
        study: shows its runs alone; None shows all.
        benchmarks: that students are scored on.
        weights: terms of their losses.
    """

    project: str
    study: str | None
    benchmarks: Sequence[str]
    weights: Sequence[str]

    @property
    def title(self) -> str:
        """Of both."""
        return f"Distillation: {self.study or 'all studies'}"[:128]

    def workspace(self, entity: str = "") -> ws.Workspace:
        """All runs of students, a line a variant, the best first."""
        columns = ["config:method_name.value", "config:student_name.value", "config:seed.value", "summary:test/psnr"]
        columns += [f"summary:test/{benchmark}/psnr" for benchmark in self.benchmarks] + ["summary:cost/seconds"]
        return ws.Workspace(
            entity=entity,
            project=self.project,
            name=self.title,
            sections=[ws.Section(name=name, panels=panels, is_open=True) for name, _, panels in self.sections()],
            settings=ws.WorkspaceSettings(x_axis="trainer/global_step"),
            runset_settings=ws.RunsetSettings(
                filters=self._filters(),
                groupby=[ws.Config("label")],
                order=[ws.Ordering(ws.Summary("test/psnr"), ascending=False)],
                pinned_columns=columns,
            ),
        )

    def report(self, entity: str = "") -> wr.Report:
        """The same panels with a line that says what each shows."""
        blocks: list[Any] = [wr.TableOfContents()]
        for name, text, panels in self.sections():
            runset = wr.Runset(
                entity=entity,
                project=self.project if entity else "",  # which would be looked up
                name="students",
                filters=self._filters(),
                groupby=["config.label"],
                order=[wr.OrderBy(wr.SummaryMetric("test/psnr"))],
            )
            blocks += [wr.H2(name), wr.P(text), wr.PanelGrid(runsets=[runset], panels=panels)]
        return wr.Report(project=self.project, entity=entity, title=self.title, blocks=blocks, width="fluid")

    def sections(self) -> list[tuple[str, str, list[Any]]]:
        """Title, what it shows, and panels."""
        return [
            ("Leaderboard", "Means over seeds, with their standard deviation.", self._leaderboard()),
            ("PSNR against cost", "A point is a run; up and to the left is better.", self._costs()),
            ("Loss weights", "Which weights lead to which PSNR, and which of them matter.", self._weights()),
            ("Learning curves", "Grouped by method, on validation pictures.", self._curves()),
            ("Training", "Loss terms, gradient norm, speed.", self._training()),
            ("Crops", "LR, teacher, student, HR and errors of the same regions.", [_crops()]),
        ]

    def specification(self) -> dict[str, Any]:
        """Both as W&B keeps them."""
        arguments = {"mode": "json", "by_alias": True, "exclude_none": True}
        return {
            "project": self.project,
            "workspace": {"name": self.title, "spec": self.workspace()._to_model().spec.model_dump(**arguments)},
            "report": {"title": self.title, "spec": self.report()._to_model().spec.model_dump(**arguments)},
        }

    def save(self, entity: str | None) -> dict[str, str]:
        """Save both; give their addresses."""
        wandb.setup(wandb.Settings(silent=True))
        entity = entity or wandb.Api().default_entity or ""
        workspace, report = self.workspace(entity), self.report(entity)
        report.save()  # creates the project where there is none
        workspace.save()
        return {"workspace": workspace.url, "report": report.url}

    def _filters(self) -> list[Any]:
        study = [ws.Config("study_name") == self.study] if self.study else []
        return [ws.Config("stage") == "distillation", *study]

    def _leaderboard(self) -> list[Any]:
        return [
            wr.BarPlot(
                title=f"{measure.upper()} on {benchmark}",
                metrics=[f"test/{benchmark}/{measure}"],
                groupby=wr.Config("label"),
                groupby_aggfunc="mean",
                groupby_rangefunc="stddev",
                layout=_place(index),
            )
            for index, (benchmark, measure) in enumerate((b, m) for b in self.benchmarks for m in ("psnr", "ssim"))
        ]

    def _costs(self) -> list[Any]:
        return [
            wr.ScatterPlot(
                title=f"Mean PSNR against {title}",
                x=wr.SummaryMetric(f"cost/{cost}"),
                y=wr.SummaryMetric("test/psnr"),
                layout=_place(index),
            )
            for index, (cost, title) in enumerate(
                (
                    ("seconds", "seconds of training"),
                    ("teacher_passes", "pictures that teachers enlarged"),
                    ("parameters", "parameters"),
                    ("gflops", "GFLOPs of a 1280x720 picture"),
                )
            )
        ]

    def _weights(self) -> list[Any]:
        axes = [wr.Config(f"method.weights.{weight}") for weight in self.weights] + [wr.Config("seed")]
        columns = [wr.ParallelCoordinatesPlotColumn(axis) for axis in (*axes, wr.SummaryMetric("test/psnr"))]
        return [
            wr.ParallelCoordinatesPlot(title="Weights and PSNR", columns=columns, layout=wr.Layout(0, 0, 16, 8)),
            wr.ParameterImportancePlot(with_respect_to="test/psnr", layout=wr.Layout(16, 0, 8, 8)),
        ]

    def _curves(self) -> list[Any]:
        shown = {"psnr": "PSNR", "ssim": "SSIM", "psnr_to_teacher": "PSNR to the teacher's picture"}
        return [
            wr.LinePlot(
                title=title,
                x="trainer/global_step",
                y=[f"val/{key}"],
                groupby=wr.Config("method_name"),
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
                layout=_place(index),
            )
            for index, (key, title) in enumerate(shown.items())
        ]

    def _training(self) -> list[Any]:
        terms = [*self.weights, *(["ground_truth"] if "ground_truth" not in self.weights else [])]
        shown = [*terms, "learning_rate", "gradient_norm", "samples_per_second"]
        return [
            wr.LinePlot(title=key, x="trainer/global_step", y=[f"train/{key}"], layout=_place(index))
            for index, key in enumerate(shown)
        ]


def _crops() -> wr.MediaBrowser:
    return wr.MediaBrowser(media_keys=["crops"], num_columns=1, layout=wr.Layout(0, 0, 24, 12))


def _place(index: int) -> wr.Layout:
    """Three panels side by side on W&B's grid of 24 columns."""
    row, column = divmod(index, 3)
    return wr.Layout(8 * column, 6 * row, 8, 6)
