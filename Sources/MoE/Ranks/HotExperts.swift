import CShims

// Experts that so many rows want that their weights travel in place of the rows (shadowed experts: He et al., FasterMoE, PPoPP 2022).
// Every rank computes its own tokens' rows of them, with the bits that the owner would have come to. A gradient is the chain over all
// tokens: it begins at the owner, goes on from rank to rank, and ends at the owner (HotExchange.swift).

/// Which of a chunk's experts they are: the same on all ranks.
public struct HotExperts {
  /// What the boundary has of it.
  public struct Wanted {
    public var most = 0
    public var numbers: UnsafePointer<Int32>?  // [most]

    public init(most: Int = 0, numbers: UnsafePointer<Int32>? = nil) { (self.most, self.numbers) = (most, numbers) }
  }

  let most: Int
  /// Whether the caller has named them.
  private let areNamed: Bool
  private(set) var count = 0
  private let named: UnsafeMutablePointer<Int32>  // [most]
  let numbers: UnsafeMutablePointer<Int32>  // [most] ascending, so that those of an owner are neighbours
  /// [experts + shared] In a rank's dispatch: hot ones behind the other chosen ones.
  private let places: UnsafeMutablePointer<Int32>
  private let colder: UnsafeMutablePointer<Int32>  // [experts + 1] how many before each are not hot
  private let saved: UnsafeMutablePointer<Int>  // [experts] bytes
  private let values: UnsafeMutablePointer<Configuration.Values>
  private let group: UnsafeMutablePointer<ExpertGroup>  // of the hot ones alone
  let tensors: UnsafeMutablePointer<CallTensors>

  init(_ arena: inout Arena, _ wanted: Wanted, _ c: Configuration.Values?) {
    (most, areNamed) = (wanted.most, wanted.numbers != nil)
    let experts = most == 0 ? 0 : c?.experts ?? 0
    named = arena.take(Int32.self, most)
    numbers = arena.take(Int32.self, most)
    places = arena.take(Int32.self, experts + (c?.shared ?? 0))
    colder = arena.take(Int32.self, experts + 1)
    saved = arena.take(Int.self, experts)
    values = arena.take(Configuration.Values.self, 1)
    group = arena.take(ExpertGroup.self, 1)
    tensors = arena.take(CallTensors.self, 1)
  }

  /// Once, of the layer as it is in its own memory.
  func begin(_ wanted: Wanted, _ c: Configuration) {
    if most == 0 { return }
    numbers.update(repeating: .noExpert, count: most)
    if let given = wanted.numbers { named.update(from: given, count: most) }
    group.initialize(to: c.groups[0])
    values.initialize(to: c.values.pointee)
    values.pointee.groups = UnsafePointer(group)
    values.pointee.groupCount = 1
    tensors.initialize(to: CallTensors(call))
  }

  /// The experts as a call has them whose tensors lie elsewhere.
  var call: ExpertsCall { ExpertsCall(group.pointee, tokenType: .f32, tokens: 0, topK: 1) }
  /// A layer with the hot ones alone, behind the others.
  var configuration: Configuration { Configuration(values) }

  // MARK: choosing

  /// The most that there can be, while memory is measured.
  mutating func assumeMost() { arrange(most) }
  mutating func chooseNone() { arrange(0) }

  /// Those that are named, or those for which `bytes` saved are most and more than none.
  mutating func choose(_ bytes: (_ expert: Int) -> Int) {
    var found = 0
    if areNamed {
      for i in 0..<most { insert(named[i], &found) }
    } else {
      for e in 0..<values.pointee.experts { saved[e] = bytes(e) }
      while found < most {
        var best = 0
        for e in 1..<values.pointee.experts where saved[e] > saved[best] { best = e }
        if saved[best] <= 0 { break }
        saved[best] = 0
        insert(Int32(truncatingIfNeeded: best), &found)
      }
    }
    arrange(found)
  }

  /// Those of a chunk on a tape, [most]; behind the last one there are none.
  mutating func choose(_ kept: UnsafePointer<Int32>) {
    var found = 0
    while found < most && kept[found].isExpert {
      numbers[found] = kept[found]
      found += 1
    }
    arrange(found)
  }

  func keep(in kept: UnsafeMutablePointer<Int32>) {
    for i in 0..<most { kept[i] = i < count ? numbers[i] : .noExpert }
  }

  private func insert(_ number: Int32, _ found: inout Int) {
    var place = found
    while place > 0 && numbers[place - 1] > number {
      numbers[place] = numbers[place - 1]
      place -= 1
    }
    numbers[place] = number
    found += 1
  }

  private mutating func arrange(_ found: Int) {
    count = found
    if most == 0 { return }
    let experts = values.pointee.experts
    group.pointee = group.pointee.with(experts: found)
    group.pointee.first = experts - found
    var hot: Int32 = 0
    for e in 0..<experts {
      let number = Int32(truncatingIfNeeded: e)
      colder[e] = number - hot
      let isHot = Int(hot) < found && numbers[Int(hot)] == number
      places[e] = isHot ? Int32(truncatingIfNeeded: experts - found) + hot : number - hot
      if isHot { hot += 1 }
    }
    colder[experts] = Int32(truncatingIfNeeded: experts) - hot
    for s in 0..<values.pointee.shared { places[experts + s] = Int32(truncatingIfNeeded: experts + s) }
  }

  // MARK: asking

  func contains(_ expert: Int) -> Bool { count > 0 && colder[expert] == colder[expert + 1] }
  /// How many of the experts before one are not hot: with which row of a dispatch its own begin.
  func cold(before expert: Int) -> Int { count == 0 ? expert : Int(colder[expert]) }
  /// Where experts stand in a dispatch; nil where each has the place of its number.
  var order: UnsafePointer<Int32>? { count == 0 ? nil : UnsafePointer(places) }
  /// Which of the hot ones are among these.
  func range(of experts: Range<Int>) -> Range<Int> {
    if count == 0 { return 0..<0 }
    return experts.lowerBound - cold(before: experts.lowerBound)..<experts.upperBound - cold(before: experts.upperBound)
  }

  // MARK: the tensors of one, one after another

  /// Biases come first, so that floats lie at whole floats. `place`: bytes before it.
  func forEachPart(
    _ body: (_ part: GivenTensors.Part, _ type: ElementType, _ place: Int, _ size: (outputs: Int, inputs: Int)) -> Void
  ) {
    var place = 0
    for number in 0..<6 {
      let part = GivenTensors.part((number + 3) % 6)
      guard let size = part.size(group.pointee), !part.isVector || group.pointee.hasBias else { continue }
      let type = part.isVector ? ElementType.f32 : group.pointee.weights
      body(part, type, place, size)
      place += type.bytes(size.outputs * size.inputs)
    }
  }

  /// Whole cache lines.
  var bytesOfOne: Int {
    var bytes = 0
    forEachPart { _, type, place, size in bytes = place + type.bytes(size.outputs * size.inputs) }
    return (bytes + Allocator.alignment - 1) / Allocator.alignment * Allocator.alignment
  }
  var floatsOfOne: Int { group.pointee.elementsOfOne }
}

extension GivenTensors.Part {
  var role: Parameters.Role {
    switch self {
    case .gate: .gateWeight
    case .up: .upWeight
    case .down: .downWeight
    case .gateBias: .gateBias
    case .upBias: .upBias
    case .downBias: .downBias
    case .constant: .constant
    }
  }
}

extension Ranks {
  /// The hot experts of a chunk, from what the ranks have told of their choices. `type`: of rows of x.
  mutating func chooseHot(_ c: Configuration, _ type: ElementType, isTaped: Bool) {
    if hot.most == 0 { return }
    let (row, word) = (c.hidden * MemoryLayout<Float>.stride, MemoryLayout<Float>.stride)
    let there = type.bytes(c.hidden) + row  // x, and what comes back
    let back = c.tokens.bytes(c.hidden) + row + 2 * word  // dy and a weight; dx and its gradient
    let bytesOfRow = there + (isTaped ? back : 0)
    let (weights, gradient) = (hot.bytesOfOne, hot.floatsOfOne * MemoryLayout<Float>.stride)
    // To all others, where backward follows twice; gradients to the first rank, from rank to rank, and back from the last one.
    let cost = (size - 1) * weights * (isTaped ? 2 : 1) + (isTaped ? (size + 1) * gradient : 0)
    let (all, own) = (c.experts, self)
    hot.choose { expert in
      var rows = 0
      for other in 0..<own.size where !own.placement.experts(of: other).contains(expert) {
        rows += Int(own.words(of: other, all)[expert])
      }
      return rows * bytesOfRow - cost
    }
  }
}
