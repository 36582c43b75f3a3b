// The keys of a block: the pixels that lie in the window of any query of its tile, row by row, then
// the pooled tokens.
#pragma once

#include "cuda/device/integers.cuh"
#include "cuda/kernels/aggregated/params.cuh"

namespace moh::cuda {

// A key as a query sees it: where the pixel is, counted from the upper left place of the window of
// the tile's first query; or the number of a pooled token; or nothing.
class KeyLabel {
 public:
  __device__ static KeyLabel pixel(int y, int x) { return KeyLabel(Pixel::at(y, x).packed); }
  __device__ static KeyLabel pooled(int index) { return KeyLabel(-1 - index); }
  __device__ static KeyLabel none() { return KeyLabel(kNone); }

  __device__ bool is_pixel() const { return code_ >= 0; }
  __device__ bool is_none() const { return code_ == kNone; }
  __device__ int pooled_index() const { return -1 - code_; }
  __device__ Pixel position() const { return {code_}; }

 private:
  static constexpr int32_t kNone = INT32_MIN;
  __device__ explicit KeyLabel(int32_t code) : code_(code) {}
  int32_t code_;
};

// The place of a key in the window of a query at `position` in the tile; -1 outside of it, and for
// pooled tokens: as pixels they would lie in rows above the image.
template <class T>
__device__ __forceinline__ int place_in_window(const AggregatedParams<T>& params, KeyLabel key,
                                               Pixel position) {
  const int y = key.position().y() - position.y(), x = key.position().x() - position.x();
  const bool inside = static_cast<unsigned>(y) < static_cast<unsigned>(params.kernel_height) &&
                      static_cast<unsigned>(x) < static_cast<unsigned>(params.kernel_width);
  return inside ? y * params.kernel_width + x : -1;
}

template <class T>
class BlockKeys {
 public:
  __device__ BlockKeys(const AggregatedParams<T>& params, const AggregatedWork& work)
      : params_(params), work_(work) {
    top_ = larger(work.y - params.kernel_height / 2, 0);
    left_ = larger(work.x - params.kernel_width / 2, 0);
    const int bottom =
        smaller(work.y + params.tile_height + params.kernel_height / 2, params.height);
    const int right = smaller(work.x + params.tile_width + params.kernel_width / 2, params.width);
    columns_ = right - left_;
    pixels_ = (bottom - top_) * columns_;
  }

  __device__ int pixels() const { return pixels_; }
  __device__ int count() const { return pixels_ + params_.pooled; }

  __device__ KeyLabel label(int index) const {
    if (index >= count()) {
      return KeyLabel::none();
    }
    if (index >= pixels_) {
      return KeyLabel::pooled(index - pixels_);
    }
    return KeyLabel::pixel(top_ + index / columns_ - work_.y + params_.kernel_height / 2,
                           left_ + index % columns_ - work_.x + params_.kernel_width / 2);
  }

  __device__ const T* key(int index) const {
    return vector(index, params_.key, params_.pooled_key);
  }
  __device__ const T* value(int index) const {
    return vector(index, params_.value, params_.pooled_value);
  }

 private:
  __device__ const T* vector(int index, const T* of_pixels, const T* of_pooled) const {
    const bool is_pixel = index < pixels_;
    const int token = is_pixel
                          ? (top_ + index / columns_) * params_.width + left_ + index % columns_
                          : index - pixels_;
    const int64_t row =
        static_cast<int64_t>(work_.image) * (is_pixel ? params_.tokens() : params_.pooled) + token;
    return (is_pixel ? of_pixels : of_pooled) +
           (row * params_.heads + work_.head) * params_.head_dim;
  }

  const AggregatedParams<T>& params_;
  const AggregatedWork& work_;
  int top_, left_, columns_, pixels_;
};

}  // namespace moh::cuda
