import CShims

/// y[t] = scale * table[tokens[t]] + positions[p(t)], p(t) = t % sequenceLength + firstPosition unless it is given
public struct Embedding {
  let tokens: UnsafePointer<Int32>  // [T], rows of the table
  let count: Int  // T
  let hidden: Int  // H
  let sequenceLength: Int
  let firstPosition: Int
  let given: UnsafePointer<Int64>?  // [T] positions
  let scale: Float

  public init(
    tokens: UnsafePointer<Int32>, count: Int, hidden: Int, sequenceLength: Int = 1, firstPosition: Int = 0,
    positions given: UnsafePointer<Int64>? = nil, scale: Float = 1
  ) {
    self.tokens = tokens
    self.count = count
    self.hidden = hidden
    self.sequenceLength = sequenceLength
    self.firstPosition = firstPosition
    self.given = given
    self.scale = scale
  }

  /// Where token t's row of the table begins, and that of its position.
  func row(_ t: Int) -> Int { Int(tokens[t]) * hidden }
  func position(_ t: Int) -> Int { (given.map { Int($0[t]) } ?? t % sequenceLength + firstPosition) * hidden }
}

public struct EmbeddingForward: Job {
  let embedding: Embedding
  let kernels: UnsafePointer<moei_kernels>
  let table: UnsafeRawPointer  // [rows,H]
  let type: ElementType  // of the table
  /// What is read in place of the table.
  var panels: PanelMatrixPointer?
  let positions: UnsafePointer<Float>?  // [positions,H]
  let y: UnsafeMutablePointer<Float>  // [T,H]

  private static var tokensPerItem: Int { 64 }

  public init(
    _ embedding: Embedding, context: ContextPointer, table: UnsafeRawPointer, type: ElementType = .f32,
    positions: UnsafePointer<Float>?, y: UnsafeMutablePointer<Float>
  ) {
    self.embedding = embedding
    kernels = context.kernels
    self.table = table
    self.type = type
    self.positions = positions
    self.y = y
  }

  public func run(in context: ContextPointer) throws(Fault) {
    try context.measure(.embedding) { () throws(Fault) in
      try context.run((embedding.count + Self.tokensPerItem - 1) / Self.tokensPerItem, self)
    }
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let h = embedding.hidden
    for t in item * Self.tokensPerItem..<min((item + 1) * Self.tokensPerItem, embedding.count) {
      if let panels {
        panels.pointee.read(row: Int(embedding.tokens[t]), into: y + t * h, kernels)
      } else {
        type.toFloats(table, embedding.row(t), h, y + t * h, kernels)
      }
      if embedding.scale != 1 { kernels.pointee.scale(Int64(h), embedding.scale, y + t * h, y + t * h) }
      if let positions { kernels.pointee.add(Int64(h), positions + embedding.position(t), y + t * h) }
    }
  }
}

// MARK: backward

/// Rows of dy added to those of the tables, in ascending order of t: an item is some columns of all of them.
public struct EmbeddingBackward: Job {
  let embedding: Embedding
  let kernels: UnsafePointer<moei_kernels>
  let dy: UnsafePointer<Float>  // [T,H]
  let dTable: UnsafeMutablePointer<Float>?  // [rows,H]
  let dPositions: UnsafeMutablePointer<Float>?  // [positions,H]

  public init(
    _ embedding: Embedding, context: ContextPointer, dy: UnsafePointer<Float>, dTable: UnsafeMutablePointer<Float>?,
    dPositions: UnsafeMutablePointer<Float>?
  ) {
    self.embedding = embedding
    kernels = context.kernels
    self.dy = dy
    self.dTable = dTable
    self.dPositions = dPositions
  }

  public func run(in context: ContextPointer) throws(Fault) {
    try context.measure(.embedding, backward: true) { () throws(Fault) in
      try context.run(columnItems(embedding.hidden), self)
    }
  }

  func run(_ item: Int, _ lane: UnsafeMutablePointer<Lane>) {
    let columns = columns(ofItem: item, in: embedding.hidden)
    let (first, n) = (columns.lowerBound, Int64(columns.count))
    for t in 0..<embedding.count {
      let dy = dy + t * embedding.hidden + first
      if let dTable { addRow(n, dy, to: dTable + embedding.row(t) + first) }
      if let dPositions { kernels.pointee.add(n, dy, dPositions + embedding.position(t) + first) }
    }
  }

  private func addRow(_ n: Int64, _ dy: UnsafePointer<Float>, to row: UnsafeMutablePointer<Float>) {
    if embedding.scale == 1 {
      kernels.pointee.add(n, dy, row)
    } else {
      kernels.pointee.add_scaled(n, embedding.scale, dy, row)
    }
  }
}
