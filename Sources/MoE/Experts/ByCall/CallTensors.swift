import CShims

/// The experts' tensors of one call. Matrices are read, and their gradients written, where they lie. Vectors are [E,H] or
/// [E,I] floats: the caller's own, or, of another format or with gaps, copies in scratch.
struct CallTensors {
  private let c: ExpertGroup
  private let given: GivenTensors
  private let wanted: GivenTensors
  private let overwrites: Bool
  private var values = InlineArray<7, UnsafeMutablePointer<Float>?>(repeating: nil)  // [E, outputs] copies
  private var sums = InlineArray<7, UnsafeMutablePointer<Float>?>(repeating: nil)  // the same for gradients

  init(_ call: ExpertsCall) {
    c = call.group
    given = call.weights
    wanted = call.gradients
    overwrites = call.overwrites
  }

  // MARK: what the experts ask for

  func tensors(_ c: ExpertGroup, expert e: Int) -> ExpertTensors {
    let nowhere = StoredMatrix(UnsafeRawPointer(bitPattern: Allocator.alignment)!, c.weights, rowStride: 1)
    // In place of what was packed nobody reads anything.
    let down = given[.down]?.matrix(e) ?? nowhere
    return ExpertTensors(
      gateWeight: c.gated ? given[.gate]?.matrix(e) ?? nowhere : nil, gateBias: vector(.gateBias, e),
      upWeight: c.linear ? down : given[.up]?.matrix(e) ?? nowhere, upBias: vector(.upBias, e), downWeight: down,
      downBias: vector(.downBias, e))
  }

  func gradients(expert e: Int) -> ExpertGradients {
    func matrix(_ part: GivenTensors.Part) -> GradientMatrix? {
      wanted[part]?.gradient(e, overwrites: overwrites)
    }
    return ExpertGradients(
      gate: matrix(.gate), gateBias: vectorGradient(.gateBias, e), up: matrix(.up),
      upBias: vectorGradient(.upBias, e), down: matrix(.down), downBias: vectorGradient(.downBias, e))
  }

  func vector(_ part: GivenTensors.Part, _ e: Int) -> UnsafePointer<Float>? {
    guard let tensor = given[part] else { return nil }
    return UnsafePointer(values[Int(part.rawValue)].map { $0 + e * width(part) } ?? tensor.floats(e))
  }

  func vectorGradient(_ part: GivenTensors.Part, _ e: Int) -> UnsafeMutablePointer<Float>? {
    guard let tensor = wanted[part] else { return nil }
    return sums[Int(part.rawValue)].map { $0 + e * width(part) } ?? tensor.floats(e)
  }

  private func width(_ part: GivenTensors.Part) -> Int { part.size(c)?.outputs ?? 0 }

  var hasMatrices: Bool { given[.down] != nil }

  var areRowsOfFloats: Bool {
    for number in 0..<3 {
      let part = GivenTensors.part(number)
      guard let tensor = given[part], let size = part.size(c) else { continue }
      let (output, input) = (tensor.strides.output, tensor.strides.input)
      if !StoredMatrix.isRows(of: size.inputs, tensor.type, rowStride: output, columnStride: input) { return false }
    }
    return true
  }

  var wantsGradients: Bool {
    for number in 0..<GivenTensors.Part.count where wanted[GivenTensors.part(number)] != nil { return true }
    return false
  }

  func gradientsWaitElsewhere(rowsOnly: Bool) -> Bool {
    for number in 0..<3 {
      guard let tensor = wanted[GivenTensors.part(number)] else { continue }
      let (output, input) = (tensor.strides.output, tensor.strides.input)
      let gap = rowsOnly || output >= input ? input : output  // where rows may be columns
      if tensor.type != .f32 || gap != 1 || max(output, input) > Int32.max { return true }
    }
    return false
  }

  // MARK: a call's stages

  /// Memory for vectors that have to be copied.
  mutating func layout(_ arena: inout Arena) {
    for number in 0..<GivenTensors.Part.count {
      let part = GivenTensors.part(number)
      guard part.isVector else { continue }
      func copies(_ tensor: GivenTensor?) -> UnsafeMutablePointer<Float>? {
        guard let tensor, !tensor.isFloats else { return nil }
        return arena.take(Float.self, c.experts, width(part))
      }
      values[number] = copies(given[part])
      sums[number] = copies(wanted[part])
    }
  }

  /// Before the experts: what they read, and what their gradients begin with.
  func begin(_ rows: GroupRows, _ kernels: UnsafePointer<moei_kernels>) {
    forEachVector { part, number in
      let width = width(part)
      for e in 0..<c.experts {
        let isUsed = rows.count(ofExpert: e) > 0
        if isUsed, let copy = values[number], let tensor = given[part] {
          tensor.row(e).read(0, width, into: copy + e * width, kernels)
        }
        guard let tensor = wanted[part] else { continue }
        let gradient = tensor.rowGradient(e, overwrites: overwrites)
        if let copy = sums[number] {
          if isUsed || overwrites {
            gradient.begin(copy + e * width, stride: 0, from: 0, 0, rows: 1, columns: width, kernels)
          }
        } else if overwrites {
          tensor.floats(e).update(repeating: 0, count: width)
        }
      }
    }
  }

  /// After them: gradients that were summed up elsewhere. Those of experts without rows stay as they are, or become 0.
  func finish(_ rows: GroupRows, _ kernels: UnsafePointer<moei_kernels>) {
    forEachVector { part, number in
      guard let copy = sums[number], let tensor = wanted[part] else { return }
      let width = width(part)
      for e in 0..<c.experts where overwrites || rows.count(ofExpert: e) > 0 {
        tensor.rowGradient(e, overwrites: overwrites).store(
          copy + e * width, stride: 0, to: 0, 0, rows: 1, columns: width, kernels)
      }
    }
  }

  private func forEachVector(_ body: (GivenTensors.Part, Int) -> Void) {
    for number in 0..<GivenTensors.Part.count {
      let part = GivenTensors.part(number)
      if part.isVector { body(part, number) }
    }
  }

  /// 0 in the gradients of an expert's matrices.
  func clear(expert e: Int) {
    for number in 0..<3 {
      let part = GivenTensors.part(number)
      guard let tensor = wanted[part], let size = part.size(c) else { continue }
      tensor.gradient(e, overwrites: true).clear(rows: size.outputs, columns: size.inputs)
    }
  }
}

/// Gradients that are overwritten, of experts without rows.
struct ClearGradients: Job {
  let tensors: UnsafePointer<CallTensors>
  let rows: GroupRows

  func run(_ expert: Int, _ lane: UnsafeMutablePointer<Lane>) {
    if rows.count(ofExpert: expert) == 0 { tensors.pointee.clear(expert: expert) }
  }
}
