import CShims

/// A packed copy of the experts' weights, made once for inference: forward then streams panels as they will be multiplied,
/// instead of packing them in every call. The values are the same, and so are the bits of the results.
/// In bfloat16 there are half the bytes to read; the results are those of the rounded weights.
struct PreparedWeights {
  let bf16: Bool
  fileprivate let gate: UnsafeMutableRawPointer?  // [E, chunks of I, H, 32]
  fileprivate let up: UnsafeMutableRawPointer  // the same
  fileprivate let down: UnsafeMutableRawPointer  // [E, chunks of H, I, 32]
  fileprivate let samples: UnsafeMutablePointer<Float>  // [E, 3, samplesPerMatrix]

  fileprivate static var samplesPerMatrix: Int { 16 }

  init(_ arena: inout Arena, _ c: Configuration, bf16: Bool) {
    func take(_ rows: Int, _ columns: Int) -> UnsafeMutableRawPointer {
      bf16
        ? UnsafeMutableRawPointer(arena.take(UInt16.self, rows, columns))
        : UnsafeMutableRawPointer(arena.take(Float.self, rows, columns))
    }
    self.bf16 = bf16
    let inner = c.experts * padded(c.intermediate)
    gate = c.gated ? take(inner, c.hidden) : nil
    up = take(inner, c.hidden)
    down = take(c.experts * padded(c.hidden), c.intermediate)
    samples = arena.take(Float.self, c.experts, 3 * Self.samplesPerMatrix)
  }

  /// Panel `chunk` of a matrix of one expert, H or I rows of 32.
  func gatePanel(_ c: Configuration, expert: Int, chunk: Int) -> WeightPanel? {
    gate.map { WeightPanel(packed: innerPlace($0, c, expert, chunk), bf16: bf16) }
  }
  func upPanel(_ c: Configuration, expert: Int, chunk: Int) -> WeightPanel {
    WeightPanel(packed: innerPlace(up, c, expert, chunk), bf16: bf16)
  }
  func downPanel(_ c: Configuration, expert: Int, chunk: Int) -> WeightPanel {
    WeightPanel(packed: downPlace(c, expert, chunk), bf16: bf16)
  }

  fileprivate func innerPlace(
    _ matrix: UnsafeMutableRawPointer, _ c: Configuration, _ expert: Int, _ chunk: Int
  ) -> UnsafeMutableRawPointer {
    matrix + (expert * padded(c.intermediate) + chunk * chunkWidth) * c.hidden * bytes
  }
  fileprivate func downPlace(_ c: Configuration, _ expert: Int, _ chunk: Int) -> UnsafeMutableRawPointer {
    down + (expert * padded(c.hidden) + chunk * chunkWidth) * c.intermediate * bytes
  }
  private var bytes: Int { bf16 ? 2 : 4 }

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
  let buffers: UnsafeMutablePointer<Float>  // [lanes, panelDepth, 32]

  init(
    _ arena: inout Arena, _ c: Configuration, context: ContextPointer, parameters: Parameters, prepared: PreparedWeights
  ) {
    self.c = c
    kernels = context.kernels
    self.parameters = parameters
    self.prepared = prepared
    buffers = arena.take(Float.self, context.lanes, panelDepth * chunkWidth)
  }

  func run(in context: ContextPointer) {
    context.runToTheEnd(c.experts * (chunks(of: c.intermediate) + chunks(of: c.hidden)), self)
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let (h, i) = (c.hidden, c.intermediate)
    let perExpert = chunks(of: i) + chunks(of: h)
    let (expert, place) = (item / perExpert, item % perExpert)
    let w = ExpertTensors(c, expert: expert) { parameters.data($0) }
    let buffer = buffers + lane.pointee.index * panelDepth * chunkWidth
    if place < chunks(of: i) {
      if let gate = prepared.gate {
        pack(w.gateWeight!, i, h, place, into: prepared.innerPlace(gate, c, expert, place), buffer)
      }
      pack(w.upWeight, i, h, place, into: prepared.innerPlace(prepared.up, c, expert, place), buffer)
    } else {
      let chunk = place - chunks(of: i)
      pack(w.downWeight, h, i, chunk, into: prepared.downPlace(c, expert, chunk), buffer)
    }
    if place == 0 {
      let count = 3 * PreparedWeights.samplesPerMatrix
      PreparedWeights.sample(c, expert: expert, parameters, into: prepared.samples + expert * count)
    }
  }

  /// One panel of a matrix [rows, depth], piece by piece.
  private func pack(
    _ matrix: UnsafePointer<Float>, _ rows: Int, _ depth: Int, _ chunk: Int, into panel: UnsafeMutableRawPointer,
    _ buffer: UnsafeMutablePointer<Float>
  ) {
    let columns = Int64(min(chunkWidth, rows - chunk * chunkWidth))
    for p in stride(from: 0, to: depth, by: panelDepth) {
      let piece = min(panelDepth, depth - p)
      let weights = matrix + chunk * chunkWidth * depth + p
      if prepared.bf16 {
        kernels.pointee.pack_transposed(columns, Int64(piece), weights, Int64(depth), buffer)
        kernels.pointee.to_bf16(
          Int64(piece * chunkWidth), buffer, panel.assumingMemoryBound(to: UInt16.self) + p * chunkWidth)
      } else {
        kernels.pointee.pack_transposed(
          columns, Int64(piece), weights, Int64(depth), panel.assumingMemoryBound(to: Float.self) + p * chunkWidth)
      }
    }
  }
}
