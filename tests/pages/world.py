"""What the pages take for granted: a checkout, a user's models and data, and packages of them."""

import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import moh_deploy
from moh_deploy.decision.api.compare import new_plan
from moh_deploy.system.npz import write_npz
from tests.examples.digits_demo import DIGITS, DemoRun
from tests.kept_builds import ROOT
from tests.pages.blocks import blocks
from tests.text.export_small import export_directory
from tests.text.gated_directories import IMAGE, GatedDirectory, write_gated_directory
from tests.text.model_directories import write_plain_torch
from tests.text.tokenizer_files import write_tokenizer

HERE = Path(__file__).parent
Arrays = dict[str, np.ndarray]
CODE = (HERE / "my_models.py", HERE.parent / "small_moh.py", DIGITS / "model.py")
PACKAGES = ("model", "package", "half", "last-release", "right", "next", "dense", "moh")
"""What a page begins with in `build`: packages of the same model."""
OWN = dict.fromkeys(
    (
        "drift.md",
        "drill.md",
        "guard.md",
        "optimize.md",
        "precision.md",
        "production.md",
        "prune.md",
        "roll-out-and-roll-back.md",
        "serve-with-triton.md",
        "serve.md",
        "verify.md",
    ),
    "digits",
) | dict.fromkeys(("bench.md", "padding-and-masks.md", "probe.md", "tune.md"), "text")
"""What `model.pt` reads on a page, where it is not images [B, 3, 224, 224]."""


@dataclass(frozen=True)
class Own:
    """A model that pages call the reader's own.

    Attributes:
        folder: Where `model.pt`, `weights.safetensors` and `package` are.
        samples: Inputs of as many samples as there are labels.
    """

    folder: Path
    samples: Arrays
    labels: np.ndarray

    def lay_out(self, folder: Path) -> None:
        """Write checkpoint and data under the names that pages use."""
        for name in ("model.pt", "weights.safetensors"):
            shutil.copy(self.folder / name, folder)
        # The last are for scales alone, which are not judged on what they were made of.
        for name in ("val", "held-out", "padded"):
            write_npz(folder / f"{name}.npz", self._part(slice(-16)))
        np.save(folder / "labels.npy", self.labels[:-16])
        write_npz(folder / "calibration.npz", self._part(slice(-16, None)))
        for name, count in {"in": 4, "example": 2, "prefill": 8, "step": 1}.items():
            write_npz(folder / f"{name}.npz", self._part(slice(count)))
        for name, count in (("mine", 2), ("traffic", 40), ("good", 60)):
            (folder / name).mkdir()
            for number in range(2):
                write_npz(folder / name / f"{number}.npz", self._part(slice(count)))

    def _part(self, samples: slice) -> Arrays:
        return {name: array[samples] for name, array in self.samples.items()}


@dataclass(frozen=True)
class World:
    """What is made once, for all pages.

    Attributes:
        own: The models by what they read: `images`, `text` and `digits`.
        files: The models of images and of text in other forms.
        directory: A model directory of a language model, and its package.
    """

    own: dict[str, Own]
    digits: DemoRun
    files: Path
    directory: Path
    llm: Path

    def lay_out(self, folder: Path, page: Path) -> None:
        """Fill a folder with what a page takes for granted."""
        own = self.own[OWN.get(page.name, "images")]
        for path in ROOT.iterdir():
            if not path.name.startswith(".") and path.name != "build":
                (folder / path.name).symlink_to(path)
        for name in PACKAGES:
            shutil.copytree(own.folder / "package", folder / "build" / name)
        shutil.copytree(self.digits.work_dir, folder / "build" / "digits")
        shutil.copytree(self.own["text"].folder / "package", folder / "build" / "lm")
        shutil.copytree(self.llm, folder / "build" / "llm")
        shutil.copy(self.digits.checkpoint, folder)
        for file in CODE:
            shutil.copy(file, folder)
        self.lay_out_models(folder, own)
        if page.name in MORE:
            MORE[page.name](folder)

    def lay_out_models(self, folder: Path, own: Own) -> None:
        """Write what readers bring along: their models, and data."""
        own.lay_out(folder)
        shutil.copytree(self.files, folder, dirs_exist_ok=True)
        text = self.own["text"]
        shutil.copy(text.folder / "model.pt", folder / "lm.pt")
        write_npz(folder / "tokens.npz", text.samples)
        np.save(folder / "tokens.npy", text.labels)
        for name in ("model", "model-directory", "MoH-LLaMA3-8B"):
            shutil.copytree(self.directory, folder / name)


NAMES = {
    "caches.md": """
import numpy as np, onnxruntime as ort, moh_deploy
batch, heads, head_dim = 1, 2, 8
ids = np.array([[5, 9, 3]])
steps = [(ids, np.ones((1, 3), np.int64)), (ids[:, :1], np.ones((1, 4), np.int64))]
""",
    "export-configs.md": """
import moh_deploy, my_models, torch
model, ids = my_models.step_moh(), torch.randint(0, 1000, (2, 5))
key, value = torch.rand(2, 2, 4, 3, 8)
""",
    "huggingface.md": """
import moh_deploy, torch, moh_llama
from transformers import DynamicCache, LlamaConfig
from transformers.integrations.executorch import register_dynamic_cache_export_support
from transformers.models.llama import modeling_llama
register_dynamic_cache_export_support()
config = LlamaConfig(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)
model = modeling_llama.LlamaForCausalLM(config).eval()
ids = torch.randint(3, 128, (2, 3))
""",
    "opening-packages.md": """
import torch
images = torch.rand(2, 3, 224, 224)
""",
    "ops.md": """
from moh_deploy.ops import OPS
def my_kernel(inputs, attributes):
    outputs = OPS["MoHAttention"].reference(inputs, attributes)
    return [output.astype(inputs[0].dtype) for output in outputs]
""",
    "optimize.md": """
import torch
model = torch.load("model.pt", weights_only=False)
""",
    "quickstart.md": """
import torch
model, images = torch.load("model.pt", weights_only=False), torch.rand(2, 3, 224, 224)
""",
    "recognition.md": """
import torch
import torch.nn.functional as F
query, key, value = torch.rand(3, 2, 4, 5, 8)  # [B, H, T, D]
sinks, scale = torch.rand(4), 8**-0.5
hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
""",
    "verify.md": """
import moh_deploy, numpy as np, torch
module = torch.load("model.pt", weights_only=False)
with np.load("in.npz") as given:
    images = given["images"]
""",
}
"""What Python blocks of a page take as defined."""


def make_world(folder: Path, digits: DemoRun) -> World:
    """Export the models of the pages."""
    draws = np.random.default_rng(0)
    squares = draws.random((320, 3, 7, 7), np.float32)
    images = {"images": squares.repeat(32, axis=2).repeat(32, axis=3)}
    ids = draws.integers(0, 1000, (64, 12))
    mask = np.ones_like(ids)
    mask[::2, :3] = 0  # padded on the left
    with np.load(digits.work_dir / "held-out.npz") as held_out:
        of_digits = {"images": held_out["images"]}
    with pytest.MonkeyPatch.context() as patch:
        # By the names that a reader's files have, or no pickle of a model could be loaded.
        for file in CODE:
            patch.syspath_prepend(str(file.parent))
        mine = import_module("my_models")
        own = {
            "images": _own(folder / "images", mine.vit_moh(), images),
            "text": _own(
                folder / "text",
                mine.text_moh(),
                {"input_ids": ids, "attention_mask": mask},
                valid_tokens="attention_mask",
            ),
            "digits": _own(folder / "digits", _digits_model(digits), of_digits),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, at PyTorch
            _write_files(folder / "files", mine.vit_moh(), mine.text_moh(), _digits_model(digits))
        for file in CODE:
            sys.modules.pop(file.stem)
    write_plain_torch(folder / "directory")
    write_tokenizer(folder / "directory")
    export_directory(folder / "directory", folder / "llm")
    return World(own, digits, folder / "files", folder / "directory", folder / "llm")


def _own(folder: Path, model: torch.nn.Module, samples: Arrays, **options: str) -> Own:
    folder.mkdir()
    torch.save(model, folder / "model.pt")
    save_file(model.state_dict(), folder / "weights.safetensors")
    inputs = {name: torch.from_numpy(array) for name, array in samples.items()}
    axes = "0=batch,1=seq" if "input_ids" in samples else "0=batch"
    moh_deploy.export(
        model,
        folder / "package",
        inputs={name: array[:2] for name, array in inputs.items()},
        dynamic=[f"{name}:{axes}" for name in samples],
        **options,  # type: ignore[arg-type]
    )
    with torch.no_grad():
        labels = model(*inputs.values()).argmax(-1).numpy()
    return Own(folder, samples, labels)


def _write_files(
    folder: Path, images: torch.nn.Module, text: torch.nn.Module, digits: torch.nn.Module
) -> None:
    folder.mkdir()
    seen, batch = torch.rand(2, 3, 224, 224), {0: torch.export.Dim("batch")}
    torch.export.save(
        torch.export.export(images, (seen,), dynamic_shapes=(batch,)), folder / "model.pt2"
    )
    ids, mask = torch.randint(0, 1000, (2, 8)), torch.ones(2, 8, dtype=torch.int64)
    axes = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    for name, model, given, names, dynamic in (
        ("plain.onnx", images, (seen,), ["images"], (batch,)),
        ("digits.onnx", digits, (torch.rand(2, 1, 8, 8),), ["images"], (batch,)),
        ("decoder.onnx", text, (ids, mask), ["ids", "mask"], (axes, axes)),
    ):
        torch.onnx.export(
            model,
            given,
            folder / name,
            input_names=names,
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
        )


def _digits_model(digits: DemoRun) -> torch.nn.Module:
    model = import_module("model").DigitsViT().eval()
    model.load_state_dict(torch.load(digits.checkpoint)["model"])
    return model


# More of single pages.


def _of_quickstart(folder: Path) -> None:
    (folder / "my_project").mkdir()
    for file in CODE:
        shutil.copy(file, folder / "my_project")
    _of_compare(folder)
    _write_prices(folder)


def _of_compare(folder: Path) -> None:
    dense = folder / "build" / "dense"
    shutil.rmtree(dense, ignore_errors=True)
    moh_deploy.prune(folder / "build" / "moh", dense, keep="100%")


def _of_cost(folder: Path) -> None:
    _of_compare(folder)
    _write_prices(folder)
    new_plan(folder / "plan.yaml")


def _write_prices(folder: Path) -> None:
    page = blocks((ROOT / "docs" / "cost.md").read_text())
    for language, name in (("yaml", "prices.yaml"), ("csv", "traffic.csv")):
        (text,) = (block.text for block in page if block.language == language)
        (folder / name).write_text(text)


def _of_forms(folder: Path) -> None:
    shutil.copy(folder / "weights.safetensors", folder / "model.safetensors")
    shutil.copy(folder / "plain.onnx", folder / "model.onnx")
    (folder / "models.py").write_text("from my_models import vit_moh as build\n")


def _of_onnx_input(folder: Path) -> None:
    ids = np.random.default_rng(2).integers(0, 1000, (2, 8))
    write_npz(folder / "example.npz", {"ids": ids, "mask": np.ones_like(ids)})


def _of_huggingface(folder: Path) -> None:
    page = blocks((ROOT / "docs" / "huggingface.md").read_text())
    for block in page:
        if block.file == "moh_llama.py":
            (folder / block.file).write_text(block.text)
    shutil.rmtree(folder / "model")
    subprocess.run([sys.executable, "-c", LLAMA], cwd=folder, check=True, capture_output=True)
    _write_images(folder)


LLAMA = """
import moh_llama, torch
from transformers import LlamaConfig
torch.manual_seed(0)
config = LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)
model = moh_llama.ForExport(config)
for parameter in model.parameters():
    if parameter.ndim > 1:
        torch.nn.init.normal_(parameter, std=0.3)
model.save_pretrained("model")
"""


def _of_opening_packages(folder: Path) -> None:
    _write_images(folder)
    moh_deploy.export(folder / "MoH-ViT", folder / "build" / "vit", trust_code=True)


def _write_images(folder: Path) -> None:
    from PIL import Image
    from transformers import ViTImageProcessor

    architecture = "ViTForImageClassification"
    case = GatedDirectory("AutoModelForImageClassification", architecture, IMAGE, "", 2)
    write_gated_directory(folder / "MoH-ViT", case)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "MoH-ViT")
    pixels = np.random.default_rng(3).integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "cat.png")


def _of_bisect(folder: Path) -> None:
    moh_deploy.precision(folder / "build" / "model", to="float16", output=folder / "build" / "half")


def _of_verify(folder: Path) -> None:
    moh_deploy.precision(folder / "build" / "model", to="int4", output=folder / "build" / "int4")
    with np.load(folder / "val.npz") as samples:
        images = samples["images"]
    target = np.random.default_rng(1).standard_normal((len(images), 10), np.float32)
    write_npz(folder / "pairs.npz", {"images": images, "target": target})
    (folder / "my_metrics.py").write_text(PSNR)


PSNR = """
import numpy as np
def psnr(outputs, labels):
    (output,) = outputs.values()
    return -10 * np.log10(((output - labels) ** 2).mean(1))
"""


MORE: dict[str, Callable[[Path], None]] = {
    "quickstart.md": _of_quickstart,
    "bisect.md": _of_bisect,
    "compare.md": _of_compare,
    "cost.md": _of_cost,
    "forms.md": _of_forms,
    "huggingface.md": _of_huggingface,
    "onnx-input.md": _of_onnx_input,
    "opening-packages.md": _of_opening_packages,
    "verify.md": _of_verify,
}
