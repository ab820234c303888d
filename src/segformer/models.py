"""Whole models: a backbone, a decode head, and the interpolation of its logits to pixels."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from segformer import checkpoint
from segformer.data.classes import Classes
from segformer.data.normalization import IMAGENET, Normalization
from segformer.networks.all_mlp import AllMLPHead
from segformer.networks.convolutional import ConvolutionalMiT, LinearHead, PerStage
from segformer.networks.images import refuse_scripting
from segformer.networks.mit import MiT, Variant, find_variant
from segformer.networks.setr import PUPHead, indices_of
from segformer.networks.timm_backbone import TimmBackbone
from segformer.ops import at_least_float32, upsample, upsample_argmax, with_background
from segformer.ops.conditions import calls_forward_of, hooked_module
from segformer.ops.cuda_graphs import Graphs
from segformer.ops.modes import evaluating, precision
from segformer.ops.registry import only_plain

if TYPE_CHECKING:
    from typing import Self

    from segformer.inference.results import Prediction


class SegmentationModel(nn.Module):
    """Any backbone under any decode head.

    Args:
        backbone: module from images (B, C, H, W) to a list of feature maps, finest first. Its
            attribute ``channels`` holds their numbers of channels.
        decode_head: module from that list to logits (B, K, H/4, W/4). Its attribute ``num_classes``
            is K.
        classes: names and colours of the K classes; by default ``class 0``, ``class 1``, …
        align_corners: how stride-4 logits are interpolated to pixels; true only for weights that
            were trained so.
        normalization: how images are normalised for these weights; by default
            ``backbone.normalization``, or else ImageNet's mean and standard deviation.
        licence: name of the licence of the weights that these come from; by default
            ``backbone.licence``, if there is one.

    Attributes:
        licence: that name, which :meth:`save` writes into the file; None if it is not known.

    Raises:
        ValueError: if ``classes`` or ``normalization`` is for another number of classes or
            channels.
    """

    def __init__(
        self,
        backbone: nn.Module,
        decode_head: nn.Module,
        classes: Classes | None = None,
        *,
        align_corners: bool = False,
        normalization: Normalization | None = None,
        licence: str | None = None,
    ) -> None:
        super().__init__()
        self.licence: str | None = licence or getattr(backbone, "licence", None)
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
    def min_size(self) -> int:
        """Smallest height and width of an image in pixels."""
        return int(getattr(self.backbone, "min_size", 1))

    @property
    def classes(self) -> Classes:
        """Names and colours of the classes, which :meth:`save` writes into the file.

        A model of one logit has two classes, labelled 0 and 1. If only one name is given, it names
        label 1, and label 0 is the background.
        """
        return self._classes

    @classes.setter
    def classes(self, classes: Classes) -> None:
        if not classes.fit(self.num_classes):
            n, shown = len(classes), ", ".join(classes.names[:3])
            raise ValueError(
                f"{n} class names ({shown}{', …' if n > 3 else ''}) for a model of "
                f"{self.num_classes} classes; pass num_classes={n} when you build or load it"
            )
        self._classes = classes.of_labels()

    @property
    def normalization(self) -> Normalization:
        """How images are normalised for these weights; :meth:`save` writes it into the file."""
        return self._normalization

    @normalization.setter
    def normalization(self, normalization: Normalization) -> None:
        channels = getattr(self.backbone, "in_channels", len(normalization.mean))
        if len(normalization.mean) != channels:
            raise ValueError(
                f"a normalization of {len(normalization.mean)} channels for a model that takes "
                f"{channels}; give one mean and std a channel, or "
                f"normalization.for_channels({channels})"
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
        """Images (B, C, H, W) to labels (B, *size*) int64, in evaluation mode.

        A model of one logit labels 1 where its sigmoid exceeds 0.5, and 0 elsewhere.

        Several threads may call this method at the same time, but not while another thread runs a
        forward pass of the same model in training mode: some layers would be in evaluation mode.

        Args:
            images: as for :meth:`forward`.
            size: height and width of the labels, to which the logits are interpolated; by default
                the images' own.
            dtype: ``torch.bfloat16`` or ``torch.float16`` for matrix products in that precision,
                where the hardware supports it. Labels may differ where two classes nearly tie. By
                default the precision of the weights, or of an autocast around the call.
            cuda_graph: whether to record the work as a CUDA graph at the first call for images of a
                shape, and to replay it in the following calls. It helps small batches, whose
                kernels take less time than their launches. The graphs of the last four shapes keep
                their memory.

        Raises:
            ValueError: if ``cuda_graph`` is true and the images are not on a CUDA device, or the
                model has hooks, which a replay would not call.
        """
        size = tuple(images.shape[-2:] if size is None else size)
        if cuda_graph:
            return self._replay(images, size, dtype)
        return self._label(images, size, dtype)

    def _replay(self, images: Tensor, size: Sequence[int], dtype: torch.dtype | None) -> Tensor:
        """:meth:`_label` as a CUDA graph."""
        device = images.device
        if not images.is_cuda:
            raise ValueError(
                f"cuda_graph=True needs images on a CUDA device, these are on {device}; move them "
                "and the model there"
            )
        if hooked := hooked_module(self):
            raise ValueError(
                f"cuda_graph=True cannot replay hooks, and {hooked} has some; remove them, or "
                "predict without a graph"
            )
        if dtype is None and torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        label = partial(self._label, size=size, dtype=dtype)
        return self._graphs(self, label, images, (size, dtype, only_plain()))

    def _label(self, images: Tensor, size: Sequence[int], dtype: torch.dtype | None) -> Tensor:
        with evaluating(self), precision(images.device.type, dtype):
            logits = with_background(self._logits(images))
            return upsample_argmax(logits, size, self.align_corners)

    def _logits(self, images: Tensor) -> Tensor:
        """Logits (B, K, H/4, W/4); of a forward pass that is not this class's, (B, K, H, W)."""
        has_own = not calls_forward_of(self, SegmentationModel)
        logits: Tensor = self(images) if has_own else self.decode_head(self.backbone(images))
        return logits

    @torch.no_grad()
    def predict_with_probabilities(
        self, images: Tensor, size: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) to labels (B, *size*) and class probabilities (B, K, *size*) float32.

        The labels are those of :meth:`predict`, as ``images`` and ``size`` are. A model of one
        logit has the probabilities of two classes.
        """
        size = tuple(images.shape[-2:] if size is None else size)
        with evaluating(self):
            logits = with_background(self._logits(images))
            labels = upsample_argmax(logits, size, self.align_corners)
            logits = upsample(at_least_float32(logits), size, self.align_corners)
            return labels, logits.softmax(1).float()

    def predict_file(self, path: str | os.PathLike[str]) -> Prediction:
        """Returns the labels of an image file, its class probabilities, and the image.

        As :func:`segformer.inference.pipeline.predict_file`, which has more options.

        Raises:
            ValueError: If the file cannot be decoded. The message names it.
        """
        from segformer.inference import predict_file

        return predict_file(self, path)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass instead of keeping activations.

        Training takes less memory and more time.

        Raises:
            ValueError: if the backbone cannot.
        """
        if not hasattr(self.backbone, "set_grad_checkpointing"):
            name = type(self.backbone).__name__
            raise ValueError(
                f"the backbone {name} has no set_grad_checkpointing; give it this method, or "
                "leave gradient checkpointing out"
            )
        self.backbone.set_grad_checkpointing(enable)

    def save(self, path: str | os.PathLike[str], layout: str = "native") -> None:
        """Write the model to a file or folder.

        Args:
            path: a ``.safetensors`` file; for ``"nvidia"`` and ``"smp"`` also a ``.pth`` file; for
                ``"huggingface"`` a folder.
            layout: ``"native"``: one file with weights, architecture, numerics, class names and
                colours. ``"huggingface"``: for ``SegformerForSemanticSegmentation.from_pretrained``
                of transformers. ``"nvidia"`` or ``"smp"``: a state dict of the model of that name.
                A warning is logged, with the size of the difference, if the layout's readers would
                compute anything else.

        Raises:
            OSError: if the file cannot be written; an existing file is kept.
            ValueError: if the layout is unknown, or cannot hold a part of the model.
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
        """Write the model to a repository on the Hugging Face hub, creating it if needed.

        Args:
            repository: ``"organisation/name"``.
            layout: ``"native"``, or ``"huggingface"``, which transformers reads too.
            private: whether a new repository is private; by default the organisation's setting.
            revision: the branch to write to.

        Returns:
            The address of the commit.
        """
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder:
            path = folder if layout == "huggingface" else Path(folder, "model.safetensors")
            self.save(path, layout)
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
        """Read a model in any known layout, with the numerics of its training, in evaluation mode.

        It is of this class, with the backbone and the head that the file has.

        One table in the log lists what was dropped, folded, adapted or newly initialised;
        :func:`segformer.checkpoint.read` returns it.

        Args:
            source: a file (``.safetensors``, or a pickled state dict such as ``.pth``), a folder (a
                run's, or Hugging Face's with its ``config.json``), or an id on the Hugging Face
                hub.
            num_classes: number of classes. If it differs from the file's, the classifier is new and
                random. A file that holds only a backbone needs it, and gets a new, random head; one
                of SETR's is refused, because it does not show which head is wanted.
            in_channels: number of channels of the images. If it differs from the file's, the first
                convolution is summed to one channel, or repeated and scaled.
            layout: the layout's name where the names of the tensors do not tell it: ``"sithu"`` or
                ``"bubbliiiing"`` instead of ``"nvidia"``.
            strict: whether missing or unknown keys are errors. Otherwise they are newly initialised
                or ignored, and reported. A missing classifier needs ``num_classes``, and is then
                no error.
            dtype: precision of the parameters, which images must have, too; by default the widest
                in the file. Eight-bit floats are read as the widest of the others, or float32.
            device: device of the parameters; by default the CPU.
            revision: branch, tag or commit on the hub.
            subfolder: the folder below ``source`` that holds the weights.
            token: access token for the hub; by default the one that its command line has stored.
            cache_dir: folder for downloads; by default the hub's own cache.

        Raises:
            FileNotFoundError: if there is no such file, folder or hub id.
            ValueError: if the file is truncated, holds no tensors, has an unknown layout, or keys
                or shapes that do not fit its layout; the message names the first ones.
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
        """Read weights in any known layout into this model; every key must fit.

        The model keeps its own numerics and normalization; a warning lists those that differ from
        the file's. The arguments are those of :meth:`from_pretrained`.

        Raises:
            FileNotFoundError: if there is no such file, folder or hub id.
            ValueError: if keys or shapes do not fit; the message names the first ones.
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
        licence: str | None = None,
    ) -> Self:
        """Returns a model of this class from its parts, without calling its constructor."""
        model = cls.__new__(cls)
        options: Any = {
            "align_corners": align_corners,
            "normalization": normalization,
            "licence": licence,
        }
        SegmentationModel.__init__(model, backbone, decode_head, classes, **options)
        return model


class SegFormer(SegmentationModel):
    """SegFormer: a hierarchical Transformer encoder under an all-MLP decoder (arXiv 2105.15203).

    Args:
        backbone: ``"b0"`` … ``"b5"``, a :class:`Variant`, or any module that maps images to feature
            maps, finest first, and has their ``channels``.
        num_classes: number of classes; by default that of ``classes``, or ADE20K's 150.
        in_channels: number of channels of the images, by default 3. It cannot be given together
            with a module.
        decoder_channels: width of the decoder; by default the variant's, or 256 for a module.
        drop_path: stochastic-depth rate, by default 0.1. It cannot be given together with a module.
        dropout: probability that a whole channel is dropped before the classifier; or a
            ``torch.nn.Dropout``, which drops single values.
        classes: names and colours of the classes.
        normalization: how images are normalised; by default see :class:`SegmentationModel`.

    Raises:
        ValueError: if the variant is unknown, a number is below 1, or ``in_channels`` or
            ``drop_path`` is given with a module.

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
        dropout: float | nn.Module = 0.1,
        classes: Classes | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        options: Any = {"in_channels": in_channels, "drop_path": drop_path}
        options = {name: value for name, value in options.items() if value is not None}
        width = 256
        if isinstance(backbone, nn.Module):
            check_backbone(backbone, options)
        else:
            width = find_variant(backbone).decoder_channels
            backbone = MiT(backbone, **options)
        channels: Any = backbone.channels
        width = width if decoder_channels is None else decoder_channels
        head = AllMLPHead(channels, number_of_classes(num_classes, classes), width, dropout=dropout)
        super().__init__(backbone, head, classes, normalization=normalization)


def number_of_classes(num_classes: int | None, classes: Classes | None) -> int:
    """The number of classes: the given one, that of their names, or ADE20K's 150."""
    return num_classes if num_classes is not None else len(classes or range(150))


def check_backbone(backbone: nn.Module, options: dict[str, Any]) -> None:
    """Check that a module can be SegFormer's backbone, without further options.

    Raises:
        ValueError: if it cannot.
    """
    name = type(backbone).__name__
    if not hasattr(backbone, "channels"):
        raise ValueError(
            f"a backbone of class {name} has no channels; give it this attribute, the numbers of "
            "channels of its feature maps, finest first"
        )
    if options:
        raise ValueError(
            f"{', '.join(options)} cannot be given with a backbone of class {name}; pass it to "
            f"{name} instead"
        )


class SETR(SegmentationModel):
    """SETR: a Vision Transformer under a convolutional decoder (arXiv 2012.15840).

    Args:
        backbone: ``"large"``, ``"base"``, ``"deit"`` or ``"tiny"``: one of timm's Vision
            Transformers with patches of 16 pixels.
        num_classes: number of classes; by default that of ``classes``, or ADE20K's 150.
        head: class of the decode head: :class:`NaiveHead`, :class:`PUPHead`, :class:`MLAHead` or
            one of your own. Its attribute ``BLOCKS`` lists the blocks whose output it reads,
            counted from 1 in a transformer of 24 blocks and scaled to the depth of the backbone.
            Its attribute ``CLASS_TOKEN`` is whether the class token passes through the blocks.
        channels: width of the head.
        pretrained: whether to load timm's ImageNet weights of the backbone from the Hugging Face
            hub.
        img_size: height and width in pixels of the training crops, for which the position embedding
            is made; one number for both. Images of other sizes work by resampling.
        in_channels: number of channels of the images.
        drop_path: stochastic-depth rate of the last block; 0 in the published runs.
        classes: names and colours of the classes.
        normalization: how images are normalised; by default timm's for the weights that
            ``pretrained`` loads, otherwise ImageNet's.

    Raises:
        ValueError: if the backbone is unknown, or the head lacks these attributes.

    Example:
        >>> model = SETR("tiny", num_classes=19, head=PUPHead)
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 19, 65, 97])
    """

    BACKBONES: ClassVar[dict[str, tuple[str, int]]] = {  # timm's name, number of blocks
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
        if backbone not in self.BACKBONES:
            raise ValueError(
                f"unknown backbone {backbone!r}; choose one of {', '.join(self.BACKBONES)}"
            )
        blocks, class_token = _what_it_reads(head)
        name, depth = self.BACKBONES[backbone]
        vit = TimmBackbone(
            name,
            pretrained=pretrained,
            in_channels=in_channels,
            out_indices=indices_of(blocks, depth),
            class_token=class_token,
            img_size=img_size if isinstance(img_size, int) else tuple(img_size),
            drop_path_rate=drop_path,
        )
        decode_head = head(vit.channels, number_of_classes(num_classes, classes), channels)
        super().__init__(vit, decode_head, classes, normalization=normalization)


def _what_it_reads(head: Any) -> tuple[Sequence[int], bool]:
    """Returns the blocks that a head of SETR reads, and whether a class token passes through them.

    Raises:
        ValueError: If it does not say so.
    """
    if not (hasattr(head, "BLOCKS") and hasattr(head, "CLASS_TOKEN")):
        raise ValueError(
            f"head={head!r} has no BLOCKS and CLASS_TOKEN; choose one of NaiveHead, PUPHead, "
            "MLAHead"
        )
    return head.BLOCKS, head.CLASS_TOKEN


class ConvSegFormer(SegmentationModel):
    """The convolutional Segformer of Phil Wang's segformer-pytorch, with its arguments.

    Each argument of the encoder is one value for all stages, or four values, one per stage.

    Args:
        dims: number of channels.
        heads: number of attention heads.
        ff_expansion: hidden channels of the Mix-FFN, divided by the number of channels.
        reduction_ratio: factor by which keys and values are coarser than queries, along each side.
        num_layers: number of blocks.
        channels: number of channels of the images.
        decoder_dim: width of the decoder.
        num_classes: number of classes.
        classes: names and colours of the classes.

    Raises:
        ValueError: if an argument does not fit; the message names it.
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
    """:meth:`SegmentationModel.from_pretrained` as a class, which a YAML file can name.

    A run then starts from these weights, in float32. The arguments are those of that method, which
    are explained there.
    """

    def __init__(
        self,
        source: str,
        num_classes: int | None = None,
        *,
        in_channels: int | None = None,
        layout: str | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
    ) -> None:
        reading = checkpoint.read(
            source,
            num_classes,
            in_channels=in_channels,
            layout=layout,
            dtype=torch.float32,
            revision=revision,
            subfolder=subfolder,
        )
        super().__init__(**reading.parts)
