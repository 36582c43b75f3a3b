// MoHAttention has two tactics, each for every kernel that the GPU runs, and a workspace. The
// fastest depends on how many gates are open. That is unknown before an engine runs, and TensorRT
// times tactics on buffers of its own. So a plugin that is timed puts gates into its workspace, a
// stated share of them open.
#include <algorithm>
#include <optional>

#include "cuda/trt/core/attention_sizes.h"
#include "cuda/trt/core/ops.h"
#include "cuda/trt/core/workspace.h"

namespace moh::trt {
namespace {

using cuda::AttentionChoice;
using cuda::AttentionKernel;
using cuda::AttentionTactic;
using cuda::Device;

constexpr int32_t kNoTactic = 0;    // TensorRT's: as the kernels choose
constexpr int32_t kMostTactic = 4;  // sparse, dense; both by Triton's kernel

// Where an engine is built without a GPU: keys are split into the more parts, and so the workspace
// is the larger, the more multiprocessors there are.
constexpr Device kLargestDevice{/*multiprocessors=*/192, /*compute_capability=*/80};

Device device_of_build() {
  Device device{};
  return moh_cuda_device(&device) == cuda::Status::kOk ? device : kLargestDevice;
}

size_t kernel_workspace(const AttentionArgs& args, const AttentionChoice& choice) {
  size_t bytes = 0;
  check_status(moh_cuda_attention_workspace(&args, &choice, &bytes));
  return bytes;
}

class Attention final : public Op {
 public:
  explicit Attention(const Fields& fields)
      : attributes_(fields),
        open_share_(fields.float_value("open_share", cuda::kUsualOpenShare)),
        portable_(fields.int_value("portable", 0)),
        workspace_kib_(fields.int_value("workspace_kib", -1)) {
    if (portable_ != 0 && portable_ != 1) {
      throw Refusal("field portable is ", portable_, "; expected 0 or 1.");
    }
    if (!(open_share_ >= 0 && open_share_ <= 1)) {
      throw Refusal("field open_share is ", open_share_, "; expected 0 to 1.");
    }
  }

  std::unique_ptr<Op> clone() const override { return std::make_unique<Attention>(*this); }

  std::vector<Number> serialize() const override {
    std::vector<Number> numbers = attributes_.serialize();
    numbers.push_back({"open_share", open_share_});
    numbers.push_back({"portable", portable_});
    numbers.push_back({"workspace_kib", workspace_kib_});
    return numbers;
  }

  void check(const Inputs& inputs) const override { read_sizes(inputs, attributes_); }

  std::vector<OutputSize> output(const Inputs& inputs) const override {
    check(inputs);
    if (inputs[0].rank == 4) {
      return {{0, 0}, {0, 1}, {0, 2}, {2, 3}};  // [B, Hq, S, Dv]
    }
    OutputSize hidden{2, 2};  // [B, S, Hq * Dv]
    hidden.divide = attributes_.kv_heads;
    hidden.multiply = attributes_.q_heads;
    return {{0, 0}, {0, 1}, hidden};
  }

  void configure(const Profile& profile) override {
    Op::configure(profile);
    workspace_kib_ = in_kib(workspace_bytes(profile));
    tactics_ = valid_tactics(arguments(profile.max, attributes_));
  }

  // Enough for each tactic with the sizes of the profile. In between there may be sizes that would
  // be split into more parts than fit: those are split into fewer (fit).
  size_t workspace_bytes(const Profile& profile) const override {
    const Device device = device_of_build();
    size_t kernels = 0, gates = 0;
    for (const Inputs* inputs : {&profile.min, &profile.opt, &profile.max}) {
      const AttentionArgs args = arguments(*inputs, attributes_);
      AttentionChoice choice = choose(args, device);
      for (const auto tactic : {AttentionTactic::kSparse, AttentionTactic::kDense}) {
        choice.tactic = tactic;
        kernels = std::max(kernels, kernel_workspace(args, choice));
      }
      gates = std::max(gates, gate_count(args) * bytes_of(args.dtype));
    }
    // What is kept of it is in KiB, and fit() goes by that.
    return from_kib(in_kib(align_up(kernels) + align_up(gates)));
  }

  std::vector<int32_t> tactics() const override { return tactics_; }

  std::string while_timed() const override {
    return make_text("timed with ", open_share_, " of all gates open, not with its input.");
  }

  void set_tactic(int32_t tactic) override {
    if (tactic < kNoTactic || tactic > kMostTactic) {
      throw Refusal("tactic is ", tactic, "; expected 0 to ", kMostTactic, ".");
    }
    tactic_ = tactic;
    if (has_shapes_) {
      decide();
    }
  }

  void set_shapes(const Inputs& inputs) override {
    args_ = arguments(inputs, attributes_);
    has_shapes_ = true;
    decide();
  }

  void run(const Call& call) const override {
    AttentionArgs args = args_;
    args.query = call.inputs[0];
    args.key = call.inputs[1];
    args.value = call.inputs[2];
    args.gates = call.timed ? synthetic_gates(call) : call.inputs[3];
    // What TensorRT has there while it measures means nothing: all keys are measured.
    const auto hides = [&](size_t input) { return call.timed ? nullptr : call.inputs[input]; };
    args.mask.data = hides(4);
    args.nonpad_kv_seqlen = static_cast<const int64_t*>(hides(5));
    args.key_ranges = static_cast<const int64_t*>(hides(6));
    args.output = call.output;
    check_status(moh_cuda_attention(&args, &choice_, call.workspace, kernel_bytes_, call.stream));
  }

 private:
  AttentionChoice choose(const AttentionArgs& args, const Device& device) const {
    AttentionChoice choice{};
    check_status(moh_cuda_attention_choose(&args, &device, open_share_, &choice));
    return choice;
  }

  static constexpr int32_t tactic_number(AttentionTactic tactic,
                                         AttentionKernel kernel = AttentionKernel::kCuda) {
    return 2 * static_cast<int32_t>(kernel) + static_cast<int32_t>(tactic) + 1;
  }

  static void set_tactic_of(AttentionChoice& choice, int32_t tactic) {
    choice.tactic = static_cast<AttentionTactic>((tactic - 1) % 2);
    choice.kernel = static_cast<AttentionKernel>((tactic - 1) / 2);
    if (choice.kernel == AttentionKernel::kTriton) {
      choice.key_splits = 1;
    }
  }

  static size_t gate_count(const AttentionArgs& args) {
    return static_cast<size_t>(args.batch) * static_cast<size_t>(args.queries) *
           static_cast<size_t>(args.q_heads);
  }

  // All, for TensorRT to measure, unless the kernels' choice is beyond doubt up to these sizes.
  std::vector<int32_t> valid_tactics(const AttentionArgs& most) const {
    if (most.queries * int64_t{most.q_heads / most.kv_heads} <= cuda::kAttentionTileRows) {
      return {tactic_number(choose(most, device_of_build()).tactic)};
    }
    const Device device = device_of_build();
    std::vector<int32_t> tactics;
    for (const auto kernel : {AttentionKernel::kCuda, AttentionKernel::kTriton}) {
      if (kernel == AttentionKernel::kTriton && portable_ == 1) {
        continue;  // which there is for some GPUs only
      }
      for (const auto tactic : {AttentionTactic::kSparse, AttentionTactic::kDense}) {
        AttentionChoice choice{};
        choice.tactic = tactic;
        choice.key_splits = 1;
        choice.kernel = kernel;
        if (moh_cuda_attention_check(&most, &device, &choice) == cuda::Status::kOk) {
          tactics.push_back(tactic_number(tactic, kernel));
        }
      }
    }
    return tactics;
  }

  void decide() {
    // Shapes change often, and a plugin stays on the device that its engine was loaded for.
    if (!device_) {
      Device device{};
      check_status(moh_cuda_device(&device));
      device_ = device;
    }
    choice_ = choose(args_, *device_);
    if (tactic_ != kNoTactic) {
      set_tactic_of(choice_, tactic_);
      // An engine may run with another library than it was built with.
      check_status(moh_cuda_attention_check(&args_, &*device_, &choice_));
    }
    kernel_bytes_ = fit();
  }

  // Splits the keys into fewer parts until the kernels have enough of the workspace that was asked
  // for when the engine was built. Returns what they then need.
  size_t fit() {
    const size_t gates = align_up(gate_count(args_) * bytes_of(args_.dtype));
    size_t bytes = kernel_workspace(args_, choice_);
    while (workspace_kib_ >= 0 && align_up(bytes) + gates > from_kib(workspace_kib_)) {
      if (choice_.key_splits <= 1) {
        throw Refusal("workspace is ", workspace_kib_, " KiB; this shape needs ",
                      in_kib(align_up(bytes) + gates), ". Is it within the profile?");
      }
      choice_.key_splits = (choice_.key_splits + 1) / 2;
      bytes = kernel_workspace(args_, choice_);
    }
    return bytes;
  }

  const void* synthetic_gates(const Call& call) const {
    void* gates = static_cast<char*>(call.workspace) + align_up(kernel_bytes_);
    check_status(moh_cuda_synthetic_gates(
        gates, args_.dtype, static_cast<int64_t>(gate_count(args_)), open_share_, call.stream));
    return gates;
  }

  AttentionAttributes attributes_;
  float open_share_;
  int32_t portable_;
  int32_t workspace_kib_;  // that TensorRT gives; -1: enough
  std::vector<int32_t> tactics_;
  int32_t tactic_ = kNoTactic;
  bool has_shapes_ = false;
  AttentionArgs args_{};
  AttentionChoice choice_{};
  std::optional<Device> device_;
  size_t kernel_bytes_ = 0;
};

std::unique_ptr<Op> create(const Fields& fields) { return std::make_unique<Attention>(fields); }

}  // namespace

const OpInfo& attention_info() {
  static const OpInfo info{
      contract::attention::kOp,
      {{"BSq", "BHSD"}, {"BTk", "BGTD"}, {"BTv", "BGTE"}, {"BSH"}, {}, {"B"}, {"RSN"}},
      {{"open_share", AttributeType::kFloat, false},
       {"portable", AttributeType::kInt, false},
       {"workspace_kib", AttributeType::kInt, false, /*internal=*/true}},
      {{'B', "batch size"},
       {'S', "length"},
       {'T', "length"},
       {'H', "number of heads"},
       {'G', "number of heads"},
       {'D', "head size"},
       {'E', "head size"},
       {'q', "last size"},
       {'k', "last size"},
       {'v', "last size"},
       {'R', "batch size"},
       {'N', "last size"}},
      {{"head_dim", 'D', contract::attention::kMostHeadDim},
       {"value_dim", 'E', contract::attention::kMostValueDim}},
      create};
  return info;
}

}  // namespace moh::trt
