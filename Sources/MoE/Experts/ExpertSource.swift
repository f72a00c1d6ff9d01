import CShims

/// Where the experts' tensors are: in a layer's memory, or wherever the caller of one call has them. Everything about
/// experts asks here.
enum ExpertSource {
  /// `frozen`: of which no gradient of matrices and their biases is wanted, whichever of these are trained.
  case layer(Parameters, frozen: Bool)
  case call(UnsafePointer<CallTensors>)

  /// The tensors of one group's experts, which the other questions are about.
  func of(_ group: ExpertGroup) -> ExpertSource {
    switch self {
    case .layer(let parameters, let frozen): .layer(parameters.of(group), frozen: frozen)
    case .call: self
    }
  }

  /// Number e's, counted within the group.
  func tensors(_ c: ExpertGroup, expert e: Int) -> ExpertTensors {
    switch self {
    case .layer(let parameters, _): ExpertTensors(c, expert: e, parameters)
    case .call(let tensors): tensors.pointee.tensors(c, expert: e)
    }
  }

  func downBias(_ c: ExpertGroup, expert e: Int) -> UnsafePointer<Float>? {
    switch self {
    case .layer(let parameters, _): parameters.data(.downBias).map { UnsafePointer($0 + e * c.hidden) }
    case .call(let tensors): tensors.pointee.vector(.downBias, e)
    }
  }

  /// A constant expert's vector [H].
  func constant(_ c: ExpertGroup, expert e: Int) -> UnsafePointer<Float> {
    switch self {
    case .layer(let parameters, _): UnsafePointer(parameters.data(.constant)! + e * c.hidden)
    case .call(let tensors): tensors.pointee.vector(.constant, e)!
    }
  }

  /// Where an expert's matrices lie among those that were packed.
  func place(ofExpert e: Int) -> Int {
    switch self {
    case .layer(let parameters, _): parameters.place(ofExpert: e)
    case .call: e
    }
  }

  /// Whether what was packed can be compared with the matrices it was packed from. What came from a file is as it was, and so is
  /// what is nowhere else.
  var hasMatricesToCompare: Bool {
    switch self {
    case .layer(let parameters, _): !parameters.areOffloaded && !parameters.areReleased
    case .call(let tensors): tensors.pointee.hasMatrices
    }
  }

  /// Whether row-major products can take the matrices as they lie.
  func areRowsOfFloats(_ c: ExpertGroup) -> Bool {
    switch self {
    case .layer: c.weights == .f32
    case .call(let tensors): tensors.pointee.areRowsOfFloats
    }
  }

  /// Of prepared weights.
  func outdated(expert e: Int) -> Fault {
    switch self {
    case .layer:
      .badState("the weights of expert \(e) have changed since moe_layer_prepare; prepare the layer again")
    case .call:
      .badState(
        "the weights of expert \(e) are not those that were packed: they have changed since moe_experts_prepare, or belong to other experts; prepare these"
      )
    }
  }

  // MARK: gradients

  /// Of matrices and their biases, those that are wanted.
  func gradients(_ c: ExpertGroup, expert e: Int) -> ExpertGradients {
    switch self {
    case .layer(let parameters, _): ExpertGradients(in: parameters, c, expert: e)
    case .call(let tensors): tensors.pointee.gradients(expert: e)
    }
  }

  func constantGradient(_ c: ExpertGroup, expert e: Int) -> UnsafeMutablePointer<Float>? {
    switch self {
    case .layer(let parameters, _): parameters.grad(.constant).map { $0 + e * c.hidden }
    case .call(let tensors): tensors.pointee.vectorGradient(.constant, e)
    }
  }

  /// Whether any gradient of matrices and their biases is wanted.
  var wantsGradients: Bool {
    switch self {
    case .layer(let parameters, let frozen): !frozen && parameters.trainsMatrices
    case .call(let tensors): tensors.pointee.wantsGradients
    }
  }

  /// Whether the sums of some gradient cannot wait where it lies, and where row-major products write none but rows.
  func gradientsWaitElsewhere(rowsOnly: Bool) -> Bool {
    switch self {
    case .layer: false
    case .call(let tensors): tensors.pointee.gradientsWaitElsewhere(rowsOnly: rowsOnly)
    }
  }
}

extension ExpertTensors {
  fileprivate init(_ c: ExpertGroup, expert e: Int, _ parameters: Parameters) {
    let (h, i, place) = (c.hidden, c.intermediate, parameters.place(ofExpert: e))
    func matrix(_ role: Parameters.Role, rowStride: Int) -> StoredMatrix? {
      parameters.memory(role).map { StoredMatrix($0, c.weights, first: place * i * h, rowStride: rowStride) }
    }
    func bias(_ role: Parameters.Role, _ width: Int) -> UnsafePointer<Float>? {
      parameters.data(role).map { UnsafePointer($0 + e * width) }
    }
    gateWeight = matrix(.gateWeight, rowStride: h)
    gateBias = bias(.gateBias, i)
    upWeight = matrix(c.linear ? .downWeight : .upWeight, rowStride: h)!
    upBias = bias(.upBias, i)
    downWeight = matrix(.downWeight, rowStride: i)!
    downBias = bias(.downBias, h)
  }
}

extension ExpertGradients {
  fileprivate init(in parameters: Parameters, _ c: ExpertGroup, expert e: Int) {
    let (h, i) = (c.hidden, c.intermediate)
    func part(_ role: Parameters.Role, _ place: Int) -> UnsafeMutablePointer<Float>? {
      parameters.grad(role).map { $0 + place }
    }
    gateWeight = part(.gateWeight, e * i * h).map { GradientMatrix($0, rowStride: h) }
    gateBias = part(.gateBias, e * i)
    upWeight = part(.upWeight, e * i * h).map { GradientMatrix($0, rowStride: h) }
    upBias = part(.upBias, e * i)
    downWeight = part(.downWeight, e * i * h).map { GradientMatrix($0, rowStride: i) }
    downBias = part(.downBias, e * h)
  }
}
