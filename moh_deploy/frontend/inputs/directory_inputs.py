"""Example inputs of a model directory, as its config and its processor's files describe them.

The parameters of `forward` say which inputs there are: those that Hugging Face's models have are
known by name. Their sizes and vocabularies stand in `config.json`, with the defaults of its class,
in `preprocessor_config.json` or in `processor_config.json`.
"""

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.frontend.inputs.padding import padded_mask
from moh_deploy.frontend.load.model import LoadedModel, ModelInput
from moh_deploy.frontend.load.model_directory import CONFIG_FILE, ModelDirectory
from moh_deploy.system.bounded_json import read_json

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# Sizes from 2 on, all different, so that a trace takes none for another one.
_BATCH, _IMAGES, _TOKENS, _DECODER_TOKENS, _FRAMES = 2, 3, 7, 5, 9
_IMAGE_TOKEN = ("image_token_id", "image_token_index")


def directory_inputs(model: LoadedModel) -> dict[str, object]:
    """Return the inputs of a model directory by parameter, and constants that an export needs;
    nothing for a model that comes from elsewhere.

    | parameter | shape |
    |---|---|
    | `input_ids`, `decoder_input_ids` | [batch, seq], [batch, decoder_seq]: ids of the vocabulary |
    | `attention_mask`, `token_type_ids` | [batch, seq], beside `input_ids` |
    | `bbox` | [batch, seq, 4], beside `input_ids`: left, top, right and bottom of each token |
    | `pixel_values` | [batch, channels, height, width], of a video [batch, frames, ...] |
    | `input_features` | [batch, mel bins, frames], both as the config says |
    | `input_values` | [batch, samples] of a waveform, or [batch, frames, mel bins] |

    Ids with places for parts of an image (`image_token_id`) are those of one sample: LLaVA's code
    goes through its images in a loop.

    Raises:
        ConfigError: `forward` needs another input, or a size is nowhere to be found.
        CheckpointError: A processor's file cannot be read.
    """
    if model.directory is None or model.module is None:
        return {}
    floats = (p.dtype for p in model.module.parameters() if p.is_floating_point())
    parameters = inspect.signature(type(model.module).forward).parameters
    made = _Maker(model.directory, _sections(model.directory), next(floats, torch.float32))
    image_tokens = made.image_tokens() if "pixel_values" in parameters else 0
    tokens = _TOKENS + image_tokens
    makers = {
        "input_ids": lambda: made.ids("input_ids", tokens, "seq"),
        "decoder_input_ids": lambda: made.ids("decoder_input_ids", _DECODER_TOKENS, "decoder_seq"),
        "pixel_values": made.pixels,
        "input_features": made.features,
        "input_values": made.waveform,
    }
    found: dict[str, object] = {}
    for name, parameter in list(parameters.items())[1:]:
        if name in makers:
            found[name] = makers[name]()
        elif name == "attention_mask" and "input_ids" in parameters:
            mask = padded_mask((_BATCH, tokens), torch.int64, ("right", None))
            found[name] = ModelInput(name, mask, {0: "batch", 1: "seq"})
        elif name == "token_type_ids" and "input_ids" in parameters:
            kinds = made.number("type_vocab_size", needed_by=None)
            if kinds is not None and kinds > 1:
                # A first and a second sentence.
                second = (torch.arange(tokens) >= tokens // 2).long().repeat(_BATCH, 1)
                found[name] = ModelInput(name, second, {0: "batch", 1: "seq"})
        elif name == "bbox" and "input_ids" in parameters:
            found[name] = made.boxes(tokens)
        elif name == "use_cache" or (
            parameter.kind is parameter.VAR_KEYWORD and made.find("use_cache")
        ):
            # A cache that a model makes itself is state that no caller gives.
            found["use_cache"] = False
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise ConfigError(
                f"{model.directory.root}: the forward of {type(model.module).__name__} needs"
                f" '{name}', and nothing in the directory says what that is.",
                hint=f"Describe all inputs: --input '{name}:[batch=2,...]:float32' for each, or"
                " --inputs FILE.npz. Known by themselves are: "
                f"{', '.join((*makers, 'attention_mask', 'token_type_ids', 'bbox'))}.",
            )
    inputs = {name: value for name, value in found.items() if isinstance(value, ModelInput)}
    for name, item in inputs.items() if image_tokens else ():
        dims = {axis: dim for axis, dim in item.dims.items() if axis}
        found[name] = replace(item, value=item.value[:1], dims=dims)
    return found if inputs else {}


def _sections(directory: ModelDirectory) -> list[Mapping[str, object]]:
    """Return where sizes are looked up, in this order: the config and the parts in it
    (`text_config`, `vision_config`), then the processor's files."""
    found = list(_nested(directory.settings or directory.config))
    for name in _PROCESSOR_FILES:
        try:
            content = read_json(directory.root / name, error=CheckpointError)
        except FileNotFoundError:
            continue
        found += _nested(content)
    return found


def _nested(value: object) -> Iterator[Mapping[str, object]]:
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from _nested(inner)


@dataclass(frozen=True)
class _Maker:
    """Makes example values of the sizes that a directory names."""

    directory: ModelDirectory
    sections: list[Mapping[str, object]]
    dtype: torch.dtype  # of the model's weights: values that are no ids are of it, too

    def find(self, *keys: str) -> object:
        """Return the first value of one of these keys."""
        values = (section.get(key) for key in keys for section in self.sections)
        return next((value for value in values if value is not None), None)

    def number(self, key: str, *, needed_by: str | None) -> int | None:
        """Return a whole number; None where it is missing and no input needs it.

        Raises:
            ConfigError: An input needs it.
        """
        value = self.find(key)
        if isinstance(value, int):
            return value
        if needed_by is None:
            return None
        raise self.missing(needed_by, key)

    def missing(self, name: str, key: str) -> ConfigError:
        """Return the error for an input whose size is not found."""
        files = (CONFIG_FILE, *_PROCESSOR_FILES)
        there = [file for file in files if (self.directory.root / file).is_file()]
        return ConfigError(
            f"{self.directory.root}: the model takes '{name}', whose {key} is missing in"
            f" {' and '.join(there)}.",
            hint=f"Write {key} into {CONFIG_FILE}, or describe all inputs: --input"
            f" '{name}:[batch=2,...]:{'int64=0..999' if name.endswith('ids') else 'float32'}'.",
        )

    def ids(self, name: str, tokens: int, dim: str) -> ModelInput:
        """Return ids [batch, tokens] of the vocabulary, without padding and other special ones."""
        size = cast(int, self.number("vocab_size", needed_by=name))
        keys = {
            key for section in self.sections for key in section if str(key).endswith("_token_id")
        }
        special = torch.tensor([value for key in keys if isinstance(value := self.find(key), int)])
        known = torch.arange(size)
        ordinary = known[~torch.isin(known, special)] if len(keys) < size else known
        generator = torch.Generator().manual_seed(len(name))
        ids = ordinary[torch.randint(len(ordinary), (_BATCH, tokens), generator=generator)]
        if tokens > _TOKENS:
            # Behind the first token, so that shorter texts keep the places of the image.
            ids[:, 1 : 1 + tokens - _TOKENS] = cast(int, self.find(*_IMAGE_TOKEN))
        return ModelInput(name, ids, {0: "batch", 1: dim})

    def image_tokens(self) -> int:
        """Return for how many ids of a text the model puts in parts of its image; 0 for none."""
        if not isinstance(self.find(*_IMAGE_TOKEN), int):
            return 0
        known = self.find("image_seq_length", "mm_tokens_per_image", "num_image_tokens")
        if isinstance(known, int):
            return known
        edge, patch = self.find("image_size"), self.find("patch_size")
        return (edge // patch) ** 2 if isinstance(edge, int) and isinstance(patch, int) else 0

    def boxes(self, tokens: int) -> ModelInput:
        """Return boxes [batch, tokens, 4] in thousandths of a page, as LayoutLM takes them."""
        most = self.number("max_2d_position_embeddings", needed_by="bbox")
        generator = torch.Generator().manual_seed(len("bbox"))
        shape = (_BATCH, tokens, 2, 2)
        ends = torch.randint(min(1001, cast(int, most)), shape, generator=generator)
        return ModelInput("bbox", ends.sort(dim=2).values.flatten(2), {0: "batch", 1: "seq"})

    def drawn(self, name: str, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(len(name))
        return torch.randn(shape, generator=generator).to(self.dtype)

    def pixels(self) -> ModelInput:
        """Return images [batch, channels, height, width], or a video."""
        size = self.find("image_size", "input_size", "crop_size", "size")
        if isinstance(size, Mapping):
            edge = size.get("shortest_edge")
            size = [size.get("height", edge), size.get("width", edge)]
        sizes: list[object] = list(size) if isinstance(size, (list, tuple)) else [size, size]
        if len(sizes) != 2 or not all(isinstance(number, int) for number in sizes):
            raise self.missing("pixel_values", "image_size")
        channels = self.number("num_channels", needed_by=None) or 3
        frames = self.number("num_frames", needed_by=None)
        # A model with a tower for texts and one for images compares each text with each image;
        # where images are tokens of a text (`image_token_id`), there is one batch.
        keys = {str(key) for section in self.sections for key in section}
        apart = {"text_config", "vision_config"} <= keys and not any(
            key.startswith("image_token") for key in keys
        )
        batch, name = (_IMAGES, "image_batch") if apart else (_BATCH, "batch")
        frames_of = [] if frames is None else [frames]
        shape = (batch, *frames_of, channels, *cast(list[int], sizes))
        return ModelInput("pixel_values", self.drawn("pixel_values", *shape), {0: name})

    def features(self) -> ModelInput:
        """Return a spectrogram [batch, mel bins, frames]: the convolutions halve its frames."""
        name = "input_features"
        bins = cast(int, self.number("num_mel_bins", needed_by=name))
        positions = cast(int, self.number("max_source_positions", needed_by=name))
        return ModelInput(name, self.drawn(name, _BATCH, bins, 2 * positions), {0: "batch"})

    def waveform(self) -> ModelInput:
        """Return a waveform [batch, samples], or a spectrogram [batch, frames, mel bins]."""
        name = "input_values"
        bins = self.number("num_mel_bins", needed_by=None)
        if bins is not None:
            frames = cast(int, self.number("max_length", needed_by=name))
            return ModelInput(name, self.drawn(name, _BATCH, frames, bins), {0: "batch"})
        kernels, strides = self.find("conv_kernel"), self.find("conv_stride")
        if not isinstance(kernels, (list, tuple)) or not isinstance(strides, (list, tuple)):
            raise self.missing(name, "conv_kernel and conv_stride")
        samples = _FRAMES
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            samples = (samples - 1) * stride + kernel
        # A few samples more, as an example whose frames leave no rest shows less.
        samples += math.prod(strides) // 2
        return ModelInput(name, self.drawn(name, _BATCH, samples), {0: "batch", 1: "samples"})
