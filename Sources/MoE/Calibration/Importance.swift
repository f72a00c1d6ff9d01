/// By how much an error of each weight of a row matters: the mean square of the input it is multiplied by, and a hundredth of
/// their mean, since text that is still to come may have inputs that this one had not.
struct Importance {
  let squares: InputSquares
  let expert: Int

  static var floor: Double { 0.01 }

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
