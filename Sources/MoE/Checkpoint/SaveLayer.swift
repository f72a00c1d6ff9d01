import CShims

extension Layer {
  /// Writes a safetensors file of this layer alone; or, where a shard's size is given, an index and its shards.
  public func save(
    to path: UnsafePointer<CChar>, _ layout: Layout, _ place: LayerPlace, type: ElementType, shardBytes: Int?
  ) throws(Fault) {
    if layout.isForLoadingOnly {
      throw .invalid(
        "layout = \(layout.name) is for loading; save with the model's other one, such as MOE_LAYOUT_GPT_OSS")
    }
    let tensors = LayerTensors(self, layout, place)
    try tensors.requireFit()
    let outgoing = LayerOutgoing(tensors: tensors, type: type, kernels: context.kernels)
    if let shardBytes {
      try writeShards(outgoing, to: path, mostBytes: shardBytes, in: context)
    } else {
      try writeSafetensors(outgoing, to: path, in: context)
    }
  }
}

struct LayerOutgoing: OutgoingTensors {
  let tensors: LayerTensors
  let type: ElementType
  let kernels: UnsafePointer<moei_kernels>
  /// Who write together.
  var ranks: RanksPointer?

  func visit(_ body: (OutgoingTensor) throws(Fault) -> Void) throws(Fault) {
    try tensors.entries { (entry) throws(Fault) in
      let shape = entry.matrices.shape(entry.rule.listing)
      for number in 0..<entry.count {
        let experts = entry.count == 1 ? 0..<entry.matrices.stored.experts : number..<number + 1
        try tensors.withName(entry.rule, expert: number) { (name) throws(Fault) in
          // What no gradient moves stays float32, as transformers keeps it: small steps would be lost.
          try body(
            OutgoingTensor(
              name: name, type: StoredType(entry.matrices.first.isBuffer ? .f32 : type), shape: shape,
              contents: contents(entry.matrices, experts)))
        }
      }
    }
  }

  private func contents(_ matrices: FusedMatrices, _ experts: Range<Int>) -> OutgoingTensor.Contents {
    let layer = tensors.layer
    if let ranks, layer.spreadExperts(of: matrices.first) != nil {
      return .owned(
        OwnedMatrices(
          ranks: ranks, context: layer.context, kernels: kernels, matrices: matrices,
          group: layer.parameters.place(of: matrices.first).group, experts: experts))
    }
    return .matrices(OutgoingMatrices(matrices: matrices, experts: experts, kernels: kernels))
  }
}

/// The matrices of some experts, as a tensor holds them.
struct OutgoingMatrices {
  let matrices: FusedMatrices
  let experts: Range<Int>
  let kernels: UnsafePointer<moei_kernels>

  /// So that the memory is the stack's.
  fileprivate static var stretch: Int { 128 }

  func write(_ type: StoredType, to output: inout FileOutput) throws(Fault) {
    for expert in experts {
      if matrices.transposed {
        for column in 0..<matrices.columns { try writeColumn(expert, column, type, to: &output) }
      } else {
        for row in 0..<matrices.fusedRows {
          let (part, r) =
            matrices.interleaved
            ? (row % matrices.parts, row / matrices.parts) : (row / matrices.rows, row % matrices.rows)
          let first = (expert * matrices.rows + r) * matrices.columns
          // Without a partner, rows follow one another.
          let count = matrices.parts == 1 ? matrices.rows * matrices.columns : matrices.columns
          try writeElements(matrices.part(part), first, count, type, kernels, to: &output)
          if matrices.parts == 1 { break }
        }
      }
    }
  }

  /// Row `column` of the transposed matrix.
  private func writeColumn(
    _ expert: Int, _ column: Int, _ type: StoredType, to output: inout FileOutput
  ) throws(Fault) {
    let m = matrices
    for start in stride(from: 0, to: m.fusedRows, by: Self.stretch) {
      let some = min(Self.stretch, m.fusedRows - start)
      try writeValues(some, type, kernels, to: &output) {
        for row in start..<start + some {
          let (part, r) = m.interleaved ? (row % m.parts, row / m.parts) : (row / m.rows, row % m.rows)
          m.part(part).read((expert * m.rows + r) * m.columns + column, 1, to: $0 + row - start, kernels)
        }
      }
    }
  }
}

/// Takes 1 from elements that have it beyond what is stored.
struct ElementShift {
  /// What was stored of all of a parameter's elements: those that still are 1 more are stored so again, where a difference would be
  /// rounded. nil where nobody knows.
  let known: UnsafePointer<Float>?

  func apply(_ values: UnsafeMutablePointer<Float>, _ first: Int, _ count: Int) {
    for i in 0..<count {
      let stored = known.map { $0[first + i] }
      values[i] = stored.flatMap { $0 + 1 == values[i] ? $0 : nil } ?? values[i] - 1
    }
  }
}

/// Elements first ..< first + count of a parameter.
func writeElements(
  _ parameter: Parameter, _ first: Int, _ count: Int, shift: ElementShift? = nil, _ type: StoredType,
  _ kernels: UnsafePointer<moei_kernels>, to output: inout FileOutput
) throws(Fault) {
  let own = parameter.type
  if StoredType(own) == type && shift == nil {
    return try output.write(parameter.data! + own.bytes(first), count: own.bytes(count))
  }
  for start in stride(from: 0, to: count, by: OutgoingMatrices.stretch) {
    let some = min(OutgoingMatrices.stretch, count - start)
    try writeValues(some, type, kernels, to: &output) {
      parameter.read(first + start, some, to: $0, kernels)
      shift?.apply($0, first + start, some)
    }
  }
}

/// `count` values, at most a stretch.
private func writeValues(
  _ count: Int, _ type: StoredType, _ kernels: UnsafePointer<moei_kernels>, to output: inout FileOutput,
  _ fill: (UnsafeMutablePointer<Float>) -> Void
) throws(Fault) {
  let type = ElementType(type)
  var fault: Fault?
  withUnsafeTemporaryAllocation(of: Float.self, capacity: OutgoingMatrices.stretch) { values in
    withUnsafeTemporaryAllocation(byteCount: type.bytes(OutgoingMatrices.stretch), alignment: 4) { elements in
      fill(values.baseAddress!)
      type.fromFloats(values.baseAddress!, count, elements.baseAddress!, 0, kernels)
      do throws(Fault) {
        try output.write(elements.baseAddress!, count: type.bytes(count))
      } catch {
        fault = error
      }
    }
  }
  if let fault { throw fault }
}
