// Scratch that begins with a line of the cache: a vector as long as a line would else lie across two.
#pragma once

#include <cstddef>
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

// The same, not set to zero: to do so takes as long as the sums of a small map.
template <typename T>
struct OfUnsetLines : OfLines<T> {
  template <typename U>
  struct rebind {
    using other = OfUnsetLines<U>;
  };
  OfUnsetLines() = default;
  template <typename U>
  OfUnsetLines(const OfUnsetLines<U>&) {}
  void construct(T*) {}
};

using UnsetFloats = std::vector<float, OfUnsetLines<float>>;

}  // namespace
