import CShims

/// One parameter tensor: row-major without gaps. Its gradient is float32 whatever the type, so that sums lose nothing.
/// Its many fields are what moe_tensor tells of a parameter, and whose memory each of its arrays is.
public struct Parameter {
  public private(set) var name: UnsafePointer<CChar>  // memory of the layer or model
  public let rank: Int
  public let shape: (Int, Int, Int)  // entries from `rank` on are 1
  public let count: Int
  public let type: ElementType
  public var bytes: Int { type.bytes(count) }
  /// What is multiplied with it is rounded to this.
  var precision: PrecisionKind { panels?.pointee.forms.precision ?? type.format.precision }
  /// State that no gradient moves, and no optimiser.
  public let isBuffer: Bool
  /// Buffers have none, nor has anything where nothing is trained.
  public let hasGradient: Bool
  /// Matrices and biases of experts: backward may step them expert by expert, with no memory for the whole gradient.
  public let isOfMatrices: Bool
  /// Whether its memory is the caller's to bind, and that of its gradient.
  public let isUnallocated: Bool
  public private(set) var data: UnsafeMutableRawPointer?
  /// Memory of the gradient; nil where there is none, or no memory for it.
  public private(set) var gradMemory: UnsafeMutablePointer<Float>?
  /// A packed copy, where it is a matrix that was prepared.
  private(set) var panels: PanelMatrixPointer?
  /// Whether its values are in packed copies alone.
  public private(set) var isReleased = false
  /// Whether its values in few bits are computed with in place of its own.
  public private(set) var isInBlocks = false
  private var hasGivenUpGradient = false
  /// Whether nothing trains it: the gradient that it could have is given up, or it is in few bits, as long as it is.
  public var isFrozen: Bool { hasGivenUpGradient || isInBlocks }
  /// Whether backward makes its gradient.
  public var isTrained: Bool { hasGradient && !isFrozen }
  /// What backward adds to.
  public var grad: UnsafeMutablePointer<Float>? { isInBlocks ? nil : gradMemory }
  private var ownsData = true
  private var ownsGrad = true

  /// The boundary has seen to it that the bytes fit.
  init(
    name: UnsafePointer<CChar>, _ spec: ParameterSpec, hasGradient: Bool, isOfMatrices: Bool, isUnallocated: Bool
  ) {
    self.name = name
    rank = spec.rank
    shape = spec.shape
    count = shape.0 * shape.1 * shape.2
    type = spec.type
    isBuffer = spec.isBuffer
    self.hasGradient = hasGradient
    self.isOfMatrices = isOfMatrices
    self.isUnallocated = isUnallocated
  }

  /// This parameter, its memory included, under another name.
  func named(_ name: UnsafePointer<CChar>) -> Parameter {
    var own = self
    own.name = name
    return own
  }

  // MARK: life

  /// Once; on an error `free` finds what is there.
  mutating func allocate(_ allocator: Allocator, gradient: Bool = true) throws(Fault) {
    data = try allocator.allocate(bytes: bytes)
    isReleased = false
    if gradient { try allocateGradient(allocator) }
  }

  /// Memory for the gradient that backward makes, where there is none.
  mutating func allocateGradient(_ allocator: Allocator) throws(Fault) {
    if isTrained && gradMemory == nil { gradMemory = try allocator.allocate(Float.self, count: count) }
  }

  /// What is bound already, the library's own memory perhaps, stays as it is. With a gradient it is no longer frozen.
  mutating func bind(data: UnsafeMutableRawPointer, grad: UnsafeMutablePointer<Float>?, allocator: Allocator) {
    if self.data != data {
      if ownsData { allocator.deallocate(self.data) }
      self.data = data
      ownsData = false
      isReleased = false
    }
    guard let grad, gradMemory != grad else { return }
    if ownsGrad { allocator.deallocate(gradMemory) }
    gradMemory = grad
    (ownsGrad, hasGivenUpGradient) = (false, false)
  }

  /// Gives up the gradient and its memory.
  mutating func freeze(_ allocator: Allocator) {
    giveUpGradientMemory(allocator)
    hasGivenUpGradient = true
  }

  private mutating func giveUpGradientMemory(_ allocator: Allocator) {
    if ownsGrad { allocator.deallocate(gradMemory) }
    (gradMemory, ownsGrad) = (nil, true)
  }

  func free(_ allocator: Allocator) {
    if ownsData { allocator.deallocate(data) }
    if ownsGrad { allocator.deallocate(gradMemory) }
    panels?.free(allocator)
  }

  // MARK: a packed copy

  /// In place of what was packed before; nil: none from now on.
  mutating func replacePanels(_ packed: PanelMatrixPointer?, _ allocator: Allocator) {
    panels?.free(allocator)
    panels = packed
    notePacked(inBlocks: packed?.pointee.forms.isFrozen ?? false)
  }

  mutating func notePacked(inBlocks: Bool) { isInBlocks = inBlocks }

  /// Gives up the memory of values that are packed, and of their gradient.
  mutating func release(_ allocator: Allocator) {
    if ownsData { allocator.deallocate(data) }
    (data, ownsData, isReleased) = (nil, true, true)
    giveUpGradientMemory(allocator)
  }

  /// A packed copy in few bits.
  var frozenPanels: PanelMatrixPointer? { isInBlocks ? panels : nil }

  /// Refuses a packed copy of other values.
  func requirePackedValues(_ kernels: UnsafePointer<moei_kernels>) throws(Fault) {
    guard let panels, !isReleased, !panels.pointee.isCurrent(matrix, kernels) else { return }
    throw .badState("\(name) has changed since it was packed; prepare the model again")
  }

  /// Where it is asked for, and is released.
  var packedAlone: Fault { .badState("\(name) is kept as it was packed alone; load it without packing") }

  // MARK: values

  /// Those of a float32 tensor.
  var floats: UnsafeMutablePointer<Float> { data!.assumingMemoryBound(to: Float.self) }
  var constants: UnsafePointer<Float> { UnsafePointer(floats) }
  /// Where the values are, or an address that nobody reads: of those that are packed alone.
  var place: UnsafeMutableRawPointer? {
    isReleased ? UnsafeMutableRawPointer(bitPattern: Allocator.alignment) : data
  }
  /// Of rank 2.
  var matrix: StoredMatrix { StoredMatrix(data!, type, rowStride: shape.1) }

  /// Elements as floats, from `first` on.
  func read(
    _ first: Int, _ count: Int, to floats: UnsafeMutablePointer<Float>, _ kernels: UnsafePointer<moei_kernels>
  ) {
    type.toFloats(data!, first, count, floats, kernels)
  }

  /// By all threads: one alone does not write as fast as memory takes it.
  func zeroGrad(in context: ContextPointer) {
    guard let gradMemory else { return }
    let clear = ClearFloats(floats: gradMemory, count: count)
    context.runToTheEnd((count + ClearFloats.perItem - 1) / ClearFloats.perItem, clear)
  }

  /// Those of a new owner, where there is memory. Numbers for elements come from `random`, that of the first is number `from`.
  func fill(_ initial: ParameterSpec.Initial, _ random: Random, from: Int) {
    fill(initial, random, rows: 1, of: count, from: from)
  }

  /// Random values with mean 0, in other formats than float32 the same ones rounded. Each row has so many elements, of which some
  /// are here, in the first row those from number `from` on.
  func fill(_ initial: ParameterSpec.Initial, _ random: Random, rows: Int, of all: Int, from: Int) {
    if data == nil { return }
    let own = count / rows
    for row in 0..<rows {
      let number = from + row * all
      switch initial {
      case .normal(let deviation):
        fill(random, row * own, own) { random.fillNormal($0, from: number + $1, count: $2, deviation: deviation) }
      case .uniform(let bound):
        fill(random, row * own, own) { random.fillUniform($0, from: number + $1, count: $2, bound: Float(bound)) }
      case .value(let value): (floats + row * own).update(repeating: value, count: own)  // of float32 tensors alone
      }
    }
  }

  private func fill(
    _ random: Random, _ start: Int, _ count: Int, _ write: (UnsafeMutablePointer<Float>, Int, Int) -> Void
  ) {
    if type == .f32 { return write(floats + start, 0, count) }
    let stretch = 256  // so that the memory is the stack's
    withUnsafeTemporaryAllocation(of: Float.self, capacity: stretch) { values in
      for first in Swift.stride(from: 0, to: count, by: stretch) {
        let part = min(stretch, count - first)
        write(values.baseAddress!, first, part)
        type.fromFloats(values.baseAddress!, part, data!, start + first, random.kernels)
      }
    }
  }
}

private struct ClearFloats: Job {
  let floats: UnsafeMutablePointer<Float>
  let count: Int

  static var perItem: Int { 1 << 17 }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let first = item * Self.perItem
    (floats + first).update(repeating: 0, count: min(Self.perItem, count - first))
  }
}
