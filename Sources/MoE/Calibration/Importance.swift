/// By how much an error of each weight of a row matters: the mean square of the input it is multiplied by, and a hundredth of
/// their mean, since text that is still to come may have inputs that this one had not.
struct Importance {
  let squares: InputSquares
  let expert: Int

  private static var floor: Double { 0.01 }

  /// [inputs], the largest 1. Of an expert with too few tokens that of all experts; all 1 where no token came.
  func fill(_ weights: UnsafeMutablePointer<Float>) {
    let inputs = squares.inputs
    let own = squares.sums + (squares.hasFew(expert) ? squares.experts : expert) * inputs
    var (sum, largest) = (0.0, 0.0)
    for i in 0..<inputs {
      sum += own[i]
      largest = max(largest, own[i])
    }
    let floor = Self.floor * sum / Double(inputs)
    let factor = 1 / (largest + floor)
    let isKnown = largest > 0 && factor > 0 && factor.isFinite
    for i in 0..<inputs { weights[i] = isKnown ? Float((own[i] + floor) * factor) : 1 }
  }
}

/// What the packing of one matrix reads of a calibration, and what each thread needs for it.
struct CalibratedPacking {
  let squares: InputSquares
  let scratch: EncodingScratch

  /// For a thread, which packs some rows of an expert's matrix.
  func weighted(expert: Int, lane: Int) -> WeightedScratch {
    let own = scratch.of(lane)
    Importance(squares: squares, expert: expert).fill(own.importance)
    return own
  }
}
