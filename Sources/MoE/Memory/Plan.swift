/// How a call is divided: tokens are computed chunk by chunk, and forward leaves more or less for backward. Neither
/// changes a bit of the result: chunks begin at a multiple of the blocks in which tokens are routed, and sums over tokens
/// go on where the chunk before left them.
public struct Plan {
  /// Numbers as in moe_tape_policy.
  public enum TapePolicy: Int32 {
    case full = 1  // pre-activations are kept
    case lean = 2  // they are computed again
  }

  let policy: TapePolicy
  let chunk: ChunkSize
  let lastChunk: ChunkSize
  let tokens: Int  // T

  init(_ c: Configuration, _ call: Call, policy: TapePolicy, chunkTokens: Int) {
    self.policy = policy
    tokens = call.tokens
    let size = min(chunkTokens, call.tokens)
    let mayRepeat = c.mayRepeatChoices(call)
    chunk = ChunkSize(tokens: size, mostRows: c.mostRows(call, of: size), mayRepeat: mayRepeat)
    let rest = size == 0 ? 0 : tokens % size
    lastChunk = rest == 0 ? chunk : ChunkSize(tokens: rest, mostRows: c.mostRows(call, of: rest), mayRepeat: mayRepeat)
  }

  var chunks: Int { chunk.tokens == 0 ? 1 : (tokens + chunk.tokens - 1) / chunk.tokens }
  func tokens(ofChunk i: Int) -> Range<Int> { i * chunk.tokens..<min((i + 1) * chunk.tokens, tokens) }
}

/// What memory for one chunk has to hold. Two words, since it is copied along a call.
struct ChunkSize {
  let mostRows: Int
  private let tokenCount: Int32
  private let mayRepeat: Bool
  var tokens: Int { Int(tokenCount) }

  /// `mayRepeat`: whether a token may name a chosen expert twice.
  init(tokens: Int, mostRows: Int, mayRepeat: Bool) {
    self.mostRows = mostRows
    tokenCount = Int32(truncatingIfNeeded: tokens)
    self.mayRepeat = mayRepeat
  }

  /// A token may name a chosen expert twice, a shared one never.
  func rows(of group: ExpertGroup) -> Int { group.isShared ? tokens * group.experts : mostRows }

  /// Rows of those experts that are computed together, which is what arrays between their matrices have room for: in a backward as many
  /// as a single expert can have, but not so few that threads would have little to share; in the forward before it so many that its one
  /// array is as large as all of backward's.
  func rows(of group: ExpertGroup, in runs: Runs) -> Int {
    let all = rows(of: group)
    if runs == .none || mayRepeat && !group.isShared { return all }
    let one = max(tokens, rowsPerBlock)
    return min(all, runs == .ofBackward ? one : one * (group.gated ? 3 : 2))
  }
}

/// How a group's experts are computed: all at once, or run by run, consecutive ones together. The raw type is for the linker, see ExpertForm.
enum Runs: UInt8 { case none, ofForward, ofBackward }
