import CShims

/// What the row-major products need of bfloat16: weights as floats, and values rounded where the tiled experts store them.
/// In float32 both are nothing.
protocol PlainJob: GroupJob {
  var floats: UnsafeMutablePointer<Float>? { get }  // [lanes, H, I] one matrix for each thread; nil in float32
}

extension GroupWork {
  func floats(_ arena: inout Arena) -> UnsafeMutablePointer<Float>? {
    c.weights == .bf16 ? arena.take(Float.self, lanes * c.hidden, c.intermediate) : nil
  }
}

extension PlainJob {
  /// An expert's matrix, until the thread's next call.
  func matrix(_ role: Parameters.Role, _ expert: Int, _ lane: Int) -> UnsafePointer<Float> {
    let size = c.hidden * c.intermediate
    let start = parameters.place(ofExpert: expert) * size
    guard let floats else { return UnsafePointer(parameters.data(role)!) + start }
    let weights = parameters.memory(role)!.assumingMemoryBound(to: UInt16.self) + start
    kernels.pointee.from_bf16(Int64(size), weights, floats + lane * size)
    return UnsafePointer(floats + lane * size)
  }

  func round(_ values: UnsafeMutablePointer<Float>, _ count: Int) {
    if floats == nil { return }
    let stretch = 512  // so that the memory is the stack's
    withUnsafeTemporaryAllocation(of: UInt16.self, capacity: stretch) { rounded in
      for first in Swift.stride(from: 0, to: count, by: stretch) {
        let n = Int64(min(stretch, count - first))
        kernels.pointee.to_bf16(n, values + first, rounded.baseAddress!)
        kernels.pointee.from_bf16(n, rounded.baseAddress!, values + first)
      }
    }
  }
}
