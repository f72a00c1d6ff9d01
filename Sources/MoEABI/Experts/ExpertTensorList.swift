import CMoE
import MoE

// The caller's list of moe_expert_tensor: which parts there are, and that their strides lead to no other place than they say.

/// Whose list it is, and so how its tensors are called.
enum ExpertTensorUse: UInt8 {
  case weights
  case gradients

  var isWritten: Bool { self == .gradients }
}

/// A list that has been counted, and no more.
struct ExpertTensorList {
  let tensors: UnsafePointer<moe_expert_tensor>?
  let count: Int
  let use: ExpertTensorUse

  init(_ tensors: UnsafePointer<moe_expert_tensor>?, _ count: Int, _ use: ExpertTensorUse) {
    (self.tensors, self.count, self.use) = (tensors, count, use)
  }

  var name: StaticString {
    switch use {
    case .weights: "config.weights"
    case .gradients: "gradients.tensors"
    }
  }

  /// Field by field.
  fileprivate func read(_ operands: inout Operands) throws(Fault) -> UnsafePointer<moe_expert_tensor> {
    let tensors = try operands.reads(tensors, count, name)
    for number in 0..<count { try tensors[number].requireBounds(Bounds(name)) }
    return tensors
  }
}

extension GivenTensors {
  /// `planned`: a call that is not made, whose memory need not be there.
  init(
    _ list: ExpertTensorList, _ group: ExpertGroup, planned: Bool, _ operands: inout Operands
  ) throws(Fault) {
    self.init()
    let tensors = try list.read(&operands)
    for number in 0..<list.count {
      let tensor = tensors[number]
      let part: Part = try named(tensor.part)
      guard let size = part.size(group) else {
        throw .invalid(
          "\(list.name)[\(number)] is \(part.constant), which experts of expert_kind = \(Int(group.kind.rawValue)) do not have: leave it out"
        )
      }
      if self[part] != nil {
        throw .invalid("\(list.name)[\(number)] is a second \(part.constant): list each part once")
      }
      let given = try ExpertTensorPlace(tensor, part, size, group, list.use)
      if !planned { try given.add(to: &operands) }
      self[part] = given.tensor
    }
  }

  /// Whether all matrices are there that such experts have, in one type; `mayBeAbsent`: or none.
  func requireMatrices(_ group: ExpertGroup, mayBeAbsent: Bool) throws(Fault) {
    var (missing, found): (Part?, Part?) = (nil, nil)
    for number: Int32 in 0..<Int32(Part.count) {
      let part: Part = try named(number)
      // Biases are optional; a constant is all that such experts have.
      if part.size(group) == nil || part.isVector && part != .constant { continue }
      guard let tensor = self[part] else {
        missing = part
        continue
      }
      if let found, self[found]!.type != tensor.type {
        throw .invalid(
          "\(part.constant) of weights has another dtype than \(found.constant): convert one, the matrices of one call have the same"
        )
      }
      found = part
    }
    guard let missing else { return }
    if mayBeAbsent && found == nil { return }
    throw .invalid(
      "weights have no \(missing.constant), which experts of expert_kind = \(Int(group.kind.rawValue)) compute with: list it"
    )
  }
}

extension GivenTensors.Part {
  var constant: StaticString {
    switch self {
    case .gate: "MOE_EXPERT_PART_GATE"
    case .up: "MOE_EXPERT_PART_UP"
    case .down: "MOE_EXPERT_PART_DOWN"
    case .gateBias: "MOE_EXPERT_PART_GATE_BIAS"
    case .upBias: "MOE_EXPERT_PART_UP_BIAS"
    case .downBias: "MOE_EXPERT_PART_DOWN_BIAS"
    case .constant: "MOE_EXPERT_PART_CONSTANT"
    }
  }

  /// For messages about memory.
  fileprivate func name(_ use: ExpertTensorUse) -> StaticString {
    switch (self, use.isWritten) {
    case (.gate, false): "GATE of weights"
    case (.up, false): "UP of weights"
    case (.down, false): "DOWN of weights"
    case (.gateBias, false): "GATE_BIAS of weights"
    case (.upBias, false): "UP_BIAS of weights"
    case (.downBias, false): "DOWN_BIAS of weights"
    case (.constant, false): "CONSTANT of weights"
    case (.gate, true): "GATE of gradients"
    case (.up, true): "UP of gradients"
    case (.down, true): "DOWN of gradients"
    case (.gateBias, true): "GATE_BIAS of gradients"
    case (.upBias, true): "UP_BIAS of gradients"
    case (.downBias, true): "DOWN_BIAS of gradients"
    case (.constant, true): "CONSTANT of gradients"
    }
  }
}

/// How far one tensor's strides reach, and in what rows its memory is taken.
private struct ExpertTensorPlace {
  let tensor: GivenTensor
  private let name: StaticString
  private let use: ExpertTensorUse
  private let experts: Int
  private var bytes: UInt = 0
  /// Where there are gaps: so many bytes of each stretch of so many.
  private var width: UInt = 0
  private var stride: UInt = 0

  /// One dimension.
  private struct Extent {
    var count = 1
    var stride = 0
  }

  init(
    _ given: moe_expert_tensor, _ part: GivenTensors.Part, _ size: (outputs: Int, inputs: Int), _ group: ExpertGroup,
    _ use: ExpertTensorUse
  ) throws(Fault) {
    self.use = use
    name = part.name(use)
    experts = group.experts
    let type = try elementType(given.dtype, name)
    let strides = given.strides
    var inputs = Extent(count: part.isVector ? 1 : size.inputs, stride: part.isVector ? 0 : Int(strides.2))
    var outputs = Extent(count: size.outputs, stride: Int(strides.1))
    var rows = given.experts == nil ? Extent(count: group.experts, stride: Int(strides.0)) : Extent()
    let least = min(inputs.stride, outputs.stride, rows.stride)
    if least < 0 {
      throw .invalid("\(name): a stride of \(least) is negative; start at the other end, strides are 0 or more")
    }
    // The stride of one element leads nowhere: it may be any number, and becomes one without gaps.
    if inputs.count == 1 { inputs.stride = part.isVector ? 0 : 1 }
    if outputs.count == 1 { outputs.stride = inputs.stride &* (inputs.count - 1) &+ 1 }
    if rows.count == 1 { rows.stride = 0 }
    tensor = GivenTensor(
      type, data: given.data, experts: given.experts.map { UnsafePointer($0) },
      strides: (rows.stride, outputs.stride, inputs.stride))
    try measure(rows, outputs, inputs, type)
  }

  /// From the smallest stride to the largest: what lies within one step of it.
  private mutating func measure(
    _ rows: Extent, _ outputs: Extent, _ inputs: Extent, _ type: ElementType
  ) throws(Fault) {
    var sorted = InlineArray<3, Extent>(repeating: Extent())
    (sorted[0], sorted[1], sorted[2]) = (inputs, outputs, rows)
    for i in 0..<2 {
      for j in 0..<2 - i where sorted[j].stride > sorted[j + 1].stride {
        (sorted[j], sorted[j + 1]) = (sorted[j + 1], sorted[j])
      }
    }
    var extent = 1  // elements from the first to the last
    var (ownWidth, ownStride) = (0, 0)
    for i in 0..<3 where sorted[i].count > 1 {
      let (count, step) = (sorted[i].count, sorted[i].stride)
      if use.isWritten && step < extent {
        throw .invalid(
          "\(name): a stride of \(step) puts two of its elements in one place; each needs a place of its own, here a stride of \(extent) or more"
        )
      }
      if ownStride == 0 && step > extent { (ownWidth, ownStride) = (extent, step) }
      // Rows that take turns do so only where all larger steps are whole numbers of theirs.
      if ownStride > 0 && step % ownStride != 0 { (ownWidth, ownStride) = (0, -1) }
      let (reach, tooFar) = step.multipliedReportingOverflow(by: count - 1)
      let (end, beyond) = extent.addingReportingOverflow(reach)
      if tooFar || beyond || end > Int.max / 8 {
        throw .invalid("\(name): the bytes that a stride of \(step) reaches over do not fit in 63 bits")
      }
      extent = end
    }
    bytes = UInt(type.bytes(extent))
    if ownStride > 0 { (width, stride) = (UInt(type.bytes(ownWidth)), UInt(type.bytes(ownStride))) }
  }

  func add(to operands: inout Operands) throws(Fault) {
    if experts == 0 { return }  // a rank without any
    guard let list = tensor.experts else {
      if tensor.data == nil { throw .invalid("\(name): data is NULL, and so is experts") }
      return try operands.add(operand(tensor.data, index: nil))
    }
    if tensor.data != nil { throw .invalid("\(name): neither data nor experts is NULL; give one of them") }
    try operands.reads(list, experts, name)
    for e in 0..<experts where list[e] == nil { throw .invalid("\(name): experts[\(e)] is NULL") }
  }

  /// Expert number `index`'s memory, or that of all.
  func operand(_ memory: UnsafeMutableRawPointer?, index: Int?) -> Operand {
    Operand(
      memory, bytes: bytes, cText(name), writes: use.isWritten, part: index == nil ? .array : .ofExpert,
      index: index ?? 0, alignment: tensor.type.alignment
    ).inRows(of: width, stride: stride)
  }
}

/// The memory of experts that are listed one by one.
struct ExpertMemory: OperandList {
  let lists: ExpertLists
  let group: ExpertGroup

  func visit(_ body: (Operand) -> Void) {
    visit(lists.weights, body)
    visit(lists.gradients, body)
  }

  /// The list has been checked.
  private func visit(_ list: ExpertTensorList, _ body: (Operand) -> Void) {
    for number in 0..<list.count {
      let tensor = list.tensors![number]
      guard let experts = tensor.experts, let part = GivenTensors.Part(rawValue: tensor.part),
        let size = part.size(group)
      else { continue }
      let place: ExpertTensorPlace
      do throws(Fault) {
        place = try ExpertTensorPlace(tensor, part, size, group, list.use)
      } catch {
        continue  // which it was not when it was checked
      }
      for e in 0..<group.experts { body(place.operand(experts[e], index: e)) }
    }
  }
}
