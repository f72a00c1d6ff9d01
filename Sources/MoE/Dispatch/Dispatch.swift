/// The tokens of one chunk grouped by expert. A *pair* is one choice of one token, number t * slots + slot; a *row* is its place among the
/// rows of its expert. Within an expert rows are in ascending token order, so that sums over rows are too. Choices that
/// are none, or were dropped, have no row.
struct Dispatch {
  let size: ChunkSize
  let offsets: UnsafeMutablePointer<Int32>  // [experts + 1]: expert e has rows offsets[e] ..< offsets[e+1]
  let rowOfPair: UnsafeMutablePointer<Int32>  // [tokens, slots] from the chunk's first on; noRow where there is none
  let pairOfRow: UnsafeMutablePointer<Int32>  // [mostRows]
  let tokenOfRow: UnsafeMutablePointer<Int32>  // [mostRows]
  let weightOfRow: UnsafeMutablePointer<Float>  // [mostRows] what the expert's output is multiplied by
  private let experts: Int

  static var noRow: Int32 { -1 }

  init(_ arena: inout Arena, _ c: Configuration, _ size: ChunkSize) {
    self.size = size
    experts = c.experts + c.shared
    offsets = arena.take(Int32.self, experts + 1)
    rowOfPair = arena.take(Int32.self, size.tokens, c.slots)
    pairOfRow = arena.take(Int32.self, size.mostRows)
    tokenOfRow = arena.take(Int32.self, size.mostRows)
    weightOfRow = arena.take(Float.self, size.mostRows)
  }

  /// Of rows that have come from several ranks: each is a token of its own with one choice.
  init(_ arena: inout Arena, rows: Int, experts: Int) {
    size = ChunkSize(tokens: rows, mostRows: rows, mayRepeat: false)
    self.experts = experts
    offsets = arena.take(Int32.self, experts + 1)
    rowOfPair = arena.take(Int32.self, rows)
    pairOfRow = arena.take(Int32.self, rows)
    tokenOfRow = arena.take(Int32.self, rows)
    weightOfRow = arena.take(Float.self, rows)
  }

  /// Rows lie rank by rank, and those of a rank by expert: `counts` [ranks,E] of them. Within an expert they are then in the order of
  /// the ranks, and so of all tokens.
  func group(_ counts: UnsafePointer<Int32>, ranks: Int, weights: UnsafePointer<Float>?) {
    offsets.initialize(repeating: 0, count: experts + 1)
    for i in 0..<ranks * experts { offsets[i % experts + 1] += counts[i] }
    for e in 0..<experts { offsets[e + 1] += offsets[e] }
    var place: Int32 = 0
    for rank in 0..<ranks {
      for e in 0..<experts {
        for _ in 0..<counts[rank * experts + e] {
          let row = Int(offsets[e])
          offsets[e] += 1
          (pairOfRow[row], tokenOfRow[row], rowOfPair[Int(place)]) = (place, place, Int32(truncatingIfNeeded: row))
          weightOfRow[row] = weights?[Int(place)] ?? 1
          place += 1
        }
      }
    }
    shiftBack()
  }

  /// Offsets that have been moved to the ends of their experts.
  private func shiftBack() {
    var e = experts
    while e > 0 {
      offsets[e] = offsets[e - 1]
      e -= 1
    }
    offsets[0] = 0
  }

  /// A counting sort by expert: stable, O(tokens slots + E).
  /// Pairs are called `firstPair` and so on, where the tokens are some of several ranks'. `order`: in whose place each expert stands;
  /// nil: in its own.
  func group(_ routing: Routing, _ chunk: Range<Int>, firstPair: Int = 0, order: UnsafePointer<Int32>? = nil) {
    offsets.initialize(repeating: 0, count: experts + 1)
    let pairs = chunk.lowerBound * routing.slots..<chunk.upperBound * routing.slots
    func place(_ expert: Int32) -> Int { Int(order?[Int(expert)] ?? expert) }
    for pair in pairs where routing.indices[pair].isExpert { offsets[place(routing.indices[pair]) + 1] += 1 }
    for e in 0..<experts { offsets[e + 1] += offsets[e] }
    // offsets[e] serves as the next free row of e, which leaves it at the start of e + 1; shifted back below.
    var pair = pairs.lowerBound
    for token in chunk {
      let coefficient = routing.coefficients.map { $0[token] } ?? 1
      for slot in 0..<routing.slots {
        if routing.indices[pair].isExpert {
          let expert = place(routing.indices[pair])
          let row = offsets[expert]
          offsets[expert] = row + 1
          pairOfRow[Int(row)] = Int32(truncatingIfNeeded: firstPair + pair)
          tokenOfRow[Int(row)] = Int32(truncatingIfNeeded: token)
          weightOfRow[Int(row)] = slot < routing.choices ? routing.weights[pair] * coefficient : routing.weights[pair]
          rowOfPair[pair - pairs.lowerBound] = row
        } else {
          rowOfPair[pair - pairs.lowerBound] = Self.noRow
        }
        pair += 1
      }
    }
    shiftBack()
  }

  func rows(ofExpert e: Int) -> Range<Int> { Int(offsets[e])..<Int(offsets[e + 1]) }
  func count(ofExpert e: Int) -> Int { Int(offsets[e + 1] - offsets[e]) }

  /// What the experts of a group see, or some of them alone. `runs`: with memory for one run.
  func rows(of group: ExpertGroup, only wanted: WantedExperts = .all, in runs: Runs = .none) -> GroupRows {
    GroupRows(
      of: wanted, in: group, most: size.rows(of: group, in: runs), mostTokens: size.tokens,
      inRuns: runs != .none, offsets: offsets + group.first, pairOfRow: pairOfRow, tokenOfRow: tokenOfRow,
      weightOfRow: weightOfRow)
  }

  /// The experts of a group from number `first` on whose rows together have room in the memory for one run.
  func run(of group: ExpertGroup, from first: Int, in runs: Runs) -> ExpertRun {
    let (own, most) = (offsets + group.first, size.rows(of: group, in: runs))
    var end = first + 1
    while end < group.experts && Int(own[end + 1] - own[first]) <= most { end += 1 }
    return ExpertRun(first..<end)
  }
}

/// Whether some token's choices name an expert twice: `expert` says which one a pair names.
func nameTwice(tokens: Int, choices: Int, _ expert: (_ pair: Int) -> Int32) -> Bool {
  for t in 0..<tokens {
    var largest = Int32.noExpert
    for pair in t * choices..<(t + 1) * choices where expert(pair).isExpert {
      // Most lists ascend, or are short.
      if expert(pair) <= largest {
        for before in t * choices..<pair where expert(before) == expert(pair) { return true }
      }
      largest = max(largest, expert(pair))
    }
  }
  return false
}

/// Of a group's experts, those whose work is to be done.
enum WantedExperts {
  case all
  case some(ExpertRun)
  case marked(UnsafePointer<Bool>)  // [experts of the group]: those with a true

  static func one(_ expert: Int) -> WantedExperts { .some(ExpertRun(expert..<expert + 1)) }
  /// One of a run, whose memory has been filled by all of it.
  static func one(_ expert: Int, of run: ExpertRun) -> WantedExperts {
    .some(ExpertRun(expert..<expert + 1, in: run))
  }
}

/// Experts one after another, by their numbers in a group: small, since it is copied along a call.
struct ExpertRun {
  private let first: Int32
  private let end: Int32
  fileprivate let start: Int32  // the first of the run

  init(_ range: Range<Int>, in run: ExpertRun? = nil) {
    (first, end) = (Int32(truncatingIfNeeded: range.lowerBound), Int32(truncatingIfNeeded: range.upperBound))
    start = run?.start ?? first
  }

  var range: Range<Int> { Int(first)..<Int(end) }
}

/// The rows of one group of experts, which are counted from the group's first. Rows keep their numbers among all rows.
struct GroupRows {
  private var wanted: ExpertRun
  var experts: Range<Int> { wanted.range }  // whose work is to be done
  let inRuns: Bool
  private let sizes: (rows: Int32, tokens: Int32)  // small, since groups are copied along a call
  var most: Int { Int(sizes.rows) }  // rows at most
  var mostTokens: Int { Int(sizes.tokens) }  // that these are of
  private let offsets: UnsafePointer<Int32>  // [experts of the group + 1]
  private let pairOfRow: UnsafePointer<Int32>
  private let tokenOfRow: UnsafePointer<Int32>
  private let weightOfRow: UnsafePointer<Float>
  private let marks: UnsafePointer<Bool>?  // [experts of the group]: those without have no rows

  fileprivate init(
    of wanted: WantedExperts, in group: ExpertGroup, most: Int, mostTokens: Int, inRuns: Bool,
    offsets: UnsafePointer<Int32>, pairOfRow: UnsafePointer<Int32>, tokenOfRow: UnsafePointer<Int32>,
    weightOfRow: UnsafePointer<Float>
  ) {
    switch wanted {
    case .all: (self.wanted, marks) = (ExpertRun(0..<group.experts), nil)
    case .some(let run): (self.wanted, marks) = (run, nil)
    case .marked(let marks): (self.wanted, self.marks) = (ExpertRun(0..<group.experts), marks)
    }
    self.inRuns = inRuns
    sizes = (Int32(truncatingIfNeeded: most), Int32(truncatingIfNeeded: mostTokens))
    self.offsets = offsets
    self.pairOfRow = pairOfRow
    self.tokenOfRow = tokenOfRow
    self.weightOfRow = weightOfRow
  }

  /// The group's first row.
  var first: Int { Int(offsets[0]) }
  /// The first expert of the run; of a group that is computed at once, 0. Offsets are not asked, which are not there while memory
  /// is measured.
  private var start: Int { inRuns ? Int(wanted.start) : 0 }
  var isFirstRun: Bool { start == 0 }
  /// Those of all experts of the group.
  func ofAll(_ experts: Int) -> GroupRows {
    var all = self
    all.wanted = ExpertRun(0..<experts)
    return all
  }
  /// How many of the group's rows come before those that its arrays are for.
  var rowsBefore: Int { start == 0 ? 0 : Int(offsets[start]) - first }
  /// The same in tiled arrays.
  func placesBefore(unit: Int) -> Int {
    start == 0 ? 0 : ExpertPiece.firstPlace(rowsBefore, expert: start, unit: unit)
  }
  func rows(ofExpert e: Int) -> Range<Int> {
    let isWanted = experts.contains(e) && (marks?[e] ?? true)
    return Int(offsets[e])..<Int(offsets[isWanted ? e + 1 : e])
  }
  func count(ofExpert e: Int) -> Int { rows(ofExpert: e).count }
  /// How many rows there are, and from which token to which they are of tokens: those of an expert ascend.
  func extent() -> (rows: Int, tokens: Range<Int>) {
    var (rows, first, end) = (0, Int32.max, Int32(0))
    for e in experts {
      let own = self.rows(ofExpert: e)
      if own.isEmpty { continue }
      rows += own.count
      first = min(first, tokenOfRow[own.lowerBound])
      end = max(end, tokenOfRow[own.upperBound - 1] + 1)
    }
    return (rows, rows == 0 ? 0..<0 : Int(first)..<Int(end))
  }
  func pairs(from row: Int) -> UnsafePointer<Int32> { pairOfRow + row }
  func tokens(from row: Int) -> UnsafePointer<Int32> { tokenOfRow + row }
  func weights(from row: Int) -> UnsafePointer<Float> { weightOfRow + row }
}
