/// One of the losses in a layer's objective.
public struct LossTerm {
  public var kind: Int32
  public var coefficient: Float

  public init(kind: Int32, coefficient: Float) {
    self.kind = kind
    self.coefficient = coefficient
  }
}
