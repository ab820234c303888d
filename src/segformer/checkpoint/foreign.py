"""Recognises files that hold no weights of a SegFormer, and names the cure.

A description completes the sentence "FILE is …".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from zipfile import BadZipFile, ZipFile

EXPORTED = "it was made from a PyTorch model: use that model's weights"
SAVE = "save {} with torch.save, and use that file"
UNPACK = "unpack it, and use the file of the weights"
MAGIC = {  # by the first bytes
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes it; save the weights from PyTorch",
    b"GGUF": f"a GGUF file; {EXPORTED}",
    b"\x93NUMPY": "a NumPy array, not named tensors; save the weights with torch.save",
    b"\x89PNG": "an image; use the file of the weights",
    b"\xff\xd8\xff": "an image; use the file of the weights",
    b"\x1f\x8b": f"compressed with gzip; {UNPACK}",
    b"7z\xbc\xaf": f"a 7z archive; {UNPACK}",
    b"Rar!": f"a RAR archive; {UNPACK}",
}
CONVERT_DISTRIBUTED = (
    "convert its folder with torch.distributed.checkpoint.format_utils.dcp_to_torch_save, and use "
    "the result"
)
BY_SUFFIX = {
    ".onnx": f"an ONNX graph; {EXPORTED}",
    ".engine": f"a TensorRT engine; {EXPORTED}",
    ".plan": f"a TensorRT engine; {EXPORTED}",
    ".mlmodel": f"a Core ML model; {EXPORTED}",
    ".distcp": f"a shard of a torch.distributed checkpoint; {CONVERT_DISTRIBUTED}",
}
MEMBERS = {  # by a file in a zip archive; the first match counts
    r"(^|/)constants\.pkl$": "a TorchScript archive; "
    + SAVE.format("torch.jit.load(path).state_dict()"),
    r"(^|/)(archive_format|serialized_exported_program\.json)$": "a program of torch.export; "
    + SAVE.format("torch.export.load(path).state_dict"),
    r"\.weights\.h5$": "a Keras model; save the weights from PyTorch",
    r"\.npy$": "an archive of NumPy arrays; save the weights with torch.save",
}
FOLDERS = {  # by a file in the folder
    "adapter_config.json": "a PEFT adapter without its base model; merge them where they were "
    "trained (PeftModel.from_pretrained(base, folder).merge_and_unload()), and save the result",
    ".metadata": f"a torch.distributed checkpoint; {CONVERT_DISTRIBUTED}",
    "saved_model.pb": "a TensorFlow SavedModel; save the weights from PyTorch",
    "zero_to_fp32.py": "a DeepSpeed checkpoint; run the zero_to_fp32.py in it, and use the result",
}
# Changed weights. Each of the expressions must match some key.
CHANGED = (
    (
        "a PEFT adapter, or a model with adapters; call merge_and_unload() and save the result, "
        "or use the model.safetensors that a run of `segformer fit` writes at its end",
        (r"\.lora_[AB]\.|\.lora_embedding_|\.base_layer\.(weight|bias)$|^base_model\.model\.",),
    ),
    (
        "quantised; dequantise it where it came from, or save the model that was quantised",
        (r"_packed_params|\.(qweight|absmax|weight_scale|weight_scale_inv|zero_point|quant_map)$",),
    ),
)
# Other models, in the same way.
ARCHITECTURES = (
    (
        "a segmentation_models_pytorch U-Net",
        (r"encoder\.", r"decoder\.blocks\.", r"segmentation_head\."),
    ),
    (
        "a segmentation_models_pytorch model with another decoder",
        (r"encoder\.(conv1|layer1|features|model)\.", r"decoder\.", r"segmentation_head\."),
    ),
    ("a U-Net", (r"(^|\.)inc\.(double_conv|conv)\.", r"(^|\.)outc\.")),
    ("an nnU-Net", (r"encoder\.stages\.\d+\.\d+\.(convs|blocks)\.", r"decoder\.seg_layers\.")),
    (
        "torchvision's DeepLabV3",
        (r"backbone\.(conv1|0\.0|layer1)\.", r"(^|\.)classifier\.0\.convs\."),
    ),
    ("torchvision's FCN or LR-ASPP", (r"backbone\.(conv1|0\.0|layer1)\.", r"(^|\.)classifier\.")),
    ("an mmsegmentation model with a ResNet", (r"backbone\.(stem|conv1|layer1)", r"decode_head\.")),
    ("a Swin Transformer", (r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table",)),
    ("a Mask2Former or MaskFormer", (r"(pixel_level_module|pixel_decoder|sem_seg_head)\.",)),
    ("a Segment Anything model", (r"(image_encoder|vision_encoder)\.", r"mask_decoder\.")),
    ("an ultralytics YOLO model", (r"(^|\.)model\.0\.conv\.weight$", r"(^|\.)model\.\d+\.cv\d\.")),
    ("a ResNet", (r"(^|\.)conv1\.weight$", r"(^|\.)layer1\.0\.conv1\.weight$")),
    ("a Vision Transformer", (r"(^|\.)cls_token$|(^|\.)pos_embed$", r"blocks\.0\.attn\.qkv\.")),
    ("a ConvNeXt", (r"stages\.0\.blocks\.0\.conv_dw\.|stages\.0\.0\.dwconv\.",)),
)


def kind_of_file(path: Path, head: bytes) -> str | None:
    """Returns what a file is instead of weights, by its first bytes, name and members, or None."""
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[4:8] == b"TFL3":
        return f"a TensorFlow Lite model; {EXPORTED}"
    if head[:1] == b"\x08" and head[2:3] == b"\x12":  # a protobuf's version, then its producer
        return BY_SUFFIX[".onnx"]
    if path.suffix.lower() in BY_SUFFIX:
        return BY_SUFFIX[path.suffix.lower()]
    return _kind_of_archive(path) if head.startswith(b"PK\x03\x04") else None


def _kind_of_archive(path: Path) -> str | None:
    try:
        with ZipFile(path) as archive:
            members = archive.namelist()
    except BadZipFile:  # truncated: reading it raises a better error
        return None
    for pattern, kind in MEMBERS.items():
        if any(re.search(pattern, member) for member in members):
            return kind
    is_pickle = any(member.endswith("data.pkl") for member in members)
    return None if is_pickle else f"a zip archive; {UNPACK}"


def kind_of_folder(folder: Path) -> str | None:
    """Returns what a folder without weights is, or None."""
    return next((kind for name, kind in FOLDERS.items() if (folder / name).exists()), None)


def kind_of_weights(keys: Iterable[str]) -> str | None:
    """Returns how weights were changed so that they cannot be read, by their keys, or None."""
    return _first_match(CHANGED, list(keys))


def kind_of_model(keys: Iterable[str]) -> str | None:
    """Returns which other model a state dict is of, by its keys, or None."""
    return _first_match(ARCHITECTURES, list(keys))


def _first_match(kinds: Iterable[tuple[str, Iterable[str]]], keys: list[str]) -> str | None:
    for kind, patterns in kinds:
        if all(any(re.search(pattern, key) for key in keys) for pattern in patterns):
            return kind
    return None
