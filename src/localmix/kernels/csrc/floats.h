// Scratch that begins with a line of the cache: a vector as long as a line would else lie across two.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <vector>

namespace {

constexpr std::align_val_t kLine{64};

template <typename T>
struct OfLines {
  using value_type = T;
  OfLines() = default;
  template <typename U>
  OfLines(const OfLines<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* p, std::size_t) { ::operator delete(p, kLine); }
  bool operator==(const OfLines&) const { return true; }
  bool operator!=(const OfLines&) const { return false; }
};

using Floats = std::vector<float, OfLines<float>>;

// The same, for much that is written before it is read.
struct FreeLines {
  void operator()(float* p) const { ::operator delete(p, kLine); }
};
using UnsetFloats = std::unique_ptr<float[], FreeLines>;

inline UnsetFloats unset_floats(std::size_t n) {
  return UnsetFloats(static_cast<float*>(::operator new(n * sizeof(float), kLine)));
}

}  // namespace
