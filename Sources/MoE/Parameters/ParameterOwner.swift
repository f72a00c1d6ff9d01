/// What has parameters, and tapes of its calls: a layer, or a model with those of its layers.
public protocol ParameterOwner {
  associatedtype CallTape
  /// For messages.
  static var noun: StaticString { get }
  /// Whether there is memory for gradients at all.
  var isTrainable: Bool { get }

  var parameterCount: Int { get }
  func parameter(_ index: Int) -> Parameter
  func find(_ name: UnsafePointer<CChar>) -> Int?
  /// Refuses a parameter that cannot be the caller's.
  func requireBindable(_ parameter: Parameter) throws(Fault)
  func bind(_ index: Int, data: UnsafeMutableRawPointer, grad: UnsafeMutablePointer<Float>?)
  func zeroGrad()
  /// Whether the tape was made for it.
  func owns(_ tape: UnsafePointer<CallTape>) -> Bool
}

extension Layer: ParameterOwner {
  public typealias CallTape = Tape
  public static var noun: StaticString { "layer" }
  public var isTrainable: Bool { configuration.trainable }

  public func find(_ name: UnsafePointer<CChar>) -> Int? {
    for index in 0..<parameterCount where compareText(parameter(index).name, name) == 0 { return index }
    return nil
  }

  public func requireBindable(_ parameter: Parameter) throws(Fault) {
    if isOffloaded && parameter.isUnallocated {
      throw .badState("\(parameter.name) is offloaded: there is nothing to bind")
    }
  }
}

extension Model: ParameterOwner {
  public typealias CallTape = ModelTape
  public static var noun: StaticString { "model" }
  public var isTrainable: Bool { configuration.trainable }
  public func requireBindable(_ parameter: Parameter) throws(Fault) {}
}
