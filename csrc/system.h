// The integer types and memcpy: from the system, or by hand where NVRTC compiles without headers.
#pragma once

#ifdef __CUDACC_RTC__
using int8_t = signed char;
using int16_t = short;
using int32_t = int;
using int64_t = long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long;
using uintptr_t = unsigned long;
#else
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#endif
