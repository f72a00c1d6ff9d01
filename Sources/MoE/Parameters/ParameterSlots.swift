/// Parameters in the order of a list in the headers: a slot for each that some configuration has, and names for them.
struct ParameterSlots {
  /// What is found once, so that nobody counts slots again.
  private struct Listing {
    var count = 0
    var trained = 0
    var packings = 0
  }

  let count: Int
  private let nameSize: Int
  private let slots: UnsafeMutablePointer<Parameter?>
  private let names: UnsafeMutablePointer<CChar>  // [count, nameSize]
  private let listing: UnsafeMutablePointer<Listing>
  private let listed: UnsafeMutablePointer<Int32>  // [count] slots of those that are there
  private let trained: UnsafeMutablePointer<Int32>  // [count] slots of those that optimisers step
  private let numbers: UnsafeMutablePointer<Int32>  // [count] a slot's place among the latter

  init(_ arena: inout Arena, count: Int, nameSize: Int) {
    (self.count, self.nameSize) = (count, nameSize)
    slots = arena.take(Parameter?.self, count)
    names = arena.take(CChar.self, count, nameSize)
    listing = arena.take(Listing.self, 1)
    listed = arena.take(Int32.self, count)
    trained = arena.take(Int32.self, count)
    numbers = arena.take(Int32.self, count)
  }

  /// Once, before anything else.
  func clear() {
    slots.initialize(repeating: nil, count: count)
    listing.initialize(to: Listing())
  }

  subscript(slot: Int) -> Parameter? { slots[slot] }

  /// Where a parameter of these stands.
  func slot(of parameter: Parameter) -> Int { (parameter.name - UnsafePointer(names)) / nameSize }

  // MARK: the public list

  var listedCount: Int { listing.pointee.count }
  func slot(listed index: Int) -> Int { Int(listed[index]) }
  func parameter(_ index: Int) -> Parameter { slots[slot(listed: index)]! }

  /// Those that optimisers step, which are all but buffers, in the same order.
  var trainedCount: Int { listing.pointee.trained }
  func trained(_ index: Int) -> Parameter { slots[Int(trained[index])]! }
  func trainedNumber(_ slot: Int) -> Int { Int(numbers[slot]) }

  /// The first without memory; nil where all have some.
  var withoutMemory: Parameter? {
    for index in 0..<listedCount where parameter(index).data == nil { return parameter(index) }
    return nil
  }

  /// The first whose values are nowhere, not even in a packed copy.
  var withoutValues: Parameter? {
    for index in 0..<listedCount where parameter(index).place == nil { return parameter(index) }
    return nil
  }

  func zeroGrad(in context: ContextPointer) {
    for index in 0..<listedCount { parameter(index).zeroGrad(in: context) }
  }

  func bind(
    _ slot: Int, data: UnsafeMutableRawPointer, grad: UnsafeMutablePointer<Float>?, allocator: Allocator
  ) {
    slots[slot]!.bind(data: data, grad: grad, allocator: allocator)
  }

  func freeze(_ slot: Int, _ allocator: Allocator) { slots[slot]!.freeze(allocator) }

  /// Where a parameter of these stands that is the caller's to bind, gives it memory.
  func allocate(_ slot: Int, _ allocator: Allocator) throws(Fault) {
    if slots[slot]!.data == nil { try slots[slot]!.allocate(allocator, gradient: false) }
  }

  func release(_ slot: Int, _ allocator: Allocator) { slots[slot]!.release(allocator) }

  func replacePanels(_ slot: Int, _ packed: PanelMatrixPointer?, allocator: Allocator) {
    if slots[slot]!.panels?.pointee.forms.isFrozen ?? false || packed?.pointee.forms.isFrozen ?? false {
      listing.pointee.packings += 1
    }
    slots[slot]!.replacePanels(packed, allocator)
  }

  /// How often something became few bits, or other ones, or no longer is.
  var packings: Int { listing.pointee.packings }
  func notePacked(_ slot: Int, inBlocks: Bool) { slots[slot]!.notePacked(inBlocks: inBlocks) }

  /// Gradients of what is trained, all 0, where they have no memory.
  func allocateGradients(in context: ContextPointer) throws(Fault) {
    for index in 0..<listedCount { try slots[slot(listed: index)]!.allocateGradient(context.pointee.allocator) }
    zeroGrad(in: context)
  }

  // MARK: life

  /// What it is for beside what the spec says.
  struct Use {
    var isTrained = true
    /// Whether a gradient has memory of the owner's.
    var keepsGradient = true
    var isOfMatrices = false
    var isUnallocated = false
  }

  /// Slots come in ascending order. `begin` writes what the name begins with.
  func add(
    _ slot: Int, _ spec: ParameterSpec, _ use: Use, _ allocator: Allocator, begin: (inout TextBuffer) -> Void
  ) throws(Fault) {
    let name = names + slot * nameSize
    var text = TextBuffer(name, capacity: nameSize)
    begin(&text)
    text.append(spec.name)
    let parameter = Parameter(
      name: name, spec, hasGradient: use.isTrained && !spec.isBuffer, isOfMatrices: use.isOfMatrices,
      isUnallocated: use.isUnallocated)
    slots[slot] = parameter
    listed[listing.pointee.count] = Int32(slot)
    listing.pointee.count += 1
    if parameter.hasGradient {
      numbers[slot] = Int32(listing.pointee.trained)
      trained[listing.pointee.trained] = Int32(slot)
      listing.pointee.trained += 1
    }
    if !use.isUnallocated { try slots[slot]!.allocate(allocator, gradient: use.keepsGradient) }
  }

  func free(_ allocator: Allocator) {
    for index in 0..<listedCount { parameter(index).free(allocator) }
  }
}
