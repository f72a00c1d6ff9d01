import CShims

/// Keys and values of the tokens that a model has read, of B sequences that grow together.
public struct Cache {
  let context: ContextPointer
  let modelNumber: Int64
  let layers: Int  // N
  public let sequences: Int  // B
  public let capacity: Int  // tokens of each sequence
  /// Tokens that have been read of each sequence, padding among them.
  public fileprivate(set) var length = 0
  private let widths: CacheWidths
  fileprivate let precision: PrecisionKind
  private let memory: UnsafeMutableRawPointer  // [N] keys, then values, as CachedLayer has them
  let valid: UnsafeMutablePointer<UInt8>  // [B, capacity] which of the tokens that were read are real
  let known: UnsafeMutablePointer<Int>  // [B] real ones

  fileprivate init(_ model: Model, _ parts: CacheParts, sequences: Int, capacity: Int) {
    context = model.context
    modelNumber = model.number
    layers = model.configuration.layers
    self.sequences = sequences
    self.capacity = capacity
    widths = CacheWidths(model.configuration)
    precision = model.cachePrecision
    memory = parts.memory
    valid = parts.valid
    known = parts.known
    known.initialize(repeating: 0, count: sequences)
  }

  /// The tokens of a call are there.
  fileprivate mutating func add(_ input: ModelInput) {
    for sequence in 0..<sequences {
      for i in 0..<input.length {
        let isValid = input.isValid(sequence * input.length + i)
        valid[sequence * capacity + length + i] = isValid ? 1 : 0
        if isValid { known[sequence] += 1 }
      }
    }
    length += input.length
  }

  fileprivate mutating func truncate(_ length: Int) {
    self.length = length
    for sequence in 0..<sequences {
      known[sequence] = 0
      for i in 0..<length where valid[sequence * capacity + i] != 0 { known[sequence] += 1 }
    }
  }

  func layer(_ n: Int) -> CachedLayer {
    let bytes = sequences * capacity * precision.bytes  // of one number of each token
    let keys = memory + n * bytes * widths.both
    return CachedLayer(
      keys: keys, values: keys + bytes * widths.keys, widths: widths, precision: precision, capacity: capacity,
      length: length, known: UnsafePointer(known))
  }
}

extension PrecisionKind {
  /// Of a number that is stored in it.
  var bytes: Int { self == .bf16 ? MemoryLayout<UInt16>.size : MemoryLayout<Float>.size }
}

extension Model {
  /// What a cache keeps: what attention of all layers multiplies.
  fileprivate var cachePrecision: PrecisionKind {
    for n in 0..<configuration.layers {
      if context.attentionPrecision(parameters[n, .outputWeight]!.precision) == .f32 { return .f32 }
    }
    return .bf16
  }
}

/// Numbers that one token has in one layer of a cache.
struct CacheWidths {
  let heads: Int
  let key: Int  // of a head
  let value: Int
  var keys: Int { heads * key }
  var values: Int { heads * value }
  var both: Int { keys + values }

  /// A latent is key and value in one.
  init(_ c: ModelConfiguration) {
    (heads, key, value) = c.latent.map { (1, $0.row, 0) } ?? (c.keyHeads, c.headSize, c.valueSize)
  }
}

/// What a cache holds of one layer: real tokens without gaps. Those of a head follow each other, so that attention, which goes head
/// by head, reads memory from one end to the other.
struct CachedLayer {
  fileprivate let keys: UnsafeMutableRawPointer  // [B, heads, capacity, D], turned by their positions
  fileprivate let values: UnsafeMutableRawPointer  // [B, heads, capacity, Dv]
  let widths: CacheWidths
  let precision: PrecisionKind
  let capacity: Int
  let length: Int
  let known: UnsafePointer<Int>  // [B] real tokens, whose keys are there

  /// Of one sequence, as attention is handed them.
  func keys(_ sequence: Int) -> UnsafePointer<Float> {
    UnsafeRawPointer(row(keys, widths.key, sequence, 0, 0)).assumingMemoryBound(to: Float.self)
  }
  func values(_ sequence: Int) -> UnsafePointer<Float> {
    UnsafeRawPointer(row(values, widths.value, sequence, 0, 0)).assumingMemoryBound(to: Float.self)
  }

  private func row(
    _ array: UnsafeMutableRawPointer, _ width: Int, _ sequence: Int, _ head: Int, _ token: Int
  ) -> UnsafeMutableRawPointer {
    array + ((sequence * widths.heads + head) * capacity + token) * width * precision.bytes
  }

  /// Puts the real tokens of a call behind those that are there.
  func append(
    _ input: ModelInput, keys newKeys: UnsafePointer<Float>, values newValues: UnsafePointer<Float>, stride: Int,
    _ kernels: UnsafePointer<moei_kernels>
  ) {
    func put(_ count: Int, _ numbers: UnsafePointer<Float>, _ row: UnsafeMutableRawPointer) {
      switch precision {
      case .f32: row.copyMemory(from: numbers, byteCount: count * precision.bytes)
      case .bf16: kernels.pointee.to_bf16(Int64(count), numbers, row.assumingMemoryBound(to: UInt16.self))
      }
    }
    for sequence in 0..<input.sequences {
      var next = known[sequence]
      for t in sequence * input.length..<(sequence + 1) * input.length where input.isValid(t) {
        for head in 0..<widths.heads {
          put(widths.key, newKeys + (t * stride + head * widths.key), row(keys, widths.key, sequence, head, next))
          put(
            widths.value, newValues + (t * stride + head * widths.value),
            row(values, widths.value, sequence, head, next))
        }
        next += 1
      }
    }
  }
}

extension CachedLayer {
  /// What is saved of a layer: arrays [B, heads, capacity, width] of real tokens without gaps, by name.
  func forEachArray(
    _ body: (StaticString, UnsafeMutableRawPointer, _ width: Int) throws(Fault) -> Void
  ) throws(Fault) {
    try body("keys", keys, widths.key)
    try body("values", values, widths.value)
  }
}

public typealias CachePointer = UnsafeMutablePointer<Cache>

/// One block of memory: the cache, then its arrays.
private struct CacheParts {
  let cache: CachePointer
  let memory: UnsafeMutableRawPointer
  let valid: UnsafeMutablePointer<UInt8>
  let known: UnsafeMutablePointer<Int>

  init(_ arena: inout Arena, _ model: Model, sequences: Int, capacity: Int) {
    let c = model.configuration
    cache = arena.take(Cache.self, 1)
    // Tokens are at most 2^31 - 1, and a token's keys too.
    let numbers = sequences * capacity * CacheWidths(c).both
    memory =
      switch model.cachePrecision {
      case .f32: UnsafeMutableRawPointer(arena.take(Float.self, numbers, c.layers))
      case .bf16: UnsafeMutableRawPointer(arena.take(UInt16.self, numbers, c.layers))
      }
    valid = arena.take(UInt8.self, sequences, capacity)
    known = arena.take(Int.self, sequences)
  }
}

extension UnsafeMutablePointer where Pointee == Cache {
  /// Tokens of all sequences together are at most 2^31 - 1.
  public static func create(
    for model: UnsafePointer<Model>, sequences: Int, capacity: Int
  ) throws(Fault) -> CachePointer {
    let context = model.pointee.context
    let parts = try context.pointee.allocator.make {
      CacheParts(&$0, model.pointee, sequences: sequences, capacity: capacity)
    }
    parts.cache.initialize(to: Cache(model.pointee, parts, sequences: sequences, capacity: capacity))
    context.retain()
    return parts.cache
  }

  /// Forgets all but the first tokens.
  public func truncate(_ length: Int) { pointee.truncate(length) }

  public func free() {
    let context = pointee.context
    context.pointee.allocator.deallocate(self)
    context.release()
  }
}

// MARK: reading

extension ModelInput {
  /// This call's tokens behind those of a cache.
  fileprivate func behind(_ cache: Cache) -> ModelInput {
    var own = self
    own.known = UnsafePointer(cache.known)
    own.capacity = cache.capacity
    return own
  }
}

extension Model {
  public func owns(_ cache: UnsafePointer<Cache>) -> Bool {
    cache.pointee.modelNumber == number && cache.pointee.context == context
  }

  /// Refuses a cache of bfloat16 where attention multiplies float32 since: forward would read what is not rounded.
  public func requireSamePrecision(_ cache: UnsafePointer<Cache>) throws(Fault) {
    if cache.pointee.precision == .f32 || cachePrecision == .bf16 { return }
    throw .badState(
      "the cache was made before the weights were prepared, and holds bfloat16, which attention no longer multiplies; make another one"
    )
  }

  /// Refuses to read these tokens behind those in the cache where there is too little memory.
  func requireRoom(_ cache: CachePointer, _ input: ModelInput) throws(Fault) {
    _ = try plan(input.behind(cache.pointee), taped: false, cache: cache.pointee.layer(0))
  }

  /// Reads more tokens of each sequence; logits [B,V] of the last real ones, if they are wanted. On an error the cache is as
  /// it was.
  public func read(
    _ cache: CachePointer, _ input: ModelInput, logits: UnsafeMutablePointer<Float>?
  ) throws(Fault) {
    try beginCall()
    do throws(Fault) {
      try read(cache, input, to: logits)
    } catch {
      throw told(error)
    }
  }

  private func read(
    _ cache: CachePointer, _ input: ModelInput, to logits: UnsafeMutablePointer<Float>?
  ) throws(Fault) {
    try open(.read, input, details: UInt64(cache.pointee.length))
    let input = input.behind(cache.pointee)
    let plan = try planTogether(input, taped: false, cache: cache.pointee.layer(0))
    try context.withScratch(plan.forwardScratch) { (memory) throws(Fault) in
      var arena = Arena(memory)
      let frame = ForwardFrame(&arena, self, input, tape: nil)
      frame.shared.fill()
      let input = input.placed(in: frame.positions, configuration)
      try embed(input, to: frame.y(-1))
      for n in 0..<configuration.layers {
        try forward(n, input, plan, frame, nil, arena, Layer.Details(), cache: cache.pointee.layer(n))
      }
      if let logits {
        try ReadEnd(&arena, self, input, frame.x(configuration.layers), logits: logits).run(self)
      }
      try close()
    }
    cache.pointee.add(input)
  }
}

/// The last real token of each sequence: the final norm, and the logits.
struct ReadEnd {
  private let x: UnsafePointer<Float>  // [B,n,H]
  private let last: UnsafeMutablePointer<Float>  // [B,H]
  private let read: ModelInput
  private let input: ModelInput  // of the last tokens
  private let logits: UnsafeMutablePointer<Float>?  // [B,V]
  private let end: ForwardEnd

  init(
    _ arena: inout Arena, _ model: Model, _ input: ModelInput, _ x: UnsafePointer<Float>,
    logits: UnsafeMutablePointer<Float>?
  ) {
    self.x = x
    read = input
    self.logits = logits
    self.input = ModelInput(sequences: input.sequences, length: 1)
    last = arena.take(Float.self, input.sequences, model.configuration.hidden)
    var outputs = ModelOutputs()
    outputs.logits = logits
    end = ForwardEnd(&arena, model, self.input, x: UnsafePointer(last), outputs)
  }

  /// Sequences that were all padding cost nothing: the others are computed close together, and spread afterwards.
  func run(_ model: Model) throws(Fault) {
    let (h, v) = (model.configuration.hidden, model.configuration.vocabulary)
    var rows = 0
    for sequence in 0..<input.sequences {
      guard let t = lastToken(sequence) else { continue }
      (last + rows * h).update(from: x + t * h, count: h)
      rows += 1
    }
    var report = ModelReport()
    if rows > 0 { try end.run(model, ModelInput(sequences: rows, length: 1), &report) }
    var sequence = input.sequences
    while sequence > 0 {
      sequence -= 1
      let own = logits! + sequence * v
      if lastToken(sequence) == nil {
        own.update(repeating: 0, count: v)
      } else {
        rows -= 1
        if rows < sequence { own.update(from: logits! + rows * v, count: v) }
      }
    }
  }

  /// nil of a sequence that was all padding.
  private func lastToken(_ sequence: Int) -> Int? {
    var t = (sequence + 1) * read.length - 1
    while t >= sequence * read.length {
      if read.isValid(t) { return t }
      t -= 1
    }
    return nil
  }
}
