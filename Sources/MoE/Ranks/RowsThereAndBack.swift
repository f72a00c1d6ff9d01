// The way of rows to their experts and back where these are called alone: piece by piece, so that one is computed while others travel.
// Every exchange is made, whatever fails; the first fault is told when the ranks next agree.

extension OwnedRows {
  /// Places rows by their dispatch at home, and by `counts` [ranks, experts of this rank] those that come. The routing weights and
  /// numbers of pairs go first.
  func depart(_ home: Dispatch, _ counts: UnsafePointer<Int32>) throws(Fault) {
    place(home, counts)
    try bringWords(home)
  }

  /// Rows of `tokens` [T,H], all of them, before anything else comes.
  func bring(
    _ tokens: UnsafePointer<Float>, _ home: Dispatch, as type: ElementType, _ failed: inout Fault?,
    in context: ContextPointer
  ) throws(Fault) {
    try send(tokens, home, as: type, &failed, in: context)
    for piece in 0..<pieces.count { try receive(piece, as: type, to: x, &failed, in: context) }
  }

  /// Rows of `tokens` [T,H] through their experts; what these put out comes back as `outputs` [own, padded H]. While the first ones are
  /// on their way, `meanwhile` is done, and the rows that come find their experts.
  func forward(
    _ tokens: UnsafePointer<Float>, _ home: Dispatch, as type: ElementType, through experts: ExpertsForward,
    kept: KeptGroups?, to outputs: UnsafeMutablePointer<Float>, _ failed: inout Fault?, in context: ContextPointer,
    meanwhile: () throws(Fault) -> Void
  ) throws(Fault) {
    try send(tokens, home, as: type, &failed, in: context)
    attempt(&failed, meanwhile)
    for piece in 0..<pieces.count {
      try receive(piece, as: type, to: x, &failed, in: context)
      attempt(&failed) { () throws(Fault) in
        try experts.run(in: context, kept: kept, only: self.experts(ofPiece: piece))
      }
      try sendBack(piece, experts.outputs, &failed, in: context)
    }
    try takeBack(outputs, &failed, in: context)
  }

  /// Rows of `tokens` [T,H], which are dy, through their experts: what the gradients of x come back as is `dRows` [own, padded H], where
  /// any rank wants them. Returns those of the routing weights [own]. Gradients of the experts' weights are made while rows go back.
  func backward(
    _ tokens: UnsafePointer<Float>, _ home: Dispatch, as type: ElementType, through experts: ExpertsBackward,
    _ arrived: ArrivedGradients, kept: KeptGroups?, needInputGradient: Bool, to dRows: UnsafeMutablePointer<Float>,
    _ failed: inout Fault?, in context: ContextPointer, meanwhile: () throws(Fault) -> Void
  ) throws(Fault) -> UnsafePointer<Float> {
    try send(tokens, home, as: type, &failed, in: context)
    attempt(&failed, meanwhile)
    for piece in 0..<pieces.count {
      let own = self.experts(ofPiece: piece)
      try receive(piece, as: type, to: arrived.dy, &failed, in: context)
      attempt(&failed) { () throws(Fault) in
        try experts.runRows(in: context, kept: kept, needInputGradient: needInputGradient, only: own)
      }
      if needInputGradient { try sendBack(piece, experts.gradients.dRows, &failed, in: context) }
      if piece + 1 == pieces.count { try sendBack(arrived.dWeights) }
      attempt(&failed) { () throws(Fault) in try experts.finish(in: context, kept: kept, only: own) }
    }
    if needInputGradient { try takeBack(dRows, &failed, in: context) }
    return try takeBack()
  }
}

/// Of the rows that have come to this rank's experts.
struct ArrivedGradients {
  let dy: UnsafeMutablePointer<Float>  // [rows,H]
  let dWeights: UnsafeMutablePointer<Float>  // [rows] in the order in which they came

  init(_ arena: inout Arena, rows: Int, hidden: Int) {
    dy = arena.take(Float.self, rows, hidden)
    dWeights = arena.take(Float.self, rows)
  }
}
