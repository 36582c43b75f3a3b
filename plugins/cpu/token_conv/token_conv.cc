// MoHTokenConv: a depthwise convolution over tokens, channels in lanes, read and written in place.
#include "cpu/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/token_conv/token_conv.cc"
#include "hwy/foreach_target.h"  // compiles this file once more for each instruction set

#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/simd/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moh::cpu {
namespace HWY_NAMESPACE {

// Rows of the image that one call of the loop's body computes: each task reads the rows of the
// kernel beyond them once more.
constexpr int32_t kRowsPerTask = 4;
// Neighbouring pixels that share each weight they load.
constexpr int32_t kPixels = 4;

// x times the share of a normal distribution below x, within 2e-7: gelu by erf. Below zero the
// share is 2^p(|x|), with a polynomial of degree 6 fitted for the least absolute error of the
// result; from 6 on it is 0.
HWY_INLINE VF gelu(VF x) {
  const DF df;
  const VF a = hn::Abs(x), end = hn::Set(df, 6.0f);
  VF p = hn::Set(df, 2.992414010805078e-05f);
  p = hn::MulAdd(p, a, hn::Set(df, -0.0007398738525807858f));
  p = hn::MulAdd(p, a, hn::Set(df, 0.007977461442351341f));
  p = hn::MulAdd(p, a, hn::Set(df, -0.05323818325996399f));
  p = hn::MulAdd(p, a, hn::Set(df, -0.45891568064689636f));
  p = hn::MulAdd(p, a, hn::Set(df, -1.1511471271514893f));
  p = hn::MulAdd(p, a, hn::Set(df, -1.0f));
  const VF tail = hn::IfThenElseZero(hn::Lt(a, end), hn::Mul(a, exp2(p)));
  const VF positive = hn::IfThenZeroElse(hn::Lt(x, hn::Zero(df)), x);  // NaN stays NaN
  return hn::Sub(positive, tail);
}

// Which taps of a pixel lie in the image, along one side of it.
struct TapRange {
  TapRange(int32_t position, int32_t kernel, int32_t size)
      : begin(std::max(kernel / 2 - position, 0)),
        end(std::min(kernel, size + kernel / 2 - position)) {}

  int32_t begin, end;
};

// Weights and biases as the loops read them: in float32, channels last, padded to whole vectors.
class Taps {
 public:
  // Numbers that pack() writes.
  static size_t size(const TokenConvArgs& args) {
    const Taps taps(args, nullptr);
    const size_t kinds = args.input_bias == nullptr ? 0 : taps.row_kind(args.height - 1) + 1;
    return (kFixedRows + taps.count_ + kinds) * taps.padded_;
  }

  template <typename T>
  static void pack(const TokenConvArgs& args, float* packed) {
    std::fill_n(packed, size(args), 0.0f);
    const Taps taps(args, packed);
    const auto channels = static_cast<size_t>(args.channels);
    const T* weight = static_cast<const T*>(args.weight);
    for (size_t c = 0; c < channels; ++c) {
      for (size_t tap = 0; tap < taps.count_; ++tap) {
        packed[(kFixedRows + tap) * taps.padded_ + c] = scalar_of(*weight++);
      }
    }
    taps.copy(static_cast<const T*>(args.bias), packed + kBias * taps.padded_);
    if (const T* const input_bias = static_cast<const T*>(args.input_bias)) {
      taps.copy(input_bias, packed + kInputBias * taps.padded_);
      taps.copy(args.gated ? input_bias + channels : nullptr, packed + kGateBias * taps.padded_);
      taps.add_bias_of_inner_pixels(packed);
    }
  }

  Taps(const TokenConvArgs& args, const float* packed)
      : args_(args),
        count_(static_cast<size_t>(args.kernel_height) * static_cast<size_t>(args.kernel_width)),
        padded_((static_cast<size_t>(args.channels) + kLanes - 1) / kLanes * kLanes),
        packed_(packed) {}

  // From one tap to the next.
  ptrdiff_t stride() const { return static_cast<ptrdiff_t>(padded_); }
  const float* weight(int32_t tap) const { return at(kFixedRows + static_cast<size_t>(tap)); }
  const float* bias() const { return at(kBias); }
  const float* input_bias() const { return args_.input_bias == nullptr ? nullptr : at(kInputBias); }
  const float* gate_bias() const { return args_.input_bias == nullptr ? nullptr : at(kGateBias); }

  // What the bias of the input adds to a pixel is the same for all pixels with the same taps: here
  // for those of row y that have every column of taps, together with the bias.
  const float* bias_of_inner_pixels(int32_t y) const {
    return args_.input_bias == nullptr ? bias() : at(kFixedRows + count_ + row_kind(y));
  }

 private:
  enum : size_t { kBias, kInputBias, kGateBias, kFixedRows };

  // Rows of pixels that have the same rows of taps are of one kind.
  size_t row_kind(int32_t y) const {
    const int32_t pad = args_.kernel_height / 2, alike = args_.height - 1 - 2 * pad;
    return static_cast<size_t>(y <= pad ? y : std::max(y - std::max(alike, 0), pad));
  }

  void add_bias_of_inner_pixels(float* packed) const {
    for (int32_t y = 0; y < args_.height; ++y) {
      if (y != 0 && row_kind(y) == row_kind(y - 1)) {
        continue;
      }
      float* const sums = packed + (kFixedRows + count_ + row_kind(y)) * padded_;
      const TapRange rows(y, args_.kernel_height, args_.height);
      for (int32_t tap = rows.begin * args_.kernel_width; tap < rows.end * args_.kernel_width;
           ++tap) {
        for (size_t c = 0; c < padded_; ++c) {
          sums[c] += weight(tap)[c];
        }
      }
      for (size_t c = 0; c < padded_; ++c) {
        sums[c] = bias()[c] + input_bias()[c] * sums[c];
      }
    }
  }

  template <typename T>
  void copy(const T* from, float* row) const {
    for (size_t c = 0; from != nullptr && c < static_cast<size_t>(args_.channels); ++c) {
      row[c] = scalar_of(from[c]);
    }
  }

  const float* at(size_t row) const { return packed_ + row * padded_; }

  const TokenConvArgs& args_;
  const size_t count_, padded_;
  const float* const packed_;
};

template <bool kWhole, typename T>
HWY_INLINE VF load_channels(const T* from, size_t count) {
  return kWhole ? load_floats(from) : load_first(from, count);
}

// Some neighbouring pixels of a row, and what they need. Passed by value: the compiler must know
// that no store changes it.
template <typename T>
struct Pixels {
  const T* input;  // the first pixel, in the row of its first tap
  const T* gates;
  T* output;
  const float* bias;
  const float* input_bias;                                   // of pixels at the border, or null
  const float* gate_bias;                                    // or null
  const float* weight;                                       // of the first row of taps
  ptrdiff_t channels, pixel_stride, row_stride, tap_stride;  // in elements
  int32_t kernel_width;
  int32_t rows;      // of taps that lie in the image
  TapRange columns;  // of taps that do
  bool gelu, gated;
};

// The sums of one row of taps. Of inner pixels every column of taps lies in the image; for others
// the factors are summed, too. kWidth is the width of the kernel, or 0 for any.
template <int32_t kWidth, int32_t kCount, bool kInner, bool kWhole, typename T>
HWY_INLINE void add_row(const Pixels<T>& at, const T* row, const float* weight, size_t count,
                        VF (&sums)[kCount], VF& factors) {
  const DF df;
  if constexpr (kInner && kWidth != 0) {  // each pixel is loaded once
    VF pixels[kCount + kWidth - 1];
#pragma GCC unroll 8
    for (int32_t p = 0; p < kCount + kWidth - 1; ++p) {
      pixels[p] = load_channels<kWhole>(row + (p - kWidth / 2) * at.pixel_stride, count);
    }
#pragma GCC unroll 8
    for (int32_t j = 0; j < kWidth; ++j) {
      const VF factor = hn::LoadU(df, weight + j * at.tap_stride);
#pragma GCC unroll 8
      for (int32_t p = 0; p < kCount; ++p) {
        sums[p] = hn::MulAdd(pixels[p + j], factor, sums[p]);
      }
    }
  } else {
    for (int32_t j = at.columns.begin; j < at.columns.end; ++j) {
      const VF factor = hn::LoadU(df, weight + j * at.tap_stride);
      factors = hn::Add(factors, factor);
#pragma GCC unroll 8
      for (int32_t p = 0; p < kCount; ++p) {
        const T* const from = row + (p + j - at.kernel_width / 2) * at.pixel_stride;
        sums[p] = hn::MulAdd(load_channels<kWhole>(from, count), factor, sums[p]);
      }
    }
  }
}

// One vector of channels from c on; the first `count` of its lanes exist.
template <int32_t kWidth, int32_t kCount, bool kInner, bool kWhole, typename T>
HWY_INLINE void convolve_channels(const Pixels<T>& at, ptrdiff_t c, size_t count) {
  const DF df;
  VF sums[kCount];
  for (VF& sum : sums) {
    sum = hn::LoadU(df, at.bias + c);
  }
  VF factors = hn::Zero(df);
  const T* row = at.input + c;
  const float* weight = at.weight + c;
  for (int32_t i = 0; i < at.rows; ++i) {
    add_row<kWidth, kCount, kInner, kWhole>(at, row, weight, count, sums, factors);
    row += at.row_stride;
    weight += at.kernel_width * at.tap_stride;
  }
  if (!kInner && at.input_bias != nullptr) {
    sums[0] = hn::MulAdd(hn::LoadU(df, at.input_bias + c), factors, sums[0]);
  }
#pragma GCC unroll 8
  for (int32_t p = 0; p < kCount; ++p) {
    VF result = at.gelu ? gelu(sums[p]) : sums[p];
    if (at.gated) {
      VF gates = load_channels<kWhole>(at.gates + p * at.pixel_stride + c, count);
      if (at.gate_bias != nullptr) {
        gates = hn::Add(gates, hn::LoadU(df, at.gate_bias + c));
      }
      result = hn::Mul(result, gates);
    }
    T* const to = at.output + p * at.channels + c;
    if (kWhole) {
      store_floats(result, to);
    } else {
      store_first(result, to, count);
    }
  }
}

template <int32_t kWidth, int32_t kCount, bool kInner, typename T>
HWY_NOINLINE void convolve(const Pixels<T> at) {
  const ptrdiff_t lanes = kLanes, whole = at.channels / lanes * lanes;
  for (ptrdiff_t c = 0; c < whole; c += lanes) {
    convolve_channels<kWidth, kCount, kInner, /*kWhole=*/true>(at, c, kLanes);
  }
  if (whole != at.channels) {
    const auto count = static_cast<size_t>(at.channels - whole);
    convolve_channels<kWidth, kCount, kInner, /*kWhole=*/false>(at, whole, count);
  }
}

// One row of pixels after the other.
template <typename T, int32_t kWidth>
class RowConv {
 public:
  RowConv(const TokenConvArgs& args, const Taps& taps)
      : args_(args),
        taps_(taps),
        channels_(args.channels),
        stride_(channels_ * (args.gated ? 2 : 1)) {}

  void run(int32_t batch, int32_t y) const {
    const int32_t pad = args_.kernel_width / 2, inner_end = args_.width - pad;
    const float* const bias = taps_.bias_of_inner_pixels(y);
    int32_t x = 0;
    for (; x < std::min(pad, args_.width); ++x) {
      convolve<kWidth, 1, /*kInner=*/false>(at(batch, y, x, taps_.bias()));
    }
    for (; x + kPixels <= inner_end; x += kPixels) {
      convolve<kWidth, kPixels, /*kInner=*/true>(at(batch, y, x, bias));
    }
    for (; x < inner_end; ++x) {
      convolve<kWidth, 1, /*kInner=*/true>(at(batch, y, x, bias));
    }
    for (; x < args_.width; ++x) {
      convolve<kWidth, 1, /*kInner=*/false>(at(batch, y, x, taps_.bias()));
    }
  }

 private:
  Pixels<T> at(int32_t batch, int32_t y, int32_t x, const float* bias) const {
    const TapRange rows(y, args_.kernel_height, args_.height);
    const ptrdiff_t token = token_at(batch, y, x);
    const ptrdiff_t first = token_at(batch, y - args_.kernel_height / 2 + rows.begin, x);
    const T* const input = static_cast<const T*>(args_.input);
    return {/*input=*/input + first * stride_,
            /*gates=*/input + token * stride_ + channels_,
            /*output=*/static_cast<T*>(args_.output) + token * channels_,
            bias,
            taps_.input_bias(),
            taps_.gate_bias(),
            /*weight=*/taps_.weight(rows.begin * args_.kernel_width),
            channels_,
            /*pixel_stride=*/stride_,
            /*row_stride=*/args_.width * stride_,
            /*tap_stride=*/taps_.stride(),
            args_.kernel_width,
            /*rows=*/rows.end - rows.begin,
            /*columns=*/TapRange(x, args_.kernel_width, args_.width),
            /*gelu=*/args_.activation == Activation::kGelu,
            args_.gated};
  }

  ptrdiff_t token_at(int32_t batch, int32_t y, int32_t x) const {
    return (static_cast<ptrdiff_t>(batch) * args_.height + y) * args_.width + x;
  }

  const TokenConvArgs& args_;
  const Taps& taps_;
  const ptrdiff_t channels_, stride_;
};

// One call, as the threads see it.
struct ConvCall {
  const TokenConvArgs& args;
  const Taps taps;

  template <typename T, int32_t kWidth>
  void run_rows(int32_t batch, int32_t begin, int32_t end) const {
    const RowConv<T, kWidth> conv(args, taps);
    for (int32_t y = begin; y < end; ++y) {
      conv.run(batch, y);
    }
  }

  template <typename T>
  static void run_one(void* call, size_t i) {
    const auto& self = *static_cast<const ConvCall*>(call);
    const auto tiles = static_cast<size_t>(row_tiles(self.args));
    const auto batch = static_cast<int32_t>(i / tiles);
    const int32_t begin = static_cast<int32_t>(i % tiles) * kRowsPerTask;
    const int32_t end = std::min(begin + kRowsPerTask, self.args.height);
    if (self.args.kernel_width == 3) {
      self.run_rows<T, 3>(batch, begin, end);
    } else {
      self.run_rows<T, 0>(batch, begin, end);
    }
  }

  static int32_t row_tiles(const TokenConvArgs& args) {
    return (args.height + kRowsPerTask - 1) / kRowsPerTask;
  }
};

size_t packed_taps_size(const TokenConvArgs& args) { return Taps::size(args); }

void pack_taps(const TokenConvArgs& args, float* packed) {
  with_type(args.dtype, [&](auto type) { Taps::pack<decltype(type)>(args, packed); });
}

template <typename T>
void run_in_parallel(ConvCall& call, const Parallel& parallel) {
  const size_t tasks =
      static_cast<size_t>(call.args.batch) * static_cast<size_t>(ConvCall::row_tiles(call.args));
  parallel(tasks, &ConvCall::run_one<T>, &call);
}

void token_conv(const TokenConvArgs& args, const float* packed, const Parallel& parallel) {
  ConvCall call{args, Taps(args, packed)};
  with_type(args.dtype, [&](auto type) { run_in_parallel<decltype(type)>(call, parallel); });
}

}  // namespace HWY_NAMESPACE
}  // namespace moh::cpu
HWY_AFTER_NAMESPACE();
