"""Networks that are not ours, as teachers or students: any module by its import path, and those of spandrel.

spandrel (https://github.com/chaiNNer-org/spandrel, MIT) is called where it is installed. The licence of a foreign
network is its author's.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from mtkd_lightning.backbones.base import Backbone, Keep, mirror_pad
from mtkd_lightning.errors import MTKDError


class Foreign(Backbone):
    """A network of which nothing is known but its output and the modules that are named as taps.

    It is tried on a small picture when it is built. Its tensors have their own names, without a prefix, so that its
    weight files load as they are. A tap is what a module that runs once puts out: (b, c, h, w), or (b, h * w, c), which
    is turned into that, of the size of the padded picture. ``extract`` and ``reconstruct`` are not available.

    Args:
        network: a module, or what makes one: in a configuration a node with ``_partial_: true``. That is called on the
            CPU whatever the default device is, for many networks look at values while they are built, which fails
            where shapes alone are wanted.
        scale: of the network.
        image_range: the values that it works in are ``image_range * (picture - mean)``, on both sides.
        mean: colour in 0..1; a network of -1..1 has the mean 0.5 and the range 2.
        size_multiple: of the sides that it can take; larger than 1 if it does not pad by itself.
        taps: name -> path of a module, such as ``{group0: body.0, deep: conv_after_body}``.

    Raises:
        MTKDError: it cannot be built, fails on the small picture, enlarges it by another factor, or has no such tap.
    """

    mean: Tensor

    def __init__(
        self,
        network: nn.Module | Callable[[], nn.Module],
        scale: int,
        image_range: float = 1.0,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        size_multiple: int = 1,
        taps: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.network = network if isinstance(network, nn.Module) else _built(network)
        self.scale = scale
        self.image_range = image_range
        self.size_multiple = size_multiple
        self.taps = dict(taps or {})
        for tap, path in self.taps.items():
            self._refuse_unknown_module(tap, path)
        weight = next(chain(self.network.parameters(), self.network.buffers()), torch.empty(0, device="cpu"))
        self.register_buffer("mean", torch.tensor(mean, device=weight.device).view(1, 3, 1, 1), persistent=False)
        self.register_load_state_dict_pre_hook(_to_our_names)  # type: ignore[no-untyped-call]
        self._tap_channels = self._checked_tap_channels()
        if self.network is not network:
            self.to(torch.empty(0).device)

    @property
    def tap_channels(self) -> dict[str, int]:
        """In the order in which the modules run."""
        return self._tap_channels

    def extract(self, lr: Tensor, keep: Keep) -> NoReturn:
        """Not available."""
        self._refuse_parts()

    def reconstruct(self, deep: Tensor, lr: Tensor) -> NoReturn:
        """Not available."""
        self._refuse_parts()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The foreign network's."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load into the foreign network.

        Raises:
            MTKDError: with these weights it makes values far from those of a picture.
        """
        mismatch = self.network.load_state_dict(*args, **kwargs)
        if not any(mismatch):
            self._refuse_other_range()
        return mismatch

    def _run(self, lr: Tensor, keep: Keep) -> Tensor:
        height, width = (side * self.scale for side in lr.shape[-2:])
        lr = mirror_pad(lr, self.size_multiple)
        with self._listening(keep, lr.shape[-2:]):
            out = self.network((lr - self.mean) * self.image_range)
        wanted = (*lr.shape[:2], *(side * self.scale for side in lr.shape[-2:]))
        if not isinstance(out, Tensor) or out.shape != wanted:
            raise MTKDError(
                f"{self._name} makes {_form(out)} of a picture {tuple(lr.shape)}, but scale={self.scale} asks for "
                f"{wanted}: set scale to that of the network; size_multiple if it needs sides of a certain multiple "
                f"(now {self.size_multiple})"
            )
        return (out / self.image_range + self.mean)[..., :height, :width]

    @contextmanager
    def _listening(self, keep: Keep, size: torch.Size) -> Iterator[None]:
        """Keep what the modules behind the taps put out meanwhile."""

        def listen(tap: str, path: str) -> Callable[..., None]:
            def keep_output(module: nn.Module, args: Any, out: Any) -> None:
                if tap in keep.kept:
                    raise MTKDError(
                        f"tap {tap}: {path} of {self._name} runs more than once; take a module that does not"
                    )
                keep(tap, self._as_map(tap, out, size))

            return keep_output

        with ExitStack() as stack:
            for tap in keep.taps:
                module = self.network.get_submodule(self.taps[tap])
                stack.enter_context(module.register_forward_hook(listen(tap, self.taps[tap])))
            yield

    def _as_map(self, tap: str, out: Any, size: torch.Size) -> Tensor:
        if isinstance(out, Tensor) and out.ndim == 3 and out.shape[1] == size.numel():
            out = out.transpose(1, 2).unflatten(2, size)
        if not isinstance(out, Tensor) or out.ndim != 4 or out.shape[-2:] != size:
            raise MTKDError(
                f"tap {tap}: {self.taps[tap]} of {self._name} puts out {_form(out)} for a picture of {tuple(size)}; "
                "a tap must be (b, c, h, w) or (b, h * w, c) of that size"
            )
        # What follows in the network may change its input in place, as ReLU(inplace=True) does.
        return out.clone()

    @torch.no_grad()
    def _rehearse(self, taps: Mapping[str, str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Output and features of a small picture of mean 0.5, in eval mode; nothing is changed by it."""
        side = self.size_multiple * (16 // self.size_multiple + 1)
        lr = torch.linspace(0, 1, side + self.size_multiple, device=self.mean.device).expand(1, 3, side, -1)
        keep = Keep(taps)
        modes = {module: module.training for module in self.modules()}
        try:
            return self.eval()._run(lr, keep), keep.kept
        except MTKDError:
            raise
        except Exception as error:
            raise MTKDError(
                f"{self._name} fails on a picture {tuple(lr.shape)}: {type(error).__name__}: {error}. "
                f"If it needs whole windows, set size_multiple (now {self.size_multiple})."
            ) from error
        finally:
            for module, mode in modes.items():
                module.training = mode

    def _checked_tap_channels(self) -> dict[str, int]:
        _, features = self._rehearse(self.taps)
        for tap in self.taps.keys() - features.keys():
            raise MTKDError(f"tap {tap}: {self.taps[tap]} of {self._name} does not run; take a module that does")
        return {tap: feature.shape[1] for tap, feature in features.items()}

    def _refuse_other_range(self) -> None:
        sr, _ = self._rehearse({})
        if not sr.is_meta and not abs((average := sr.mean().item()) - 0.5) <= 1:
            raise MTKDError(
                f"{self._name} makes a picture of mean {average:.3g} from one of mean 0.5, in 0..1: its values are in "
                f"another range. Set image_range (now {self.image_range:g}) to 1 or 255, and mean if it needs one."
            )

    def _refuse_unknown_module(self, tap: str, path: str) -> None:
        known = [name for name, _ in self.network.named_modules() if name]
        if path not in known:
            close = difflib.get_close_matches(path, known, n=3) or [name for name, _ in self.network.named_children()]
            raise MTKDError(f"tap {tap}: {self._name} has no module '{path}'; it has {', '.join(close)}, ...")

    def _refuse_parts(self) -> NoReturn:
        raise MTKDError(
            f"{self._name} is a foreign network: it gives pictures and taps, but cannot begin from a feature. A method "
            "that needs that (extract, reconstruct) takes networks of mtkd_lightning.backbones."
        )

    @property
    def _name(self) -> str:
        return type(self.network).__name__


def spandrel(file: str, scale: int, taps: Mapping[str, str] | None = None) -> Foreign:
    """A network that spandrel recognises by its weights file, with these weights.

    Args:
        file: .pth, .pt or .safetensors.
        scale: that it must have.
        taps: as of `Foreign`.

    Raises:
        MTKDError: spandrel is not installed, or the file holds no such network.
    """
    try:
        from spandrel import ImageModelDescriptor, ModelLoader
    except (ImportError, RuntimeError) as error:  # the latter from a torchvision that is made for another torch
        raise MTKDError(
            f"{file} is to be read by spandrel, which cannot be imported ({error}). It is an extra, because it brings "
            "torchvision, which must be made for the torch that is here: pip install 'mtkd-lightning[spandrel]'"
        ) from error
    try:
        with torch.device("cpu"):
            model = ModelLoader().load_from_file(file)
    except Exception as error:
        raise MTKDError(f"spandrel cannot read {file}: {type(error).__name__}: {error}") from error
    if not isinstance(model, ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise MTKDError(f"{file} holds {model.architecture.name}, which does not make one RGB picture of one")
    if model.scale != scale:
        raise MTKDError(f"{file} holds a network of scale {model.scale}, not {scale}; set scale={model.scale}")
    return Foreign(lambda: model.model, scale, size_multiple=model.size_requirements.multiple_of, taps=taps)


def _built(make: Callable[[], nn.Module]) -> nn.Module:
    name = getattr(getattr(make, "func", make), "__qualname__", make)
    try:
        with torch.device("cpu"):
            network = make()
    except Exception as error:
        raise MTKDError(f"the network {name} cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise MTKDError(f"{name} makes a {type(network).__name__}; network must be a torch.nn.Module, or make one")
    return network


def _form(out: Any) -> str:
    return str(tuple(out.shape)) if isinstance(out, Tensor) else f"a {type(out).__name__}"


def _to_our_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """As part of a larger module, whose state was saved without the prefix of `Foreign.network`."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        state_dict[f"{prefix}network.{name.removeprefix(prefix)}"] = state_dict.pop(name)
