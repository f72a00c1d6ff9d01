import CShims

/// What the row-major products need of other types and strides than rows of float32: weights as floats, and values rounded
/// where the tiled experts store them.
protocol PlainJob: GroupJob {
  var floats: UnsafeMutablePointer<Float>? { get }  // [lanes, H, I] one matrix for each thread; nil where all are rows
}

/// A matrix of float32 as the row-major products read it.
struct PlainMatrix {
  let start: UnsafePointer<Float>
  let stride: Int  // of rows
}

extension GroupWork {
  func floats(_ arena: inout Arena) -> UnsafeMutablePointer<Float>? {
    let reads = source.areRowsOfFloats(c) && prepared == nil
    return reads ? nil : arena.take(Float.self, lanes * c.hidden, c.intermediate)
  }
}

extension PlainJob {
  /// An expert's matrix, decoded where it was prepared; until the thread's next call.
  func matrix(_ part: PreparedWeights.Matrix, _ w: ExpertTensors, expert: Int, _ lane: Int) -> PlainMatrix {
    guard let prepared, let floats else {
      switch part {
      case .gate: return inner(w.gateWeight!, lane)
      case .up: return inner(w.upWeight, lane)
      case .down: return outer(w.downWeight, lane)
      }
    }
    let (rows, depth) = part == .down ? (c.hidden, c.intermediate) : (c.intermediate, c.hidden)
    let (own, place) = (floats + lane * c.hidden * c.intermediate, source.place(ofExpert: expert))
    for chunk in 0..<chunks(of: rows) {
      prepared.forms[part].decode(
        prepared.panel(part, c, place, chunk), rows: min(chunkWidth, rows - chunk * chunkWidth), depth: depth,
        into: own + chunk * chunkWidth * depth, stride: depth, kernels)
    }
    return PlainMatrix(start: own, stride: depth)
  }

  /// [I,H]
  private func inner(_ matrix: StoredMatrix, _ lane: Int) -> PlainMatrix {
    plain(matrix, rows: c.intermediate, columns: c.hidden, lane)
  }
  /// [H,I]
  private func outer(_ matrix: StoredMatrix, _ lane: Int) -> PlainMatrix {
    plain(matrix, rows: c.hidden, columns: c.intermediate, lane)
  }

  private func plain(_ matrix: StoredMatrix, rows: Int, columns: Int, _ lane: Int) -> PlainMatrix {
    let isRows = StoredMatrix.isRows(
      of: columns, matrix.type, rowStride: matrix.rowStride, columnStride: matrix.columnStride)
    guard let floats, !isRows else {
      return PlainMatrix(start: F32.elements(of: matrix), stride: matrix.rowStride)
    }
    let own = floats + lane * c.hidden * c.intermediate
    for row in 0..<rows {
      matrix.read(row * matrix.rowStride, columns, into: own + row * columns, kernels)
    }
    return PlainMatrix(start: own, stride: columns)
  }

  func round(_ values: UnsafeMutablePointer<Float>, _ count: Int) {
    work.precision.round(values, count, kernels)
  }
}
