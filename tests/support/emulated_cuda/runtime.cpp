// CUDA's runtime on the memory of the host, for machines without a GPU.
//
// PyTorch is loaded with this library in place of libcudart and cuBLAS, and takes it for a GPU: its allocator, its
// streams, generators and graphs and the host's part of every kernel do what they would do. A kernel itself does
// nothing here; `kernels.py` computes what it would have computed. What CUDA forbids while a stream is captured
// is refused, and every access to memory is checked against those of other streams: without an event or a wait
// between two of them, of which one writes, it is a race.
//
// Functions that PyTorch links against and that are not here do nothing and succeed.

#define __dv(value)
#include <cuda_runtime_api.h>

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>

#define API extern "C" __attribute__((visibility("default")))
#define ALONE std::lock_guard<std::recursive_mutex> alone(mutex)

namespace {

std::recursive_mutex mutex;
constexpr size_t ALIGNED = 512;  // as cudaMalloc aligns
constexpr size_t TOTAL = 5ull << 30;  // enough for three slots of VGG-16

struct Graph {
  size_t nodes = 0;
  bool invalid = false;
};

struct Stream {
  Graph* captured = nullptr;
  unsigned long long capture = 0;
};

std::map<const char*, size_t> on_device, pinned;
size_t used = 0;
std::set<Stream*> capturing;
unsigned long long captures = 0;
thread_local cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
thread_local cudaError_t last = cudaSuccess;

cudaError_t failed(cudaError_t error) { return last = error; }

// The default streams are small numbers, no addresses.
Stream* own(cudaStream_t stream) { return (size_t)stream > 8 ? (Stream*)stream : nullptr; }

bool is_captured(cudaStream_t stream) { return own(stream) && own(stream)->captured; }

cudaError_t refused(const char* what) {
  fprintf(stderr, "emulated CUDA: refused during a capture: %s\n", what);
  for (Stream* stream : capturing) stream->captured->invalid = true;
  return failed(cudaErrorStreamCaptureUnsupported);
}

// For what could wait for the device: no thread may do it while it captures, unless it has relaxed the mode.
cudaError_t unsafe(const char* what) {
  return capturing.empty() || mode == cudaStreamCaptureModeRelaxed ? cudaSuccess : refused(what);
}

cudaError_t work(const char* what, cudaStream_t stream) {
  ALONE;
  if (is_captured(stream)) own(stream)->captured->nodes++;
  else if (!capturing.empty()) return refused(what);
  return cudaSuccess;
}

bool within(const std::map<const char*, size_t>& memory, const void* address) {
  auto next = memory.upper_bound((const char*)address);
  if (next == memory.begin()) return false;
  auto [start, size] = *--next;
  return (const char*)address < start + size;
}

// What is known to have happened before: of every stream, how many of its accesses (a vector clock).
using Clock = std::map<void*, long>;
std::map<void*, Clock> streams, events;
Clock host;

void join(Clock& clock, const Clock& other) {
  for (auto [stream, time] : other)
    if (clock[stream] < time) clock[stream] = time;
}

struct Access {
  void* stream = nullptr;
  long time = 0;
  const char* what = "";
};

// Addresses from a key of the map to `end`, who wrote there last, and who has read it since.
struct Span {
  size_t end;
  Access write;
  std::map<void*, Access> reads;
};

std::map<size_t, Span> spans;
long races = 0;

bool is_race(const Access& before, void* stream, Clock& known) {
  return before.stream != stream && before.time > known[before.stream];
}

void split(size_t at) {
  auto span = spans.upper_bound(at);
  if (span == spans.begin() || (--span)->second.end <= at) return;
  spans[at] = span->second;
  if (span->first < at) span->second.end = at;
}

}  // namespace

// What `kernels.py` asks and tells.

API long emulated_races() { return races; }

API void emulated_access(void* address, size_t size, void* stream, bool writes, const char* what) {
  ALONE;
  if (!size) return;
  static std::set<std::string> kept;
  what = kept.insert(what).first->c_str();
  Clock& known = streams[stream];
  join(known, host);
  Access now{stream, ++known[stream], what};
  size_t start = (size_t)address, end = start + size, at = start;
  split(start), split(end);
  const char* other = nullptr;
  auto span = spans.lower_bound(start);
  for (; span != spans.end() && span->first < end; at = (span++)->second.end) {
    if (span->first > at) spans[at] = {span->first, {}, {}};
    if (is_race(span->second.write, stream, known)) other = span->second.write.what;
    for (auto& [reader, read] : span->second.reads)
      if (writes && is_race(read, stream, known)) other = read.what;
  }
  if (at < end) spans[at] = {end, {}, {}};
  auto first = spans.lower_bound(start);
  if (writes) {
    spans.erase(first, span);
    spans[start] = {end, now, {}};
  } else
    for (; first != span; ++first) first->second.reads[stream] = now;
  if (!other) return;
  races++;
  fprintf(stderr, "emulated CUDA: a race of %s with %s on another stream\n", what, other);
}

// Kernels: their names are of no account.

thread_local struct { dim3 grid, block; size_t shared; cudaStream_t stream; } launch;

API void** __cudaRegisterFatBinary(void*) { static void* handle; return &handle; }
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  launch = {grid, block, shared, (cudaStream_t)stream};
  return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = launch.grid, *block = launch.block, *shared = launch.shared, *(cudaStream_t*)stream = launch.stream;
  return cudaSuccess;
}
API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = (cudaKernel_t)function;
  return cudaSuccess;
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t stream) {
  return work("a kernel on another stream", stream);
}
API cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t stream) {
  return work("a kernel on another stream", stream);
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void**) {
  return work("a kernel on another stream", config->stream);
}
API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  *found = {};
  found->maxThreadsPerBlock = 1024, found->numRegs = 32, found->binaryVersion = found->ptxVersion = 90;
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  *blocks = 2;
  return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}

// The device.

API cudaError_t cudaGetDeviceCount(int* count) { *count = 1; return cudaSuccess; }
API cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
API cudaError_t cudaRuntimeGetVersion(int* version) { *version = 13000; return cudaSuccess; }
API cudaError_t cudaDriverGetVersion(int* version) { *version = 13000; return cudaSuccess; }
API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { *can = 0; return cudaSuccess; }
API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0, *greatest = -5;
  return cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int) {
  *found = {};
  strcpy(found->name, "emulated on the host");
  found->major = 9, found->multiProcessorCount = 132, found->warpSize = 32, found->totalGlobalMem = TOTAL;
  found->maxThreadsPerBlock = 1024, found->maxThreadsPerMultiProcessor = 2048, found->maxBlocksPerMultiProcessor = 32;
  found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024, found->maxThreadsDim[2] = 64;
  found->maxGridSize[0] = 2147483647, found->maxGridSize[1] = found->maxGridSize[2] = 65535;
  found->sharedMemPerBlock = 49152, found->sharedMemPerBlockOptin = 232448;
  found->sharedMemPerMultiprocessor = 233472, found->regsPerBlock = found->regsPerMultiprocessor = 65536;
  found->l2CacheSize = 50 << 20, found->totalConstMem = 65536, found->textureAlignment = ALIGNED;
  return cudaSuccess;
}
API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    default: *value = 1;
  }
  return cudaSuccess;
}

// Memory.

API cudaError_t cudaMalloc(void** address, size_t size) {
  ALONE;
  if (cudaError_t error = unsafe("cudaMalloc")) return error;
  if (used + size > TOTAL) return failed(cudaErrorMemoryAllocation);
  // Zeros that take no memory of the host until they are used.
  *address = mmap(nullptr, size + !size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (*address == MAP_FAILED) return failed(cudaErrorMemoryAllocation);
  on_device[(char*)*address] = size, used += size;
  return cudaSuccess;
}
API cudaError_t cudaFree(void* address) {
  ALONE;
  if (!address) return cudaSuccess;
  if (cudaError_t error = unsafe("cudaFree")) return error;
  for (auto& [stream, clock] : streams) join(host, clock);  // it waits for the device
  auto found = on_device.find((char*)address);
  if (found == on_device.end()) return failed(cudaErrorInvalidValue);
  munmap(address, found->second + !found->second);
  used -= found->second;
  on_device.erase(found);
  return cudaSuccess;
}
API cudaError_t cudaHostAlloc(void** address, size_t size, unsigned) {
  ALONE;
  if (cudaError_t error = unsafe("cudaHostAlloc")) return error;
  if (posix_memalign(address, ALIGNED, size + !size)) return failed(cudaErrorMemoryAllocation);
  pinned[(char*)*address] = size;
  return cudaSuccess;
}
API cudaError_t cudaFreeHost(void* address) {
  ALONE;
  pinned.erase((char*)address);
  free(address);
  return cudaSuccess;
}
API cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  ALONE;
  *free = TOTAL - used, *total = TOTAL;
  return cudaSuccess;
}
API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* address) {
  ALONE;
  *found = {};
  found->type = within(on_device, address) ? cudaMemoryTypeDevice
                : within(pinned, address)  ? cudaMemoryTypeHost
                                           : cudaMemoryTypeUnregistered;
  found->devicePointer = found->hostPointer = (void*)address;
  return cudaSuccess;
}
API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t stream) {
  ALONE;
  bool into = within(on_device, to), out_of = within(on_device, from);
  if (is_captured(stream)) return into && out_of ? work("a copy", stream) : refused("a copy from or to the host");
  if (cudaError_t error = work("a copy on another stream", stream)) return error;
  if (out_of) emulated_access((void*)from, size, stream, false, "a copy");
  if (into) emulated_access(to, size, stream, true, "a copy");
  if (!into || !out_of) join(host, streams[stream]);  // of memory that is not pinned: the host waits
  memmove(to, from, size);
  return cudaSuccess;
}
API cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind kind) {
  if (cudaError_t error = unsafe("cudaMemcpy")) return error;
  return cudaMemcpyAsync(to, from, size, kind, nullptr);
}
API cudaError_t cudaMemsetAsync(void* address, int value, size_t size, cudaStream_t stream) {
  if (!is_captured(stream)) memset(address, value, size);
  return work("a memset on another stream", stream);
}

// Streams and events.

API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  *stream = (cudaStream_t) new Stream;
  return cudaSuccess;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  ALONE;
  join(host, streams[stream]);
  return is_captured(stream) ? refused("cudaStreamSynchronize") : unsafe("cudaStreamSynchronize");
}
API cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }
API cudaError_t cudaDeviceSynchronize() {
  ALONE;
  for (auto& [stream, clock] : streams) join(host, clock);
  return unsafe("cudaDeviceSynchronize");
}
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = (cudaEvent_t) new char;
  return cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  ALONE;
  join(streams[stream], host);
  events[event] = streams[stream];
  return cudaSuccess;
}
API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return cudaEventRecordWithFlags(event, stream, 0);
}
API cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  ALONE;
  join(host, events[event]);
  return unsafe("cudaEventSynchronize");
}
API cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }
API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  ALONE;
  join(streams[stream], events[event]);
  return is_captured(stream) ? refused("cudaStreamWaitEvent") : cudaSuccess;
}

// Graphs. That one is launched `kernels.py` hears from PyTorch.

API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  ALONE;
  if (!own(stream) || is_captured(stream)) return refused("cudaStreamBeginCapture");
  own(stream)->captured = new Graph, own(stream)->capture = ++captures;
  capturing.insert(own(stream));
  return cudaSuccess;
}
API cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  ALONE;
  capturing.erase(own(stream));
  Graph* captured = own(stream)->captured;
  own(stream)->captured = nullptr;
  *graph = captured->invalid ? nullptr : (cudaGraph_t)captured;
  return captured->invalid ? failed(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  ALONE;
  *status = is_captured(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                         cudaGraph_t* graph, const cudaGraphNode_t** nodes,
                                         const cudaGraphEdgeData** edges, size_t* count) {
  ALONE;
  cudaStreamIsCapturing(stream, status);
  if (id) *id = is_captured(stream) ? own(stream)->capture : 0;
  if (graph) *graph = is_captured(stream) ? (cudaGraph_t)own(stream)->captured : nullptr;
  if (nodes) *nodes = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}
API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* other) {
  std::swap(mode, *other);
  return cudaSuccess;
}
API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = ((Graph*)graph)->nodes;
  return cudaSuccess;
}
API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = (cudaGraphExec_t) new Graph(*(Graph*)graph);
  return cudaSuccess;
}
API cudaError_t cudaGraphDestroy(cudaGraph_t graph) { delete (Graph*)graph; return cudaSuccess; }
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { delete (Graph*)executable; return cudaSuccess; }
API cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return unsafe("cudaGraphLaunch"); }

// Errors.

API cudaError_t cudaGetLastError() { cudaError_t error = last; last = cudaSuccess; return error; }
API cudaError_t cudaPeekAtLastError() { return last; }
API const char* cudaGetErrorName(cudaError_t) { return "an error of the emulated CUDA"; }
API const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    default: return "an error of the emulated CUDA";
  }
}

// The driver, as far as PyTorch asks it itself.

API int cuCtxGetCurrent(void** context) { *context = (void*)8; return 0; }
API int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { *flags = 0, *active = 1; return 0; }
static int nothing() { return 0; }
API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                 cudaDriverEntryPointQueryResult* found) {
  *function = strcmp(name, "cuDevicePrimaryCtxGetState") ? (void*)nothing : (void*)cuDevicePrimaryCtxGetState;
  if (found) *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// cuBLAS.

API int cublasCreate_v2(void** handle) { *handle = new char; return 0; }
API int cublasGetMathMode(void*, int* found) { *found = 0; return 0; }
API int cublasGetPointerMode_v2(void*, int* found) { *found = 0; return 0; }
API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, void* results, int* count) {
  memset(results, 0, 96);
  *count = 1;
  return 0;
}
