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
    let h = c.hidden
    for place in rows(ofBlock: block, in: chunk.count) {
      let t = chunk.lowerBound + place
      let bias = routing.isValid(t) ? self.bias : nil
      if let bias { (y + t * h).update(from: bias, count: h) }
      var sum = RowSum(kernels, width: h, of: outputs, to: y + t * h, isWeighted: true, goesOn: bias != nil)
      for slot in 0..<routing.slots {
        let row = dispatch.rowOfPair[place * routing.slots + slot]
        if row == Dispatch.noRow { continue }
        // Chosen experts may have had it on what they read.
        sum.add(row, times: c.weightOnInput && slot < routing.choices ? 1 : dispatch.weightOfRow[Int(row)])
      }
      sum.finish()
    }
  }
}

/// The sum of some rows, in the order in which they are added: a few at a time.
private struct RowSum {
  private let kernels: UnsafePointer<moei_kernels>
  private let width: Int
  private let source: UnsafePointer<Float>  // [rows, padded width]
  private let target: UnsafeMutablePointer<Float>  // [width]
  private let isWeighted: Bool
  private var goesOn: Bool
  private var rows = InlineArray<8, Int32>(repeating: 0)
  private var weights = InlineArray<8, Float>(repeating: 1)
  private var count = 0

  /// `isWeighted`: whether rows have weights. `goesOn`: whether the target has something that the sum goes on from.
  init(
    _ kernels: UnsafePointer<moei_kernels>, width: Int, of source: UnsafePointer<Float>,
    to target: UnsafeMutablePointer<Float>, isWeighted: Bool, goesOn: Bool = false
  ) {
    self.kernels = kernels
    self.width = width
    self.source = source
    self.target = target
    self.isWeighted = isWeighted
    self.goesOn = goesOn
  }

  mutating func add(_ row: Int32, times weight: Float = 1) {
    if count == rows.count { addUp() }
    (rows[count], weights[count]) = (row, weight)
    count += 1
  }

  /// The sum of no rows is 0.
  mutating func finish() {
    if count > 0 { addUp() }
    if !goesOn { target.update(repeating: 0, count: width) }
  }

  private mutating func addUp() {
    withUnsafePointer(to: &rows) { rows in
      withUnsafePointer(to: &weights) { weights in
        kernels.pointee.add_rows(
          Int64(width), Int64(count), UnsafeRawPointer(rows).assumingMemoryBound(to: Int32.self),
          isWeighted ? UnsafeRawPointer(weights).assumingMemoryBound(to: Float.self) : nil, source,
          Int64(padded(width)), goesOn ? 1 : 0, target)
      }
    }
    (count, goesOn) = (0, true)
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
      var sum = RowSum(
        kernels, width: h, of: dRows, to: dx + (chunk.lowerBound + place) * h, isWeighted: false)
      for pair in place * slots..<(place + 1) * slots where dispatch.rowOfPair[pair] != Dispatch.noRow {
        sum.add(dispatch.rowOfPair[pair])
      }
      sum.finish()
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
