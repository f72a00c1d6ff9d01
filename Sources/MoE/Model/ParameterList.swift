/// The public list: the model's own parameters and those of its ffn's, in the order of the list in moe_model.h.
struct ParameterList {
  enum Place {
    case own(Int)  // among the model's own
    case feedForward(layer: Int, index: Int)
  }

  private let places: UnsafeMutablePointer<Place>
  private let names: UnsafeMutablePointer<CChar>  // [count, nameSize], of the ffn's
  private let firsts: UnsafeMutablePointer<Int>  // [N + 1] where a layer's parameters begin; behind the last one's
  private let layers: Int
  let count: Int

  private static var nameSize: Int { ModelParameters.nameSize }

  private init(_ arena: inout Arena, count: Int, layers: Int) {
    self.count = count
    self.layers = layers
    firsts = arena.take(Int.self, layers + 1)
    places = arena.take(Place.self, count)
    names = arena.take(CChar.self, count, Self.nameSize)
  }

  /// In memory of its own: what the ffn's have is known when they are there.
  static func make(
    _ parameters: ModelParameters, _ feedForwards: UnsafePointer<LayerPointer?>, layers: Int, _ allocator: Allocator
  ) throws(Fault) -> ParameterList {
    var count = parameters.count
    for n in 0..<layers { count += feedForwards[n]?.pointee.parameterCount ?? 0 }
    let list = try allocator.make { ParameterList(&$0, count: count, layers: layers) }
    list.fill(parameters, feedForwards)
    return list
  }

  func free(_ allocator: Allocator) { allocator.deallocate(firsts) }

  private func fill(_ parameters: ModelParameters, _ feedForwards: UnsafePointer<LayerPointer?>) {
    var (next, own) = (0, 0)
    /// nil: what is left.
    func add(beforeLayer n: Int?) {
      while own < parameters.count && n.map({ parameters.comes(own, beforeLayer: $0) }) ?? true {
        (places + next).initialize(to: .own(own))
        (next, own) = (next + 1, own + 1)
      }
    }
    add(beforeLayer: 0)
    for n in 0..<layers {
      firsts[n] = next
      add(beforeLayer: n + 1)
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
    firsts[layers] = next
    add(beforeLayer: nil)
  }

  subscript(index: Int) -> Place { places[index] }

  /// Layer n's parameters, and where among them those of its ffn begin.
  func ofLayer(_ n: Int) -> Range<Int> { firsts[n]..<firsts[n + 1] }
  func firstOfFeedForward(_ n: Int) -> Int { index(ofLayer: n, 0) ?? firsts[n + 1] }

  /// Where parameter `own` of layer n's ffn stands.
  func index(ofLayer n: Int, _ own: Int) -> Int? {
    for index in firsts[n]..<firsts[n + 1] {
      if case .feedForward(_, own) = places[index] { return index }
    }
    return nil
  }

  /// Where a parameter of this name may be: one of a layer's, which the name tells, is looked for among these alone.
  func candidates(_ name: UnsafePointer<CChar>) -> Range<Int> {
    let prefix: StaticString = "layers."
    for i in 0..<prefix.utf8CodeUnitCount where UInt8(bitPattern: name[i]) != prefix.utf8Start[i] { return 0..<count }
    var (n, digit) = (0, prefix.utf8CodeUnitCount)
    while n < layers, name[digit] >= 48, name[digit] <= 57 {
      n = 10 * n + Int(name[digit]) - 48
      digit += 1
    }
    return n < layers ? firsts[n]..<firsts[n + 1] : 0..<0
  }
  func name(_ index: Int) -> UnsafePointer<CChar> { UnsafePointer(names + index * Self.nameSize) }
}
