import CShims

/// What attention put out, times sigmoid(gate), before the output projection: y = o . s(g).
struct AttentionGateForward: Job {
  let kernels: UnsafePointer<moei_kernels>
  let tokens: Int  // T
  let width: Int  // heads Dv
  let output: UnsafePointer<Float>  // [T, width] o
  let gates: UnsafePointer<Float>  // [T, width] g, rows `stride` floats apart
  let stride: Int
  let y: UnsafeMutablePointer<Float>  // [T, width]

  func run(in context: ContextPointer) throws(Fault) {
    try context.measure(.attention) { () throws(Fault) in try context.run(tokens, self) }
  }

  func run(_ t: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (o, y) = (output + t * width, y + t * width)
    kernels.pointee.sigmoid(Int64(width), gates + t * stride, y)
    for i in 0..<width { y[i] *= o[i] }
  }
}

/// do = dy . s(g), in place of dy;  dg = dy . o . s(g) (1 - s(g))
struct AttentionGateBackward: Job {
  let kernels: UnsafePointer<moei_kernels>
  let tokens: Int  // T
  let width: Int  // heads Dv
  let output: UnsafePointer<Float>  // [T, width] o
  let gates: UnsafePointer<Float>  // [T, width] g, rows `stride` floats apart
  let stride: Int
  let dy: UnsafeMutablePointer<Float>  // [T, width]
  let dGates: UnsafeMutablePointer<Float>  // as gates

  func run(in context: ContextPointer) throws(Fault) {
    try context.measure(.attention, backward: true) { () throws(Fault) in try context.run(tokens, self) }
  }

  func run(_ t: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (o, dy, dg) = (output + t * width, dy + t * width, dGates + t * stride)
    kernels.pointee.sigmoid(Int64(width), gates + t * stride, dg)
    for i in 0..<width {
      let s = dg[i]
      dg[i] = dy[i] * o[i] * (s * (1 - s))
      dy[i] *= s
    }
  }
}
