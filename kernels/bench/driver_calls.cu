// Host time of the driver's calls of a commit, by who makes them and by what the thread did before.
//
//     nvcc -O2 -std=c++17 -arch=sm_90 kernels/bench/driver_calls.cu -lcuda -o driver_calls && ./driver_calls
//
// Two streams of a server: an event behind the second, a wait of the first, one launch, an event behind it, a wait of the second. One GPU, half a minute.
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <unistd.h>
#include <vector>

#define CHECK(call)                               \
  do {                                            \
    int code = (int)(call);                       \
    if (code) printf("%s: %d\n", #call, code), exit(1); \
  } while (0)

// A kernel with the arguments of a commit, which does nothing.
extern "C" __global__ void work(const int* list, unsigned count, unsigned long long units, const int* words, unsigned more) {
  if (list && count == 77777) ((int*)list)[0] = (int)units + more;
}

extern "C" __global__ void wait_for(long long ns) {
  long long now, begin;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(begin));
  do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  while (now < begin + ns);
}

static double now_us() {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static CUcontext context;
static CUfunction kernel;
static CUstream first, second, own;
static CUevent events[64], touched;
static int next_event = 0;
static const int *list_at, *words_at = nullptr;
static unsigned count_of = 5, more_of = 0;
static unsigned long long units_of = 9;
static void* arguments[] = {&list_at, &count_of, &units_of, &words_at, &more_of};

static void launch(CUstream stream) { CHECK(cuLaunchKernel(kernel, 64, 1, 1, 256, 1, 1, 0, stream, arguments, nullptr)); }

static void five() {
  CUevent before = events[next_event++ % 64], behind = events[next_event++ % 64];
  CUstreamCaptureStatus status;
  cuStreamIsCapturing(first, &status), cuStreamIsCapturing(second, &status);
  CHECK(cuEventRecord(before, second));
  CHECK(cuStreamWaitEvent(first, before, 0));
  launch(first);
  CHECK(cuEventRecord(behind, first));
  CHECK(cuStreamWaitEvent(second, behind, 0));
}

static void two() {
  launch(first);
  CHECK(cuEventRecord(events[next_event++ % 64], first));
}

// The wait, the launch and the record behind it as one graph.
static CUgraphExec graph;
static CUevent graph_before, graph_behind;

static void in_a_graph() {
  CHECK(cuEventRecord(graph_before, second));
  CHECK(cuGraphLaunch(graph, first));
  CHECK(cuStreamWaitEvent(second, graph_behind, 0));
}

static void make_graph() {
  CHECK(cuEventCreate(&graph_before, CU_EVENT_DISABLE_TIMING));
  CHECK(cuEventCreate(&graph_behind, CU_EVENT_DISABLE_TIMING));
  CUDA_KERNEL_NODE_PARAMS node;
  memset(&node, 0, sizeof node);
  node.func = kernel, node.kernelParams = arguments;
  node.gridDimX = 64, node.blockDimX = 256;
  node.gridDimY = node.gridDimZ = node.blockDimY = node.blockDimZ = 1;
  CUgraph made;
  CUgraphNode wait, launched, record;
  CHECK(cuGraphCreate(&made, 0));
  CHECK(cuGraphAddEventWaitNode(&wait, made, nullptr, 0, graph_before));
  CHECK(cuGraphAddKernelNode(&launched, made, &wait, 1, &node));
  CHECK(cuGraphAddEventRecordNode(&record, made, &launched, 1, graph_behind));
  CHECK(cuGraphInstantiateWithFlags(&graph, made, 0));
}

// Another thread: it sleeps, touches the driver now and then, spins for what it is asked, or does both.
enum Mode { SLEEPS, TOUCHES, SPINS, SPINS_AND_TOUCHES, ENDS };
static std::atomic<int> mode{SLEEPS};
static std::atomic<int> word{0};  // 1 asked, 2 done

static void touch() {
  launch(own);
  CHECK(cuEventRecord(touched, own));
  CHECK(cuStreamWaitEvent(own, touched, 0));
}

static void other_thread() {
  CHECK(cuCtxSetCurrent(context));
  double last = now_us();
  for (int does; (does = mode.load()) != ENDS;) {
    if (does == SLEEPS) {
      usleep(200);
    } else if (does == TOUCHES) {
      touch();
      usleep(100);
    } else if (word.load(std::memory_order_acquire) == 1) {
      five();
      word.store(2, std::memory_order_release);
      last = now_us();
    } else if (does == SPINS_AND_TOUCHES && now_us() - last > 50) {
      touch();
      last = now_us();
    }
  }
}

static void handed() {
  word.store(1, std::memory_order_release);
  while (word.load(std::memory_order_acquire) != 2) {
  }
  word.store(0, std::memory_order_release);
}

// What the thread does before a commit.
enum Before { SLEPT, WAITED, WALKED };

static void pass_time(Before before, int us) {
  static std::vector<char> memory(8 << 20);
  static volatile long sum;
  if (before == SLEPT && us) usleep(us);
  if (before == WAITED) {
    wait_for<<<1, 1, 0, first>>>((long long)us * 1000);
    CHECK(cudaStreamSynchronize(first));
  }
  if (before == WALKED) {
    double until = now_us() + us;
    for (size_t at = 0; now_us() < until; at += 4096 * 7 + 64)
      for (int line = 0; line < 64; line++) sum = sum + memory[(at + line * 64) % memory.size()];
  }
}

int main() {
  CHECK(cudaFree(0));
  CHECK(cuCtxGetCurrent(&context));
  for (CUstream* stream : {&first, &second, &own}) CHECK(cuStreamCreate(stream, CU_STREAM_NON_BLOCKING));
  for (CUevent& event : events) CHECK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
  CHECK(cuEventCreate(&touched, CU_EVENT_DISABLE_TIMING));
  cudaFunction_t found;
  CHECK(cudaGetFuncBySymbol(&found, (const void*)work));
  kernel = (CUfunction)found;
  int* block;
  CHECK(cudaMalloc(&block, 1 << 20));
  list_at = block;
  make_graph();
  std::thread other(other_thread);
  struct {
    const char* name;
    Mode mode;
    void (*commit)();
  } ways[] = {{"five calls", SLEEPS, five},
              {"two calls, one stream", SLEEPS, two},
              {"a graph with wait and record", SLEEPS, in_a_graph},
              {"five, another thread touches", TOUCHES, five},
              {"handed to one that spins", SPINS, handed},
              {"handed to one that touches too", SPINS_AND_TOUCHES, handed}};
  const char* names[] = {"slept", "waited for a kernel of", "walked 8 MiB for"};
  for (Before before : {SLEPT, WAITED, WALKED})
    for (int us : {0, 300, 3000, 15000})
      for (auto& way : ways) {
        if (before != SLEPT && us == 0) continue;
        mode = way.mode;
        usleep(1000);
        std::vector<double> times;
        for (int turn = 0, turns = us > 10000 ? 70 : us > 1000 ? 200 : 500; turn < turns; turn++) {
          launch(first), launch(second);
          CHECK(cudaStreamSynchronize(first));
          CHECK(cudaStreamSynchronize(second));
          pass_time(before, us);
          double begun = now_us();
          way.commit();
          times.push_back(now_us() - begun);
        }
        mode = SLEEPS;
        CHECK(cudaDeviceSynchronize());
        std::sort(times.begin(), times.end());
        auto at = [&](double part) { return times[(size_t)((times.size() - 1) * part)]; };
        printf("%-22s %5d us | %-30s p50 %6.2f p99 %6.2f max %7.2f us\n", names[before], us, way.name, at(.5), at(.99), at(1));
        fflush(stdout);
      }
  mode = ENDS;
  other.join();
  return 0;
}
