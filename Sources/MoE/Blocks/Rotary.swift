import CShims

/// What rotary positions [RoPE 2021] turn by: pair i of a head, of floats i and i + R/2 of its first R, by position *
/// theta^(-2i/R), or position * frequencies[i]; both are multiplied by a scale as well.
public struct RotaryAngles {
  public var size: Int  // R, even, at most D
  public var theta: Double  // at least 1
  public var frequencies: UnsafePointer<Double>?  // [R/2] in place of theta's, each of -2^20 ... 2^20
  public var scale: Double

  /// The greatest of the frequencies.
  public static let greatest = 1_048_576.0

  public init(size: Int, theta: Double, frequencies: UnsafePointer<Double>? = nil, scale: Double = 1) {
    (self.size, self.theta, self.frequencies, self.scale) = (size, theta, frequencies, scale)
  }
}

/// Whose heads turn, and where each token is.
public struct Rotary {
  public var heads: Int
  public var headSize: Int  // D, floats from one head to the next
  public var stride: Int  // floats from one token to the next
  public var positions: UnsafePointer<Int64>?  // [T], each below 2^31
  public var sequenceLength: Int
  public var firstPosition: Int
  public var inverse: Bool

  public init(
    heads: Int, headSize: Int, stride: Int, positions: UnsafePointer<Int64>?, sequenceLength: Int, firstPosition: Int,
    inverse: Bool
  ) {
    (self.heads, self.headSize, self.stride) = (heads, headSize, stride)
    (self.positions, self.sequenceLength, self.firstPosition) = (positions, sequenceLength, firstPosition)
    self.inverse = inverse
  }

  func position(_ token: Int) -> Int {
    if let positions { return Int(positions[token]) }
    return token % sequenceLength + firstPosition
  }

  /// A call with memory of its own. x: [T,n_heads,D], in place; where the last R numbers of each head turn, it points at the
  /// first of them.
  public func run(
    _ x: UnsafeMutablePointer<Float>, tokens: Int, _ angles: RotaryAngles, in context: ContextPointer
  ) throws(Fault) {
    try context.withScratch({
      // For a few tokens the steps are not worth a table.
      let table = RotaryTable(&$0, angles, steps: tokens >= RotaryTable.stepCount)
      return (table, Rotation(&$0, self, table, in: context))
    }) { (parts) throws(Fault) in
      let (table, rotation) = parts
      table.fill(angles)
      try rotation.run(x, tokens: tokens, in: context)
    }
  }
}

/// What all rotations by the same angles share, of each layer of a model that has these: made once, filled once, and given to
/// every Rotation, whatever the number of its heads and their size. Sines and cosines are taken in double of 64 steps of position, and of every 64th
/// position as it comes; what lies between is one complex product. They depend on the position alone.
struct RotaryTable {
  fileprivate let frequencies: UnsafeMutablePointer<Double>  // [R/2]
  fileprivate let steps: UnsafeMutablePointer<Turn>?  // [64][R/2]; without it they are computed as they come
  fileprivate let pairs: Int  // R/2
  fileprivate let scale: Double

  fileprivate static let stepCount = 64

  init(_ arena: inout Arena, _ angles: RotaryAngles, steps: Bool) {
    (pairs, scale) = (angles.size / 2, angles.scale)
    frequencies = arena.take(Double.self, pairs)
    self.steps = steps ? arena.take(Turn.self, Self.stepCount, pairs) : nil
  }

  /// Once, before the first use, with the angles it was made for. Their frequencies are not read again.
  func fill(_ angles: RotaryAngles) {
    let logTheta = naturalLogarithm(angles.theta)
    for i in 0..<pairs {
      frequencies[i] = angles.frequencies?[i] ?? exponential(-Double(2 * i) / Double(angles.size) * logTheta)
      guard let steps else { continue }
      for step in 0..<Self.stepCount { steps[step * pairs + i] = Turn(Double(step) * frequencies[i]) }
    }
  }
}

/// One array's rotation.
struct Rotation {
  private let rotary: Rotary
  private let table: RotaryTable
  private let memory: LaneMemory

  init(_ arena: inout Arena, _ rotary: Rotary, _ table: RotaryTable, in context: ContextPointer) {
    self.rotary = rotary
    self.table = table
    var measure = Arena()
    _ = RotationRow(&measure, pairs: table.pairs)
    memory = LaneMemory(&arena, bytes: measure.bytes, context: context)
  }

  func run(_ x: UnsafeMutablePointer<Float>, tokens: Int, in context: ContextPointer) throws(Fault) {
    try run(x, tokens: 0..<tokens, in: context)
  }

  /// Some of the tokens whose heads begin at x.
  func run(_ x: UnsafeMutablePointer<Float>, tokens: Range<Int>, in context: ContextPointer) throws(Fault) {
    let job = RotationJob(
      rotary: rotary, table: table, kernels: context.kernels, x: x, tokens: tokens, memory: memory)
    try context.measure(.attention, backward: rotary.inverse) { () throws(Fault) in
      try context.run((tokens.count + RotationJob.run - 1) / RotationJob.run, job)
    }
  }
}

/// A turn by an angle, as a complex number.
fileprivate struct Turn {
  let cosine: Double
  let sine: Double

  /// |angle| < 2^51. Within 2e-16 of the exact values below 2^31.
  init(_ angle: Double) {
    // angle = n pi/2 + r, with pi/2 in two pieces: fused, n times the first one loses nothing.
    let n = (angle * 0.636619772367581343).rounded()
    let r = (0.0).addingProduct(-n, 6.123233995736766e-17) + angle.addingProduct(-n, 1.5707963267948966)
    let square = r * r
    var (s, c) = (0.0, 0.0)
    var k = 17.0
    // Taylor, from the smallest term on; |r| <= pi/4.
    while k >= 1 {
      s = (1 - s) * square / (k * (k + 1))
      c = (1 - c) * square / ((k + 1) * (k + 2))
      k -= 2
    }
    // s is now 1 - cos r, and c is 1 - sin r / r.
    let (sine, cosine) = (r - r * c, 1 - s)
    switch Int(n) & 3 {
    case 0: (self.cosine, self.sine) = (cosine, sine)
    case 1: (self.cosine, self.sine) = (-sine, cosine)
    case 2: (self.cosine, self.sine) = (-cosine, -sine)
    default: (self.cosine, self.sine) = (sine, -cosine)
    }
  }
}

/// exp x for x of -745 ... 0, within 1e-15 of itself.
func exponential(_ x: Double) -> Double {
  let n = (x * 1.44269504088896341).rounded()
  let r = x - n * 0.693147180369123816 - n * 1.90821492927058770e-10  // ln 2: n times the first piece is exact
  var sum = 1.0
  var k = 18.0
  while k >= 1 {
    sum = 1 + sum * r / k
    k -= 1
  }
  return Double(sign: .plus, exponent: Int(n), significand: sum)
}

private struct RotationRow {
  let base: UnsafeMutablePointer<Turn>  // [R/2] of a multiple of 64
  let cosines: UnsafeMutablePointer<Float>  // [R/2]
  let sines: UnsafeMutablePointer<Float>  // [R/2]

  init(_ arena: inout Arena, pairs: Int) {
    base = arena.take(Turn.self, pairs)
    cosines = arena.take(Float.self, pairs)
    sines = arena.take(Float.self, pairs)
  }
}

private struct RotationJob: Job {
  let rotary: Rotary
  let table: RotaryTable
  let kernels: UnsafePointer<moei_kernels>
  let x: UnsafeMutablePointer<Float>
  let tokens: Range<Int>
  let memory: LaneMemory

  /// Tokens of one item.
  static let run = 64

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (pairs, scale) = (table.pairs, table.scale)
    var arena = memory.arena(lane.pointee.index)
    let row = RotationRow(&arena, pairs: pairs)
    var baseNow = -1
    let first = tokens.lowerBound + item * Self.run
    for token in first..<min(tokens.upperBound, first + Self.run) {
      let position = rotary.position(token)
      let (base, step) = (position / RotaryTable.stepCount, position % RotaryTable.stepCount)
      if base != baseNow {
        for i in 0..<pairs { row.base[i] = Turn(Double(base * RotaryTable.stepCount) * table.frequencies[i]) }
        baseNow = base
      }
      for i in 0..<pairs {
        let b = table.steps?[step * pairs + i] ?? Turn(Double(step) * table.frequencies[i])
        let a = row.base[i]
        row.cosines[i] = Float(scale * (a.cosine * b.cosine - a.sine * b.sine))
        let sine = Float(scale * (a.sine * b.cosine + a.cosine * b.sine))
        row.sines[i] = rotary.inverse ? -sine : sine
      }
      let (own, next) = (x + token * rotary.stride, x + min(token + 1, tokens.upperBound - 1) * rotary.stride)
      kernels.pointee.rotate(
        Int64(rotary.heads), Int64(rotary.headSize), Int64(pairs), row.cosines, row.sines, own, next)
    }
  }
}
