// What stands in for PyTorch's own kernels on the simulated GPU: its operators for CPUs, on the same memory.
//
// An operator is put on the current stream as a kernel is, and so runs when the stream does, or becomes part of a
// graph. What it will return, before anything has run, is found by running it once per kind of arguments on zeros.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/cuda/EmptyTensor.h>
#include <ATen/native/Copy.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

extern "C" int simulator_enqueue(void* stream, const char* (*run)(void*), void (*drop)(void*), void* data);

namespace {

using at::Tensor;
using c10::IValue;
using Stack = torch::jit::Stack;

const std::set<std::string> kept = {
    // about memory, not what is in it
    "aten::set_.source_Storage",
    "aten::set_.source_Storage_storage_offset",
    "aten::set_.source_Tensor",
    "aten::set_",
    "aten::resize_",
    "aten::record_stream",
    "aten::is_set_to",
    "aten::is_pinned",
    "aten::_pin_memory",
    "aten::_efficientzerotensor",
    "aten::_local_scalar_dense",  // a copy to the host
};

// Here, below.
const std::set<std::string> own = {
    "aten::empty.memory_format",
    "aten::empty_strided",
    "aten::cudnn_batch_norm",
    "aten::cudnn_batch_norm_backward",
};

// What they return depends on numbers, so that the host waits for them.
const std::set<std::string> synchronous = {
    "aten::nonzero",
    "aten::nonzero.out",
    "aten::masked_select",
    "aten::masked_select.out",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::unique_dim_consecutive",
    "aten::repeat_interleave.Tensor",
    "aten::equal",
    "aten::bincount",
    "torchvision::nms",
};

// Take indices from the CPU.
const std::set<std::string> of_any_device = {
    "aten::index.Tensor",
    "aten::index.Tensor_out",
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::_unsafe_index.Tensor",
};

// The thread's state is that of whoever forces the work: no gradients, modes or casts of it belong to the work.
class PlainThread {
  static c10::DispatchKeySet others() {
    using c10::DispatchKey;
    return c10::autograd_dispatch_keyset_with_ADInplaceOrView | c10::autocast_dispatch_keyset |
           c10::DispatchKeySet({DispatchKey::Python, DispatchKey::PythonTLSSnapshot, DispatchKey::PythonDispatcher,
                                DispatchKey::Functionalize, DispatchKey::FuncTorchDynamicLayerFrontMode,
                                DispatchKey::FuncTorchDynamicLayerBackMode, DispatchKey::FuncTorchGradWrapper});
  }
  const c10::impl::ExcludeDispatchKeyGuard guard_{others()};
};

std::string name_of(const c10::OperatorHandle& op) {
  const c10::OperatorName& name = op.operator_name();
  return name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
}

// `change` makes another of each tensor in an argument.
template <class Change>
IValue map_tensors(const IValue& value, Change change) {
  if (value.isTensor()) return value.toTensor().defined() ? IValue(change(value.toTensor())) : value;
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& tensor : value.toTensorVector()) list.push_back(tensor.defined() ? change(tensor) : tensor);
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector()) {
      list.push_back(tensor && tensor->defined() ? std::optional<Tensor>(change(*tensor)) : tensor);
    }
    return list;
  }
  return value;
}

template <class Visit>
void for_tensors(const IValue& value, Visit visit) {
  map_tensors(value, [&](const Tensor& tensor) { return visit(tensor), tensor; });
}

// Tensors of the CPU that have the memory of those of the GPU; what shares memory there does here.
class Aliases {
 public:
  Tensor operator()(const Tensor& tensor) {
    if (!tensor.is_cuda()) return tensor.dim() == 0 ? tensor.clone() : tensor.detach().clone();
    const c10::Storage& there = tensor.storage();
    auto known = storages_.find(there.unsafeGetStorageImpl());
    if (known == storages_.end()) {
      void* data = const_cast<void*>(there.data());
      const c10::Storage here(c10::Storage::use_byte_size_t(), there.nbytes(), c10::DataPtr(data, at::kCPU), nullptr,
                              false);
      known = storages_.emplace(there.unsafeGetStorageImpl(), here).first;
    }
    return at::empty({0}, tensor.scalar_type())
        .set_(known->second, tensor.storage_offset(), tensor.sizes(), tensor.strides());
  }

 private:
  std::map<const c10::StorageImpl*, c10::Storage> storages_;
};

Tensor filled_like(const Tensor& tensor, int value) {
  return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.scalar_type()).fill_(value);
}

struct Layout {
  bool defined;
  at::ScalarType type;
  std::vector<int64_t> sizes, strides;

  static Layout of(const Tensor& tensor) {
    if (!tensor.defined()) return {false, at::kFloat, {}, {}};
    return {true, tensor.scalar_type(), tensor.sizes().vec(), tensor.strides().vec()};
  }
};

// What an operator makes of some kind of arguments: the layouts of its results, those that it writes to first.
struct Outcome {
  std::vector<Layout> written;
  std::vector<std::vector<Layout>> results;  // an element, or one per tensor of a list
};

// A call on the CPU.
struct Call {
  c10::OperatorHandle op;
  std::vector<IValue> arguments;

  std::vector<IValue> run() const {
    const PlainThread plain;
    const at::NoGradGuard no_grad;
    Stack stack(arguments);
    op.callBoxed(&stack);
    return stack;
  }
};

bool is_written(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

// CPUs compute these in half precision slowly or with sums in it; a GPU sums in single precision.
bool sums_in_single(const std::string& name) {
  static const std::set<std::string> known = {"aten::convolution", "aten::convolution_backward"};
  return known.count(name) > 0;
}

bool is_half(const Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
}

Tensor widened(const Tensor& tensor) { return is_half(tensor) ? tensor.to(at::kFloat) : tensor; }

std::vector<IValue> run_in_single(const Call& call) {
  std::optional<at::ScalarType> type;
  Call wide = call;
  for (IValue& argument : wide.arguments) {
    for_tensors(argument, [&](const Tensor& tensor) {
      if (is_half(tensor)) type = tensor.scalar_type();
    });
    argument = map_tensors(argument, widened);
  }
  std::vector<IValue> results = wide.run();
  if (type) {
    for (IValue& result : results) {
      result = map_tensors(result, [&](const Tensor& tensor) { return tensor.to(*type); });
    }
  }
  return results;
}

std::vector<IValue> run(const Call& call) {
  const PlainThread plain;
  return sums_in_single(name_of(call.op)) ? run_in_single(call) : call.run();
}

void describe(std::ostream& out, const IValue& value) {
  bool tensors = value.isTensor() || value.isTensorList() || value.isOptionalTensorList();
  for_tensors(value, [&](const Tensor& tensor) {
    out << '<' << tensor.scalar_type() << tensor.sizes() << tensor.strides() << '>';
  });
  if (value.isOptionalTensorList()) {
    for (const auto& one : value.toOptionalTensorVector()) out << (one && one->defined());
  }
  if (!tensors && !value.isGenerator()) out << value;
  out << ';';
}

Outcome find_outcome(const Call& call, int value) {
  Call on_numbers = call;
  for (IValue& argument : on_numbers.arguments) {
    argument = map_tensors(argument, [&](const Tensor& tensor) { return filled_like(tensor, value); });
  }
  const auto& schema = call.op.schema();
  const std::vector<IValue> results = run(on_numbers);
  Outcome found;
  for (size_t i = 0; i < on_numbers.arguments.size(); ++i) {
    if (!schema.arguments()[i].is_out()) continue;
    for_tensors(on_numbers.arguments[i], [&](const Tensor& tensor) { found.written.push_back(Layout::of(tensor)); });
  }
  for (const IValue& result : results) {
    std::vector<Layout> layouts;
    if (result.isTensor()) layouts.push_back(Layout::of(result.toTensor()));
    if (result.isTensorList()) {
      for (const Tensor& tensor : result.toTensorVector()) layouts.push_back(Layout::of(tensor));
    }
    found.results.push_back(layouts);
  }
  return found;
}

// Found once per kind of arguments.
Outcome outcome_of(const Call& call) {
  static std::mutex mutex;
  static auto* const known = new std::map<std::string, Outcome>;
  const PlainThread plain;
  std::stringstream text;
  text << name_of(call.op);
  for (const IValue& argument : call.arguments) describe(text, argument);
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known->find(text.str());
    if (found != known->end()) return found->second;
  }
  Outcome fresh;
  try {
    fresh = find_outcome(call, 0);
  } catch (const std::exception&) {
    try {
      fresh = find_outcome(call, 1);  // of what does not divide, for example
    } catch (const std::exception&) {
      fresh = find_outcome(call, 0);
    }
  }
  const std::lock_guard<std::mutex> lock(mutex);
  return (*known)[text.str()] = fresh;
}

// Work on a stream: a call, and where its results go.
struct Job {
  Call call;
  std::vector<std::vector<Tensor>> targets;  // on the CPU, with the memory of the GPU
};

void store(const IValue& result, const std::vector<Tensor>& targets) {
  std::vector<Tensor> found;
  if (result.isTensor()) found = {result.toTensor()};
  if (result.isTensorList()) found = result.toTensorVector();
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i].defined()) targets[i].copy_(found.at(i));
  }
}

const char* run_job(void* data) {
  static thread_local std::string problem;
  const Job& job = *static_cast<Job*>(data);
  const PlainThread plain;
  const at::NoGradGuard no_grad;
  try {
    const std::vector<IValue> results = run(job.call);
    for (size_t i = 0; i < job.targets.size(); ++i) store(results.at(i), job.targets[i]);
    return nullptr;
  } catch (const std::exception& error) {
    problem = name_of(job.call.op) + ": " + error.what();
    return problem.c_str();
  }
}

void enqueue(Job job) {
  const auto drop = [](void* data) { delete static_cast<Job*>(data); };
  C10_CUDA_CHECK(static_cast<cudaError_t>(
      simulator_enqueue(c10::cuda::getCurrentCUDAStream().stream(), run_job, drop, new Job(std::move(job)))));
}

void check_devices(const std::string& name, const std::vector<IValue>& arguments, std::optional<at::Device>& device) {
  for (const IValue& argument : arguments) {
    for_tensors(argument, [&](const Tensor& tensor) {
      if (tensor.is_cuda() && !device) device = tensor.device();
    });
    if (argument.isDevice() && argument.toDevice().is_cuda() && !device) device = argument.toDevice();
  }
  if (!device) device = at::Device(at::kCUDA, c10::cuda::current_device());
  if (!device->has_index()) device = at::Device(at::kCUDA, c10::cuda::current_device());
  for (const IValue& argument : arguments) {
    for_tensors(argument, [&](const Tensor& tensor) {
      const bool is_number = tensor.is_cpu() && tensor.dim() == 0;
      const bool fits = tensor.device() == *device || is_number || of_any_device.count(name);
      TORCH_CHECK(fits, "Expected all tensors to be on the same device, but found at least two devices, ", *device,
                  " and ", tensor.device(), "! (", name, ")");
    });
  }
}

// A generator of the CPU whose numbers follow from the state of that of the GPU.
at::Generator generator_of(const IValue& given, const at::Device& device) {
  at::Generator gpu = given.isGenerator() ? given.toGenerator() : at::globalContext().defaultGenerator(device);
  uint64_t seed = gpu.current_seed();
  if (c10::cuda::currentStreamCaptureStatusMayInitCtx() == c10::cuda::CaptureStatus::None) {
    const uint64_t offset = gpu.get_offset();
    gpu.set_offset(offset + 4);
    seed += 0x9e3779b97f4a7c15 * offset;
  }
  return at::detail::createCPUGenerator(seed);
}

IValue on_cpu(const c10::Argument& description, const IValue& value, const at::Device& device, Aliases& aliases) {
  const c10::TypePtr type = description.type();
  const bool is_generator =
      type->kind() == c10::GeneratorType::Kind ||
      (type->kind() == c10::OptionalType::Kind &&
       type->expectRef<c10::OptionalType>().getElementType()->kind() == c10::GeneratorType::Kind);
  if (is_generator) return generator_of(value, device);
  if (value.isDevice()) return at::Device(at::kCPU);
  return map_tensors(value, [&](const Tensor& tensor) { return aliases(tensor); });
}

// Whether masks choose elements, whose number the host then waits for. A single number written by a mask needs none.
bool waits_for_masks(const std::string& name, const std::vector<IValue>& arguments) {
  if (name.find("index") == std::string::npos || !arguments[1].isOptionalTensorList()) return false;
  int masks = 0;
  for_tensors(arguments[1], [&](const Tensor& tensor) {
    masks += tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte;
  });
  const bool one_number = arguments.size() > 2 && arguments[2].isTensor() && arguments[2].toTensor().numel() == 1;
  return masks > 0 && !(masks == 1 && one_number);
}

void wait_for_stream() {
  c10::cuda::warn_or_error_on_sync();
  c10::cuda::stream_synchronize(c10::cuda::getCurrentCUDAStream());
}

Tensor new_tensor(const Layout& layout, const at::Device& device) {
  if (!layout.defined) return Tensor();
  return at::empty_strided(layout.sizes, layout.strides, at::TensorOptions(device).dtype(layout.type));
}

// Tensors on the GPU for a result, and `targets`, the same on the CPU.
IValue new_result(const c10::Argument& description, const std::vector<Layout>& layouts, const at::Device& device,
                  Aliases& aliases, std::vector<Tensor>& targets) {
  std::vector<Tensor> found;
  for (const Layout& layout : layouts) {
    found.push_back(new_tensor(layout, device));
    targets.push_back(layout.defined ? aliases(found.back()) : Tensor());
  }
  if (description.type()->kind() == c10::TensorType::Kind) return found.at(0);
  return c10::List<Tensor>(found);
}

void look_for_torchvision();

// The operator for CUDA.
void carry(const c10::OperatorHandle& op, Stack* stack) {
  look_for_torchvision();
  const auto& schema = op.schema();
  const std::string name = name_of(op);
  const size_t number = schema.arguments().size();
  const std::vector<IValue> given = torch::jit::last(*stack, number).vec();
  std::optional<at::Device> device;
  check_devices(name, given, device);
  const c10::cuda::CUDAGuard guard(*device);
  const PlainThread plain;
  const at::NoGradGuard no_grad;

  bool waits = synchronous.count(name) > 0 || waits_for_masks(name, given);
  for (const c10::Argument& result : schema.returns()) {
    waits = waits || (result.type()->kind() != c10::TensorType::Kind && result.type()->kind() != c10::ListType::Kind);
  }
  const auto to_call = [&](Aliases& aliases) {
    Call call{op, {}};
    for (size_t i = 0; i < number; ++i) {
      call.arguments.push_back(on_cpu(schema.arguments()[i], given[i], *device, aliases));
    }
    return call;
  };
  Aliases aliases;
  Call call = to_call(aliases);
  Job job{call, {}};
  std::vector<IValue> results;
  if (waits) {
    wait_for_stream();
    const std::vector<IValue> found = run(call);
    for (const IValue& result : found) {
      const auto there = [&](const Tensor& tensor) { return new_tensor(Layout::of(tensor), *device); };
      results.push_back(map_tensors(result, there));
    }
    wait_for_stream();
    for (size_t i = 0; i < found.size(); ++i) {
      if (found[i].isTensor()) Aliases()(results[i].toTensor()).copy_(found[i].toTensor());
    }
  } else {
    const Outcome outcome = outcome_of(call);
    size_t out = 0;
    for (size_t i = 0; i < number; ++i) {
      if (!schema.arguments()[i].is_out()) continue;
      for_tensors(given[i], [&](const Tensor& tensor) {
        const Layout& layout = outcome.written.at(out++);
        if (tensor.sizes() == at::IntArrayRef(layout.sizes)) return;
        tensor.resize_(layout.sizes);
        tensor.as_strided_(layout.sizes, layout.strides);
      });
    }
    Aliases fresh;
    job.call = out > 0 ? to_call(fresh) : call;
    for (size_t i = 0; i < schema.returns().size(); ++i) {
      const c10::Argument& result = schema.returns()[i];
      job.targets.emplace_back();
      if (!is_written(result)) {
        results.push_back(new_result(result, outcome.results.at(i), *device, fresh, job.targets.back()));
        continue;
      }
      for (size_t j = 0; j < number; ++j) {
        const c10::Argument& argument = schema.arguments()[j];
        if (is_written(argument) && *argument.alias_info() == *result.alias_info()) results.push_back(given[j]);
      }
    }
    enqueue(std::move(job));
  }
  torch::jit::drop(*stack, number);
  for (IValue& result : results) stack->push_back(std::move(result));
}

// New memory is full of what is not a number, also where it has been used before.
const Tensor& poison(const Tensor& fresh) {
  if (!fresh.is_cuda() || fresh.storage().nbytes() == 0) return fresh;
  const c10::cuda::CUDAGuard guard(fresh.device());
  C10_CUDA_CHECK(cudaMemsetAsync(fresh.storage().mutable_data(), 0xff, fresh.storage().nbytes(),
                                 c10::cuda::getCurrentCUDAStream().stream()));
  return fresh;
}

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout> layout,
             std::optional<at::Device> device, std::optional<bool> pinned, std::optional<at::MemoryFormat> format) {
  return poison(at::detail::empty_cuda(size, type, layout, device, pinned, format));
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> type,
                     std::optional<at::Layout> layout, std::optional<at::Device> device, std::optional<bool> pinned) {
  return poison(at::detail::empty_strided_cuda(size, stride, type, layout, device, pinned));
}

// Batch norm that is trained is cuDNN's where it can be.
std::tuple<Tensor, Tensor, Tensor, Tensor> cudnn_batch_norm(const Tensor& input, const Tensor& weight,
                                                            const std::optional<Tensor>& bias,
                                                            const std::optional<Tensor>& mean,
                                                            const std::optional<Tensor>& variance, bool training,
                                                            double momentum, double epsilon) {
  auto [output, saved_mean, saved_variance] =
      at::native_batch_norm(input, weight, bias, mean, variance, training, momentum, epsilon);
  return {output, saved_mean, saved_variance, at::empty({0}, input.options().dtype(at::kByte))};
}

std::tuple<Tensor, Tensor, Tensor> cudnn_batch_norm_backward(
    const Tensor& input, const Tensor& grad, const Tensor& weight, const std::optional<Tensor>& mean,
    const std::optional<Tensor>& variance, const std::optional<Tensor>& saved_mean,
    const std::optional<Tensor>& saved_variance, double epsilon, const Tensor&) {
  return at::native_batch_norm_backward(grad, input, weight, mean, variance, saved_mean, saved_variance, true, epsilon,
                                        {true, true, true});
}

// PyTorch's own between devices, which calls the runtime; the CPU's within the GPU.
void copy(const c10::OperatorHandle& op, Stack* stack) {
  const std::vector<IValue> given = torch::jit::last(*stack, 3).vec();
  Tensor target = given[0].toTensor();
  const Tensor source = given[1].toTensor();
  if (target.device() == source.device()) return carry(op, stack);
  at::native::copy_(target, source, given[2].toBool());
  torch::jit::drop(*stack, 3);
  stack->push_back(target);
}

struct Quiet : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

// Whether some result is a view, which has nothing to compute.
bool is_view(const c10::FunctionSchema& schema) {
  for (const c10::Argument& result : schema.returns()) {
    if (result.alias_info() != nullptr && !result.alias_info()->isWrite()) return true;
  }
  return false;
}

std::vector<torch::Library>& libraries() {
  static auto* const known = new std::vector<torch::Library>;
  return *known;
}

torch::Library library(const char* space) {
  return torch::Library(torch::Library::IMPL, space, c10::DispatchKey::CUDA, __FILE__, __LINE__);
}

// Takes over what a library has for CUDA.
void take_over(const std::string& space) {
  Quiet quiet;
  const c10::WarningUtils::WarningHandlerGuard guard(&quiet);
  torch::Library all = library(space.c_str());
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName& found : dispatcher.getRegistrationsForDispatchKey(c10::DispatchKey::CUDA)) {
    const auto op = dispatcher.findSchema(found);
    const bool of_space = found.name.rfind(space + "::", 0) == 0;
    if (!op || !of_space || kept.count(name_of(*op)) || own.count(name_of(*op)) || is_view(op->schema())) continue;
    all.impl(name_of(*op).c_str(), torch::CppFunction::makeFromBoxedFunction<&carry>());
  }
  libraries().push_back(std::move(all));
}

// torchvision may be loaded later than this.
void look_for_torchvision() {
  static std::atomic<bool> found{false};
  if (found || !c10::Dispatcher::singleton().findSchema({"torchvision::nms", ""})) return;
  if (!found.exchange(true)) take_over("torchvision");
}

// The first thing that is called where torchvision is loaded for it.
void first_of_torchvision(const c10::OperatorHandle& op, Stack* stack) {
  look_for_torchvision();
  const at::AutoDispatchBelowAutograd below;
  op.callBoxed(stack);
}

const bool installed = [] {
  take_over("aten");
  Quiet quiet;
  const c10::WarningUtils::WarningHandlerGuard guard(&quiet);
  torch::Library aten = library("aten");
  aten.impl("empty.memory_format", TORCH_FN(empty));
  aten.impl("empty_strided", TORCH_FN(empty_strided));
  aten.impl("cudnn_batch_norm", TORCH_FN(cudnn_batch_norm));
  aten.impl("cudnn_batch_norm_backward", TORCH_FN(cudnn_batch_norm_backward));
  aten.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&copy>());
  for (const char* name : {"convolution", "convolution_backward"}) {  // which choose a kernel themselves
    aten.impl(name, torch::CppFunction::makeFromBoxedFunction<&carry>());
  }
  libraries().push_back(std::move(aten));
  torch::Library vision(torch::Library::IMPL, "torchvision", c10::DispatchKey::AutogradCUDA, __FILE__, __LINE__);
  vision.impl("nms", torch::CppFunction::makeFromBoxedFunction<&first_of_torchvision>());
  libraries().push_back(std::move(vision));
  return true;
}();

}  // namespace
