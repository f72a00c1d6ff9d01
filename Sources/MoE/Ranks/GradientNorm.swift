import CShims

// The norm of all gradients of a layer or a model over ranks. Sums of squares run through a tensor in stretches and runs that its whole size alone
// determines (Optimise/ClipGradNorm.swift). Where a tensor's parts lie on several ranks, one behind the other, the sum goes on from rank
// to rank, together with the numbers of a run that two of them share.

extension Layer {
  /// Scales all gradients by what brings their norm, over all ranks' tensors together, down to `maxNorm`; returns the norm.
  public func clipGradNorm(maxNorm: Double) throws(Fault) -> Double {
    var squares = 0.0
    try addSquares(to: &squares, try SpreadSquares.open(ranks, maxNorm: maxNorm, context))
    let norm = squares.squareRoot()
    scaleGradients(by: clipFactor(norm: norm, maxNorm: maxNorm))
    return norm
  }

  /// `sums`: where the experts are spread, what adds up those of a tensor.
  fileprivate func addSquares(to squares: inout Double, _ sums: SpreadSquares?) throws(Fault) {
    for slot in 0..<parameters.slotCount {
      guard let tensor = parameters.trained(slot: slot, configuration, ranks) else { continue }
      let sum: Double
      if let sums, tensor.isSpread {
        sum = try sums.sum(tensor.own, of: tensor.elements)
      } else {
        sum = sumOfSquares(gradientOf: tensor.own, in: context)
      }
      if !sum.isFinite { throw Fault(.notFinite, "the gradient of \(tensor.name) is not finite") }
      squares += sum
    }
  }

  fileprivate func scaleGradients(by factor: Float) {
    forEachGradient { scale($0, $1, by: factor, in: context) }
  }
}

extension Model {
  /// The same of a model's parameters, in the order of their list.
  public func clipGradNorm(maxNorm: Double) throws(Fault) -> Double {
    let sums = try SpreadSquares.open(ranks, maxNorm: maxNorm, context)
    var (squares, own) = (0.0, 0)
    for n in 0...configuration.layers {
      while own < parameters.count && (n == configuration.layers || parameters.comes(own, beforeLayer: n + 1)) {
        let parameter = parameters.parameter(own)
        let sum = sumOfSquares(gradientOf: parameter, in: context)
        if !sum.isFinite { throw Fault(.notFinite, "the gradient of \(parameter.name) is not finite") }
        squares += sum
        own += 1
      }
      if n == configuration.layers { break }
      do throws(Fault) {
        try feedForwards[n]?.pointee.addSquares(to: &squares, sums)
      } catch {
        throw error.inLayer(n)
      }
    }
    let norm = squares.squareRoot()
    let factor = clipFactor(norm: norm, maxNorm: maxNorm)
    for index in 0..<parameters.count {
      let parameter = parameters.parameter(index)
      if let grad = parameter.grad { scale(grad, parameter.count, by: factor, in: context) }
    }
    for n in 0..<configuration.layers { feedForwards[n]?.pointee.scaleGradients(by: factor) }
    return norm
  }
}

/// 0 of a parameter that has none.
private func sumOfSquares(gradientOf parameter: Parameter?, in context: ContextPointer) -> Double {
  guard let parameter, let grad = parameter.grad else { return 0 }
  return sumOfSquares(grad, parameter.count, in: context)
}

/// A sum of squares that is under way.
struct SpreadSquares {
  private struct State {
    var total = 0.0  // of the stretches that are done
    var stretch = 0.0  // of the runs that are done in the one that has begun
    var place = 0  // elements so far
    var waiting = 0  // of these in the run that has begun
  }

  private let ranks: RanksPointer
  private let kernels: UnsafePointer<moei_kernels>
  private let state: UnsafeMutablePointer<State>
  private let run: UnsafeMutablePointer<Float>  // [runOfSquares] right behind it

  private static var floatsOfState: Int { MemoryLayout<State>.stride / MemoryLayout<Float>.stride }

  private init(_ arena: inout Arena, _ ranks: RanksPointer, _ kernels: UnsafePointer<moei_kernels>) {
    (self.ranks, self.kernels) = (ranks, kernels)
    let memory = arena.take(Float.self, Self.floatsOfState + runOfSquares)
    state = UnsafeMutableRawPointer(memory).assumingMemoryBound(to: State.self)
    run = memory + Self.floatsOfState
  }

  /// In a call that ranks make together; nil where all is here.
  static func open(
    _ ranks: RanksPointer?, maxNorm: Double, _ context: ContextPointer
  ) throws(Fault) -> SpreadSquares? {
    guard let ranks else { return nil }
    var kind = Hash()
    kind.add(3)
    kind.add(maxNorm.bitPattern)
    try ranks.pointee.open(Ranks.AllTokens(), kind: kind)
    ranks.pointee.expect(0)
    let sums = try ranks.room(context.pointee.allocator) { SpreadSquares(&$0, ranks, context.kernels) }
    try ranks.pointee.agree(0, nil, next: nil)
    return sums
  }

  /// Of a tensor with so many elements on all ranks.
  func sum(_ own: Parameter?, of all: Int) throws(Fault) -> Double {
    let bytes = (Self.floatsOfState + runOfSquares) * MemoryLayout<Float>.stride
    try ranks.chain(state, bytes: bytes) { isFirst in
      if isFirst { state.initialize(to: State()) }
      if let own, let grad = own.grad { add(grad, own.count, of: all) }
    }
    return state.pointee.total
  }

  private func add(_ values: UnsafePointer<Float>, _ count: Int, of all: Int) {
    let stretch = stretchOfSquares(all)
    var done = 0
    while done < count {
      let place = state.pointee.place
      let endOfStretch = min((place / stretch + 1) * stretch, all)
      let firstOfStretch = place / stretch * stretch
      let end = min(firstOfStretch + ((place - firstOfStretch) / runOfSquares + 1) * runOfSquares, endOfStretch)
      let part = min(end - place, count - done)
      let isWhole = state.pointee.waiting == 0 && place + part == end
      if !isWhole {
        (run + state.pointee.waiting).update(from: values + done, count: part)
        state.pointee.waiting += part
      }
      done += part
      state.pointee.place += part
      if state.pointee.place < end { return }
      state.pointee.stretch +=
        isWhole ? squares(values + done - part, part, kernels) : squares(run, state.pointee.waiting, kernels)
      state.pointee.waiting = 0
      if end == endOfStretch {
        state.pointee.total += state.pointee.stretch
        state.pointee.stretch = 0
      }
    }
  }
}
