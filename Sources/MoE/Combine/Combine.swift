import CShims

// The weighted sum back to tokens, in slot order:  y[t] = sum over k of w[t,k] * out[row of (t,k)].

struct CombineForward: Job {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let routing: Routing
  let dispatch: Dispatch
  let outputs: UnsafePointer<Float>  // [T*K, outputStride] the experts' outputs
  let outputStride: Int
  let y: UnsafeMutablePointer<Float>  // [T,H]

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(blocks(of: routing.tokens), self)
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (h, k) = (c.hidden, c.topK)
    for t in rows(ofBlock: block, in: routing.tokens) {
      for slot in 0..<k {
        let out = outputs + Int(dispatch.rowOfPair[t * k + slot]) * outputStride
        let weight = routing.weights[t * k + slot]
        if slot == 0 {
          kernels.pointee.scale(Int64(h), weight, out, y + t * h)
        } else {
          kernels.pointee.add_scaled(Int64(h), weight, out, y + t * h)
        }
      }
    }
  }
}

// MARK: backward

/// dx[t] = sum over k of the gradients of token t's rows, in slot order, then the router's share.
struct CombineBackward: Job {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let dispatch: Dispatch
  let dRows: UnsafePointer<Float>  // [T*K, dRowStride]
  let dRowStride: Int
  let router: RouterBackward
  let dx: UnsafeMutablePointer<Float>  // [T,H]

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(blocks(of: router.routing.tokens), self)
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (h, k) = (c.hidden, c.topK)
    for t in rows(ofBlock: block, in: router.routing.tokens) {
      for slot in 0..<k {
        let row = dRows + Int(dispatch.rowOfPair[t * k + slot]) * dRowStride
        if slot == 0 {
          (dx + t * h).update(from: row, count: h)
        } else {
          kernels.pointee.add(Int64(h), row, dx + t * h)
        }
      }
    }
    router.addInputGradient(block, to: dx, lane)
  }
}
