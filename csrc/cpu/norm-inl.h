// Layer normalisation of rows whose numbers several members have made. Compiled once per ISA.
//
// Each member finds the moments of its own part of a row in two passes, and all of them put these together in the same order,
// so that they get the same mean and variance to the bit.
//
// Type parameters: T is float or double; Visit is a function that calls its argument f(gate, numbers, how many of them there are)
// for the vectors of a row.
#pragma once
#include "activations-inl.h"
#include "ranges-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// So many numbers, their mean, and the sum of their squared distances from it.
template <class T>
struct Moments {
  T count, mean, squares;
};

// What makes numbers zero on average, with a variance of one: (v - mean) * scale.
template <class T>
struct Scaling {
  T mean, scale;
  SEQKERNELS_INLINE Vec<T> operator()(Vec<T> v) const { return (v - Vec<T>(mean)) * Vec<T>(scale); }
};

template <class T>
SEQKERNELS_INLINE T sum_lanes(Vec<T> v) {
  T lanes[Vec<T>::kLanes];
  store(lanes, v);
#pragma GCC unroll 4
  for (int n = Vec<T>::kLanes / 2; n > 0; n /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  return lanes[0];
}

// The first n lanes; the others are zero.
template <class T>
SEQKERNELS_INLINE Vec<T> first_lanes(Vec<T> v, int64_t n) {
  if (n >= Vec<T>::kLanes) return v;
  T lanes[Vec<T>::kLanes];
  store(lanes, v);
  return load_part(lanes, n);
}

// Of a member's part of a row, whose kGates gates belong to kGroups groups, and group(g) says to which. Each gate is summed up
// by itself: additions to one sum would wait for each other.
template <int kGroups, int kGates, class T, class Visit, class Group>
SEQKERNELS_INLINE void find_moments(const Visit& visit, const Group& group, Moments<T>* moments) {
  Vec<T> sums[kGates], squares[kGates], means[kGates];
  int64_t counts[kGates];
  for (int g = 0; g < kGates; ++g) sums[g] = squares[g] = Vec<T>(0), counts[g] = 0;
  // The sum over the gates of a group.
  const auto of_group = [&](int i, auto sum, const auto& of_gates) {
    for (int g = 0; g < kGates; ++g)
      if (group(g) == i) sum = sum + of_gates[g];
    return sum;
  };
  visit([&](int g, Vec<T> v, int64_t count) {
    sums[g] = sums[g] + first_lanes(v, count);
    counts[g] += min(count, Vec<T>::kLanes);
  });
  for (int i = 0; i < kGroups; ++i) {
    const int64_t count = of_group(i, int64_t{0}, counts);
    moments[i].count = T(count);
    moments[i].mean = count > 0 ? sum_lanes(of_group(i, Vec<T>(0), sums)) / moments[i].count : T(0);
  }
  for (int g = 0; g < kGates; ++g) means[g] = Vec<T>(moments[group(g)].mean);
  visit([&](int g, Vec<T> v, int64_t count) {
    const Vec<T> distance = first_lanes(v - means[g], count);
    squares[g] = squares[g] + distance * distance;
  });
  for (int i = 0; i < kGroups; ++i) moments[i].squares = sum_lanes(of_group(i, Vec<T>(0), squares));
}

// Of a whole row, whose parts are `stride` apart.
template <class T>
SEQKERNELS_INLINE Scaling<T> scaling_of(const Moments<T>* parts, int count, int64_t stride, T eps) {
  T numbers = 0, mean = 0, squares = 0;
  for (int i = 0; i < count; ++i)
    numbers += parts[i * stride].count, mean += parts[i * stride].count * parts[i * stride].mean;
  mean /= numbers;
  for (int i = 0; i < count; ++i) {
    const Moments<T>& part = parts[i * stride];
    squares += part.squares + part.count * (part.mean - mean) * (part.mean - mean);
  }
  return {mean, T(1) / T(__builtin_sqrt(squares / numbers + eps))};
}

// What the gradient of a normalised row needs of all its units: the sum of the gradients of the unit values (those of zero mean
// and unit variance), and that of their products with the values.
template <class T>
struct NormSums {
  T grads, products;
};

}  // namespace seqkernels::SEQKERNELS_ISA
