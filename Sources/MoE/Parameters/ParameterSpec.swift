/// What a parameter is before it has memory.
struct ParameterSpec {
  enum Initial {
    case normal(Double)  // the standard deviation
    case uniform(Double)  // the bound
    case value(Float)
  }

  let name: StaticString  // behind what its owner's names begin with
  let rank: Int
  let shape: (Int, Int, Int)  // entries from `rank` on are 1
  let initial: Initial
  var type = ElementType.f32
  /// State that no gradient moves.
  var isBuffer = false

  private init(_ name: StaticString, _ rank: Int, _ shape: (Int, Int, Int), _ initial: Initial) {
    (self.name, self.rank, self.shape, self.initial) = (name, rank, shape, initial)
  }

  static func vector(_ name: StaticString, _ n: Int, _ initial: Initial) -> ParameterSpec {
    ParameterSpec(name, 1, (n, 1, 1), initial)
  }
  static func matrix(_ name: StaticString, _ n: Int, _ m: Int, _ initial: Initial) -> ParameterSpec {
    ParameterSpec(name, 2, (n, m, 1), initial)
  }
  /// One matrix for each expert.
  static func matrices(_ name: StaticString, _ e: Int, _ n: Int, _ m: Int, _ initial: Initial) -> ParameterSpec {
    ParameterSpec(name, 3, (e, n, m), initial)
  }

  /// This spec, of a buffer; below, of a tensor in another type.
  func buffer() -> ParameterSpec {
    var own = self
    own.isBuffer = true
    return own
  }
  func stored(as type: ElementType) -> ParameterSpec {
    var own = self
    own.type = type
    return own
  }
}
