import CMoE
import MoE

@implementation @_cdecl("moe_rotate")
public func moe_rotate(
  _ context: OpaquePointer?, _ config: UnsafePointer<moe_rotary_config>?, _ x: UnsafeMutablePointer<Float>?
) -> moe_status {
  attempt { () throws(Fault) in
    let context = try handle(context, "context", as: Context.self)
    var operands = Operands()
    let config = try operands.copies(config, "config")
    let rotary = try Rotary(config, &operands)
    let tokens = Int(config.n_tokens)
    let rows = Operands.Rows(count: tokens, width: rotary.heads * rotary.headSize, stride: rotary.stride)
    let x = try operands.writes(x, rows, "x")
    try rotary.run(x, tokens: tokens, theta: config.theta, in: context)
  }
}

extension Rotary {
  fileprivate init(_ config: moe_rotary_config, _ operands: inout Operands) throws(Fault) {
    if config.head_size % 2 != 0 { throw .invalid("head_size = \(Int(config.head_size)) is odd") }
    let (tokens, first) = (Int(config.n_tokens), Int(config.first_position))
    let length = MoEABI.sequenceLength(config.sequence_length, tokens: tokens)
    let positions = try operands.reads(optional: config.positions, tokens, "positions")
    if let positions {
      for t in 0..<tokens where positions[t] < 0 || positions[t] > lastPosition {
        throw .invalid("positions[\(t)] = \(Int(positions[t])) is not in 0 ... \(lastPosition)")
      }
    } else {
      // The last one that some token has.
      let last = first + min(length, max(1, tokens)) - 1
      if last > lastPosition {
        throw .invalid("first_position = \(first) leads to position \(last), which exceeds \(lastPosition)")
      }
    }
    self.init(
      heads: Int(config.n_heads), headSize: Int(config.head_size),
      stride: try rowStride(config.stride, "stride", Int(config.n_heads * config.head_size)), positions: positions,
      sequenceLength: length, firstPosition: first, inverse: config.inverse == 1)
  }
}

private let lastPosition = Int(Int32.max)
