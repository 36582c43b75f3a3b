// Memory of a thread, kept from one call to the next.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>

namespace moh::cpu {

constexpr size_t kCacheLine = 64;

constexpr size_t round_up(size_t n, size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Grows as needed and never shrinks. Contents are lost when it grows.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // Starts a new layout of `bytes` in all. Throws std::bad_alloc.
  void reset(size_t bytes) {
    used_ = 0;
    if (bytes <= size_) {
      return;
    }
    std::free(std::exchange(data_, nullptr));
    size_ = 0;
    data_ = static_cast<char*>(std::aligned_alloc(kCacheLine, rounded(bytes)));
    if (data_ == nullptr) {
      throw std::bad_alloc();
    }
    size_ = rounded(bytes);
  }

  // The next `count` elements of the layout, aligned to a cache line.
  template <typename T>
  T* take(size_t count) {
    T* taken = reinterpret_cast<T*>(data_ + used_);
    used_ += bytes<T>(count);
    return taken;
  }

  // What take(count) uses of the layout.
  template <typename T>
  static size_t bytes(size_t count) {
    return rounded(count * sizeof(T));
  }

 private:
  static size_t rounded(size_t bytes) { return round_up(bytes, kCacheLine); }

  char* data_ = nullptr;
  size_t size_ = 0;
  size_t used_ = 0;
};

}  // namespace moh::cpu
