"""The teachers of a run: found, checked, and their pictures made once."""

import logging
from dataclasses import asdict, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from mtkd_lightning import evaluation, networks
from mtkd_lightning.artifacts import Artifact
from mtkd_lightning.config import build, plain
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.sources import Pictures
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.files import file_sha256
from mtkd_lightning.making import Maker, load, say_progress
from mtkd_lightning.methods.aggregation import Aggregation
from mtkd_lightning.methods.base import Method
from mtkd_lightning.methods.scratch import Scratch
from mtkd_lightning.published import load_published, read_tensors
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.cache import Settings, TeacherCache, need_space
from mtkd_lightning.teachers.teacher import Ensemble, GivenPicture, Teacher

log = logging.getLogger(__name__)

# dB on a few pictures by which an aggregator may be behind the mean of its members and yet be as good.
NOISE = 0.05


class Lineup:
    """Members in their order, and their aggregator.

    Attributes:
        pictures: of the run, with those that teachers on disk made of them.
        cached: whether teachers' pictures are made once and kept.
        has_folders: whether members are pictures on disk.
    """

    def __init__(self, config: DictConfig, pictures: Pictures, maker: Maker) -> None:
        self.config = config
        self.maker = maker
        self.names: list[str] = list(config.teacher.only or config.teacher.members)
        self.cached: bool = config.teacher.cache
        self.settings = Settings(**{field.name: config.teacher[field.name] for field in fields(Settings)})
        folders = [Path(folder).expanduser() for folder in self._folders().values()]
        self.has_folders = bool(folders)
        self.pictures = pictures.with_teachers(folders) if folders else pictures
        self._looked_at: set[str] = set()
        self._located: dict[str, networks.Weights] = {}

    def _folders(self) -> dict[str, str]:
        """Members that are pictures on disk, in the order of a batch's teacher_sr."""
        nodes = {name: self.config.teacher.members[name] for name in self.names}
        return {name: node.folder for name, node in nodes.items() if node.get("folder")}

    def _given(self, member: str) -> networks.Weights | None:
        """Weights that the user names for a member, instead of having it trained."""
        text = self.config.teacher.members[member].get("weights")
        if text and member not in self._located:
            self._located[member] = networks.locate(text, self.maker.weights)
        return self._located.get(member)

    def merger(self) -> nn.Module:
        """The aggregator, untrained."""
        merger: nn.Module = build(self.config.aggregator, members=len(self.names))
        return merger

    def artifact_of(self, name: str, make: bool = False) -> Artifact:
        """What a member is: weights, given or trained here, or pictures on disk."""
        node = self.config.teacher.members[name]
        if folder := node.get("folder"):
            index = list(self._folders()).index(name)
            return Artifact(Path(folder), {"sha256": self.pictures.train.teacher_hashes()[index]})
        if given := self._given(name):
            return _file(given.path)
        return self.maker.artifact(
            f"{self.config.teacher.name}_{name}_x{self.config.scale}",
            "teachers",
            {"network": plain(node.backbone)},
            lambda: (Scratch(build(node.backbone)), self.pictures),
            make=make,
            data=self.pictures.train.manifest_hash(),
            seed=node.get("seed"),
        )

    def aggregator(self, make: bool = False) -> Artifact | None:
        """The trained aggregator, or None for one without parameters."""
        if not list(self.merger().parameters()):
            return None
        return self.maker.artifact(
            f"{self.config.teacher.name}_{'-'.join(self.names)}_x{self.config.scale}_{self.config.aggregator_name}",
            "aggregation",
            {
                "network": plain(self.config.aggregator),
                "members": list(map(self._made_by_member, self.names)),
                "teacher_pictures": self.kept(),
            },
            self._merging,
            make=make,
            data=self.pictures.train.manifest_hash(),
            parts=self._members,
        )

    def is_trained(self) -> bool:
        """Say whether there is nothing left to train in it."""
        try:
            self.made_by()
        except MTKDError:  # its stage will make what is missing, or say what is wrong
            return False
        return True

    def parts(self) -> list[tuple[str, Artifact]]:
        """The (type, network) of the ensemble: members in their order, and the aggregator if it was trained."""
        aggregator = self.aggregator()
        return [*self._members(), *([("aggregator", aggregator)] if aggregator else [])]

    def _members(self) -> list[tuple[str, Artifact]]:
        return [("teacher", self.artifact_of(name)) for name in self.names]

    def _made_by_member(self, name: str) -> list[Any]:
        """What decides a member's pictures: its name, its sha256, and its backbone where the user configured that.

        A configured backbone may say what tensors do not, a range of values for instance.
        """
        backbone = self.config.teacher.members[name].get("backbone")
        configured = [plain(backbone)] if self._given(name) and backbone else []
        return [name, self.artifact_of(name).sha256, *configured]

    def _cached_by(self, name: str) -> list[Any]:
        return self._made_by_member(name)[1:]

    def made_by(self) -> dict[str, Any]:
        """What decides the ensemble's pictures."""
        aggregator = self.aggregator()
        return {
            "members": list(map(self._made_by_member, self.names)),
            "aggregator": plain(self.config.aggregator),
            "aggregator_sha256": aggregator and aggregator.sha256,
        }

    def member(self, name: str, shape_alone: bool = False) -> Teacher | None:
        """A member with its weights, or None if it is a folder of pictures.

        With ``shape_alone`` one that is trained here is built without memory or weights.
        """
        node = self.config.teacher.members[name]
        if node.get("folder"):
            return None
        if (given := self._given(name)) is None:
            with torch.device("meta" if shape_alone else "cpu"):
                network: nn.Module = build(node.backbone)
            return Teacher(network if shape_alone else load(network, self.artifact_of(name)))
        if node.get("backbone"):
            network = build(node.backbone)
            load_published(network, read_tensors(given.path), given.path)
        else:
            network = networks.load(given)
        if (scale := getattr(network, "scale", None)) not in (None, self.config.scale):
            raise MTKDError(
                f"teacher.members.{name}.weights={node.weights} enlarge x{scale}, but scale={self.config.scale}"
            )
        return Teacher(network)

    def approved(self, name: str) -> Teacher | None:
        """A member, after it has shown that it is better than bicubic."""
        member = self.member(name)
        network = member.net if member else GivenPicture(list(self._folders()).index(name))
        self._refuse_if_weak(name, network, self.pictures.validation)
        return member

    def _refuse_if_weak(self, name: str, network: nn.Module, pairs: PairedImages) -> None:
        if name in self._looked_at:
            return
        own, bicubic = evaluation.glance([network, evaluation.Bicubic(pairs.scale)], pairs, self.maker.device)
        log.info("teacher %s: %.2f dB on a few validation pictures, bicubic %.2f dB.", name, own, bicubic)
        if not own > bicubic and not self.config.teacher.accept_weak:
            raise MTKDError(
                f"teacher {name} scores {own:.2f} dB on a few validation pictures, bicubic {bicubic:.2f} dB: "
                "nothing can be learnt from it. Weights of another network or scale, another range of values or "
                "another way of making LR pictures are the usual reasons, or a training that was too short. "
                "To teach with it nevertheless say teacher.accept_weak=true."
            )
        self._looked_at.add(name)

    def _warn_if_behind_mean(self, ensemble: Ensemble, pairs: PairedImages) -> None:
        """Say in time that an aggregator does harm, as one that was trained too briefly does."""
        label = self._label
        if label in self._looked_at or isinstance(ensemble.aggregator, Mean):
            return
        mean = Ensemble(ensemble.members, Mean(pairs.scale, len(ensemble.members)))
        own, of_mean = evaluation.glance([ensemble, mean], pairs, self.maker.device)
        log.info("%s: %.2f dB on a few validation pictures, mean of its members %.2f dB.", label, own, of_mean)
        if own < of_mean - NOISE:
            log.warning(
                "%s is behind the mean of its members, and the student learns from it: train it for longer "
                "(training.aggregation.steps), or say aggregator=mean",
                label,
            )
        self._looked_at.add(label)

    def online(self) -> Teacher:
        """What makes a picture of every batch: the ensemble, or its only member where nothing is merged."""
        members = {name: self.approved(name) for name in self.names}
        if alone := self.alone(members):
            return alone
        ensemble = self.ensemble(members)
        self._warn_if_behind_mean(ensemble, self.pictures.validation)
        return Teacher(ensemble)

    def alone(self, members: dict[str, Teacher | None]) -> Teacher | None:
        """The only member, if its picture is the ensemble's."""
        return None if self._merges else next(iter(members.values()))

    def ensemble(self, members: dict[str, Teacher | None]) -> Ensemble:
        """Members and the trained aggregator; a member that is None has its picture given."""
        merger, aggregator = self.merger(), self.aggregator()
        return Ensemble(members, load(merger, aggregator) if aggregator else merger)

    def _merging(self) -> tuple[Method, Pictures]:
        """Stage 1."""
        merger = self.merger()
        if not self.cached:
            members = {name: self.approved(name) for name in self.names}
            return Aggregation(Ensemble(members, merger)), self.pictures
        train, validation = map(self.with_members, (self.pictures.train, self.pictures.validation))
        merged = replace(self.pictures, train=train, validation=validation)
        return Aggregation(Ensemble(dict.fromkeys(self.names), merger)), merged

    # Teachers' pictures, made once.

    def kept(self) -> dict[str, Any] | None:
        """How teachers' pictures are made and kept, or None where the teachers run online."""
        return asdict(self.settings) if self.cached else None

    def with_members(self, pairs: PairedImages) -> PairedImages:
        """Every member's picture beside each pair, after each member has shown that it is better than bicubic."""
        validation = self._beside(self.pictures.validation)
        for index, name in enumerate(self.names):
            self._refuse_if_weak(name, GivenPicture(index), validation)
        return validation if pairs is self.pictures.validation else self._beside(pairs)

    def _beside(self, pairs: PairedImages) -> PairedImages:
        given = iter(zip(*(pair.teachers for pair in pairs.pairs), strict=True))
        bare = pairs.with_files([])
        return pairs.with_files(
            [
                next(given)
                if name in self._folders()
                else self._cache_of(name, pairs).make(
                    bare, partial(self._net, name), self.maker.device, f"teacher {name}", say_progress
                )
                for name in self.names
            ]
        )

    def need_space(self, merged: bool) -> None:
        """Say what the pictures that are still missing will take; what is not trained yet has none.

        Args:
            merged: whether the merged pictures are needed, and those of members for these alone.

        Raises:
            MTKDError: they will not fit.
        """

        def missing(member: str | None) -> int:
            total = 0
            for pairs in (self.pictures.train, self.pictures.validation):
                try:
                    cache = self._cache_of(member, pairs)
                except MTKDError:  # its stage will make it, or say what is wrong
                    cache = self._cache(None)
                total += cache.missing_bytes(pairs.with_files([]))
            return total

        wanted = missing(None) if merged and self._merges else 0
        if wanted or not (merged and self._merges):
            wanted += sum(missing(name) for name in self.names if name not in self._folders())
        if wanted:
            folder = Path(self.config.paths.cache).expanduser()
            need_space(folder, wanted, "the teachers' pictures")
            log.info("Teachers' pictures: %.3g GB will be made in %s.", wanted / 1e9, folder / "teachers")

    @property
    def _merges(self) -> bool:
        return len(self.names) > 1 or not isinstance(self.merger(), Mean)

    @property
    def _label(self) -> str:
        return f"aggregator {self.config.aggregator_name}"

    def _net(self, name: str) -> nn.Module:
        member = self.member(name)
        assert member is not None
        return member.net

    def with_merged(self, pairs: PairedImages) -> PairedImages:
        """The ensemble's picture beside each pair."""
        if not self._merges:
            return self.with_members(pairs)
        cache = self._cache_of(None, pairs)
        files = cache.files(pairs)
        if not all(file.exists() for file in files):  # those of members are needed for that alone
            ensemble = self.ensemble(dict.fromkeys(self.names))
            self._warn_if_behind_mean(ensemble, self.with_members(self.pictures.validation))
            cache.make(self._beside(pairs), lambda: ensemble, self.maker.device, self._label, say_progress)
        return pairs.with_files([files])

    def _cache_of(self, member: str | None, pairs: PairedImages) -> TeacherCache:
        """Of a member's pictures, or of the merged ones."""
        if member is not None:
            return self._cache(self._cached_by(member))
        # A member that is a folder is known by its pictures of the training set, and may change those of others alone.
        return self._cache(self.made_by() | ({"given": pairs.teacher_hashes()} if self.has_folders else {}))

    def _cache(self, made_by: Any) -> TeacherCache:
        return TeacherCache(Path(self.config.paths.cache).expanduser() / "teachers", self.settings, made_by)


@cache
def _file(path: Path) -> Artifact:
    return Artifact(path, {"sha256": file_sha256(path)})
