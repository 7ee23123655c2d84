// Compares the kernels with their twins: `check FILE [--exact] [--grids A,B,..] [--plant FAULT]`, where FILE is written by
// `cargo run -p eplb-comm --example kernel_vectors`. Exit code 0: all bytes equal; 1: some differ; 2: no check was made.
// --plant needs a build with -DEPLB_PLANTS (or for the CPU).
//
// nvcc builds it for a GPU. A C++ compiler builds it with -DEPLB_EMULATE -x c++ for the CPU: same source, no CUDA.
// Every buffer stands between guard bytes that must not change; --exact leaves them out, so that compute-sanitizer sees
// the first byte behind a buffer.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#ifdef EPLB_EMULATE
#include "emulate.h"
#else
#include <cuda_runtime.h>
#endif

#include "faults.h"

#include "../checksum.cu"
#include "../dispatch.cu"
#include "../rows.cu"

#ifdef EPLB_EMULATE
namespace eplb_dispatch {
__thread u32 eplb_bins[SHARED_EXPERTS];
}
#endif

namespace {

using Bytes = std::vector<uint8_t>;
using Case = std::map<std::string, Bytes>;

bool exact = false;
std::vector<unsigned> grids;

[[noreturn]] void give_up(const std::string& why) {
  std::fprintf(stderr, "check: %s\n", why.c_str());
  std::exit(2);
}

// ---- the device, or the CPU in its place

#ifdef EPLB_EMULATE

void* device_new(size_t bytes) { return std::aligned_alloc(256, (bytes + 256) / 256 * 256); }
void device_delete(void* at) { std::free(at); }
void upload(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void download(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
void finish() {}

// A captured graph is a call that is made again: what the launch was given is fixed, what lies in memory is not.
struct Replay {
  template <typename Launch>
  explicit Replay(Launch launch) : run(launch) {}
  std::function<void()> run;
};

#else

void must(cudaError_t code, const char* what) {
  if (code != cudaSuccess) give_up(std::string(what) + ": " + cudaGetErrorString(code));
}

cudaStream_t stream() {
  static cudaStream_t made = [] {
    cudaStream_t made;
    must(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return made;
  }();
  return made;
}

void* device_new(size_t bytes) {
  void* at = nullptr;
  must(cudaMalloc(&at, bytes ? bytes : 1), "cudaMalloc");
  return at;
}
void device_delete(void* at) { must(cudaFree(at), "cudaFree"); }
void finish() { must(cudaStreamSynchronize(stream()), "a kernel"); }
void upload(void* to, const void* from, size_t bytes) {
  must(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream()), "copy to the device");
  finish();
}
void download(void* to, const void* from, size_t bytes) {
  must(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream()), "copy from the device");
  finish();
}

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), unsigned grid, unsigned block, unsigned shared, Args... args) {
  kernel<<<grid, block, shared, stream()>>>(static_cast<Params>(args)...);
  must(cudaGetLastError(), "launch");
}

struct Replay {
  cudaGraphExec_t graph;
  template <typename Launch>
  explicit Replay(Launch launch) {
    cudaGraph_t captured;
    must(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeGlobal), "begin of capture");
    launch();
    must(cudaStreamEndCapture(stream(), &captured), "end of capture");
    must(cudaGraphInstantiate(&graph, captured, 0), "cudaGraphInstantiate");
    must(cudaGraphDestroy(captured), "cudaGraphDestroy");
  }
  void run() { must(cudaGraphLaunch(graph, stream()), "cudaGraphLaunch"); }
};

#endif

// A buffer on the device between guard bytes.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes), guard_(exact ? 0 : 256), at_(static_cast<uint8_t*>(device_new(bytes + 2 * guard_))) {}
  Buffer(const Buffer&) = delete;
  ~Buffer() { device_delete(at_); }
  uint8_t* data() { return at_ + guard_; }
  void set(const Bytes& to) {
    if (to.size() != bytes_) give_up("an array of another size than its buffer");
    Bytes all(bytes_ + 2 * guard_, 0xa5);
    if (bytes_) std::memcpy(all.data() + guard_, to.data(), bytes_);
    if (!all.empty()) upload(at_, all.data(), all.size());
  }
  // Its bytes; empty where a guard byte has changed.
  bool get(Bytes& into) {
    Bytes all(bytes_ + 2 * guard_);
    if (!all.empty()) download(all.data(), at_, all.size());
    for (size_t i = 0; i < guard_; ++i) {
      if (all[i] != 0xa5 || all[guard_ + bytes_ + i] != 0xa5) return false;
    }
    into.assign(all.begin() + guard_, all.begin() + guard_ + bytes_);
    return true;
  }

 private:
  size_t bytes_, guard_;
  uint8_t* at_;
};

// The buffers of a case, one per array that is not expected.
class Memory {
 public:
  explicit Memory(const Case& arrays) {
    for (const auto& [name, bytes] : arrays) {
      if (name.rfind("after_", 0) != 0) buffers_.emplace(std::piecewise_construct, std::forward_as_tuple(name), std::forward_as_tuple(bytes.size()));
    }
  }
  // Device address of an array, null if the case has none.
  template <typename T>
  T* at(const std::string& name) {
    const auto found = buffers_.find(name);
    return found == buffers_.end() ? nullptr : reinterpret_cast<T*>(found->second.data());
  }
  void set(const std::string& name, const Bytes& bytes) {
    const auto found = buffers_.find(name);
    if (found == buffers_.end()) give_up("no buffer for " + name);
    found->second.set(bytes);
  }
  void set(const Case& arrays) {
    for (const auto& [name, bytes] : arrays) {
      if (planted == Fault::NotUploaded && name == "share") continue;
      if (name.rfind("after_", 0) != 0) set(name, bytes);
    }
  }
  // Number of arrays that are not as expected.
  int differ(const Case& arrays, const std::string& what) {
    int wrong = 0;
    for (const auto& [name, expected] : arrays) {
      if (name.rfind("after_", 0) != 0) continue;
      Bytes found;
      const bool inside = buffers_.at(name.substr(6)).get(found);
      if (inside && found == expected) continue;
      size_t at = 0;
      while (inside && at < expected.size() && found[at] == expected[at]) ++at;
      if (inside) std::printf("DIFFERS %s: %s at byte %zu of %zu\n", what.c_str(), name.c_str() + 6, at, expected.size());
      else std::printf("DIFFERS %s: bytes beside %s\n", what.c_str(), name.c_str() + 6);
      ++wrong;
    }
    return wrong;
  }

 private:
  std::map<std::string, Buffer> buffers_;
};

std::vector<uint64_t> numbers(const Bytes& bytes) {
  std::vector<uint64_t> numbers(bytes.size() / 8);
  if (!numbers.empty()) std::memcpy(numbers.data(), bytes.data(), numbers.size() * 8);
  return numbers;
}

// ---- one launch of each kind

void launch_choices(const Case& arrays, Memory& memory, unsigned grid) {
  const auto n = numbers(arrays.at("shape"));
  const uint64_t id_bytes = n[6];
  eplb_dispatch::Choices choices{};
  choices.ids = memory.at<uint8_t>("ids") + n[4] * id_bytes;
  choices.row_stride = n[2], choices.tokens = n[0], choices.k = n[1];
  choices.valid = memory.at<int>("valid");
  choices.mask = memory.at<unsigned char>("mask");
  eplb_dispatch::Counts counts{};
  counts.loads = n[14] ? memory.at<unsigned long long>("loads") : nullptr;
  counts.tag_stride = n[11], counts.tag = memory.at<int>("tag");
  counts.faults = memory.at<unsigned long long>("faults");
  counts.phy2log = memory.at<int>("phy2log");
  counts.tags = n[10], counts.experts = n[7], counts.slots = n[8];
  eplb_dispatch::Maps maps{};
  maps.log2phy = memory.at<int>("log2phy"), maps.logcnt = memory.at<int>("logcnt");
  maps.share = memory.at<float>("share"), maps.salt = memory.at<unsigned long long>("salt");
  maps.out = memory.at<uint8_t>(arrays.count("after_ids") ? "ids" : "out") + n[5] * id_bytes, maps.out_stride = n[3];
  maps.columns = n[9], maps.slots = n[8], maps.layer = n[12];
  const unsigned shared = counts.experts <= eplb_dispatch::SHARED_EXPERTS ? 4 * counts.experts : 0;
  const unsigned block = grid == 1 ? 1024 : 256;
  if (n[13]) launch(id_bytes == 4 ? eplb_dispatch_i32 : eplb_dispatch_i64, grid, block, shared, choices, counts, maps);
  else launch(id_bytes == 4 ? eplb_record_i32 : eplb_record_i64, grid, block, shared, choices, counts);
}

// Offsets in a list become addresses.
Bytes with_base(Bytes list, size_t entry, size_t field, const void* base) {
  for (size_t at = field; at + 8 <= list.size(); at += entry) {
    uint64_t number;
    std::memcpy(&number, &list[at], 8);
    number += reinterpret_cast<uint64_t>(base);
    std::memcpy(&list[at], &number, 8);
  }
  return list;
}

void launch_memory(const std::string& kind, const Case& arrays, Memory& memory, unsigned grid) {
  const auto n = numbers(arrays.at("shape"));
  const unsigned count = static_cast<unsigned>(n[0]);
  const unsigned long long units = n[1];
  if (kind == "checksum") {
    memory.set("list", with_base(arrays.at("list"), sizeof(eplb_checksum::Part), 0, memory.at<uint8_t>("source")));
    launch(eplb_checksum_parts, grid, eplb_checksum::THREADS, 0, memory.at<eplb_checksum::Part>("list"), count, units,
           memory.at<unsigned long long>("sums"));
    return;
  }
  const Bytes sourced = with_base(arrays.at("list"), sizeof(eplb_rows::RowCopy), 0, memory.at<uint8_t>("source"));
  memory.set("list", with_base(sourced, sizeof(eplb_rows::RowCopy), 8, memory.at<uint8_t>("dest")));
  if (kind == "rows") {
    launch(eplb_copy_rows, grid, eplb_rows::THREADS, 0, memory.at<eplb_rows::RowCopy>("list"), count, units);
    return;
  }
  memory.set("words", with_base(arrays.at("words"), sizeof(eplb_rows::WordWrite), 0, memory.at<uint8_t>("maps")));
  launch(eplb_commit, grid, eplb_rows::THREADS, 0, memory.at<eplb_rows::RowCopy>("list"), count, units,
         memory.at<eplb_rows::WordWrite>("words"), static_cast<unsigned>(n[2]));
}

// ---- the cases

std::vector<std::pair<std::string, Case>> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) give_up(std::string("cannot open ") + path);
  const auto number = [&] {
    uint64_t n = 0;
    file.read(reinterpret_cast<char*>(&n), 8);
    if (!file) give_up("the file of cases is cut off");
    return n;
  };
  const auto bytes = [&] {
    Bytes bytes(number());
    file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    if (!file) give_up("the file of cases is cut off");
    return bytes;
  };
  char magic[8] = {};
  file.read(magic, 8);
  if (std::memcmp(magic, "EPLBVEC1", 8) != 0) give_up(std::string(path) + " is no file of cases");
  std::vector<std::pair<std::string, Case>> cases;
  for (uint64_t left = number(); left > 0; --left) {
    const Bytes name = bytes();
    Case arrays;
    for (uint64_t arrays_left = number(); arrays_left > 0; --arrays_left) {
      const Bytes array = bytes();
      arrays[std::string(array.begin(), array.end())] = bytes();
    }
    cases.emplace_back(std::string(name.begin(), name.end()), std::move(arrays));
  }
  return cases;
}

struct Tally { int runs = 0, wrong = 0; };

}  // namespace

int main(int argc, char** argv) {
  const char* path = nullptr;
  grids = {1, 3, 11};
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--exact") == 0) exact = true;
    else if (std::strcmp(argv[i], "--plant") == 0 && i + 1 < argc) {
#if defined(EPLB_EMULATE) || defined(EPLB_PLANTS)
      const Fault fault = fault_named(argv[++i]);
      if (fault == Fault::None) give_up(std::string("no such fault: ") + argv[i]);
      plant(fault);
#else
      give_up("faults need a build with -DEPLB_PLANTS");
#endif
    } else if (std::strcmp(argv[i], "--grids") == 0 && i + 1 < argc) {
      grids.clear();
      for (char* at = argv[++i]; *at; at += *at == ',') grids.push_back(static_cast<unsigned>(std::strtoul(at, &at, 10)));
    } else path = argv[i];
  }
  if (!path) give_up("usage: check FILE [--exact] [--grids A,B,..] [--plant FAULT]");

  std::map<std::string, Tally> tallies;
  std::vector<std::pair<std::string, Case>> replays;
  for (const auto& [name, arrays] : read(path)) {
    const std::string kind = name.substr(0, name.find('/'));
    if (kind == "replay") {
      replays.emplace_back(name, arrays);
      continue;
    }
    Memory memory(arrays);
    for (const unsigned grid : grids) {
      memory.set(arrays);
      if (kind == "dispatch") launch_choices(arrays, memory, grid);
      else if (kind == "rows" || kind == "commit" || kind == "checksum") launch_memory(kind, arrays, memory, grid);
      else give_up("a case of unknown kind: " + name);
      finish();
      ++tallies[kind].runs;
      tallies[kind].wrong += memory.differ(arrays, name + " on " + std::to_string(grid) + " blocks") > 0;
    }
  }
  if (!replays.empty()) {
    const Case& first = replays[0].second;
    Memory memory(first);
    memory.set(first);
    Replay replay([&] { launch_choices(first, memory, grids.back()); });
    for (const auto& [name, arrays] : replays) {
      if (arrays.at("shape") != first.at("shape")) give_up("replays of different shapes");
      memory.set(arrays);
      replay.run();
      finish();
      ++tallies["replay"].runs;
      tallies["replay"].wrong += memory.differ(arrays, name) > 0;
    }
  }
  int wrong = 0, runs = 0;
  for (const auto& [kind, tally] : tallies) {
    std::printf("%-9s %5d runs, %d differ\n", kind.c_str(), tally.runs, tally.wrong);
    wrong += tally.wrong, runs += tally.runs;
  }
  if (runs == 0) give_up("no cases");
  std::printf("%s\n", wrong ? "KERNELS DIFFER" : "KERNELS AGREE");
  return wrong != 0;
}
