import CShims

/// What becomes of products with the output matrix: z = scale (W x + b), then c tanh(z / c) where there is a cap c.
public struct LogitForm {
  public var bias: UnsafePointer<Float>?  // b [V]
  public var scale: Float = 1
  public var cap: Float = 0  // c; 0 = none

  public init() {}

  /// Beside the bias, which products add themselves.
  var changesProducts: Bool { scale != 1 || cap > 0 }

  /// Products become logits, in place.
  func apply(_ z: UnsafeMutablePointer<Float>, count: Int, _ kernels: UnsafePointer<moei_kernels>) {
    if scale != 1 { kernels.pointee.scale(Int64(count), scale, z, z) }
    if cap > 0 { capped(z, count: count, kernels) }
  }

  /// tanh u = 2 sigmoid(2 u) - 1; near 0, where that would cancel, its series, within 1e-8 of itself.
  private func capped(_ z: UnsafeMutablePointer<Float>, count: Int, _ kernels: UnsafePointer<moei_kernels>) {
    withUnsafeTemporaryAllocation(of: Float.self, capacity: 256) { memory in
      let s = memory.baseAddress!
      for first in stride(from: 0, to: count, by: memory.count) {
        let (part, z) = (min(memory.count, count - first), z + first)
        for i in 0..<part { z[i] /= cap }
        kernels.pointee.scale(Int64(part), 2, z, s)
        kernels.pointee.sigmoid(Int64(part), s, s)
        for i in 0..<part {
          let (u, square) = (z[i], z[i] * z[i])
          var series: Float = 62 / 2835
          series = series * square - 17 / 315
          series = series * square + 2 / 15
          series = series * square - 1 / 3
          z[i] = cap * (u.magnitude < 0.25 ? u + u * square * series : 2 * s[i] - 1)
        }
      }
    }
  }

  /// The slope of logits by what was capped, from a logit.
  func slope(_ logit: Float) -> Float {
    let t = logit / cap
    return 1 - t * t
  }
}

/// Products become logits, in place: [T,V].
struct LogitJob: Job {
  let form: LogitForm
  let kernels: UnsafePointer<moei_kernels>
  let count: Int  // T V
  let logits: UnsafeMutablePointer<Float>

  /// A multiple of 256.
  private static var elementsPerItem: Int { 1 << 13 }

  func run(in context: ContextPointer) throws(Fault) {
    if !form.changesProducts { return }
    try context.measure(.loss) { () throws(Fault) in
      try context.run((count + Self.elementsPerItem - 1) / Self.elementsPerItem, self)
    }
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let first = item * Self.elementsPerItem
    form.apply(logits + first, count: min(Self.elementsPerItem, count - first), kernels)
  }
}
