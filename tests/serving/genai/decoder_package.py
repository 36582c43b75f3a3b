"""Packages of a decoder as bundles for genai see them: files and a manifest, nothing that runs."""

from dataclasses import replace
from pathlib import Path

from moh_deploy.package import Manifest, OnnxPackage, TensorInfo, TextGeneration

ABOUT = TextGeneration(
    vocab_size=97, context_length=128, eos_token_ids=(2, 5), bos_token_id=1, model_type="small"
)


def manifest(layers: int = 2, **changes: object) -> Manifest:
    """Return that of a decoder with 2 heads of keys and values, of size 8."""
    caches = [f"past_key_values.{n}.{kind}" for n in range(layers) for kind in ("key", "value")]
    cache = ("batch", 2, "past", 8)
    made = Manifest(
        inputs=(
            TensorInfo("input_ids", "int64", ("batch", "seq")),
            TensorInfo("attention_mask", "int64", ("batch", "total")),
            *(TensorInfo(name, "float32", cache) for name in caches),
        ),
        outputs=(
            TensorInfo("logits", "float32", ("batch", "seq", 97)),
            *(
                TensorInfo(
                    name.replace("past_key_values", "present"), "float32", ("batch", 2, "total", 8)
                )
                for name in caches
            ),
        ),
        dims={},
        layers=(),
        ops={"moh::MoHAttention": 1, "moh.dense::MoHAttention": 1, "moh.9::MoHAttention": 1},
        opset=24,
        total_flops=None,
        precision="float32",
        checkpoint_sha256=None,
        made_with={},
        text_generation=ABOUT,
    )
    return replace(made, **changes)


def package(root: Path, files: dict[str, str], **changes: object) -> OnnxPackage:
    """Write files of a package, whose contents nobody looks at."""
    root.mkdir()
    for name, text in {"manifest.json": "{}", "model.onnx": "", **files}.items():
        (root / name).write_text(text)
    digests = dict.fromkeys(["model.onnx", *files], "")
    return OnnxPackage(root, manifest(files=digests, **changes), ())
