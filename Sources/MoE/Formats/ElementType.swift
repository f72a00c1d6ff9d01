import CShims

/// What a tensor's elements are. Some numbers as in moe_dtype.
public enum ElementType: Int32 {
  case f32 = 0
  case bf16 = 1
  case f16 = 2

  /// The table of formats: each row stands in a file of its own, and says all that the engine asks of one.
  public var format: Format {
    switch self {
    case .f32: .f32
    case .bf16: .bf16
    case .f16: .f16
    }
  }
}

/// One way to write single numbers down in memory; those that share a scale are panels (PanelCode.swift).
public struct Format {
  typealias Kernels = UnsafePointer<moei_kernels>

  /// As in moe_dtype.
  public let constant: StaticString
  /// Of an element.
  let bytes: Int
  /// What becomes of tokens that are multiplied with such weights.
  let precision: PrecisionKind
  /// Whether arrays of tokens and moments of optimisers may be in it as well.
  public let isForTokens: Bool
  /// So many floats from element `first` on, exactly.
  let toFloats:
    @convention(c) (Kernels, UnsafeRawPointer, _ first: Int, _ count: Int, UnsafeMutablePointer<Float>) -> Void
  /// So many elements from `first` on become the floats, rounded to the nearest, the even one in a tie.
  let fromFloats:
    @convention(c) (Kernels, UnsafePointer<Float>, _ count: Int, UnsafeMutableRawPointer, _ first: Int) -> Void
}

extension ElementType {
  /// Of so many elements. The boundary has seen to it that they fit.
  public func bytes(_ count: Int) -> Int { count * unit }

  /// Bytes of an element.
  public var unit: Int { format.bytes }
  public var alignment: Int { unit }

  /// Rounding may be added, as a layer with weights of that type has it, but not left out.
  public func canBePrepared(as form: PanelForm) -> Bool {
    guard case .elements(let type) = form.contents else { return true }
    return format.precision == .f32 || format.precision == type.format.precision
  }

  func toFloats(
    _ data: UnsafeRawPointer, _ first: Int, _ count: Int, _ floats: UnsafeMutablePointer<Float>,
    _ kernels: UnsafePointer<moei_kernels>
  ) {
    format.toFloats(kernels, data, first, count, floats)
  }

  func fromFloats(
    _ floats: UnsafePointer<Float>, _ count: Int, _ data: UnsafeMutableRawPointer, _ first: Int,
    _ kernels: UnsafePointer<moei_kernels>
  ) {
    format.fromFloats(kernels, floats, count, data, first)
  }
}
