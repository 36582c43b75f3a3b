"""Bugs in which keys the rows of MoHAttention see: ranges, and masks of keys."""

from functools import partial

from tests.cuda.mutations.mutation import CRASHED, WRONG, Mutation

_attention = partial(Mutation, op="MoHAttention", units=("attention_32",))
_attend = partial(_attention, file="kernels/attention.cuh")
_rows = partial(_attention, file="kernels/attention/rows.cuh")
_ranges = partial(_rows, cases="ranges_.*|AttentionSetup.*ranges")
RANGES = (
    _ranges(
        name="the first key of a range is left out",
        before="key >= first && key < end",
        after="key > first && key < end",
    ),
    _ranges(
        name="the end of a range is seen",
        before="key >= first && key < end",
        after="key >= first && key <= end",
    ),
    _ranges(
        name="sequences share the first one's ranges",
        before="batch * args.key_ranges_batch + ",
        after="0 * args.key_ranges_batch + ",
    ),
    _ranges(
        name="a sequence's ranges are half as far from each other",
        before="batch * args.key_ranges_batch",
        after="batch * args.key_ranges_batch / 2",
    ),
    _ranges(
        name="ranges are one number a query",
        before="int64_t{2} * token",
        after="token",
    ),
    _ranges(
        name="a range that begins before the keys sees none",
        before="smaller(larger(range[0], int64_t{0}), seen)",
        after="range[0] < 0 ? seen : smaller(range[0], seen)",
    ),
    _ranges(
        name="the end of a range is taken for one of the keys",
        before="smaller(larger(range[1], int64_t{0}), seen)",
        after="larger(range[1], int64_t{0})",
        symptom=f"{WRONG}|{CRASHED}",
    ),
    _ranges(
        name="a range hides nothing of what position hides",
        before="const int64_t seen = keys.end;",
        after="const int64_t seen = args.keys;",
        cases="ranges_(documents_causal|many_documents|filled_causal_bool_mask)",
    ),
    _ranges(
        name="a block begins with the last first key of its rows",
        before="smaller(keys.any.first, own.first)",
        after="larger(keys.any.first == kNoKey ? 0 : keys.any.first, own.first)",
    ),
    _ranges(
        name="rows that see nothing are left out of what all see",
        before="if (own.end != kClosed) {",
        after="if (!own.empty()) {",
        cases="ranges_many_documents|ranges_documents|AttentionSetup.*ranges",
    ),
    _attend(
        name="a block ends with its first rows",
        before="keys_of_rows<Block::kRows>(rows, 0).any;",
        after="keys_of_rows<16>(rows, 0).any;",
        cases="ranges_many_keys",
    ),
    _attend(
        name="a warp begins with the block, and takes all keys for seen",
        before="key < warp.all.first || ",
        after="",
        cases="ranges_many_keys",
    ),
    _attend(
        name="a warp leaves out the tile in which it begins",
        before="key + kKeys > warp.any.first &&",
        after="key >= warp.any.first &&",
        cases="ranges_many_keys",
    ),
    _attend(
        name="a tile has keys of two splits",
        before="seen.first / kTileKeys * kTileKeys",
        after="seen.first",
        cases="ranges_many_keys",
    ),
)

_seen_tiles = partial(
    _attention,
    file="kernels/attention/seen_tiles.cuh",
    cases="AttentionSetup.*kv_len=(2500|1100).*",
)
KEY_MASK = (
    _seen_tiles(
        name="a tile is left out of which one key is seen",
        before="(__ballot_sync(kAllLanes, some) != 0 ?",
        after="(__ballot_sync(kAllLanes, every) == kAllLanes ?",
    ),
    _seen_tiles(
        name="a tile is taken for whole of which a key is seen",
        before="(__ballot_sync(kAllLanes, every) == kAllLanes ?",
        after="(__ballot_sync(kAllLanes, some) != 0 ?",
    ),
    _seen_tiles(
        name="the second span of tiles is as the first",
        before="if (key % kSpan == 0) {",
        after="if (key == 0) {",
    ),
    _seen_tiles(
        name="the second half of a tile says nothing",
        before="i < kKeys; i += kWarpSize",
        after="i < kWarpSize; i += kWarpSize",
    ),
    _seen_tiles(
        name="the next seen tile is one too far",
        before="(__ffs(static_cast<int>(left)) - 1) * kKeys",
        after="__ffs(static_cast<int>(left)) * kKeys",
    ),
    _attend(
        name="sequences share the first one's mask of keys",
        before="add_key_mask(scores, keys, key, factor, params.args.mask, tiles.task.batch);",
        after="add_key_mask(scores, keys, key, factor, params.args.mask, 0);",
        cases="AttentionSetup.*batch=2.*kv_len=1100.*",
    ),
    _seen_tiles(
        name="sequences share the first one's seen tiles",
        before="elements += task.batch * params.args.mask.batch;",
        after="",
        cases="AttentionSetup.*batch=2.*kv_len=1100.*",
    ),
    _seen_tiles(
        name="a tile whose keys all have a bias is taken for whole",
        before="every &= bias == 0.0f;",
        after="every &= bias != -INFINITY;",
        cases="AttentionSetup.*seq_len=9, kv_len=1100.*",
    ),
    _attend(
        name="a row that saw nothing but hidden keys has seen one",
        before="seen = bias_of(elements[key]) != -INFINITY;",
        after="seen = true;",
        cases="AttentionSetup.*batch=2, seq_len=150, kv_len=150.*",
    ),
)

_map = partial(
    _attention,
    file="kernels/mask_map.cuh",
    units=("attention",),
    cases="AttentionSetup.*(seq_len=40, kv_len=300|seq_len=200).*",
)
_mapped_tiles = partial(_seen_tiles, cases=_map.keywords["cases"])
MAP = (
    _map(
        name="the last query of a part is left out",
        before="smaller(first_query + kMapQueries,",
        after="smaller(first_query + kMapQueries - 1,",
    ),
    _map(
        name="the second half of a tile of keys is left out",
        before="first_key + map.tile_keys,",
        after="first_key + map.tile_keys / 2,",
    ),
    _map(
        name="batches of a mask are taken for heads",
        before="head = plane % map.heads, batch = plane / map.heads",
        after="head = plane / map.batches, batch = plane % map.batches",
    ),
    _map(
        name="a tile is whole if some of its keys are",
        before="all_seen   ? MaskMap::kWhole",
        after="any_seen ? MaskMap::kWhole",
    ),
    _map(
        name="a tile that adds to scores is whole",
        before="every &= bias == 0.0f;",
        after="every &= bias != -INFINITY;",
        cases="AttentionSetup.*seq_len=7, kv_len=70,.*|lowest_bias|additive_mask_rank2",
    ),
    _mapped_tiles(
        name="rows of a block see what its first ones do",
        before="part <= last_part",
        after="part <= first_part",
    ),
    _mapped_tiles(
        name="heads of a group see what the first one does",
        before="head < first_head + heads",
        after="head < first_head + 1",
    ),
    _mapped_tiles(
        name="sequences see what the first one does",
        before="map.batches == 1 ? 0 : task.batch",
        after="0",
        cases="AttentionSetup.*batch=5.*",
    ),
    _mapped_tiles(
        name="key/value heads have the first one's mask",
        before="map.heads == 1 ? 0 : task.kv_head * params.group",
        after="0",
        cases="bool_mask_by_head|bool_mask_rank4|AttentionSetup.*seq_len=40, kv_len=300.*",
    ),
    _attend(
        name="a row saw nothing in tiles that are whole",
        before="sight.saw[0] = sight.saw[1] = true;",
        after="",
        cases="AttentionSetup.*seq_len=40, kv_len=256.*",
    ),
)

MUTATIONS = (*RANGES, *KEY_MASK, *MAP)
