import CShims

/// output = softmax(scale * Q K^T + masks) V, head by head [Attention 2017], without the matrix of weights
/// [FlashAttention 2022]. 32 queries at a time meet one block of keys after the other. Scores lie with keys in rows and
/// queries in columns: maxima and sums then run down the columns, and neither keys nor weights need to be transposed.
/// Few queries, as there are when text is generated, would leave most columns empty: those of the heads that share keys are put
/// side by side, so that these are read once. Where they are still few, they are the rows of their products, which are the
/// same chains; in float32 these read keys and values where they lie.
public struct AttentionForward {
  private var call: AttentionCall
  private let products: TileProducts
  private let memory: LaneMemory
  private let failed: UnsafeMutablePointer<Int>  // of each lane, the first row of [B,n_heads,S] that failed
  private let lanes: Int
  private var items: ForwardItems
  private let room: Int  // panels that a thread has memory for

  /// Keys of a block: part of the numeric contract, as the running sums are scaled from block to block.
  static let block = 128

  init(_ arena: inout Arena, _ call: AttentionCall, in context: ContextPointer) {
    self.call = call
    products = TileProducts(&arena, context, call.precision)
    failed = arena.take(Int.self, context.lanes)
    lanes = context.lanes
    items = ForwardItems(call, lanes: lanes, room: ForwardItems.most)
    room = items.panels
    var measure = Arena()
    switch products.precision {
    case .f32: _ = ForwardTiles<F32>(&measure, call, panels: room)
    case .bf16: _ = ForwardTiles<BF16>(&measure, call, panels: room)
    }
    memory = LaneMemory(&arena, bytes: measure.bytes, context: context)
  }

  /// Attention of another call, with no more queries, in this one's memory.
  func over(_ call: AttentionCall) -> AttentionForward {
    var own = self
    own.call = call
    own.items = ForwardItems(call, lanes: lanes, room: room)
    return own
  }

  /// A call with memory of its own. `logSums` [B,n_heads,S] is what the backward wants.
  public static func run(
    _ call: AttentionCall, _ arrays: AttentionArrays, logSums: UnsafeMutablePointer<Float>?, in context: ContextPointer
  ) throws(Fault) {
    try context.withScratch({ AttentionForward(&$0, call, in: context) }) { (forward) throws(Fault) in
      try forward.run(arrays, logSums: logSums, in: context)
    }
  }

  func run(
    _ arrays: AttentionArrays, logSums: UnsafeMutablePointer<Float>?, in context: ContextPointer
  ) throws(Fault) {
    try call.requireSinks()
    products.initialise()
    failed.update(repeating: Int.max, count: context.lanes)
    func job<P: AttentionPrecision>(_: P.Type) -> ForwardJob<P> {
      ForwardJob(
        call: call, arrays: arrays, logSums: logSums, products: products,
        dropout: AttentionDropout(call, context.kernels), memory: memory, failed: failed, items: items)
    }
    try context.measure(.attention, call.work(products: (head: 1, value: 1))) { () throws(Fault) in
      switch products.precision {
      case .f32: try context.run(items.count, job(F32.self))
      case .bf16: try context.run(items.count, job(BF16.self))
      }
    }
    var first = Int.max
    for lane in 0..<context.lanes { first = min(first, failed[lane]) }
    if first < Int.max {
      let (head, query) = (first / call.queries, call.calledFrom.query + first % call.queries)
      throw Fault(
        .notFinite,
        "attention: a score of sequence \(call.calledFrom.sequence + head / call.heads), head \(call.firstHead + head % call.heads), query \(query) is not finite"
      )
    }
  }
}

/// Tokens in rows `stride` floats apart, as the call has them.
public struct AttentionArrays {
  let query: UnsafePointer<Float>  // [B,S,n_heads,D]
  let key: UnsafePointer<Float>  // [B,U,n_kv_heads,D], or other elements where they are rounded
  let value: UnsafePointer<Float>  // [B,U,n_kv_heads,Dv], likewise
  let output: UnsafeMutablePointer<Float>  // [B,S,n_heads,Dv]
  /// Queries, keys and values as they are multiplied, where they are kept so; products are of bfloat16 then.
  var rounded: UnsafePointer<RoundedHeads>?

  public init(
    query: UnsafePointer<Float>, key: UnsafePointer<Float>, value: UnsafePointer<Float>,
    output: UnsafeMutablePointer<Float>
  ) {
    (self.query, self.key, self.value, self.output) = (query, key, value, output)
  }
}
