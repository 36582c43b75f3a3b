"""The models that faults are planted in, those with the most layers and forms first."""

from tests.validate.mutations.rotary import ROTARY
from tests.validate.mutations.stacks import STACKS
from tests.zoo import ZOO, ZooModel

FROM_THE_ZOO = (
    "encoder_decoder",  # cross-attention
    "sdpa_qk_norm",
    "nested_sequential",  # the last router chooses all heads
    "dit",  # the last router only weighs
    "relative_bias",
    "windowed_pooled",
    "rope_interleaved_gqa",
    "select_bias_corrected",  # scored
    "select_sigmoid",  # ranked
    "select_heads_choose",  # custom
    "select_binary_mask",
    "all_shared",
    "sdpa_float_mask",
    "baddbmm_alibi",
    "static_cache",
    "sdpa_cross",
    "sdpa_mqa",
    "pyramid",
    "sdpa_bool_mask",
    "one_choice_for_all",
    "along_each_axis",
    "heads_and_experts",
    "router_reads_residual",
    "soft_capped",  # attention of plain operators
    "select_top_p",
    "select_rectified",  # custom, opens heads near 0
    "joint_gates",  # one router of two streams
    "shows_attention",
)

_BY_NAME = {model.name: model for model in ZOO}

SUBJECTS: tuple[ZooModel, ...] = (
    *STACKS,
    *ROTARY,
    *(_BY_NAME[name] for name in FROM_THE_ZOO),
)
