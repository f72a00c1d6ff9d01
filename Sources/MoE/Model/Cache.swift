/// Keys and values of the tokens that a model has read, of B sequences that grow together.
public struct Cache {
  let context: ContextPointer
  let modelNumber: Int64
  public let sequences: Int  // B
  public let capacity: Int  // tokens of each sequence
  public fileprivate(set) var length = 0
  private let keys: Int  // of a token, in one layer
  private let memory: UnsafeMutablePointer<Float>  // [N, 2, B, capacity, keys]

  fileprivate init(_ model: Model, _ parts: CacheParts, sequences: Int, capacity: Int) {
    context = model.context
    modelNumber = model.number
    self.sequences = sequences
    self.capacity = capacity
    keys = model.configuration.keys
    memory = parts.memory
  }

  func layer(_ n: Int) -> CachedLayer {
    let size = sequences * capacity * keys
    return CachedLayer(
      keys: memory + 2 * n * size, values: memory + (2 * n + 1) * size, width: keys, capacity: capacity, length: length)
  }
}

/// What a cache holds of one layer.
struct CachedLayer {
  let keys: UnsafeMutablePointer<Float>  // [B, capacity, width], turned by their positions
  let values: UnsafeMutablePointer<Float>  // [B, capacity, width]
  let width: Int
  let capacity: Int
  let length: Int

  func place(_ sequence: Int, _ token: Int) -> Int { (sequence * capacity + token) * width }

  /// Puts `count` new tokens of each sequence behind those that are there.
  func append(_ heads: PlacedHeads, sequences: Int, count: Int, stride: Int) {
    for sequence in 0..<sequences {
      for token in 0..<count {
        let (from, to) = ((sequence * count + token) * stride, place(sequence, length + token))
        (keys + to).update(from: heads.key + from, count: width)
        (values + to).update(from: heads.value + from, count: width)
      }
    }
  }
}

public typealias CachePointer = UnsafeMutablePointer<Cache>

/// One block of memory: the cache, then its arrays.
private struct CacheParts {
  let cache: CachePointer
  let memory: UnsafeMutablePointer<Float>

  init(_ arena: inout Arena, _ c: ModelConfiguration, sequences: Int, capacity: Int) {
    cache = arena.take(Cache.self, 1)
    // Tokens are at most 2^31 - 1, and a token's keys too.
    memory = arena.take(Float.self, sequences * capacity * c.keys, 2 * c.layers)
  }
}

extension UnsafeMutablePointer where Pointee == Cache {
  /// Tokens of all sequences together are at most 2^31 - 1.
  public static func create(
    for model: UnsafePointer<Model>, sequences: Int, capacity: Int
  ) throws(Fault) -> CachePointer {
    let (c, context) = (model.pointee.configuration, model.pointee.context)
    var measure = Arena()
    _ = CacheParts(&measure, c, sequences: sequences, capacity: capacity)
    var arena = Arena(try context.pointee.allocator.allocate(bytes: try measure.total()))
    let parts = CacheParts(&arena, c, sequences: sequences, capacity: capacity)
    parts.cache.initialize(to: Cache(model.pointee, parts, sequences: sequences, capacity: capacity))
    context.retain()
    return parts.cache
  }

  /// Forgets all but the first tokens.
  public func truncate(_ length: Int) { pointee.length = length }

  public func free() {
    let context = pointee.context
    context.pointee.allocator.deallocate(self)
    context.release()
  }
}

// MARK: reading

extension Model {
  public func owns(_ cache: UnsafePointer<Cache>) -> Bool {
    cache.pointee.modelNumber == number && cache.pointee.context == context
  }

  /// Reads n more tokens of each sequence; logits [B,V] of the last ones. On an error the cache is as it was.
  public func read(
    _ cache: CachePointer, _ ids: UnsafePointer<Int32>, count n: Int, logits: UnsafeMutablePointer<Float>
  ) throws(Fault) {
    var input = ModelInput(sequences: cache.pointee.sequences, length: n)
    input.ids = ids
    let plan = try plan(input, taped: false, cache: cache.pointee.layer(0))
    try context.withScratch(plan.forwardScratch) { (memory) throws(Fault) in
      var arena = Arena(memory)
      let frame = ForwardFrame(&arena, self, input, tape: nil)
      frame.shared.fill()
      try embed(input, firstPosition: cache.pointee.length, to: frame.y(-1))
      for n in 0..<configuration.layers {
        try forward(n, input, plan, frame, nil, arena, Layer.Details(), cache: cache.pointee.layer(n))
      }
      try ReadEnd(&arena, self, input, frame.x(configuration.layers), logits: logits).run(self)
    }
    cache.pointee.length += n
  }
}

/// The last token of each sequence: the final norm, and the logits.
struct ReadEnd {
  private let x: UnsafePointer<Float>  // [B,n,H]
  private let last: UnsafeMutablePointer<Float>  // [B,H]
  private let length: Int  // n
  private let input: ModelInput  // of the last tokens
  private let end: ForwardEnd

  init(
    _ arena: inout Arena, _ model: Model, _ input: ModelInput, _ x: UnsafePointer<Float>,
    logits: UnsafeMutablePointer<Float>?
  ) {
    self.x = x
    length = input.length
    self.input = ModelInput(sequences: input.sequences, length: 1)
    last = arena.take(Float.self, input.sequences, model.configuration.hidden)
    var outputs = ModelOutputs()
    outputs.logits = logits
    end = ForwardEnd(&arena, model, self.input, x: UnsafePointer(last), outputs)
  }

  func run(_ model: Model) throws(Fault) {
    let h = model.configuration.hidden
    for sequence in 0..<input.sequences {
      (last + sequence * h).update(from: x + ((sequence + 1) * length - 1) * h, count: h)
    }
    var report = ModelReport()
    try end.run(model, input, &report)
  }
}
