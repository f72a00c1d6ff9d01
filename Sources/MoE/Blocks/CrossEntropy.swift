import CShims

/// Cross-entropy of the logits z, which are x W^T in the form of LogitForm, with label smoothing s [Szegedy et al. 2015], over the n tokens that count:
///   loss = sum over t of [ (1 - s) (lse_t - z_t[target]) + s (lse_t - mean of z_t) ] / n
///   dz_t = d_loss / n * (softmax(z_t) - (1 - s) [target] - s / V)
/// Logits exist for one chunk of tokens at a time, and become their own gradient there. Chunks take tokens in ascending
/// order, so dW is one chain over all that count.
public struct CrossEntropy {
  public struct Problem {
    public let x: UnsafePointer<Float>  // [T,H]
    public let tokens: Int
    public let hidden: Int
    public let weight: UnsafeRawPointer  // [V,H]
    public let weights: ElementType
    public let vocabulary: Int
    public let targets: UnsafePointer<Int32>  // [T]
    public let ignored: Int32  // the target of tokens that do not count
    public let smoothing: Double  // s
    public let dLoss: Double
    public var form = LogitForm()
    /// A packed copy of the matrix, which forward reads, and backward where it is in few bits.
    var panels: PanelMatrixPointer?
    /// Whether tokens stay floats, as LinearShape has it.
    var isDifferentiated = false
    /// How many targets count where these are some of several ranks'.
    var allTargets: Int?

    public init(
      x: UnsafePointer<Float>, tokens: Int, hidden: Int, weight: UnsafeRawPointer, weights: ElementType,
      vocabulary: Int, targets: UnsafePointer<Int32>, ignored: Int32, smoothing: Double, dLoss: Double
    ) {
      self.x = x
      self.tokens = tokens
      self.hidden = hidden
      self.weight = weight
      self.weights = weights
      self.vocabulary = vocabulary
      self.targets = targets
      self.ignored = ignored
      self.smoothing = smoothing
      self.dLoss = dLoss
    }

    func counts(_ t: Int) -> Bool { targets[t] != ignored }

    var counted: Int {
      var n = 0
      for t in 0..<tokens where counts(t) { n += 1 }
      return n
    }
  }

  /// What is wanted of it beside the loss.
  public struct Targets {
    public let tokenLosses: UnsafeMutablePointer<Float>?  // [T]
    public let dx: UnsafeMutablePointer<Float>?  // [T,H], overwritten
    public let dWeight: UnsafeMutablePointer<Float>?  // [V,H], added to
    public let dBias: UnsafeMutablePointer<Float>?  // [V], added to

    public init(
      tokenLosses: UnsafeMutablePointer<Float>?, dx: UnsafeMutablePointer<Float>?,
      dWeight: UnsafeMutablePointer<Float>?, dBias: UnsafeMutablePointer<Float>? = nil
    ) {
      self.tokenLosses = tokenLosses
      self.dx = dx
      self.dWeight = dWeight
      self.dBias = dBias
    }

    var hasGradients: Bool { dx != nil || dWeight != nil || dBias != nil }
  }

  private let problem: Problem
  private(set) var targets: Targets
  private let most: Int  // tokens of a chunk
  private let chunk: UnsafeMutablePointer<Int32>  // [most] which tokens
  private let logits: UnsafeMutablePointer<Float>  // [most,V]
  private let losses: UnsafeMutablePointer<Double>  // [T] of those that count
  private let x: UnsafeMutablePointer<Float>  // [most,H] rows of the chunk, where they do not lie together
  private let dx: UnsafeMutablePointer<Float>  // [most,H]
  private let slopes: LaneMemory?  // [V] of a row's logits by what was capped
  private let forward: LinearForward
  private let backward: LinearBackward?

  /// Logits of a chunk, at most, as far as that leaves a chunk of tokens for which reading the matrix pays.
  private static var logitsAtOnce: Int { 1 << 25 }
  private static var fewestTokens: Int { 128 }

  init(_ arena: inout Arena, _ problem: Problem, _ targets: Targets, context: ContextPointer) {
    self.problem = problem
    self.targets = targets
    let (h, v) = (problem.hidden, problem.vocabulary)
    most = min(problem.tokens, max(Self.fewestTokens, min(448, Self.logitsAtOnce / v)))
    chunk = arena.take(Int32.self, most)
    logits = arena.take(Float.self, most, v)
    losses = arena.take(Double.self, problem.tokens)
    x = arena.take(Float.self, most, h)
    dx = arena.take(Float.self, targets.dx == nil ? 0 : most, h)
    var row = Arena()
    _ = row.take(Float.self, v)
    slopes =
      problem.form.cap > 0 && targets.hasGradients
      ? LaneMemory(&arena, bytes: row.bytes, context: context) : nil
    var shape = LinearShape(tokens: most, inputs: h, outputs: v, weights: problem.weights)
    shape.phase = .loss
    shape.panels = problem.panels
    shape.isDifferentiated = problem.isDifferentiated
    // Forward and backward take turns.
    var (a, b) = (arena, arena)
    forward = LinearForward(&a, shape, context: context)
    backward = targets.hasGradients ? LinearBackward(&b, shape, context: context) : nil
    arena.cover(a)
    arena.cover(b)
  }

  /// How many targets the mean is over.
  var share: Int { problem.allTargets ?? problem.counted }

  /// Computes all but the mean. Where it throws, gradients are partly written.
  func run(in context: ContextPointer) throws(Fault) {
    let n = share
    var (next, done) = (0, 0)
    while next < problem.tokens {
      let count = fill(from: &next)
      if count > 0 { try run(count, behind: done, share: n, in: context) }
      done += count
    }
  }

  /// The same with other wishes among those that it has memory for.
  @inline(never) func run(_ wanted: Targets, in context: ContextPointer) throws(Fault) {
    var own = self
    own.targets = wanted
    try own.run(in: context)
  }

  /// After a run: its losses added to `sum`, in the order of the tokens.
  func sum(behind sum: Double) -> Double {
    var sum = sum
    for i in 0..<problem.counted { sum += losses[i] }
    return sum
  }

  func mean(_ sum: Double) -> Double { share == 0 ? 0 : sum / Double(share) }

  /// The next tokens that count; those passed by get their zeros. Returns how many.
  private func fill(from next: inout Int) -> Int {
    let h = problem.hidden
    var count = 0
    while next < problem.tokens && count < most {
      if problem.counts(next) {
        chunk[count] = Int32(truncatingIfNeeded: next)
        count += 1
      } else {
        targets.tokenLosses?[next] = 0
        if let dx = targets.dx { (dx + next * h).update(repeating: 0, count: h) }
      }
      next += 1
    }
    return count
  }

  /// One chunk, with `done` losses before its own.
  private func run(_ count: Int, behind done: Int, share n: Int, in context: ContextPointer) throws(Fault) {
    let (h, losses) = (problem.hidden, losses + done)
    let first = Int(chunk[0])
    let together = Int(chunk[count - 1]) - first == count - 1
    if !together {
      for row in 0..<count { (x + row * h).update(from: problem.x + Int(chunk[row]) * h, count: h) }
    }
    let x = StridedRows(together ? problem.x + first * h : UnsafePointer(self.x), stride: h)
    try forward.run(
      tokens: count, x: x, weight: problem.weight, bias: problem.form.bias,
      y: StridedTargets(logits, stride: problem.vocabulary), in: context)
    try context.measure(.loss) { () throws(Fault) in
      try LossRows(
        kernels: context.kernels, problem: problem, chunk: chunk, rows: count, logits: logits, losses: losses,
        gradient: targets.hasGradients ? problem.dLoss / Double(n) : nil, slopes: slopes
      ).run(in: context)
    }

    for row in 0..<count {
      if !losses[row].isFinite {
        throw Fault(.notFinite, "x: token \(Int(chunk[row])) has a loss that is not finite, or a logit that is none")
      }
      targets.tokenLosses?[Int(chunk[row])] = Float(losses[row])
    }
    guard let backward else { return }
    let dx = targets.dx.map { together ? $0 + first * h : self.dx }
    try backward.run(
      tokens: count, x: x, weight: problem.weight, dy: StridedRows(logits, stride: problem.vocabulary),
      dx: dx.map { StridedTargets($0, stride: h) }, dWeight: targets.dWeight, dBias: targets.dBias,
      in: context)
    if let all = targets.dx, !together {
      for row in 0..<count { (all + Int(chunk[row]) * h).update(from: self.dx + row * h, count: h) }
    }
  }

  /// One call with scratch of its own.
  public static func call(
    _ problem: Problem, _ targets: Targets, in context: ContextPointer
  ) throws(Fault) -> (loss: Double, counted: Int) {
    var result = (loss: 0.0, counted: 0)
    try context.withScratch({ CrossEntropy(&$0, problem, targets, context: context) }) { (loss) throws(Fault) in
      try loss.run(in: context)
      result = (loss.mean(loss.sum(behind: 0)), loss.share)
    }
    return result
  }
}

/// Losses of a chunk's tokens, NaN where a logit is NaN or plus infinity; logits become their gradient where one is wanted.
private struct LossRows: Job {
  let kernels: UnsafePointer<moei_kernels>
  let problem: CrossEntropy.Problem
  let chunk: UnsafePointer<Int32>
  let rows: Int
  let logits: UnsafeMutablePointer<Float>  // [rows,V]
  let losses: UnsafeMutablePointer<Double>  // [rows]
  let gradient: Double?  // d_loss / n
  let slopes: LaneMemory?  // [V]

  private static var rowsPerItem: Int { 8 }

  func run(in context: ContextPointer) throws(Fault) {
    try context.run((rows + Self.rowsPerItem - 1) / Self.rowsPerItem, self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    var arena = slopes?.arena(lane.pointee.index)
    let slopes = arena?.take(Float.self, problem.vocabulary)
    for row in item * Self.rowsPerItem..<min((item + 1) * Self.rowsPerItem, rows) { losses[row] = loss(row, slopes) }
  }

  private func loss(_ row: Int, _ slopes: UnsafeMutablePointer<Float>?) -> Double {
    let (v, form) = (problem.vocabulary, problem.form)
    let z = logits + row * v
    if Int(kernels.pointee.first_not_finite(Int64(v), z)) < v { return .nan }
    form.apply(z, count: v, kernels)
    if form.scale != 1 && Int(kernels.pointee.first_not_finite(Int64(v), z)) < v { return .nan }
    if let slopes { for i in 0..<v { slopes[i] = form.slope(z[i]) } }
    let target = Int(problem.targets[Int(chunk[row])])
    let zTarget = z[target]
    var sums: (maximum: Float, total: Float, logTotal: Float, below: Float) = (0, 0, 0, 0)
    withUnsafeMutableBytes(of: &sums) {
      kernels.pointee.exponentials(Int64(v), z, $0.baseAddress!.assumingMemoryBound(to: Float.self))
    }
    let logTotal = Double(sums.logTotal)
    let s = problem.smoothing
    var loss = (1 - s) * (Double(sums.maximum) - Double(zTarget) + logTotal)
    if s > 0 { loss += s * (logTotal - Double(sums.below) / Double(v)) }
    if var gradient {
      gradient *= Double(form.scale)
      kernels.pointee.scale(Int64(v), Float(gradient / Double(sums.total)), z, z)
      if s > 0 {
        let share = Float(gradient * s / Double(v))
        for i in 0..<v { z[i] -= share }
      }
      z[target] -= Float(gradient * (1 - s))
      if let slopes { for i in 0..<v { z[i] *= slopes[i] } }
    }
    return loss
  }
}
