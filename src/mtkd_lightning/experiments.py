"""Experiments by name, composed: +experiment=<student>_<method>, and of MTKD <student>_mtkd_<variant>.

The students are those of conf/student, the methods those of conf/method, the variants those of conf/variant.
"""

from hydra.core.config_store import ConfigStore

from mtkd_lightning.config import CONF

# Methods that learn from one network: the paper's baselines have the large network of the student's own kind.
ONE_TEACHER = ("kd", "at", "fakd", "dukd", "crosskd", "mipkd")


def register() -> list[str]:
    """Make the experiments known to Hydra; give their names."""
    experiments = {
        f"{student}_{name}": _node(student, name, *choices)
        for student in sorted({path.stem for path in (CONF / "student").glob("*/*.yaml")})
        for name, choices in _recipes().items()
    }
    for name, node in experiments.items():
        ConfigStore.instance().store(group="experiment", name=name, node=node, package="_global_")
    return list(experiments)


def _recipes() -> dict[str, tuple[str, str | None]]:
    """Method and variant of each experiment."""
    methods, variants = (sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in ("method", "variant"))
    return {
        **{method: (method, "one" if method in ONE_TEACHER else None) for method in methods},
        **{f"mtkd_{variant}": ("mtkd", variant) for variant in variants},
        "multi_teacher": ("mtkd", None),
        "kd_mean": ("kd", "mean"),
    }


def _node(student: str, name: str, method: str, variant: str | None) -> dict[str, object]:
    return {
        "defaults": [
            *([f"/variant/{variant}"] if variant else []),
            {"override /student": f"${{preset}}/{student}"},
            {"override /method": method},
        ],
        "experiment_name": f"{student}_{name}",
        "student_name": student,
    }
