import CShims

// The weighted sum back to tokens, in slot order:  y[t] = sum over slots of w * out, both of the row of (t,slot).

struct CombineForward: Job {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let routing: Routing
  let chunk: Range<Int>  // of tokens
  let dispatch: Dispatch
  let outputs: UnsafePointer<Float>  // [rows, padded H] the experts' outputs
  let bias: UnsafePointer<Float>?  // [H], where sums of real tokens begin
  let y: UnsafeMutablePointer<Float>  // [T,H]

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(blocks(of: chunk.count), self)
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (h, stride) = (c.hidden, padded(c.hidden))
    for place in rows(ofBlock: block, in: chunk.count) {
      let t = chunk.lowerBound + place
      let own = y + t * h
      var begun = bias != nil && routing.isValid(t)
      if begun { own.update(from: bias!, count: h) }
      for slot in 0..<routing.slots {
        let row = dispatch.rowOfPair[place * routing.slots + slot]
        if row == Dispatch.noRow { continue }
        let out = outputs + Int(row) * stride
        // Chosen experts may have had it on what they read.
        let weight = c.weightOnInput && slot < routing.choices ? 1 : dispatch.weightOfRow[Int(row)]
        if begun {
          kernels.pointee.add_scaled(Int64(h), weight, out, own)
        } else {
          kernels.pointee.scale(Int64(h), weight, out, own)
        }
        begun = true
      }
      if !begun { own.update(repeating: 0, count: h) }
    }
  }
}

// MARK: backward

/// dx[t] = sum over slots of the gradients of token t's rows, in slot order.
struct CombineBackward: Job {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let chunk: Range<Int>  // of tokens
  let dispatch: Dispatch
  let dRows: UnsafePointer<Float>  // [rows, padded H]
  let dx: UnsafeMutablePointer<Float>  // [T,H]

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(blocks(of: chunk.count), self)
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (h, slots) = (c.hidden, c.slots)
    for place in rows(ofBlock: block, in: chunk.count) {
      let t = chunk.lowerBound + place
      var begun = false
      for pair in place * slots..<(place + 1) * slots where dispatch.rowOfPair[pair] != Dispatch.noRow {
        let row = dRows + Int(dispatch.rowOfPair[pair]) * padded(h)
        if begun {
          kernels.pointee.add(Int64(h), row, dx + t * h)
        } else {
          (dx + t * h).update(from: row, count: h)
        }
        begun = true
      }
      if !begun { (dx + t * h).update(repeating: 0, count: h) }
    }
  }
}

/// dx of one chunk += the router's share; then what jitter did to x.
struct RouterShare: Job {
  let router: RouterBackward
  let jittered: JitteredTokens
  let firstBlock: Int  // of the chunk
  let dx: UnsafeMutablePointer<Float>  // [T,H]

  func run(in context: ContextPointer) throws(Fault) {
    try context.run(blocks(of: router.routing.tokens), self)
  }

  func run(_ block: Int, _ lane: UnsafeMutablePointer<Lane>) {
    router.addInputGradient(block, to: dx + firstBlock * rowsPerBlock * router.c.hidden, lane)
    jittered.backward(firstBlock + block, dx)
  }
}

/// d output.bias += dy of the real tokens, in ascending order.
func addOutputBiasGradient(
  _ dy: UnsafePointer<Float>, _ routing: Routing, _ c: Configuration, _ kernels: UnsafePointer<moei_kernels>,
  to grad: UnsafeMutablePointer<Float>
) {
  for t in 0..<routing.tokens where routing.isValid(t) {
    kernels.pointee.add(Int64(c.hidden), dy + t * c.hidden, grad)
  }
}
