// Runs a package's model on images, and prints the class of each.
//
//     classify MODEL.onnx IMAGES.f32 [LIBRARY]
//
// IMAGES.f32 holds float32 numbers, image after image. LIBRARY is libmoh_ort_cpu.so, whose kernels
// skip the heads that a router left out; without it the function bodies in the model compute the
// same.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

std::vector<float> ReadNumbers(const char* path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) {
    throw std::runtime_error(std::string(path) + " cannot be read");
  }
  std::vector<float> numbers(static_cast<size_t>(file.tellg()) / sizeof(float));
  file.seekg(0).read(reinterpret_cast<char*>(numbers.data()), numbers.size() * sizeof(float));
  return numbers;
}

int Classify(const char* model, const char* images, const char* library) {
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
  Ort::SessionOptions options;
  if (library != nullptr) {
    options.RegisterCustomOpsLibrary(library);
  }
  Ort::Session session(env, model, options);

  Ort::AllocatorWithDefaultOptions allocator;
  const Ort::AllocatedStringPtr input = session.GetInputNameAllocated(0, allocator);
  const Ort::AllocatedStringPtr output = session.GetOutputNameAllocated(0, allocator);
  const char* input_names[] = {input.get()};
  const char* output_names[] = {output.get()};

  // [batch, channels, height, width]; the file's size gives the batch.
  std::vector<float> numbers = ReadNumbers(images);
  std::vector<int64_t> shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
  const int64_t image =
      std::accumulate(shape.begin() + 1, shape.end(), int64_t{1}, std::multiplies<>());
  if (image <= 0) {
    throw std::runtime_error("the model takes images of any size; this program wants one size");
  }
  shape[0] = static_cast<int64_t>(numbers.size()) / image;
  const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const Ort::Value value = Ort::Value::CreateTensor<float>(
      memory, numbers.data(), static_cast<size_t>(shape[0] * image), shape.data(), shape.size());

  const std::vector<Ort::Value> results =
      session.Run(Ort::RunOptions{nullptr}, input_names, &value, 1, output_names, 1);
  const int64_t classes = results[0].GetTensorTypeAndShapeInfo().GetShape()[1];
  const float* logits = results[0].GetTensorData<float>();  // [batch, classes]
  for (int64_t row = 0; row < shape[0]; ++row, logits += classes) {
    const float* best = std::max_element(logits, logits + classes);
    std::printf("image %d: class %d, logit %.4f\n", static_cast<int>(row),
                static_cast<int>(best - logits), *best);
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) {
    std::fprintf(stderr, "usage: %s MODEL.onnx IMAGES.f32 [LIBRARY]\n", arguments[0]);
    return 2;
  }
  try {
    return Classify(arguments[1], arguments[2], count > 3 ? arguments[3] : nullptr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
