/// Steps of one group's matrices, block by block. The gradients of biases, which several pieces of work add to, are summed up for
/// all experts, and stepped afterwards.
struct GroupSteps {
  let parameters: Parameters  // the group's
  private let matrices: UnsafeMutablePointer<BlockStep>  // [3], those that are trained
  private let biases: UnsafeMutablePointer<Float>  // [E,I], [E,I], [E,H], as many as there are

  /// Memory for one, with the steps of its matrices behind it.
  static func take(_ arena: inout Arena) -> UnsafeMutablePointer<GroupSteps> {
    let bytes = MemoryLayout<GroupSteps>.stride + 3 * MemoryLayout<BlockStep>.stride
    return UnsafeMutableRawPointer(arena.take(UInt8.self, bytes)).assumingMemoryBound(to: GroupSteps.self)
  }

  /// Of the group's parameters, without the steps of its matrices, in memory that was taken.
  init(_ parameters: Parameters, in memory: UnsafeMutablePointer<GroupSteps>, biases: UnsafeMutablePointer<Float>) {
    self.parameters = parameters
    matrices = UnsafeMutableRawPointer(memory + 1).assumingMemoryBound(to: BlockStep.self)
    self.biases = biases
  }

  func matrix(_ role: Parameters.Role) -> UnsafeMutablePointer<BlockStep> {
    matrices + (role == .gateWeight ? 0 : role == .upWeight ? 1 : 2)
  }

  /// Where one expert's gradients go.
  func gradients(_ c: ExpertGroup, expert e: Int) -> ExpertGradients {
    func gradient(_ role: Parameters.Role, rowStride: Int) -> GradientMatrix? {
      guard let parameter = parameters[role], !parameter.isFrozen else { return nil }
      return GradientMatrix(
        parameter.data!, parameter.type, first: e * c.intermediate * c.hidden, rowStride: rowStride, columnStride: 1,
        overwrites: true, step: matrix(role))
    }
    return ExpertGradients(
      gate: gradient(.gateWeight, rowStride: c.hidden), gateBias: bias(.gateBias, c, expert: e),
      up: gradient(.upWeight, rowStride: c.hidden), upBias: bias(.upBias, c, expert: e),
      down: gradient(.downWeight, rowStride: c.intermediate), downBias: bias(.downBias, c, expert: e))
  }

  func bias(_ wanted: Parameters.Role, _ c: ExpertGroup, expert: Int) -> UnsafeMutablePointer<Float>? {
    var (place, found) = (biases, UnsafeMutablePointer<Float>?.none)
    parameters.forEachOfMatrices { role, parameter in
      if !role.isBias { return }
      if role == wanted && !parameter.isFrozen { found = place + parameter.count / c.experts * expert }
      place += parameter.count
    }
    return found
  }
}

/// The step of one tensor, some of whose gradient is complete.
struct BlockStep {
  let optimizer: OptimizerPointer
  let tensor: TensorStep  // all of it; its gradient is nowhere

  func run(_ block: BlockGradient) { optimizer.pointee.step(block, of: tensor) }
}
