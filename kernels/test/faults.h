// Faults that the check plants into the kernels by its option --plant, to see that they are found.
#pragma once

#include <cstring>

// clang-format off
#define FAULTS(fault)                                                                                   \
  fault(None)                                                                                           \
  fault(PaddingCounted)    /* tokens behind `valid` are counted and sent */                             \
  fault(HashWithoutLayer)  /* a token goes to the same replica in all layers */                         \
  fault(NoBarrier)         /* counts are added up before all threads of the block have counted */       \
  fault(ReadBehind)        /* the last load reaches behind the ids: only memcheck can see it */         \
  fault(TailLeftOut)       /* bytes behind the last whole word are not copied */                        \
  fault(PitchIgnored)      /* rows are written without gaps */                                          \
  fault(WordsLeftOut)      /* the maps stay as they were: bytes move, tokens go to the old expert */    \
  fault(PositionLeftOut)   /* the checksum does not see order */                                        \
  fault(SumsNotAwaited)    /* sums of warps are read before they are written */                         \
  fault(LastWordLeftOut)   /* ... nor the last bytes of a tensor */                                     \
  fault(NotUploaded)       /* an input is never written: only initcheck can be sure to see it */
// clang-format on

#define NAME(fault) fault,
enum class Fault : int { FAULTS(NAME) };
#undef NAME

// The fault of a name, None if there is no such fault.
inline Fault fault_named(const char* name) {
#define NAME(fault) if (std::strcmp(name, #fault) == 0) return Fault::fault;
  FAULTS(NAME)
#undef NAME
  return Fault::None;
}

#if defined(EPLB_EMULATE)
inline Fault planted = Fault::None;
#define PLANTED(fault) (planted == Fault::fault)
inline void plant(Fault fault) { planted = fault; }
#elif defined(EPLB_PLANTS)
inline Fault planted = Fault::None;
__device__ int planted_on_device = 0;
#define PLANTED(fault) (planted_on_device == (int)Fault::fault)
inline void plant(Fault fault) {
  planted = fault;
  cudaMemcpyToSymbol(planted_on_device, &fault, sizeof fault);
}
#else
inline Fault planted = Fault::None;
#endif
