// A machine that executes PTX, what nvcc makes of the CUDA kernels and ptxas gets, on a CPU.
//
// Its global memory is that of the process. Warps run in lockstep as far as their threads agree, in an order that a
// seed decides. What a GPU leaves undefined is an error here: an access outside of what the check of memory knows, a
// read of shared memory that nothing has written, threads that race for it, a wgmma whose operands are not published.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct PtxModule;

struct PtxKernel {
  uint32_t max_threads;  // of a block, as .maxntid says; 1024 where it says nothing
  uint32_t static_shared_bytes;
  uint32_t num_params;
  uint32_t is_stub;  // does nothing but trap
};

// Of PTX text. Null, and the reason in `error`, where something in it is not known.
PtxModule* ptx_load(const char* text, char* error, size_t error_size);
void ptx_unload(PtxModule* module);

// 0, or -1 where there is no kernel of this (mangled) name. Names of unnamed namespaces carry hashes, which change from
// compilation to compilation: they are not compared.
int ptx_find(const PtxModule* module, const char* name, PtxKernel* kernel);

// Runs a kernel to its end. `params` as cudaLaunchKernel takes them. 0, or -1 and the reason in `error`: the
// instruction, its line, block and thread.
int ptx_launch(const PtxModule* module, const char* name, const uint32_t grid[3], const uint32_t block[3],
               uint32_t dynamic_shared_bytes, void* const* params, uint64_t seed, char* error, size_t error_size);

// Whether a thread may access these bytes of global memory; asked for each access once it is set.
using PtxMemoryCheck = int (*)(uint64_t address, size_t bytes, int is_write);
void ptx_set_memory_check(PtxMemoryCheck check);

}  // extern "C"
