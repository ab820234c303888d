"""Whole models: a backbone, a decode head, and the way from their stride-4 logits to pixels."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from segformer import checkpoint
from segformer.data.classes import Classes
from segformer.data.normalization import IMAGENET, Normalization
from segformer.networks.all_mlp import AllMLPHead
from segformer.networks.convolutional import ConvolutionalMiT, LinearHead, PerStage
from segformer.networks.images import refuse_scripting
from segformer.networks.mit import MiT, Variant, find_variant
from segformer.networks.setr import PUPHead
from segformer.networks.timm_backbone import TimmBackbone
from segformer.ops import upsample, upsample_argmax, with_background
from segformer.ops.conditions import hooked_module
from segformer.ops.cuda_graphs import Graphs

if TYPE_CHECKING:
    from typing import Self


class SegmentationModel(nn.Module):
    """Any backbone under any decode head.

    Args:
        backbone: images (B, C, H, W) to a list of feature maps, finest first, with their ``channels``.
        decode_head: that list to logits (B, K, H/4, W/4), with ``num_classes`` = K.
        classes: names and colours of the K classes; by default ``class 0``, ``class 1``, …
        align_corners: how stride-4 logits are interpolated to pixels; true only for weights that were trained so.
        normalization: how images are normalised for these weights; by default as the backbone says
            (``backbone.normalization``), or by ImageNet's mean and standard deviation.

    Raises:
        ValueError: when there are names for another number of classes, or the normalization is for
            another number of channels.
    """

    def __init__(
        self,
        backbone: nn.Module,
        decode_head: nn.Module,
        classes: Classes | None = None,
        *,
        align_corners: bool = False,
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.decode_head: Any = decode_head
        self.align_corners = align_corners
        self._graphs = Graphs()
        self.classes = classes or Classes.of_logits(self.num_classes)
        self.normalization = normalization or self._default_normalization()

    __prepare_scriptable__ = refuse_scripting

    @property
    def num_classes(self) -> int:
        return int(self.decode_head.num_classes)

    @property
    def classes(self) -> Classes:
        """Names and colours of the classes; they travel in the file that :meth:`save` writes.

        A model of one logit has two: what it labels 0, and what it labels 1. Given one name, it is
        that of label 1, and label 0 is the background.
        """
        return self._classes

    @classes.setter
    def classes(self, classes: Classes) -> None:
        if not classes.fit(self.num_classes):
            raise ValueError(
                f"{len(classes)} class names ({', '.join(classes.names[:3])}, …) for a model of {self.num_classes} classes; build it with "
                f"num_classes={len(classes)}, or ask from_pretrained(…, num_classes={len(classes)}) for a new classifier"
            )
        self._classes = classes.with_background() if len(classes) == 1 else classes

    @property
    def normalization(self) -> Normalization:
        """How images are normalised for these weights; it travels with them, as ``classes`` do."""
        return self._normalization

    @normalization.setter
    def normalization(self, normalization: Normalization) -> None:
        channels = getattr(self.backbone, "in_channels", len(normalization.mean))
        if len(normalization.mean) != channels:
            raise ValueError(
                f"a normalization of {len(normalization.mean)} channels for a model that takes "
                f"{channels}; give one mean and std a channel, or normalization.for_channels({channels})"
            )
        self._normalization = normalization

    def _default_normalization(self) -> Normalization:
        """The backbone's own, or ImageNet's."""
        normalization = getattr(self.backbone, "normalization", IMAGENET)
        return normalization.for_channels(getattr(self.backbone, "in_channels", len(IMAGENET.mean)))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), normalised by ``normalization``, to logits (B, K, H, W)."""
        logits = self.decode_head(self.backbone(images))  # (B, K, H/4, W/4)
        return upsample(logits, images.shape[-2:], self.align_corners)

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,
        size: Sequence[int] | None = None,
        *,
        dtype: torch.dtype | None = None,
        cuda_graph: bool = False,
    ) -> Tensor:
        """Images (B, C, H, W) to labels (B, *size*) int64, in evaluation mode whatever the current one.

        A model of one logit labels 1 where its sigmoid exceeds a half, and 0 elsewhere.

        Args:
            images: as for :meth:`forward`.
            size: height and width of the labels; by default the images' own. The stride-4 logits are interpolated straight to it.
            dtype: ``torch.bfloat16`` or ``torch.float16``: matrix products in that precision, where the hardware has it; labels between
                classes that nearly tie may differ. By default the weights' own, or that of an autocast around the call.
            cuda_graph: record the work as a CUDA graph at the first call for images of a shape, and replay it for those that follow: for
                small batches, whose kernels take less time than launching them. The graphs of the last four shapes hold their memory.

        Several threads may call this method at the same time. A call while another thread is in the middle of a training forward
        pass of the same model is not supported: it would see some layers in evaluation mode.

        Raises:
            ValueError: when ``cuda_graph`` is asked for images that are not on a CUDA device, or of a model with hooks, which a
                replay would not call.
        """
        size = tuple(images.shape[-2:] if size is None else size)
        device = images.device.type
        if not cuda_graph:
            return self._label(images, size, precision(device, dtype))
        if not images.is_cuda:
            raise ValueError(
                f"cuda_graph=True needs images on a CUDA device, these are on {images.device}; move them and the model there"
            )
        if hooked := hooked_module(self):
            raise ValueError(
                f"cuda_graph=True cannot replay hooks, and {hooked} has some; remove them, or predict without a graph"
            )
        if dtype is None and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)

        def label(images: Tensor) -> Tensor:
            return self._label(images, size, precision(device, dtype))

        return self._graphs(self, label, images, (size, dtype, self.align_corners))

    def _label(
        self, images: Tensor, size: Sequence[int], in_precision: AbstractContextManager[Any]
    ) -> Tensor:
        with evaluating(self), in_precision:
            logits = with_background(self.decode_head(self.backbone(images)))
            return upsample_argmax(logits, size, self.align_corners)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: the backbone recomputes its blocks in the backward pass."""
        self.backbone.set_grad_checkpointing(enable)

    def save(self, path: str | os.PathLike[str], layout: str = "native") -> None:
        """Write the model.

        Args:
            path: a ``.safetensors`` file; for ``"nvidia"`` and ``"smp"`` also a ``.pth``; for ``"huggingface"`` a folder.
            layout: ``"native"``, one file with weights, architecture, numerics, class names and colours; ``"huggingface"``, which
                transformers' ``SegformerForSemanticSegmentation.from_pretrained`` opens; ``"nvidia"`` or ``"smp"``, a state dict of the
                model of that name. What the layout's readers would compute otherwise is logged as a warning, with its size.

        Raises:
            OSError: when the file cannot be written; a file that was there before is kept.
            ValueError: on an unknown layout, or one that has no place for a part of the model.
        """
        checkpoint.save(self, path, layout)

    def push_to_hub(
        self,
        repository: str,
        *,
        layout: str = "native",
        private: bool | None = None,
        revision: str | None = None,
    ) -> str:
        """Write the model to a repository on the Hugging Face hub, made where it is missing; returns the commit's address.

        Args:
            repository: ``"organisation/name"``.
            layout: ``"native"``, or ``"huggingface"``, so that transformers reads it too.
            private: whether a new repository is private; by default as the organisation has it.
            revision: the branch to write to.
        """
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            self.save(
                folder if layout == "huggingface" else Path(folder, "model.safetensors"), layout
            )
            HfApi().create_repo(repository, private=private, exist_ok=True)
            return HfApi().upload_folder(
                repo_id=repository,
                folder_path=folder,
                revision=revision,
                commit_message=f"SegFormer in the {layout} layout",
            )

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        num_classes: int | None = None,
        *,
        in_channels: int | None = None,
        layout: str | None = None,
        strict: bool = True,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Read a model in any known layout, with the numerics it was trained with, in evaluation mode.

        What was dropped, folded, adapted or made anew is logged in one table; :func:`segformer.checkpoint.read` returns it.

        Args:
            source: a file (``.safetensors``, or a pickled state dict such as ``.pth``), a folder (a run's, or Hugging Face's with its
                ``config.json``), or an id on the Hugging Face hub.
            num_classes: another number of classes than the file's asks for a new, random classifier; by default, and where the numbers
                agree, the file's own is kept. A file that holds a backbone only needs it, and gets a new, random head.
            in_channels: another number of image channels than the file's, whose stem is summed (to one) or repeated and scaled.
            layout: the layout's name where the tensors' names cannot tell it: ``"sithu"`` or ``"bubbliiiing"`` instead of ``"nvidia"``.
            strict: refuse keys that are missing or left over; else they are made anew or ignored, and reported.
            dtype: precision of the parameters; by default the file's, and where it holds several the
                widest of them. Eight-bit floats are read as the widest of the others, or float32.
            device: where the parameters lie; by default on the CPU.
            revision: branch, tag or commit on the hub.
            subfolder: the folder below ``source`` where the weights lie.
            token: for the hub; by default the one that its own command line has stored.
            cache_dir: where what the hub gives is kept; by default the hub's own cache.

        Raises:
            FileNotFoundError: when there is no such file, folder or hub id.
            ValueError: naming the file, and the first keys that do not fit, when it is truncated, holds no tensors, has an unknown layout,
                or other shapes than its layout says.
        """
        reading = checkpoint.read(
            source,
            num_classes,
            in_channels=in_channels,
            layout=layout,
            strict=strict,
            dtype=dtype,
            revision=revision,
            subfolder=subfolder,
            token=token,
            cache_dir=cache_dir,
        )
        return cls.compose(**reading.parts).to(device).eval()

    def load_weights(
        self,
        source: str | os.PathLike[str],
        *,
        layout: str | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Read weights in any known layout into this model as it was built; every key must fit.

        The model keeps its own numerics and normalization; where the file's are others, they are
        named in a warning.

        Args:
            source: as for :meth:`from_pretrained`, as the others.

        Raises:
            FileNotFoundError: when there is no such file, folder or hub id.
            ValueError: naming the file, and the first keys or shapes that do not fit.
        """
        checkpoint.load(
            self,
            source,
            layout=layout,
            revision=revision,
            subfolder=subfolder,
            token=token,
            cache_dir=cache_dir,
        )

    @classmethod
    def compose(
        cls,
        backbone: nn.Module,
        decode_head: nn.Module,
        classes: Classes | None = None,
        *,
        align_corners: bool = False,
        normalization: Normalization | None = None,
    ) -> Self:
        """A model of this class from ready-made parts, whatever arguments its own constructor takes."""
        model = cls.__new__(cls)
        options: Any = {"align_corners": align_corners, "normalization": normalization}
        SegmentationModel.__init__(model, backbone, decode_head, classes, **options)
        return model


class SegFormer(SegmentationModel):
    """SegFormer: a hierarchical Transformer encoder under an all-MLP decoder (arXiv 2105.15203).

    Args:
        backbone: ``"b0"`` … ``"b5"``, a :class:`~segformer.networks.mit.Variant`, or any module that maps images to feature maps, finest first,
            and has their ``channels``.
        num_classes: classes to tell apart; by default as many as ``classes`` names, or ADE20K's 150.
        in_channels: channels of the images, by default 3; a backbone of yours brings its own.
        decoder_channels: the decoder's width; by default the variant's own (256 over a backbone of yours).
        drop_path: the stochastic-depth rate, by default 0.1; a backbone of yours brings its own.
        dropout: probability of dropping a channel before the classifier.
        classes: names and colours.
        normalization: how images are normalised; by default see :class:`SegmentationModel`.

    Raises:
        ValueError: on an unknown variant, fewer than one class or channel, or arguments that a ready-made backbone cannot heed.

    Example:
        >>> model = SegFormer("b0", num_classes=19)
        >>> model(torch.randn(1, 3, 512, 512)).shape
        torch.Size([1, 19, 512, 512])
    """

    def __init__(
        self,
        backbone: str | Variant | nn.Module = "b0",
        num_classes: int | None = None,
        *,
        in_channels: int | None = None,
        decoder_channels: int | None = None,
        drop_path: float | None = None,
        dropout: float = 0.1,
        classes: Classes | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        if num_classes is None:
            num_classes = len(classes) if classes else 150
        options: Any = {"in_channels": in_channels, "drop_path": drop_path}
        options = {name: value for name, value in options.items() if value is not None}
        width = 256
        if not isinstance(backbone, nn.Module):
            width = find_variant(backbone).decoder_channels
            backbone = MiT(backbone, **options)
        elif not hasattr(backbone, "channels"):
            raise ValueError(
                f"a backbone of class {type(backbone).__name__} has no channels; it must tell those of its feature maps, finest first"
            )
        elif options:
            raise ValueError(
                f"{', '.join(options)} given beside a ready-made {type(backbone).__name__}; set it there"
            )
        channels: Any = backbone.channels
        head = AllMLPHead(
            channels,
            num_classes,
            width if decoder_channels is None else decoder_channels,
            dropout=dropout,
        )
        super().__init__(backbone, head, classes, normalization=normalization)


class SETR(SegmentationModel):
    """SETR: a Vision Transformer under a convolutional decoder (arXiv 2012.15840).

    Args:
        backbone: ``"large"``, ``"base"``, ``"deit"`` or ``"tiny"``: a ViT of timm's with patches of 16 pixels.
        num_classes: classes to tell apart; by default as many as ``classes`` names, or ADE20K's 150.
        head: :class:`~segformer.networks.setr.NaiveHead`, :class:`~segformer.networks.setr.PUPHead` or :class:`~segformer.networks.setr.MLAHead`, or another class
            that names the ``BLOCKS`` of 24 that it reads, and whether the ``CLASS_TOKEN`` goes through them.
        channels: the head's width.
        pretrained: load timm's ImageNet weights into the backbone, from the Hugging Face hub.
        img_size: pixels a side, or height and width, for which the position embedding is made: the training's crop. By default 384. Any
            other size of image works, by resampling.
        in_channels: channels of the images.
        drop_path: the last block's stochastic-depth rate; 0 in the published runs.
        classes: names and colours.
        normalization: how images are normalised; by default timm's for the weights that
            ``pretrained`` loads, and ImageNet's without.

    Raises:
        ValueError: on an unknown backbone or a head that does not say what it reads.

    Example:
        >>> model = SETR("tiny", num_classes=19, head=PUPHead)
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 19, 65, 97])
    """

    BACKBONES: ClassVar[dict[str, tuple[str, int]]] = {  # timm's name, and how many blocks it has
        "large": ("vit_large_patch16_384", 24),
        "base": ("vit_base_patch16_384", 12),
        "deit": ("deit_base_patch16_384", 12),
        "tiny": ("vit_tiny_patch16_384", 12),
    }

    def __init__(
        self,
        backbone: str = "large",
        num_classes: int | None = None,
        head: type[nn.Module] = PUPHead,
        *,
        channels: int = 256,
        pretrained: bool = False,
        img_size: int | Sequence[int] = 384,
        in_channels: int = 3,
        drop_path: float = 0.0,
        classes: Classes | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        if num_classes is None:
            num_classes = len(classes) if classes else 150
        if backbone not in self.BACKBONES:
            raise ValueError(
                f"unknown backbone {backbone!r}; choose one of {', '.join(self.BACKBONES)}"
            )
        reads: Any = head
        if not (hasattr(head, "BLOCKS") and hasattr(head, "CLASS_TOKEN")):
            raise ValueError(
                f"head={head!r} does not say which BLOCKS it reads; choose one of NaiveHead, PUPHead, MLAHead"
            )
        name, depth = self.BACKBONES[backbone]
        vit = TimmBackbone(
            name,
            pretrained=pretrained,
            in_channels=in_channels,
            out_indices=[block * depth // 24 - 1 for block in reads.BLOCKS],
            class_token=reads.CLASS_TOKEN,
            img_size=img_size if isinstance(img_size, int) else tuple(img_size),
            drop_path_rate=drop_path,
        )
        super().__init__(
            vit, head(vit.channels, num_classes, channels), classes, normalization=normalization
        )


class ConvSegFormer(SegmentationModel):
    """The convolutional Segformer of Phil Wang's segformer-pytorch, with its arguments; each takes one value, or four, one a stage.

    Args:
        dims: channels.
        heads: attention heads.
        ff_expansion: the Mix-FFN's width over the stage's.
        reduction_ratio: how many times coarser keys and values are, a side.
        num_layers: blocks.
        channels: channels of the images.
        decoder_dim: the decoder's width.
        num_classes: classes to tell apart.
        classes: names and colours.

    Raises:
        ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        *,
        dims: PerStage = (32, 64, 160, 256),
        heads: PerStage = (1, 2, 5, 8),
        ff_expansion: PerStage = (8, 8, 4, 4),
        reduction_ratio: PerStage = (8, 4, 2, 1),
        num_layers: PerStage = 2,
        channels: int = 3,
        decoder_dim: int = 256,
        num_classes: int = 4,
        classes: Classes | None = None,
    ) -> None:
        backbone = ConvolutionalMiT(
            dims, heads, ff_expansion, reduction_ratio, num_layers, channels
        )
        super().__init__(backbone, LinearHead(backbone.channels, num_classes, decoder_dim), classes)


class Pretrained(SegmentationModel):
    """:meth:`SegmentationModel.from_pretrained` as a class, which a YAML file can name to start training from somebody's weights."""

    def __init__(
        self,
        source: str,
        num_classes: int | None = None,
        *,
        in_channels: int | None = None,
        layout: str | None = None,
    ) -> None:
        reading = checkpoint.read(source, num_classes, in_channels=in_channels, layout=layout)
        super().__init__(**reading.parts)


def precision(device: str, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to ``dtype``, or None for the precision around it.

    Its cache is off: it would hand out weights that an outer autocast cast to another type, and a CUDA graph would keep weights
    that it may free.
    """
    return nullcontext() if dtype is None else torch.autocast(device, dtype, cache_enabled=False)


_evaluating: WeakKeyDictionary[nn.Module, Evaluation] = WeakKeyDictionary()
_lock = threading.Lock()


@dataclass
class Evaluation:
    """The calls that need a model in evaluation mode now, and its modules that were in training mode before."""

    calls: int
    training: list[nn.Module]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode inside, every module's own mode restored outside: by the last of several threads that leaves."""
    with _lock:
        if model not in _evaluating:
            _evaluating[model] = Evaluation(
                0, [module for module in model.modules() if module.training]
            )
        evaluation = _evaluating[model]
        evaluation.calls += 1
        for module in evaluation.training:
            module.training = False
    try:
        yield model
    finally:
        with _lock:
            evaluation.calls -= 1
            if not evaluation.calls:
                del _evaluating[model]
                for module in evaluation.training:
                    module.training = True
