// A layer's parameters and tapes, as callers see them.

extension Layer {
  /// bias_e += d_e, d_e = rate * sign(mean(counts) - counts_e); minus their mean where the sum shall stay.
  public func updateSelectionBias(_ counts: UnsafePointer<Int64>, rate: Float, zeroSum: Bool) {
    let (experts, bias) = (configuration.experts, parameters.data(.selectionBias)!)
    var total = 0.0
    for e in 0..<experts { total += Double(counts[e]) }
    let mean = total / Double(experts)
    func direction(_ e: Int) -> Float { Double(counts[e]) < mean ? 1 : Double(counts[e]) > mean ? -1 : 0 }
    var drift: Float = 0
    if zeroSum { for e in 0..<experts { drift += direction(e) } }
    for e in 0..<experts { bias[e] += rate * (direction(e) - drift / Float(experts)) }
  }

  public var parameterCount: Int { parameters.count }
  public func parameter(_ index: Int) -> Parameter { parameters[index] }
  public func zeroGrad() { parameters.zeroGrad(in: context) }
  /// Those that an optimiser steps: all but buffers, in the same order.
  public var trainedCount: Int { parameters.trainedCount }
  public func trained(_ index: Int) -> Parameter { parameters.trained(index) }
  /// The values that a new layer has, in all parameters that have memory, and gradients of 0.
  public func initialise() { parameters.initialise(configuration, ranks, in: context) }

  /// Refuses what reads or writes all parameters as long as some have no memory.
  public func requireMemory() throws(Fault) {
    guard let parameter = parameters.withoutMemory else { return }
    if isOffloaded { throw .badState("\(parameter.name) is offloaded: it has no memory") }
    if parameter.isReleased { throw parameter.packedAlone }
    throw .badState(
      "\(parameter.name) has no memory (unallocated): bind it with moe_layer_bind_parameter, or offload the layer")
  }

  /// Refuses to compute as long as some values are nowhere.
  func requireValues() throws(Fault) {
    if parameters.withoutValues != nil { try requireMemory() }
  }

  public func bind(_ index: Int, data: UnsafeMutableRawPointer, grad: UnsafeMutablePointer<Float>?) {
    parameters.bind(index, data: data, grad: grad, allocator: context.pointee.allocator)
  }

  func freeze(_ index: Int) { parameters.freeze(index, allocator: context.pointee.allocator) }

  /// Whether the tape was made for this layer, and whether it is filled.
  public func owns(_ tape: UnsafePointer<Tape>) -> Bool {
    tape.pointee.layerNumber == number && tape.pointee.context == context
  }
  public func isFilled(_ tape: UnsafePointer<Tape>) -> Bool { tape.pointee.contents != nil }
  public func weightsWereGiven(_ tape: UnsafePointer<Tape>) -> Bool { tape.pointee.contents?.weightsAreGiven ?? false }
  public func tokens(on tape: UnsafePointer<Tape>) -> Int { tape.pointee.contents?.routing.tokens ?? 0 }
  public func sequences(on tape: UnsafePointer<Tape>) -> Int { tape.pointee.contents?.slopes.sequences ?? 0 }
  /// Empties the tape: after an error there is nothing to go back from.
  public func clear(_ tape: TapePointer) { tape.pointee.clear() }
}
