/// One part of all experts where a caller has it: weights, or their gradients.
public struct GivenTensor {
  public let type: ElementType
  /// Element (0, 0, 0); not used where `experts` is.
  public let data: UnsafeMutableRawPointer?
  /// [E] where each expert's begins, in place of data and the stride of experts.
  public let experts: UnsafePointer<UnsafeMutableRawPointer?>?
  /// In elements. The boundary has checked that they reach no further than an address does.
  public let strides: (expert: Int, output: Int, input: Int)

  public init(
    _ type: ElementType, data: UnsafeMutableRawPointer?, experts: UnsafePointer<UnsafeMutableRawPointer?>?,
    strides: (expert: Int, output: Int, input: Int)
  ) {
    self.type = type
    self.data = data
    self.experts = experts
    self.strides = strides
  }

  private func data(_ e: Int) -> UnsafeMutableRawPointer { experts.map { $0[e]! } ?? data! }
  private func first(_ e: Int) -> Int { experts == nil ? e * strides.expert : 0 }

  /// Expert e's, [outputs, inputs].
  func matrix(_ e: Int) -> StoredMatrix {
    StoredMatrix(data(e), type, first: first(e), rowStride: strides.output, columnStride: strides.input)
  }
  func gradient(_ e: Int, overwrites: Bool) -> GradientMatrix {
    GradientMatrix(
      data(e), type, first: first(e), rowStride: strides.output, columnStride: strides.input, overwrites: overwrites)
  }

  /// Expert e's vector [outputs], as a matrix of one row.
  func row(_ e: Int) -> StoredMatrix {
    StoredMatrix(data(e), type, first: first(e), rowStride: 0, columnStride: strides.output)
  }
  func rowGradient(_ e: Int, overwrites: Bool) -> GradientMatrix {
    GradientMatrix(data(e), type, first: first(e), rowStride: 0, columnStride: strides.output, overwrites: overwrites)
  }

  /// A vector that can be read and added to as it lies.
  var isFloats: Bool { type == .f32 && strides.output == 1 }
  func floats(_ e: Int) -> UnsafeMutablePointer<Float> { data(e).assumingMemoryBound(to: Float.self) + first(e) }
}

/// The parts that a call gives, or wants the gradients of.
public struct GivenTensors {
  /// Numbers as in moe_expert_part.
  public enum Part: Int32 {
    case gate = 0
    case up = 1
    case down = 2
    case gateBias = 3
    case upBias = 4
    case downBias = 5
    case constant = 6

    public static var count: Int { 7 }
    /// Those without inputs.
    public var isVector: Bool { rawValue > Part.down.rawValue }

    /// How many outputs and inputs it has; nil where such experts have no such part.
    public func size(_ c: ExpertGroup) -> (outputs: Int, inputs: Int)? {
      switch self {
      case .gate: c.kind == .gated ? (c.intermediate, c.hidden) : nil
      case .up: c.kind == .gated || c.kind == .mlp ? (c.intermediate, c.hidden) : nil
      case .down: c.multiplies ? (c.hidden, c.intermediate) : nil
      case .gateBias: c.kind == .gated ? (c.intermediate, 1) : nil
      case .upBias: c.kind == .gated || c.kind == .mlp ? (c.intermediate, 1) : nil
      case .downBias: c.multiplies ? (c.hidden, 1) : nil
      case .constant: c.kind == .constant ? (c.hidden, 1) : nil
      }
    }
  }

  private var list = InlineArray<7, GivenTensor?>(repeating: nil)

  public init() {}

  public subscript(part: Part) -> GivenTensor? {
    get { list[Int(part.rawValue)] }
    set { list[Int(part.rawValue)] = newValue }
  }

  /// Number 0 to 6.
  static func part(_ number: Int) -> Part { Part(rawValue: Int32(number))! }
}
