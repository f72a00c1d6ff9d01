import CMoE
import MoE

@implementation @_cdecl("moe_embedding_forward")
public func moe_embedding_forward(
  _ context: OpaquePointer?, _ tokens: UnsafePointer<Int32>?, _ n_tokens: Int64, _ hidden_size: Int64,
  _ table: UnsafePointer<Float>?, _ n_rows: Int64, _ positions: UnsafePointer<Float>?, _ n_positions: Int64,
  _ sequence_length: Int64, _ first_position: Int64, _ y: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let size = try ArraySize(n_tokens, "n_tokens", hidden_size, "hidden_size")
    let ofTable = try ArraySize(n_rows, "n_rows", hidden_size, "hidden_size", fewest: 1)
    let tokens = try requireTokens(tokens, size.rows, rows: ofTable.rows)
    let table = try required(table, "table")
    let positions = positions == nil ? nil : try required(positions, "positions")
    let places = try Positions(
      positions != nil, tokens: size.rows, hidden_size, n_positions, sequence_length, first_position)
    let y = try array(y, count: size.elements, "y")
    var operands = Operands()
    try operands.reads(tokens, size.rows, "tokens")
    try operands.reads(table, ofTable.elements, "table")
    try operands.reads(positions, places.elements, "positions")
    try operands.writes(y, size.elements, "y")
    try EmbeddingForward(
      Embedding(
        tokens: tokens, count: size.rows, hidden: size.width, sequenceLength: places.sequenceLength,
        firstPosition: places.first), context: context, table: table, positions: positions, y: y
    ).run(in: context)
  }
}

@implementation @_cdecl("moe_embedding_backward")
public func moe_embedding_backward(
  _ context: OpaquePointer?, _ tokens: UnsafePointer<Int32>?, _ n_tokens: Int64, _ hidden_size: Int64,
  _ dy: UnsafePointer<Float>?, _ dtable: UnsafeMutablePointer<Float>?, _ n_rows: Int64,
  _ dpositions: UnsafeMutablePointer<Float>?, _ n_positions: Int64, _ sequence_length: Int64, _ first_position: Int64
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    let size = try ArraySize(n_tokens, "n_tokens", hidden_size, "hidden_size")
    let ofTable = try ArraySize(n_rows, "n_rows", hidden_size, "hidden_size", fewest: 1)
    let tokens = try requireTokens(tokens, size.rows, rows: ofTable.rows)
    let dy = try array(dy, count: size.elements, "dy")
    let dtable = try optional(dtable, "dtable")
    let dpositions = try optional(dpositions, "dpositions")
    let places = try Positions(
      dpositions != nil, tokens: size.rows, hidden_size, n_positions, sequence_length, first_position)
    var operands = Operands()
    try operands.reads(tokens, size.rows, "tokens")
    try operands.reads(dy, size.elements, "dy")
    try operands.writes(dtable, ofTable.elements, "dtable")
    try operands.writes(dpositions, places.elements, "dpositions")
    try EmbeddingBackward(
      Embedding(
        tokens: tokens, count: size.rows, hidden: size.width, sequenceLength: places.sequenceLength,
        firstPosition: places.first), context: context, dy: dy, dTable: dtable, dPositions: dpositions
    ).run(in: context)
  }
}

private func requireTokens(
  _ tokens: UnsafePointer<Int32>?, _ count: Int, rows: Int
) throws(Fault) -> UnsafePointer<Int32> {
  let tokens = try array(tokens, count: count, "tokens")
  for t in 0..<count where tokens[t] < 0 || Int(tokens[t]) >= rows {
    throw .invalid("tokens[\(t)] = \(Int(tokens[t])) is not one of n_rows = \(rows)")
  }
  return tokens
}

/// Where the positions' table is read; without one the numbers mean nothing and are not looked at.
private struct Positions {
  var sequenceLength = 1
  var first = 0
  var elements = 0

  init(
    _ given: Bool, tokens: Int, _ hidden_size: Int64, _ n_positions: Int64, _ sequence_length: Int64,
    _ first_position: Int64
  ) throws(Fault) {
    if !given { return }
    let size = try ArraySize(n_positions, "n_positions", hidden_size, "hidden_size", fewest: 1)
    try require(Int(sequence_length), "sequence_length", from: 1, to: Int(Int32.max))
    try require(Int(first_position), "first_position", from: 0, to: Int(Int32.max))
    (sequenceLength, first, elements) = (Int(sequence_length), Int(first_position), size.elements)
    let last = first + min(tokens, sequenceLength) - 1
    if tokens > 0 && last >= size.rows {
      throw .invalid(
        "token \(last - first) is at position \(last), first_position being \(first), but n_positions = \(size.rows)")
    }
  }
}
