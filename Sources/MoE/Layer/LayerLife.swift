import CShims

// How a layer comes to be, what it holds, and how it ends. What it does is in Layer.swift.

public typealias LayerPointer = UnsafeMutablePointer<Layer>

extension UnsafeMutablePointer where Pointee == Layer {
  /// `spread`: over which ranks, where that is more than this process.
  public static func create(
    _ wanted: Configuration.Values, over spread: Ranks.Wanted? = nil, in context: ContextPointer
  ) throws(Fault) -> LayerPointer {
    let allocator = context.pointee.allocator
    let parts = try allocator.make { LayerParts(&$0, wanted) }
    let (layer, parameters) = (parts.layer, parts.parameters)
    parts.turn.initialise()
    parameters.clear()
    var ranks: RanksPointer?
    let c: Configuration
    do throws(Fault) {
      ranks = try spread.map { (spread) throws(Fault) in try RanksPointer.create(spread, wanted, allocator) }
      c = parts.copy(wanted, ranks, context.kernels)
      try parameters.allocate(c, allocator: allocator)
    } catch {
      parameters.free(allocator: allocator)
      ranks?.free(allocator)
      allocator.deallocate(layer)
      throw error
    }
    if wanted.startsRandom { parameters.initialise(c, ranks, in: context) } else { parameters.zeroGrad(in: context) }
    layer.initialize(to: Layer(c, context: context, parameters: parameters, turn: parts.turn))
    layer.pointee.ranks = ranks
    if let ranks { ranks.pointee.hot.begin(spread!.hot, c) }
    context.retain()
    return layer
  }

  public func free() {
    let context = pointee.context
    pointee.offload?.free(context.pointee.allocator)
    pointee.parameters.free(allocator: context.pointee.allocator)
    context.pointee.allocator.deallocate(pointee.preparedMemory)
    context.pointee.allocator.deallocate(pointee.filePanels)
    pointee.ranks?.free(context.pointee.allocator)
    context.pointee.allocator.deallocate(self)
    context.release()
  }
}

/// One block of memory: the layer, then what it points at.
private struct LayerParts {
  let layer: LayerPointer
  let parameters: Parameters
  let turn: Lock
  private let groups: UnsafeMutablePointer<ExpertGroup>
  private let losses: UnsafeMutablePointer<LossTerm>
  private let hashTable: UnsafeMutablePointer<Int32>
  private let values: UnsafeMutablePointer<Configuration.Values>

  init(_ arena: inout Arena, _ c: Configuration.Values) {
    layer = arena.take(Layer.self, 1)
    values = arena.take(Configuration.Values.self, 1)
    parameters = Parameters(&arena, groups: c.groupCount)
    turn = Lock(&arena)
    groups = arena.take(ExpertGroup.self, c.groupCount)
    losses = arena.take(LossTerm.self, c.lossCount)
    hashTable = arena.take(Int32.self, c.vocabulary, c.topK)
  }

  /// The configuration in the layer's own memory, with its lists. Over ranks its groups have those of the chosen experts that are here.
  func copy(
    _ c: Configuration.Values, _ ranks: RanksPointer?, _ kernels: UnsafePointer<moei_kernels>
  ) -> Configuration {
    var own = c
    var first = 0
    for index in 0..<c.groupCount {
      var group = c.groups[index]
      if let ranks { group = ranks.pointee.placement.own(index, of: ranks.pointee.rank) }
      (groups + index).initialize(to: group)
      groups[index].index = index
      groups[index].first = group.isShared ? c.experts : first
      first += group.experts
    }
    own.groups = UnsafePointer(groups)
    if let given = c.losses { losses.update(from: given, count: c.lossCount) }
    own.losses = UnsafePointer(losses)
    own.hashTable = UnsafePointer(hashTable)
    values.initialize(to: own)
    let made = Configuration(values)
    if let given = c.hashTable {
      hashTable.update(from: given, count: c.vocabulary * c.topK)
    } else {
      fillHashTable(hashTable, made, kernels)
    }
    return made
  }
}
