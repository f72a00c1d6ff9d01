import CMoE
import MoE

/// What forward and backward of embeddings share.
private struct EmbeddingCall {
  let embedding: Embedding
  let size: ArraySize
  let ofTable: ArraySize
  private(set) var positionElements = 0

  init(
    _ config: moe_embedding_config, _ tokens: UnsafePointer<Int32>?, withPositions: Bool,
    _ operands: inout Operands
  ) throws(Fault) {
    size = try ArraySize(config.n_tokens, "n_tokens", config.hidden_size, "hidden_size")
    ofTable = try ArraySize(config.n_rows, "n_rows", config.hidden_size, "hidden_size")
    let tokens = try operands.reads(tokens, size.rows, "tokens")
    for t in 0..<size.rows where tokens[t] < 0 || Int(tokens[t]) >= ofTable.rows {
      throw .invalid("tokens[\(t)] = \(Int(tokens[t])) is not one of n_rows = \(ofTable.rows)")
    }
    var (length, first) = (1, 0)
    // Without positions these numbers mean nothing and are not looked at.
    if withPositions {
      try require(Int(config.n_positions), "n_positions", from: 1, to: Int(Int32.max))
      let places = try ArraySize(config.n_positions, "n_positions", config.hidden_size, "hidden_size")
      length = sequenceLength(config.sequence_length, tokens: size.rows)
      first = Int(config.first_position)
      positionElements = places.elements
      let last = first + min(size.rows, length) - 1
      if size.rows > 0 && last >= places.rows {
        throw .invalid(
          "token \(last - first) is at position \(last), first_position being \(first), but n_positions = \(places.rows)"
        )
      }
    }
    embedding = Embedding(
      tokens: tokens, count: size.rows, hidden: size.width, sequenceLength: length, firstPosition: first)
  }
}

/// 0 is all tokens.
func sequenceLength(_ given: Int64, tokens: Int) -> Int { given == 0 ? max(1, tokens) : Int(given) }

@implementation @_cdecl("moe_embedding_forward")
public func moe_embedding_forward(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_embedding_config>?, _ tokens: UnsafePointer<Int32>?,
  _ table: UnsafePointer<Float>?, _ positions: UnsafePointer<Float>?, _ y: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    var operands = Operands()
    let config = try operands.copies(config, "config")
    let call = try EmbeddingCall(config, tokens, withPositions: positions != nil, &operands)
    let table = try operands.reads(table, call.ofTable.elements, "table")
    let positions = try operands.reads(optional: positions, call.positionElements, "positions")
    let y = try operands.writes(y, call.size.elements, "y")
    try EmbeddingForward(call.embedding, context: context, table: table, positions: positions, y: y).run(in: context)
  }
}

@implementation @_cdecl("moe_embedding_backward")
public func moe_embedding_backward(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_embedding_config>?, _ tokens: UnsafePointer<Int32>?,
  _ dy: UnsafePointer<Float>?, _ dtable: UnsafeMutablePointer<Float>?, _ dpositions: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    var operands = Operands()
    let config = try operands.copies(config, "config")
    let call = try EmbeddingCall(config, tokens, withPositions: dpositions != nil, &operands)
    let dy = try operands.reads(dy, call.size.elements, "dy")
    let dtable = try operands.writes(optional: dtable, call.ofTable.elements, "dtable")
    let dpositions = try operands.writes(optional: dpositions, call.positionElements, "dpositions")
    try EmbeddingBackward(call.embedding, context: context, dy: dy, dTable: dtable, dPositions: dpositions)
      .run(in: context)
  }
}
