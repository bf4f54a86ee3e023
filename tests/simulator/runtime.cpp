// A CUDA runtime without a GPU: takes the place of libcudart where PyTorch and the CUDA kernels are linked to it.
//
// Memory of the device is memory of the host, full of not-a-number when it is new. What is put on a stream waits there
// until something that the host may rely on makes it run, so that a missing synchronisation shows in the numbers; see
// `Order`. Kernels run as the PTX that nvcc makes of them, on the machine of machine.h.
//
// Set by the environment: SIMULATOR_PTX, the folder with the PTX; SIMULATOR_GPU, "h100" or "a100"; SIMULATOR_GPUS,
// their number; SIMULATOR_MEMORY, MiB of each; SIMULATOR_ORDER, "late", "ahead" or a number, a seed; SIMULATOR_LOG, a
// file that is told what happens; SIMULATOR_OPERATORS, the library that stands in for PyTorch's own kernels.
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "machine.h"

namespace {

using std::shared_ptr;

std::string setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? otherwise : value;
}

constexpr int most_devices = 8;

// ---------------------------------------------------------------------------------------------------------------------
// What is known of the process. Whoever touches it holds `mutex`; work runs under it, too, and never asks for Python's
// lock, so that a thread which has that one may wait here.

using Work = std::function<cudaError_t()>;

struct Queue;

// A place in a queue, which an event stands for.
struct Mark {
  Queue* queue;
  bool passed = false;
  std::chrono::steady_clock::time_point when{};
  int polls = 0;
};

struct Item {
  Work work;
  shared_ptr<Mark> passes, awaits;
};

struct Graph {
  std::vector<Work> nodes;
};

struct Capture {
  unsigned long long id;
  shared_ptr<Graph> graph;
  Queue* origin;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  bool invalid = false;
  std::set<Queue*> members, unjoined;
};

// A stream.
struct Queue {
  int device;
  int priority;
  bool waits_for_default;  // the legacy default stream and this one wait for each other
  std::deque<Item> items;
  shared_ptr<Capture> capture;
};

struct Event {
  unsigned flags;
  shared_ptr<Mark> mark;
  shared_ptr<Capture> capture;  // that it was recorded in
  Queue* recorded = nullptr;
};

enum class Place { device, host };

struct Range {
  size_t bytes;
  size_t mapped;
  Place place;
  int device;
};

struct Function {
  const char* name;
  int most_dynamic_shared = 48 << 10;
};

struct State {
  std::recursive_mutex mutex;
  std::map<uintptr_t, Range> memory;
  size_t used[most_devices] = {};
  std::set<Queue*> streams;
  Queue defaults[most_devices];
  std::set<Event*> events;
  std::set<shared_ptr<Capture>> captures;
  unsigned long long capture_count = 0;
  std::unordered_map<const void*, Function> functions;
  std::map<std::string, uint64_t> counts;
  cudaError_t broken = cudaSuccess;  // an error of a kernel, which stays
  std::mt19937_64 random{0};
  FILE* log = nullptr;
};

State& state() {
  static State* const known = [] {
    State* fresh = new State;  // never destroyed: threads of PyTorch outlive static objects
    for (int i = 0; i < most_devices; ++i) fresh->defaults[i] = {i, 0, false, {}, nullptr};
    const std::string log = setting("SIMULATOR_LOG", "");
    if (!log.empty()) fresh->log = std::fopen(log.c_str(), "a");
    fresh->random.seed(std::strtoull(setting("SIMULATOR_ORDER", "0").c_str(), nullptr, 10));
    return fresh;
  }();
  return *known;
}

using Lock = std::lock_guard<std::recursive_mutex>;

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

void tell(const char* format, ...) __attribute__((format(printf, 1, 2)));
void tell(const char* format, ...) {
  if (state().log == nullptr) return;
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(state().log, format, arguments);
  va_end(arguments);
  std::fputc('\n', state().log);
  std::fflush(state().log);
}

void count(const char* name) {
  ++state().counts[name];
  tell("%s", name);
}

// An error of something that ran on a stream, of which every later call tells.
cudaError_t break_down(cudaError_t error, const std::string& reason) {
  std::fprintf(stderr, "simulated GPU: %s\n", reason.c_str());
  tell("broken: %s", reason.c_str());
  if (state().broken == cudaSuccess) state().broken = error;
  return error;
}

// ---------------------------------------------------------------------------------------------------------------------
// Devices.

int number_of_devices() {
  static const int found = std::min(most_devices, std::atoi(setting("SIMULATOR_GPUS", "1").c_str()));
  return found;
}

size_t memory_of_device() {
  static const size_t found = std::strtoull(setting("SIMULATOR_MEMORY", "6144").c_str(), nullptr, 10) << 20;
  return found;
}

bool is_h100() {
  static const bool found = setting("SIMULATOR_GPU", "h100") == "h100";
  return found;
}

cudaDeviceProp properties(int device) {
  cudaDeviceProp found{};
  std::snprintf(found.name, sizeof(found.name), "Simulated %s", is_h100() ? "H100" : "A100");
  found.uuid.bytes[0] = static_cast<char>(device + 1);
  found.totalGlobalMem = memory_of_device();
  found.major = is_h100() ? 9 : 8;
  found.multiProcessorCount = is_h100() ? 132 : 108;
  found.sharedMemPerBlock = 48 << 10;
  found.sharedMemPerBlockOptin = (is_h100() ? 227 : 163) << 10;
  found.sharedMemPerMultiprocessor = (is_h100() ? 228 : 164) << 10;
  found.reservedSharedMemPerBlock = 1 << 10;
  found.regsPerBlock = found.regsPerMultiprocessor = 1 << 16;
  found.warpSize = 32;
  found.maxThreadsPerBlock = 1024;
  found.maxThreadsPerMultiProcessor = 2048;
  found.maxBlocksPerMultiProcessor = 32;
  const int threads[] = {1024, 1024, 64}, blocks[] = {INT32_MAX, 65535, 65535};
  std::copy_n(threads, 3, found.maxThreadsDim);
  std::copy_n(blocks, 3, found.maxGridSize);
  found.totalConstMem = 64 << 10;
  found.memPitch = INT32_MAX;
  found.textureAlignment = 512;
  found.texturePitchAlignment = 32;
  found.l2CacheSize = (is_h100() ? 50 : 40) << 20;
  found.memoryBusWidth = 5120;
  found.pciBusID = device + 1;
  found.canMapHostMemory = found.concurrentKernels = found.unifiedAddressing = found.cooperativeLaunch = 1;
  found.streamPrioritiesSupported = found.computePreemptionSupported = found.asyncEngineCount = 1;
  return found;
}

// What stands in for PyTorch's own kernels registers itself when it is loaded, which is when PyTorch first looks for
// a device: its libraries are there by then.
void load_operators() {
  static const bool loaded = [] {
    const std::string path = setting("SIMULATOR_OPERATORS", "");
    if (path.empty() || dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL) != nullptr) return true;
    std::fprintf(stderr, "simulated GPU: %s\n", dlerror());
    std::abort();
  }();
  (void)loaded;
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory.

// The range that has these bytes, or null.
const std::pair<const uintptr_t, Range>* find_range(const void* pointer, size_t bytes = 1) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  auto above = state().memory.upper_bound(address);
  if (above == state().memory.begin()) return nullptr;
  const auto& found = *--above;
  const size_t offset = address - found.first;
  return offset < found.second.bytes && bytes <= found.second.bytes - offset ? &found : nullptr;
}

cudaError_t allocate(void** pointer, size_t bytes, Place place, int device) {
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  size_t& used = state().used[device];
  if (place == Place::device && (bytes > memory_of_device() || used > memory_of_device() - bytes)) {
    return cudaErrorMemoryAllocation;
  }
  const size_t page = 4096, mapped = (bytes + page - 1) / page * page + page;  // one that nobody may touch behind it
  void* found = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) return cudaErrorMemoryAllocation;
  mprotect(static_cast<char*>(found) + mapped - page, page, PROT_NONE);
  std::memset(found, 0xff, bytes);
  state().memory[reinterpret_cast<uintptr_t>(found)] = {bytes, mapped, place, device};
  if (place == Place::device) used += bytes;
  *pointer = found;
  return cudaSuccess;
}

cudaError_t release(void* pointer, Place place) {
  const auto found = state().memory.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == state().memory.end() || found->second.place != place) return cudaErrorInvalidValue;
  if (place == Place::device) state().used[found->second.device] -= found->second.bytes;
  munmap(pointer, found->second.mapped);
  state().memory.erase(found);
  return cudaSuccess;
}

// What the kernel that runs may touch, in order of addresses: memory of its device, and pinned memory.
std::vector<std::pair<uintptr_t, uintptr_t>> touchable;

int may_touch(uint64_t address, size_t bytes, int) {
  static thread_local size_t latest = 0;
  if (latest < touchable.size() && address >= touchable[latest].first && address + bytes <= touchable[latest].second) {
    return 1;
  }
  const auto above = std::upper_bound(touchable.begin(), touchable.end(), std::make_pair(address, UINTPTR_MAX));
  if (above == touchable.begin() || address + bytes > std::prev(above)->second) return 0;
  latest = static_cast<size_t>(std::prev(above) - touchable.begin());
  return 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Streams.

// When work runs that nothing has made run yet.
//
// late: not at all. ahead: on streams but the default ones as soon as it could, as if the default stream had much to
// do. random: now and then.
enum class Order { late, ahead, random };

Order order() {
  static const Order found = [] {
    const std::string text = setting("SIMULATOR_ORDER", "late");
    return text == "late" ? Order::late : text == "ahead" ? Order::ahead : Order::random;
  }();
  return found;
}

void run_first(Queue& queue) {
  const Item item = std::move(queue.items.front());
  queue.items.pop_front();
  if (item.work && state().broken == cudaSuccess) item.work();
  if (item.passes) item.passes->passed = true, item.passes->when = std::chrono::steady_clock::now();
}

// Runs what leads to a mark, and nothing else.
void reach(Mark& mark) {
  while (!mark.passed) {
    const shared_ptr<Mark> before = mark.queue->items.front().awaits;
    if (before) reach(*before);
    run_first(*mark.queue);
  }
}

void drain(Queue& queue) {
  while (!queue.items.empty()) {
    const shared_ptr<Mark> before = queue.items.front().awaits;
    if (before) reach(*before);
    run_first(queue);
  }
}

// Runs what need not wait, at most so many items.
void run_ready(Queue& queue, size_t most) {
  for (; most > 0 && !queue.items.empty(); --most) {
    const Item& first = queue.items.front();
    if (first.awaits && !first.awaits->passed) return;
    run_first(queue);
  }
}

void drain_device(int device) {
  drain(state().defaults[device]);
  for (Queue* stream : state().streams) {
    if (stream->device == device) drain(*stream);
  }
}

void go_on() {
  static bool busy = false;
  if (order() == Order::late || busy) return;
  busy = true;
  for (bool moved = true; moved;) {
    moved = false;
    for (Queue* stream : state().streams) {
      const size_t before = stream->items.size();
      run_ready(*stream, order() == Order::ahead ? SIZE_MAX : state().random() % 3);
      moved = moved || (order() == Order::ahead && stream->items.size() != before);
    }
  }
  if (order() == Order::random) run_ready(state().defaults[current_device], state().random() % 3);
  busy = false;
}

Queue* find_queue(cudaStream_t stream) {
  if (stream == nullptr || stream == cudaStreamLegacy) return &state().defaults[current_device];
  Queue* queue = reinterpret_cast<Queue*>(stream);
  return state().streams.count(queue) ? queue : nullptr;
}

cudaStream_t handle(Queue* queue) { return reinterpret_cast<cudaStream_t>(queue); }

// The default stream waits for those that wait for it.
void order_with_default(Queue& queue) {
  const bool is_default = &queue == &state().defaults[queue.device];
  if (!is_default && !queue.waits_for_default) return;
  const auto wait_for = [&](Queue& other) {
    if (other.items.empty()) return;
    auto mark = std::make_shared<Mark>(Mark{&other});
    other.items.push_back({nullptr, mark, nullptr});
    queue.items.push_back({nullptr, nullptr, mark});
  };
  if (!is_default) return wait_for(state().defaults[queue.device]);
  for (Queue* stream : state().streams) {
    if (stream->waits_for_default && stream->device == queue.device) wait_for(*stream);
  }
}

// Puts work on a stream, or into the graph that is being captured from it.
cudaError_t submit(cudaStream_t stream, Work work) {
  if (state().broken != cudaSuccess) return state().broken;
  Queue* queue = find_queue(stream);
  if (queue == nullptr) return cudaErrorInvalidResourceHandle;
  if (queue->capture) {
    if (queue->capture->invalid) return cudaErrorStreamCaptureInvalidated;
    queue->capture->graph->nodes.push_back(std::move(work));
    if (queue != queue->capture->origin) queue->capture->unjoined.insert(queue);
    return cudaSuccess;
  }
  order_with_default(*queue);
  queue->items.push_back({std::move(work), nullptr, nullptr});
  go_on();
  return cudaSuccess;
}

cudaError_t invalidate(const shared_ptr<Capture>& capture, cudaError_t error) {
  capture->invalid = true;
  return error;
}

// Whether a call that may wait for other streams, or make them wait, disturbs a capture.
cudaError_t check_captures() {
  for (const auto& capture : state().captures) {
    const bool own = capture->thread == std::this_thread::get_id();
    const bool disturbed = thread_mode == cudaStreamCaptureModeRelaxed || capture->mode == cudaStreamCaptureModeRelaxed
                               ? false
                           : capture->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal
                               ? true
                               : own;
    if (disturbed) return invalidate(capture, cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}

cudaError_t synchronize(Queue* queue) {
  if (queue == nullptr) return cudaErrorInvalidResourceHandle;
  if (queue->capture) return invalidate(queue->capture, cudaErrorStreamCaptureUnsupported);
  if (const cudaError_t error = check_captures()) return error;
  drain(*queue);
  return state().broken;
}

cudaError_t synchronize_device() {
  for (const auto& capture : state().captures) {
    if (thread_mode != cudaStreamCaptureModeRelaxed) return invalidate(capture, cudaErrorStreamCaptureUnsupported);
  }
  drain_device(current_device);
  return state().broken;
}

bool is_pageable(const void* pointer) { return find_range(pointer) == nullptr; }

// Whether the bytes lie in one piece of memory.
bool is_whole(const void* pointer, size_t bytes) { return is_pageable(pointer) || find_range(pointer, bytes); }

cudaError_t copy(void* target, const void* source, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (!is_whole(target, bytes) || !is_whole(source, bytes)) return cudaErrorInvalidValue;
  Queue* queue = find_queue(stream);
  if (queue == nullptr) return cudaErrorInvalidResourceHandle;
  const bool from_pageable = is_pageable(source), to_pageable = is_pageable(target);
  if (queue->capture && (from_pageable || to_pageable)) {
    return invalidate(queue->capture, cudaErrorStreamCaptureUnsupported);
  }
  shared_ptr<std::vector<char>> staged;
  if (from_pageable) {
    const char* begin = static_cast<const char*>(source);
    staged = std::make_shared<std::vector<char>>(begin, begin + bytes);
  }
  const cudaError_t error = submit(stream, [=] {
    const bool alive = (to_pageable || find_range(target, bytes)) && (staged || find_range(source, bytes));
    if (!alive) return break_down(cudaErrorIllegalAddress, "a copy of memory that has been freed");
    std::memmove(target, staged ? staged->data() : source, bytes);
    return cudaSuccess;
  });
  if (error != cudaSuccess || !to_pageable) return error;
  count("copy to pageable memory");
  return synchronize(queue);
}

cudaError_t fill(void* target, int value, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (!find_range(target, bytes)) return cudaErrorInvalidValue;
  return submit(stream, [=] {
    if (!find_range(target, bytes)) return break_down(cudaErrorIllegalAddress, "memory is set that has been freed");
    std::memset(target, value, bytes);
    return cudaSuccess;
  });
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernels.

// A name without the hashes of unnamed namespaces.
std::string without_hashes(const std::string& name) {
  static const std::string unnamed = "_GLOBAL__N__";
  std::string rest = name, found;
  for (size_t at; (at = rest.find(unnamed)) != std::string::npos;) {
    size_t digits = at;
    while (digits > 0 && std::isdigit(static_cast<unsigned char>(rest[digits - 1]))) --digits;
    const size_t length = std::strtoull(rest.substr(digits, at - digits).c_str(), nullptr, 10);
    found += rest.substr(0, digits) + unnamed;
    rest = rest.substr(std::min(rest.size(), at + length));
  }
  return found + rest;
}

// What is known of a kernel from its PTX.
struct Code {
  PtxModule* module;
  std::string name;
  PtxKernel limits;
  std::vector<size_t> parameters;  // bytes of each
};

// Bytes that `.param` declares, as in ".param .align 8 .b8 name[40]" and ".param .u64 name".
size_t parameter_bytes(const std::string& declaration) {
  const size_t type = declaration.find_last_of('.', declaration.find_last_of(" \t"));
  const size_t width = std::strtoull(&declaration[declaration.find_first_of("0123456789", type)], nullptr, 10) / 8;
  const size_t array = declaration.find('[');
  return array == std::string::npos ? width : width * std::strtoull(&declaration[array + 1], nullptr, 10);
}

void load_file(const std::filesystem::path& path, std::map<std::string, Code>& found) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  const std::string ptx = text.str();
  char reason[1024] = "";
  PtxModule* module = ptx_load(ptx.c_str(), reason, sizeof(reason));
  if (module == nullptr) {
    std::fprintf(stderr, "simulated GPU: %s: %s\n", path.c_str(), reason);
    std::abort();
  }
  for (size_t at = 0; (at = ptx.find(".entry ", at)) != std::string::npos;) {
    at += 7;
    const size_t open = ptx.find('(', at), close = ptx.find(')', open);
    Code code{module, ptx.substr(at, open - at), {}, {}};
    std::stringstream declarations(ptx.substr(open + 1, close - open - 1));
    for (std::string one; std::getline(declarations, one, ',');) {
      if (one.find(".param") != std::string::npos) code.parameters.push_back(parameter_bytes(one));
    }
    if (ptx_find(module, code.name.c_str(), &code.limits) == 0) found[without_hashes(code.name)] = code;
    at = close;
  }
}

// Of a kernel; null for those that there is no PTX of.
const Code* find_code(const char* name) {
  static const std::map<std::string, Code> known = [] {
    std::map<std::string, Code> found;
    const std::string folder = setting("SIMULATOR_PTX", "");
    if (folder.empty()) return found;
    const std::string target = is_h100() ? ".90a.ptx" : ".80.ptx";
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      const std::string file = entry.path().filename();
      if (file.size() > target.size() && file.substr(file.size() - target.size()) == target) {
        load_file(entry.path(), found);
      }
    }
    ptx_set_memory_check(may_touch);
    return found;
  }();
  const auto code = known.find(without_hashes(name));
  return code == known.end() ? nullptr : &code->second;
}

std::string shown(const dim3& size) {
  return std::to_string(size.x) + "x" + std::to_string(size.y) + "x" + std::to_string(size.z);
}

cudaError_t run_kernel(const Code& code, int device, dim3 grid, dim3 block, size_t shared,
                       const std::vector<std::vector<char>>& arguments) {
  touchable.clear();
  for (const auto& [begin, range] : state().memory) {
    if (range.place == Place::host || range.device == device) touchable.emplace_back(begin, begin + range.bytes);
  }
  std::vector<void*> pointers;
  for (const auto& argument : arguments) pointers.push_back(const_cast<char*>(argument.data()));
  const uint32_t blocks[] = {grid.x, grid.y, grid.z}, threads[] = {block.x, block.y, block.z};
  char reason[4096] = "";
  const auto begin = std::chrono::steady_clock::now();
  const int failed = ptx_launch(code.module, code.name.c_str(), blocks, threads, static_cast<uint32_t>(shared),
                                pointers.data(), state().random(), reason, sizeof(reason));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  tell("ran %s in %.3f s", code.name.c_str(), seconds.count());
  return failed ? break_down(cudaErrorLaunchFailure, code.name + ": " + reason) : cudaSuccess;
}

cudaError_t launch(const void* key, dim3 grid, dim3 block, void** arguments, size_t shared, cudaStream_t stream) {
  if (state().broken != cudaSuccess) return state().broken;
  const auto known = state().functions.find(key);
  if (known == state().functions.end()) return cudaErrorInvalidDeviceFunction;
  const Function& function = known->second;
  Queue* queue = find_queue(stream);
  if (queue == nullptr || queue->device != current_device) return cudaErrorInvalidResourceHandle;
  tell("launch %s %s %s %zu on %p", function.name, shown(grid).c_str(), shown(block).c_str(), shared,
       static_cast<void*>(stream));
  if (std::strstr(function.name, "spin_kernel") != nullptr) return submit(stream, [] { return cudaSuccess; });
  const Code* code = find_code(function.name);
  if (code == nullptr) {
    return break_down(cudaErrorInvalidDeviceFunction, std::string("there is no PTX of ") + function.name);
  }
  const cudaDeviceProp limits = properties(current_device);
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > code->limits.max_threads || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > static_cast<unsigned>(limits.maxGridSize[0]) || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  if (shared > static_cast<size_t>(function.most_dynamic_shared) ||
      shared + code->limits.static_shared_bytes > limits.sharedMemPerBlockOptin) {
    return cudaErrorInvalidValue;
  }
  ++state().counts["launches"];
  std::vector<std::vector<char>> copies;
  for (size_t i = 0; i < code->parameters.size(); ++i) {
    const char* begin = static_cast<const char*>(arguments[i]);
    copies.emplace_back(begin, begin + code->parameters[i]);
  }
  const int device = current_device;
  return submit(stream, [=] { return run_kernel(*code, device, grid, block, shared, copies); });
}

cudaError_t set_function_attribute(const void* key, cudaFuncAttribute attribute, int value) {
  const auto known = state().functions.find(key);
  if (known == state().functions.end()) return cudaErrorInvalidDeviceFunction;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  const Code* code = find_code(known->second.name);
  const size_t fixed = code ? code->limits.static_shared_bytes : 0;
  if (value < 0 || value + fixed > properties(0).sharedMemPerBlockOptin) return cudaErrorInvalidValue;
  known->second.most_dynamic_shared = value;
  return cudaSuccess;
}

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
thread_local std::vector<Configuration> configurations;

struct ErrorText {
  cudaError_t error;
  const char *name, *text;
};

const ErrorText error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction", "invalid device function"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorAssert, "cudaErrorAssert", "device-side assert triggered"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined",
     "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent", "operation not permitted on an event last recorded in a "
                                                       "capturing stream"},
};

const ErrorText& text_of(cudaError_t error) {
  static const ErrorText other{cudaErrorUnknown, "cudaErrorUnknown", "unknown error"};
  for (const ErrorText& known : error_texts) {
    if (known.error == error) return known;
  }
  return other;
}

Event* find_event(cudaEvent_t event) {
  Event* found = reinterpret_cast<Event*>(event);
  return state().events.count(found) ? found : nullptr;
}

cudaError_t record(cudaEvent_t handle, cudaStream_t stream) {
  Event* event = find_event(handle);
  Queue* queue = find_queue(stream);
  if (event == nullptr || queue == nullptr) return cudaErrorInvalidResourceHandle;
  event->recorded = queue;
  event->capture = queue->capture;
  if (queue->capture) return queue->capture->invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
  order_with_default(*queue);
  event->mark = std::make_shared<Mark>(Mark{queue});
  queue->items.push_back({nullptr, event->mark, nullptr});
  go_on();
  return cudaSuccess;
}

cudaError_t wait(cudaStream_t stream, cudaEvent_t handle) {
  Event* event = find_event(handle);
  Queue* queue = find_queue(stream);
  if (event == nullptr || queue == nullptr) return cudaErrorInvalidResourceHandle;
  if (event->capture && state().captures.count(event->capture)) {
    if (queue->capture && queue->capture != event->capture) return cudaErrorStreamCaptureMerge;
    if (!queue->capture) {
      if (queue == &state().defaults[queue->device]) return cudaErrorStreamCaptureImplicit;
      queue->capture = event->capture;
      queue->capture->members.insert(queue);
      queue->capture->unjoined.insert(queue);
    }
    if (queue != event->recorded) event->capture->unjoined.erase(event->recorded);
    return cudaSuccess;
  }
  if (!event->mark) return cudaSuccess;
  if (queue->capture) return invalidate(queue->capture, cudaErrorStreamCaptureIsolation);
  order_with_default(*queue);
  queue->items.push_back({nullptr, nullptr, event->mark});
  go_on();
  return cudaSuccess;
}

cudaError_t begin_capture(cudaStream_t stream, shared_ptr<Graph> graph, cudaStreamCaptureMode mode) {
  Queue* queue = find_queue(stream);
  if (queue == nullptr) return cudaErrorInvalidResourceHandle;
  if (queue == &state().defaults[queue->device]) return cudaErrorStreamCaptureUnsupported;
  if (queue->capture) return cudaErrorIllegalState;
  queue->capture = std::make_shared<Capture>(
      Capture{++state().capture_count, std::move(graph), queue, mode, std::this_thread::get_id(), false, {queue}, {}});
  state().captures.insert(queue->capture);
  return cudaSuccess;
}

// Graphs by their handles, which stay alive as long as something uses them.
std::map<void*, shared_ptr<Graph>>& graphs() {
  static auto* const known = new std::map<void*, shared_ptr<Graph>>;
  return *known;
}

template <class Handle>
Handle keep(const shared_ptr<Graph>& graph) {
  graphs()[graph.get()] = graph;
  return reinterpret_cast<Handle>(graph.get());
}

template <class Handle>
shared_ptr<Graph> find_graph(Handle handle) {
  const auto found = graphs().find(reinterpret_cast<void*>(handle));
  return found == graphs().end() ? nullptr : found->second;
}

cudaError_t end_capture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  Queue* queue = find_queue(stream);
  if (queue == nullptr) return cudaErrorInvalidResourceHandle;
  const shared_ptr<Capture> capture = queue->capture;
  if (!capture) return cudaErrorIllegalState;
  if (capture->origin != queue) return cudaErrorStreamCaptureUnmatched;
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id()) {
    return cudaErrorStreamCaptureWrongThread;
  }
  for (Queue* member : capture->members) member->capture = nullptr;
  state().captures.erase(capture);
  if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
  if (!capture->unjoined.empty()) return cudaErrorStreamCaptureUnjoined;
  *graph = keep<cudaGraph_t>(capture->graph);
  return cudaSuccess;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// The functions of the runtime.

#define ENTER const Lock lock(state().mutex)
#define ENTER_COUNTED \
  ENTER;              \
  count(__func__)

extern "C" {

cudaError_t cudaGetDeviceCount(int* number) {
  load_operators();
  return *number = number_of_devices(), cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= number_of_devices()) return note(cudaErrorInvalidDevice);
  return current_device = device, cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int device) {
  return *found = properties(device), cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return *least = 0, *greatest = -5, cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int size, int device) {
  return std::snprintf(text, static_cast<size_t>(size), "0000:%02x:00.0", device + 1), cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const cudaDeviceProp known = properties(device);
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = known.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = known.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = known.multiProcessorCount; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = static_cast<int>(known.sharedMemPerBlock); break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(known.sharedMemPerBlockOptin); break;
    case cudaDevAttrWarpSize: *value = known.warpSize; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = known.maxThreadsPerBlock; break;
    case cudaDevAttrUnifiedAddressing: *value = 1; break;
    default: tell("attribute %d is taken to be 0", static_cast<int>(attribute)), *value = 0;
  }
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorName(cudaError_t error) { return text_of(error).name; }
const char* cudaGetErrorString(cudaError_t error) { return text_of(error).text; }

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  ENTER_COUNTED;
  if (const cudaError_t error = check_captures()) return note(error);
  return note(allocate(pointer, bytes, Place::device, current_device));
}
cudaError_t cudaFree(void* pointer) {
  ENTER_COUNTED;
  if (const cudaError_t error = check_captures()) return note(error);
  if (pointer == nullptr) return cudaSuccess;
  const auto* range = find_range(pointer);
  if (range != nullptr && range->second.place == Place::device) drain_device(range->second.device);
  return note(release(pointer, Place::device));
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  ENTER_COUNTED;
  if (const cudaError_t error = check_captures()) return note(error);
  return note(allocate(pointer, bytes, Place::host, current_device));
}
cudaError_t cudaFreeHost(void* pointer) {
  ENTER_COUNTED;
  if (pointer == nullptr) return cudaSuccess;
  if (const cudaError_t error = check_captures()) return note(error);
  for (int device = 0; device < number_of_devices(); ++device) drain_device(device);
  return note(release(pointer, Place::host));
}
cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  ENTER;
  *total = memory_of_device();
  *available = *total - state().used[current_device];
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* pointer) {
  ENTER;
  *found = {};
  found->device = -2;  // cudaInvalidDeviceId, as for memory that CUDA does not know
  const auto* range = find_range(pointer);
  if (range == nullptr) return cudaSuccess;
  found->type = range->second.place == Place::device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
  found->device = range->second.device;
  found->devicePointer = const_cast<void*>(pointer);
  if (range->second.place == Place::host) found->hostPointer = const_cast<void*>(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  ENTER;
  tell("cudaMemcpyAsync %p to %p, %zu bytes on %p", source, target, bytes, static_cast<void*>(stream));
  return note(copy(target, source, bytes, stream));
}
cudaError_t cudaMemcpyPeerAsync(void* target, int, const void* source, int, size_t bytes, cudaStream_t stream) {
  ENTER;
  return note(copy(target, source, bytes, stream));
}
cudaError_t cudaMemcpy(void* target, const void* source, size_t bytes, cudaMemcpyKind) {
  ENTER_COUNTED;
  if (const cudaError_t error = check_captures()) return note(error);
  const cudaError_t error = copy(target, source, bytes, nullptr);
  return note(error != cudaSuccess ? error : synchronize(find_queue(nullptr)));
}
cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t stream) {
  ENTER;
  return note(fill(target, value, bytes, stream));
}
cudaError_t cudaMemset(void* target, int value, size_t bytes) {
  ENTER_COUNTED;
  if (const cudaError_t error = check_captures()) return note(error);
  return note(fill(target, value, bytes, nullptr));
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  ENTER;
  auto* queue = new Queue{current_device, priority, (flags & cudaStreamNonBlocking) == 0, {}, nullptr};
  state().streams.insert(queue);
  return *stream = handle(queue), cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  ENTER;
  Queue* queue = find_queue(stream);
  if (queue == nullptr || stream == nullptr) return note(cudaErrorInvalidResourceHandle);
  drain(*queue);
  state().streams.erase(queue);
  delete queue;
  return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  ENTER;
  Queue* queue = find_queue(stream);
  if (queue == nullptr) return note(cudaErrorInvalidResourceHandle);
  return *priority = queue->priority, cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  ENTER_COUNTED;
  return note(synchronize(find_queue(stream)));
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  ENTER;
  Queue* queue = find_queue(stream);
  if (queue == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (queue->capture) return note(invalidate(queue->capture, cudaErrorStreamCaptureUnsupported));
  if (!queue->items.empty()) return run_first(*queue), note(cudaErrorNotReady);
  return note(state().broken);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  ENTER;
  return note(wait(stream, event));
}
cudaError_t cudaDeviceSynchronize() {
  ENTER_COUNTED;
  return note(synchronize_device());
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  ENTER;
  return note(submit(stream, [=] { return function(data), cudaSuccess; }));
}
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void* data, unsigned) {
  ENTER;
  return note(submit(stream, [=] { return function(stream, cudaSuccess, data), cudaSuccess; }));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  ENTER;
  auto* fresh = new Event{flags, nullptr, nullptr};
  state().events.insert(fresh);
  return *event = reinterpret_cast<cudaEvent_t>(fresh), cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  ENTER;
  Event* found = find_event(event);
  if (found == nullptr) return note(cudaErrorInvalidResourceHandle);
  state().events.erase(found);
  delete found;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  ENTER;
  return note(record(event, stream));
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  ENTER;
  return note(record(event, stream));
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  ENTER;
  Event* found = find_event(event);
  if (found == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (found->capture && state().captures.count(found->capture)) return note(cudaErrorCapturedEvent);
  if (const cudaError_t error = check_captures()) return note(error);
  if (!found->mark || found->mark->passed) return note(state().broken);
  constexpr int patience = 1000;  // of who does nothing but ask; an allocator that asks by the way makes nothing run
  if (++found->mark->polls < patience) return note(cudaErrorNotReady);
  reach(*found->mark);
  return note(state().broken);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  ENTER_COUNTED;
  Event* found = find_event(event);
  if (found == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (found->capture && state().captures.count(found->capture)) return note(cudaErrorCapturedEvent);
  if (const cudaError_t error = check_captures()) return note(error);
  if (found->mark) reach(*found->mark);
  return note(state().broken);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  ENTER;
  const Event *first = find_event(start), *second = find_event(end);
  if (first == nullptr || second == nullptr || !first->mark || !second->mark ||
      ((first->flags | second->flags) & cudaEventDisableTiming) != 0) {
    return note(cudaErrorInvalidResourceHandle);
  }
  if (!first->mark->passed || !second->mark->passed) return note(cudaErrorNotReady);
  *milliseconds = std::chrono::duration<float, std::milli>(second->mark->when - first->mark->when).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  ENTER_COUNTED;
  return note(begin_capture(stream, std::make_shared<Graph>(), mode));
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  ENTER_COUNTED;
  return note(end_capture(stream, graph));
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return cudaStreamGetCaptureInfo(stream, status, nullptr, nullptr, nullptr, nullptr, nullptr);
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* number) {
  ENTER;
  const Queue* queue = find_queue(stream);
  if (queue == nullptr) return note(cudaErrorInvalidResourceHandle);
  const auto& capture = queue->capture;
  *status = !capture           ? cudaStreamCaptureStatusNone
            : capture->invalid ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
  if (!capture) return cudaSuccess;
  if (id != nullptr) *id = capture->id;
  if (graph != nullptr) *graph = reinterpret_cast<cudaGraph_t>(capture->graph.get());
  if (dependencies != nullptr) *dependencies = nullptr;
  if (edges != nullptr) *edges = nullptr;
  if (number != nullptr) *number = 0;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return std::swap(*mode, thread_mode), cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* number) {
  ENTER;
  const auto found = find_graph(graph);
  if (!found) return note(cudaErrorInvalidValue);
  if (nodes != nullptr) std::fill_n(nodes, *number, nullptr);
  return *number = found->nodes.size(), cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  ENTER;
  const auto found = find_graph(graph);
  if (!found) return note(cudaErrorInvalidValue);
  return *executable = keep<cudaGraphExec_t>(std::make_shared<Graph>(*found)), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  ENTER_COUNTED;
  const auto found = find_graph(executable);
  if (!found) return note(cudaErrorInvalidValue);
  return note(submit(stream, [found] {
    for (const Work& node : found->nodes) {
      if (const cudaError_t error = node()) return error;
    }
    return cudaSuccess;
  }));
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  ENTER;
  return graphs().erase(graph) ? cudaSuccess : note(cudaErrorInvalidValue);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  ENTER;
  return graphs().erase(executable) ? cudaSuccess : note(cudaErrorInvalidValue);
}

void** __cudaRegisterFatBinary(void* binary) { return new void*(binary); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void** binary) { delete binary; }
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  ENTER;
  state().functions[function] = {name};
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  return configurations.push_back({grid, block, shared, stream}), 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (configurations.empty()) return note(cudaErrorInvalidConfiguration);
  const Configuration last = configurations.back();
  configurations.pop_back();
  *grid = last.grid, *block = last.block, *shared = last.shared;
  *static_cast<cudaStream_t*>(stream) = last.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  return *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function)), cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                             cudaStream_t stream) {
  ENTER;
  return note(launch(function, grid, block, arguments, shared, stream));
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                               cudaStream_t stream) {
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, arguments, shared, stream);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void* function) {
  ENTER;
  const auto known = state().functions.find(function);
  if (known == state().functions.end()) return note(cudaErrorInvalidDeviceFunction);
  const Code* code = find_code(known->second.name);
  *found = {};
  found->maxThreadsPerBlock = code ? static_cast<int>(code->limits.max_threads) : 1024;
  found->sharedSizeBytes = code ? code->limits.static_shared_bytes : 0;
  constexpr int registers_of_stub = 16, registers = 128;  // PTX does not tell
  found->numRegs = code && code->limits.is_stub ? registers_of_stub : registers;
  found->maxDynamicSharedSizeBytes = known->second.most_dynamic_shared;
  found->binaryVersion = found->ptxVersion = is_h100() ? 90 : 80;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  ENTER;
  return note(set_function_attribute(function, attribute, value));
}

cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  if (status != nullptr) *status = cudaDriverEntryPointSymbolNotFound;
  return *function = nullptr, cudaSuccess;
}
cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }

// ---------------------------------------------------------------------------------------------------------------------
// For the tests, and for what stands in for PyTorch's own kernels.

// Work of the host that runs when the stream has come to it, as often as its graph is launched; `drop` when it is not
// needed any more. `run` returns null, or what went wrong.
int simulator_enqueue(void* stream, const char* (*run)(void*), void (*drop)(void*), void* data) {
  const shared_ptr<void> kept(data, drop);
  ENTER;
  return note(submit(static_cast<cudaStream_t>(stream), [=] {
    const char* problem = run(kept.get());
    return problem == nullptr ? cudaSuccess : break_down(cudaErrorAssert, problem);
  }));
}

// How often something has happened: a function of the runtime was called that makes the host wait or allocates, or
// "launches", "copy to pageable memory".
uint64_t simulator_count(const char* name) {
  ENTER;
  const auto found = state().counts.find(name);
  return found == state().counts.end() ? 0 : found->second;
}

}  // extern "C"
