// The types of numbers in memory, for the plain C interfaces.
#pragma once

#include <cstdint>

enum NumberType : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };
