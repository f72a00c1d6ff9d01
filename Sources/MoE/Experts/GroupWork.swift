import CShims

// What the jobs of experts have in common, said once: whoever needs another array for all of them adds it here.

/// What the stages of all experts read. Each group takes its part of it.
struct ExpertsWork {
  let c: Configuration
  let x: UnsafePointer<Float>  // [T,H]
  let source: ExpertSource
  let prepared: PreparedGroups
  let dispatch: Dispatch
  let draws: Draws
  /// Whether backward follows, or this is it: then tokens stay floats, since rounded to integers they have no slope.
  let isDifferentiated: Bool
  var runs = Runs.none
  /// Where what the experts read is noted, in calibration.
  var squares: LayerSquares?
  /// What pairs are called, where they are some of several ranks'.
  var pairNumbers: UnsafePointer<Int32>?

  func of(_ index: Int, in context: ContextPointer, only wanted: WantedExperts = .all) -> GroupWork {
    let group = c.groups[index]
    return GroupWork(
      c: group, matmul: context.matmul, lanes: context.lanes, x: x, source: source.of(group),
      prepared: prepared.of(group), dispatch: dispatch.rows(of: group, only: wanted, in: runs),
      dropout: Dropout(group, draws, numbers: pairNumbers), isDifferentiated: isDifferentiated,
      squares: squares?.group(index))
  }

  /// The experts of a group that are computed together, from number `first` on. Those without products have no memory of their own.
  func run(_ index: Int, from first: Int) -> ExpertRun {
    let group = c.groups[index]
    if runs == .none || !group.multiplies { return ExpertRun(first..<group.experts) }
    return dispatch.run(of: group, from: first, in: runs)
  }
}

/// What every job of one group of experts reads.
struct GroupWork {
  let c: ExpertGroup
  let matmul: Matmul
  let lanes: Int  // threads at most, each with scratch of its own
  let x: UnsafePointer<Float>  // [T,H]
  let source: ExpertSource
  let prepared: PreparedWeights?
  let dispatch: GroupRows
  var dropout: Dropout?
  let isDifferentiated: Bool
  var squares: GroupSquares?

  var kernels: UnsafePointer<moei_kernels> { matmul.kernels }

  /// Rows of so many tiles, as far as there are so many.
  func rows(ofTiles count: Int) -> Int { min(count * Int(kernels.pointee.tile_height), dispatch.most) }

  /// Whether what was packed is what it was packed from.
  func requireCurrentWeights() throws(Fault) {
    guard let prepared, source.hasMatricesToCompare else { return }
    for e in 0..<c.experts where dispatch.count(ofExpert: e) > 0 { prepared.fetchSamples(c, expert: e, source) }
    for e in 0..<c.experts where dispatch.count(ofExpert: e) > 0 {
      if prepared.isCurrent(c, expert: e, source, kernels) { continue }
      throw source.outdated(expert: c.first + e)
    }
  }

  /// 32 columns of an expert's frozen matrix, over whose rows the gradients' products run; nil where they read the weights.
  func across<P: Precision>(
    _: P.Type, _ part: PreparedWeights.Matrix, _ expert: Int, _ chunk: Int
  ) -> WeightPanel<P>? {
    guard let prepared, prepared.forms.isFrozen else { return nil }
    let columns = part == .down ? c.intermediate : c.hidden
    let form = prepared.forms[part]
    return WeightPanel(
      across: BlockColumns(
        panels: .alike(
          prepared.panel(part, c, source.place(ofExpert: expert), 0), bytes: form.panelBytes(columns), FormNumber(form)),
        first: chunk * chunkWidth, count: min(chunkWidth, columns - chunk * chunkWidth)))
  }

  var gateUpWork: Work {
    c.gateUpWork(dispatch, packed: prepared.map { (c.gated ? $0.bytes(.gate, c) : 0) + $0.bytes(.up, c) })
  }
  var downWork: Work { c.downWork(dispatch, packed: prepared?.bytes(.down, c)) }
}

/// What every job of one group's backward reads and writes beside it.
struct GroupGradients {
  let dy: UnsafePointer<Float>  // [T,H]
  let dWeights: UnsafeMutablePointer<Float>  // [T,slots] of the routing weights; 0 for pairs without a row
  let dRows: UnsafeMutablePointer<Float>  // [rows, padded H] of x, row by row
  /// Where the gradients of matrices and their biases go.
  var place = GradientPlace.whole

  func tensors(_ work: GroupWork, expert: Int) -> ExpertGradients {
    if let memory = place.one { return ExpertGradients(ofOneIn: memory, work.c) }
    return place.steps?.pointee.gradients(work.c, expert: expert) ?? work.source.gradients(work.c, expert: expert)
  }

  /// Whether the sums of some matrix cannot wait where its gradient lies.
  func waitElsewhere(_ work: GroupWork) -> Bool {
    place.steps != nil || work.source.gradientsWaitElsewhere(rowsOnly: false)
  }
}

/// One word, since jobs that are copied on a small stack have it: an address, which is even, plus 1 for steps.
struct GradientPlace {
  private let word: UInt

  /// Where there is memory for all experts.
  static var whole: GradientPlace { GradientPlace(word: 0) }
  /// Tensor after tensor, of a single expert.
  static func one(_ memory: UnsafeMutablePointer<Float>) -> GradientPlace {
    GradientPlace(word: UInt(bitPattern: memory))
  }
  /// Nowhere: an optimiser takes them block by block.
  static func steps(_ steps: UnsafePointer<GroupSteps>) -> GradientPlace {
    GradientPlace(word: UInt(bitPattern: steps) | 1)
  }

  var one: UnsafeMutablePointer<Float>? { word & 1 == 0 ? UnsafeMutablePointer(bitPattern: word) : nil }
  var steps: UnsafePointer<GroupSteps>? { word & 1 == 1 ? UnsafePointer(bitPattern: word & ~1) : nil }
}

/// A job of one group, which calls what it shares with the others by its own name.
protocol GroupJob: Job {
  var work: GroupWork { get }
}

extension GroupJob {
  var c: ExpertGroup { work.c }
  var kernels: UnsafePointer<moei_kernels> { work.matmul.kernels }
  var matmul: Matmul { work.matmul }
  var x: UnsafePointer<Float> { work.x }
  var source: ExpertSource { work.source }
  var prepared: PreparedWeights? { work.prepared }
  var dispatch: GroupRows { work.dispatch }
  var dropout: Dropout? { work.dropout }
}

protocol GroupBackwardJob: GroupJob {
  var gradients: GroupGradients { get }
}

extension GroupBackwardJob {
  var dy: UnsafePointer<Float> { gradients.dy }
  var dWeights: UnsafeMutablePointer<Float> { gradients.dWeights }
  var dRows: UnsafeMutablePointer<Float> { gradients.dRows }
}
