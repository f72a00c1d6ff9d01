/// The public list: the model's own parameters and those of its ffn's, in the order of the list in moe_model.h.
struct ParameterList {
  enum Place {
    case own(Int)  // slot
    case feedForward(layer: Int, index: Int)
  }

  private let places: UnsafeMutablePointer<Place>
  private let names: UnsafeMutablePointer<CChar>  // [count, nameSize], of the ffn's
  let count: Int

  private static var nameSize: Int { ModelParameters.nameSize }

  private init(_ arena: inout Arena, count: Int) {
    self.count = count
    places = arena.take(Place.self, count)
    names = arena.take(CChar.self, count, Self.nameSize)
  }

  /// In memory of its own: what the ffn's have is known when they are there.
  static func make(
    _ parameters: ModelParameters, _ feedForwards: UnsafePointer<LayerPointer?>, layers: Int, _ allocator: Allocator
  ) throws(Fault) -> ParameterList {
    var count = 0
    for slot in 0..<parameters.count where parameters[slot] != nil { count += 1 }
    for n in 0..<layers { count += feedForwards[n]?.pointee.parameterCount ?? 0 }
    var measure = Arena()
    _ = ParameterList(&measure, count: count)
    var arena = Arena(try allocator.allocate(bytes: try measure.total()))
    let list = ParameterList(&arena, count: count)
    list.fill(parameters, feedForwards, layers: layers)
    return list
  }

  func free(_ allocator: Allocator) { allocator.deallocate(places) }

  private func fill(_ parameters: ModelParameters, _ feedForwards: UnsafePointer<LayerPointer?>, layers: Int) {
    var next = 0
    func add(_ slot: Int) {
      if parameters[slot] == nil { return }
      (places + next).initialize(to: .own(slot))
      next += 1
    }
    add(ModelParameters.slot(.embedding))
    add(ModelParameters.slot(.positions))
    for n in 0..<layers {
      for role in 0..<ModelParameters.LayerRole.count {
        add(ModelParameters.slot(n, ModelParameters.LayerRole(rawValue: role)!))
      }
      guard let layer = feedForwards[n] else { continue }
      for index in 0..<layer.pointee.parameterCount {
        var text = TextBuffer(names + next * Self.nameSize, capacity: Self.nameSize)
        ModelParameters.append(n, to: &text)
        text.append("ffn.")
        text.append(layer.pointee.parameter(index).name)
        (places + next).initialize(to: .feedForward(layer: n, index: index))
        next += 1
      }
    }
    add(ModelParameters.slot(.normWeight))
    add(ModelParameters.slot(.normBias))
    add(ModelParameters.slot(.output))
  }

  subscript(index: Int) -> Place { places[index] }
  func name(_ index: Int) -> UnsafePointer<CChar> { UnsafePointer(names + index * Self.nameSize) }
}
