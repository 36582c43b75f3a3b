#pragma once

#include "ort/ort.h"

namespace moh::ort {

// Memory for one call, where the node's first input is. The session's arena gives it back to nodes
// of the same stream only, so it may be let go as soon as the work is enqueued.
class Workspace {
 public:
  Workspace(const Ort::KernelContext& context, size_t bytes) {
    if (bytes == 0) {
      return;
    }
    allocator_ = context.GetAllocator(*context.GetInput(0).GetTensorMemoryInfo());
    data_ = allocator_->Alloc(allocator_, bytes);
    if (data_ == nullptr) {
      Ort::GetApi().ReleaseAllocator(allocator_);
      throw std::bad_alloc();
    }
  }

  ~Workspace() {
    if (allocator_ != nullptr) {
      allocator_->Free(allocator_, data_);
      Ort::GetApi().ReleaseAllocator(allocator_);
    }
  }

  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

 private:
  OrtAllocator* allocator_ = nullptr;
  void* data_ = nullptr;
};

}  // namespace moh::ort
