#pragma once

#include "ort/ort.h"

namespace moh::ort {

// Memory for one call, where the node's first input is. It is of the stream that the session runs
// this call on, and is given back to that stream's work only: so it may be let go as soon as ours
// is enqueued. What an allocator hands out by itself is of no stream, and another run of the
// session, on a stream of its own, would get it while our kernels still write there.
class Workspace {
 public:
  Workspace(const Ort::KernelContext& context, size_t bytes) {
    if (bytes == 0) {
      return;
    }
    const auto memory = context.GetInput(0).GetTensorMemoryInfo();
    allocator_ = context.GetAllocator(*memory);
#if defined(MOH_EMULATED)  // which has no stream to ask for
    data_ = allocator_->Alloc(allocator_, bytes);
#else
    const Ort::Status status(Ort::GetApi().KernelContext_GetScratchBuffer(
        context.GetOrtKernelContext(), memory, bytes, &data_));
#endif
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
