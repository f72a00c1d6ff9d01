import CShims

/// The moments of one tensor, stored as float32 or as bfloat16. The latter are widened, stepped in float32 and rounded up or
/// down by chance, so that their mean is what float32 would hold: a second moment that changes by 1 - beta2 of itself would
/// otherwise round back to what it was, at every step [Zamirai et al. 2020, arXiv:2010.06192]. The kernels do it all in
/// one pass, and make the words of chance on the way (Kernels/Chance.swift).
struct Moments {
  let start: UnsafeMutableRawPointer  // [rows, count] of `type`
  let type: ElementType
  let rows: Int  // 0, 1 or 2
  let count: Int
  let random: Random
  let tensor: Int  // its number in the optimiser's list

  /// Those of the elements from `first` on.
  func from(_ first: Int) -> moei_moments {
    let own = start + type.bytes(first)
    return moei_moments(
      first: own, second: own + type.bytes(max(rows - 1, 0) * count), by_chance: type == .f32 || rows == 0 ? 0 : 1,
      random: random.numbers,
      tensor: UInt64(tensor), element: UInt64(first))
  }
}
