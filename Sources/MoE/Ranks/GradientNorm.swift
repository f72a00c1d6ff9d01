import CShims

// The norm of all gradients of a layer over ranks. Sums of squares run through a tensor in stretches and runs that its whole size alone
// determines (Optimise/ClipGradNorm.swift). Where a tensor's parts lie on several ranks, one behind the other, the sum goes on from rank
// to rank, together with the numbers of a run that two of them share.

extension Layer {
  /// Scales all gradients by what brings their norm, over all ranks' tensors together, down to `maxNorm`; returns the norm.
  public func clipGradNorm(maxNorm: Double) throws(Fault) -> Double {
    var squares = 0.0
    if let ranks {
      var kind = Hash()
      kind.add(3)
      kind.add(maxNorm.bitPattern)
      try ranks.pointee.open(Ranks.AllTokens(), kind: kind)
      ranks.pointee.expect(0)
      let sums = try ranks.room(context.pointee.allocator) { SpreadSquares(&$0) }
      try ranks.pointee.agree(0, nil, next: nil)
      try addSquares(to: &squares) { (own, whole) throws(Fault) in
        try sums.sum(own, of: whole, over: ranks, context.kernels)
      }
    } else {
      try addSquares(to: &squares) { (own, _) throws(Fault) in self.squares(of: own) }
    }
    let norm = squares.squareRoot()
    let factor = clipFactor(norm: norm, maxNorm: maxNorm)
    for index in 0..<parameters.trainedCount {
      let parameter = parameters.trained(index)
      if let grad = parameter.grad { scale(grad, parameter.count, by: factor, in: context) }
    }
    return norm
  }

  /// `spread`: of a tensor of experts, from what is here of it and the elements of all of it.
  private func addSquares(
    to squares: inout Double, _ spread: (Parameter?, Int) throws(Fault) -> Double
  ) throws(Fault) {
    for slot in 0..<parameters.slotCount {
      guard let tensor = parameters.trained(slot: slot, configuration, ranks) else { continue }
      let sum = tensor.isSpread ? try spread(tensor.own, tensor.elements) : self.squares(of: tensor.own)
      if !sum.isFinite { throw Fault(.notFinite, "the gradient of \(tensor.name) is not finite") }
      squares += sum
    }
  }

  /// The sum of squares of a gradient that is here; 0 of one that nobody makes.
  private func squares(of parameter: Parameter?) -> Double {
    guard let parameter, let grad = parameter.grad else { return 0 }
    return sumOfSquares(grad, parameter.count, in: context)
  }
}

/// A sum of squares that is under way.
private struct SpreadSquares {
  private struct State {
    var total = 0.0  // of the stretches that are done
    var stretch = 0.0  // of the runs that are done in the one that has begun
    var place = 0  // elements so far
    var waiting = 0  // of these in the run that has begun
  }

  private let state: UnsafeMutablePointer<State>
  private let run: UnsafeMutablePointer<Float>  // [runOfSquares] right behind it

  private static var floatsOfState: Int { MemoryLayout<State>.stride / MemoryLayout<Float>.stride }

  init(_ arena: inout Arena) {
    let memory = arena.take(Float.self, Self.floatsOfState + runOfSquares)
    state = UnsafeMutableRawPointer(memory).assumingMemoryBound(to: State.self)
    run = memory + Self.floatsOfState
  }

  /// Of a tensor with so many elements on all ranks.
  func sum(
    _ own: Parameter?, of all: Int, over ranks: RanksPointer, _ kernels: UnsafePointer<moei_kernels>
  ) throws(Fault) -> Double {
    let bytes = (Self.floatsOfState + runOfSquares) * MemoryLayout<Float>.stride
    try ranks.chain(state, bytes: bytes) { isFirst in
      if isFirst { state.initialize(to: State()) }
      if let own, let grad = own.grad { add(grad, own.count, of: all, kernels) }
    }
    return state.pointee.total
  }

  private func add(
    _ values: UnsafePointer<Float>, _ count: Int, of all: Int, _ kernels: UnsafePointer<moei_kernels>
  ) {
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
