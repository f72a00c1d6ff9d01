import CShims

/// A packed copy of the experts' weights, made once for inference: forward then streams panels as they will be multiplied,
/// instead of packing them in every call. The values are the same, and so are the bits of the results.
struct PreparedWeights {
  fileprivate let gate: UnsafeMutablePointer<Float>?  // [E, chunks of I, H, 32]
  fileprivate let up: UnsafeMutablePointer<Float>  // the same
  fileprivate let down: UnsafeMutablePointer<Float>  // [E, chunks of H, I, 32]
  fileprivate let samples: UnsafeMutablePointer<Float>  // [E, 3, samplesPerMatrix]

  fileprivate static var samplesPerMatrix: Int { 16 }

  init(_ arena: inout Arena, _ c: Configuration) {
    let inner = c.experts * padded(c.intermediate)
    gate = c.gated ? arena.take(Float.self, inner, c.hidden) : nil
    up = arena.take(Float.self, inner, c.hidden)
    down = arena.take(Float.self, c.experts * padded(c.hidden), c.intermediate)
    samples = arena.take(Float.self, c.experts, 3 * Self.samplesPerMatrix)
  }

  /// Panel `chunk` of a matrix of one expert, H or I rows of 32.
  func gatePanel(_ c: Configuration, expert: Int, chunk: Int) -> UnsafeMutablePointer<Float>? {
    gate.map { $0 + (expert * padded(c.intermediate) + chunk * chunkWidth) * c.hidden }
  }
  func upPanel(_ c: Configuration, expert: Int, chunk: Int) -> UnsafeMutablePointer<Float> {
    up + (expert * padded(c.intermediate) + chunk * chunkWidth) * c.hidden
  }
  func downPanel(_ c: Configuration, expert: Int, chunk: Int) -> UnsafeMutablePointer<Float> {
    down + (expert * padded(c.hidden) + chunk * chunkWidth) * c.intermediate
  }

  /// Whether the expert's weights are still those that were packed, as far as a sample of each matrix tells: reading all
  /// of them would cost what the packing saves.
  func isCurrent(_ c: Configuration, expert: Int, parameters: Parameters) -> Bool {
    let count = 3 * Self.samplesPerMatrix
    return withUnsafeTemporaryAllocation(of: Float.self, capacity: count) { now in
      Self.sample(c, expert: expert, parameters, into: now.baseAddress!)
      let then = samples + expert * count
      for i in 0..<count where now[i].bitPattern != then[i].bitPattern { return false }
      return true
    }
  }

  fileprivate static func sample(
    _ c: Configuration, expert: Int, _ parameters: Parameters, into samples: UnsafeMutablePointer<Float>
  ) {
    let w = ExpertTensors(c, expert: expert) { parameters.data($0) }
    let size = c.hidden * c.intermediate
    for i in 0..<samplesPerMatrix {
      // From the first element to the last.
      let place = samplesPerMatrix == 1 ? 0 : i * (size - 1) / (samplesPerMatrix - 1)
      samples[i] = w.gateWeight?[place] ?? 0
      samples[samplesPerMatrix + i] = w.upWeight[place]
      samples[2 * samplesPerMatrix + i] = w.downWeight[place]
    }
  }
}

/// Packs one chunk of columns of one expert per item: those of gate and up, then those of down.
struct PrepareWeights: Job {
  let c: Configuration
  let kernels: UnsafePointer<moei_kernels>
  let parameters: Parameters
  let prepared: PreparedWeights

  func run(in context: ContextPointer) {
    context.runToTheEnd(c.experts * (chunks(of: c.intermediate) + chunks(of: c.hidden)), self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (h, i) = (c.hidden, c.intermediate)
    let perExpert = chunks(of: i) + chunks(of: h)
    let (expert, place) = (item / perExpert, item % perExpert)
    let w = ExpertTensors(c, expert: expert) { parameters.data($0) }
    func pack(
      _ matrix: UnsafePointer<Float>, _ rows: Int, _ depth: Int, _ chunk: Int, into panel: UnsafeMutablePointer<Float>
    ) {
      kernels.pointee.pack_transposed(
        Int64(min(chunkWidth, rows - chunk * chunkWidth)), Int64(depth), matrix + chunk * chunkWidth * depth,
        Int64(depth), panel)
    }
    if place < chunks(of: i) {
      if let gate = prepared.gatePanel(c, expert: expert, chunk: place) {
        pack(w.gateWeight!, i, h, place, into: gate)
      }
      pack(w.upWeight, i, h, place, into: prepared.upPanel(c, expert: expert, chunk: place))
    } else {
      let chunk = place - chunks(of: i)
      pack(w.downWeight, h, i, chunk, into: prepared.downPanel(c, expert: expert, chunk: chunk))
    }
    if place == 0 {
      let count = 3 * PreparedWeights.samplesPerMatrix
      PreparedWeights.sample(c, expert: expert, parameters, into: prepared.samples + expert * count)
    }
  }
}
