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
    let angles = try RotaryAngles(config, &operands)
    // Nothing lies behind the last number that turns.
    let width = (rotary.heads - 1) * rotary.headSize + angles.size
    let rows = Operands.Rows(count: tokens, width: width, stride: rotary.stride)
    let x = try operands.writes(x, rows, "x")
    try rotary.run(x, tokens: tokens, angles, in: context)
  }
}

extension Rotary {
  fileprivate init(_ config: moe_rotary_config, _ operands: inout Operands) throws(Fault) {
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

extension RotaryAngles {
  fileprivate init(_ config: moe_rotary_config, _ operands: inout Operands) throws(Fault) {
    let (head, given) = (Int(config.head_size), Int(config.rotary_size))
    try require(given, "rotary_size", from: 0, to: head)
    if given % 2 != 0 { throw .invalid("rotary_size = \(given) is odd: numbers turn in pairs") }
    if given == 0 && head % 2 != 0 {
      throw .invalid("head_size = \(head) is odd: numbers turn in pairs; give rotary_size, of those that do")
    }
    let size = given == 0 ? head : given
    try requireFloat(config.scale, "scale")
    self.init(
      size: size, theta: config.theta,
      frequencies: try operands.reads(optional: config.frequencies, size / 2, "frequencies"),
      scale: config.scale == 0 ? 1 : config.scale)
    guard let frequencies else { return }
    for i in 0..<size / 2 where !(frequencies[i].magnitude <= Self.greatest) {
      throw .invalid("frequencies[\(i)] = \(frequencies[i]) is not in -1048576 ... 1048576 radians per position")
    }
  }
}

private let lastPosition = Int(Int32.max)
